"""A problem whose configs do what their names say: right ones, and several kinds of wrong ones.

The kernel is ``out[i] = 2 * x[i]`` over float32, as text of the llvm target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.problem import Instance, Judge, Prepared, Problem
from torch_helion.autotuner.space import Space
from torch_helion.config import Config
from torch_helion.config_spec import ConfigSpec, EnumFragment
from torch_helion.ir.accuracy import compare
from torch_helion.settings import Settings

HEADER = (
    '; torch_helion kernel {"name": "twice", "tensors": ["float32", "float32"], "ints": 0, '
    '"phases": 1, "format": 1}\n'
)
BODY = """
define void @twice_plan(ptr %args, ptr %out) nounwind {{
  store i64 0, ptr %out
  %steps = getelementptr i64, ptr %out, i64 1
  store i64 1, ptr %steps
  %cost = getelementptr i64, ptr %out, i64 2
  store i64 1000, ptr %cost
  %scratch = getelementptr i64, ptr %out, i64 3
  store i64 0, ptr %scratch
  ret void
}}

define i64 @twice_phase0(ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %workspace) nounwind {{
entry:
  %source = load ptr, ptr %args
  %slot = getelementptr ptr, ptr %args, i64 1
  %target = load ptr, ptr %slot
{first}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %from = getelementptr float, ptr %source, i64 %i
  %to = getelementptr float, ptr %target, i64 %i
  %x = load float, ptr %from
  %y = fmul float %x, {factor}
  store float %y, ptr %to
  %next = add i64 %i, {step}
  %more = icmp slt i64 %next, {count}
  br i1 %more, label %loop, label %end_
end_:
  ret i64 {status}
}}
"""
COUNT = 1000

KINDS: dict[str, dict[str, Any]] = {
    "right": {},
    "again": {"first": "  ; the same in other words"},
    "wrong": {"factor": "3.0"},
    "nearly": {"factor": "0x4000010000000000"},  # 2.0000305
    "half": {"count": COUNT // 2},
    "behind": {"count": COUNT + 3},
    "before": {"first": "  %b = getelementptr i8, ptr %target, i64 -64\n  store float 1.0, ptr %b"},
    "input": {"first": "  store float 1.0, ptr %source"},
    "crash": {"first": "  store volatile float 1.0, ptr null"},
    "trap": {"first": "  call void @llvm.trap()"},
    "hang": {"step": 0},
    "status": {"status": 1},
    "text": {"first": "  this is no instruction"},
}


def text_of(kind: str, count: int = COUNT) -> str:
    """The kernel's text."""
    values = {"first": "", "factor": "2.0", "step": 1, "count": count, "status": 0} | KINDS[kind]
    return HEADER + BODY.format(**values) + "declare void @llvm.trap()\n"


def problem(
    kinds: list[str], prepare: Callable[[Config], Any] | None = None, **chosen: Any
) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    """The problem, its input and its output. The first kind is the default."""
    x, out = torch.arange(COUNT, dtype=torch.float32), torch.full((COUNT,), float("nan"))
    instance = Instance([x, out], (), (1,), ("x", "out"), False, _judge)
    spec = ConfigSpec(user_defined_tunables={"kind": EnumFragment(kinds)})
    made = Problem(
        "twice",
        Space(spec, Config(kind=kinds[0])),
        Settings(autotune_log_level=0, **chosen),
        prepare or (lambda config: Prepared(text_of(config["kind"]), instance)),
    )
    return made, x, out


def _judge(arena: Arena) -> Judge:
    x = arena.tensors(arena.image)[0].clone()

    def judge(outputs: Any) -> str | None:
        return compare(outputs[0], x.double() * 2, x * 2)

    return judge
