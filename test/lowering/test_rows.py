"""The visible tuple of families: no row twice, enough rows, rows for what compiled graphs hold."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch

from test.lowering.eager_check import LOWERINGS
from torch_helion import exc
from torch_helion.lowering.pointwise import POINTWISE
from torch_helion.lowering.registry import Lowering, table
from torch_helion.lowering.rows import LOWERINGS as WITHOUT_INDUCTOR

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Compute overloads of post-grad graphs of BERT, GPT-2, Llama, T5, common modules and losses.
SEEN = (
    "aten.abs.default",
    "aten.add.Scalar",
    "aten.add.Tensor",
    "aten.amax.default",
    "aten.any.dim",
    "aten.bitwise_and.Tensor",
    "aten.bitwise_or.Tensor",
    "aten.clamp_max.default",
    "aten.clamp_min.Tensor",
    "aten.clamp_min.default",
    "aten.clone.default",
    "aten.cos.default",
    "aten.div.Scalar",
    "aten.div.Tensor",
    "aten.eq.Scalar",
    "aten.eq.Tensor",
    "aten.erf.default",
    "aten.exp.default",
    "aten.expm1.default",
    "aten.full.default",
    "aten.ge.Scalar",
    "aten.gt.Scalar",
    "aten.isnan.default",
    "aten.le.Scalar",
    "aten.log.default",
    "aten.log1p.default",
    "aten.logical_and.default",
    "aten.logical_not.default",
    "aten.lt.Scalar",
    "aten.maximum.default",
    "aten.mean.default",
    "aten.mean.dim",
    "aten.minimum.default",
    "aten.mul.Scalar",
    "aten.mul.Tensor",
    "aten.ne.Scalar",
    "aten.neg.default",
    "aten.pow.Tensor_Scalar",
    "aten.reciprocal.default",
    "aten.relu.default",
    "aten.rsqrt.default",
    "aten.scalar_tensor.default",
    "aten.sigmoid.default",
    "aten.sign.default",
    "aten.sin.default",
    "aten.sqrt.default",
    "aten.sub.Tensor",
    "aten.sum.default",
    "aten.sum.dim_IntList",
    "aten.tanh.default",
    "aten.var_mean.correction",
    "aten.where.self",
    "prims.convert_element_type.default",
    "prims.fma.default",
    "prims.inductor_lookup_seed.default",
    "prims.inductor_random.default",
    "prims.iota.default",
)


def test_seen_overloads_have_rows() -> None:
    names = {str(overload) for overload in LOWERINGS}
    assert set(SEEN) <= names, sorted(set(SEEN) - names)
    assert len(LOWERINGS) >= 150


def test_inductor_prims_are_rows_of_graphs_only() -> None:
    added = {str(overload) for overload in LOWERINGS.keys() - WITHOUT_INDUCTOR.keys()}
    assert "prims.fma.default" in added and "prims.inductor_random.default" in added
    assert all(name.startswith("prims.") for name in added)


def test_two_rows_for_one_overload_raise() -> None:
    with pytest.raises(exc.LoweringError, match="two lowerings"):
        table(POINTWISE, POINTWISE[:1])


def test_scans_and_generators_have_no_rows() -> None:
    aten = torch.ops.aten
    for overload in (aten.cumsum.default, aten.rand.default, aten.bernoulli.p, aten.sort.default):
        assert overload not in LOWERINGS


def test_rules_have_names() -> None:
    for row in LOWERINGS.values():
        assert isinstance(row, Lowering)
        assert row.rule.__name__ not in ("<lambda>", "rule"), row.overload


def test_the_list_of_operators_is_current() -> None:
    """docs/operators.md is what tools/list_operators.py writes."""
    command = [sys.executable, str(ROOT / "tools" / "list_operators.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
