"""Load plans of ranks: parts that make the whole; two real processes that hold one half each."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys

import pytest
import torch

from test.weights.weight_files import ROOT, assert_same
from torch_helion import weights

RULES = {"*.q.weight": 0, "*.o.weight": 1, "*.norm.weight": None}


def checkpoint(path: pathlib.Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    tensors = {
        "l0.q.weight": torch.randn(10, 6),
        "l0.o.weight": torch.randn(6, 11).to(torch.bfloat16),
        "l0.norm.weight": torch.randn(6),
        "emb": torch.randn(3, 3),
    }
    weights.save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("world", [1, 2, 3, 4, 13])
def test_parts_make_the_whole(tmp_path: pathlib.Path, world: int) -> None:
    path = tmp_path / "m.safetensors"
    tensors = checkpoint(path)
    parts = [
        weights.load_file(path, mode="read", plan=weights.rank_plan(path, RULES, rank, world))
        for rank in range(world)
    ]
    for name, dim in {"l0.q.weight": 0, "l0.o.weight": 1}.items():
        assert_same(torch.cat([p[name] for p in parts], dim), tensors[name])
        chunks = tensors[name].chunk(world, dim)
        for rank, chunk in enumerate(chunks):
            assert_same(parts[rank][name], chunk)
    for part in parts:
        assert_same(part["emb"], tensors["emb"])
        assert_same(part["l0.norm.weight"], tensors["l0.norm.weight"])


def test_wrong_plans(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoint(path)
    with pytest.raises(ValueError, match="rank"):
        weights.rank_plan(path, RULES, 2, 2)
    with pytest.raises(weights.WeightsError, match="divides dimension 2"):
        weights.rank_plan(path, {"emb": 2}, 0, 2)


def test_a_rank_fills_its_smaller_parameters(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"weight": torch.randn(8, 6), "bias": torch.randn(8)}
    weights.save_file(tensors, path)
    for rank in range(2):
        half = torch.nn.Linear(6, 4)
        plan = weights.rank_plan(path, {"weight": 0, "bias": 0}, rank, 2)
        assert weights.load_model(half, path, plan=plan) == ([], [])
        assert_same(half.weight, tensors["weight"].chunk(2)[rank])
        assert_same(half.bias, tensors["bias"].chunk(2)[rank])


RANK = """
import os, sys
import torch, torch.distributed as dist
from torch_helion import weights
from torch_helion.weights import file as weight_file

path, rank, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
dist.init_process_group("gloo", rank=rank, world_size=2)
read, real = [0], os.preadv
def counted(descriptor, views, offset, *flags):
    read[0] += 0 if flags else sum(map(len, views))
    return real(descriptor, views, offset, *flags)
weight_file.os.preadv = counted
plan = weights.rank_plan(path, {"rows": 0, "columns": 1}, rank, 2)
read[0] = 0
mine = weights.load_file(path, mode="read", plan=plan)
data = sum(t.nbytes for t in mine.values())
assert read[0] == 4096 + data, (read[0], data)
whole = weights.load_file(path)
assert data * 2 == sum(t.nbytes for t in whole.values())
for name, dim in (("rows", 0), ("columns", 1)):
    parts = [torch.empty_like(mine[name]) for _ in range(2)]
    dist.all_gather(parts, mine[name])
    assert torch.equal(torch.cat(parts, dim), whole[name]), name
dist.destroy_process_group()
print("equal")
"""


def test_two_ranks_load_disjoint_halves(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    weights.save_file({"rows": torch.randn(64, 100), "columns": torch.randn(32, 4096)}, path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(path), str(rank), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "equal\n"), error
