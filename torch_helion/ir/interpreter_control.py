"""Rows of the interpreter: loops, branches, bound sizes, checks, prints.

In: a `Machine` and an op. Out: the tensors of the op's results. Used by `interpreter.py` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch_helion import exc
from torch_helion.ir.graph import Op
from torch_helion.ir.interpreter_state import Machine, Results


def _loop(m: Machine, op: Op) -> Results:
    if op.attrs["kind"] not in ("grid", "tile", "sequential"):
        raise exc.TargetIncomplete("interpreter", [f"loop of kind {op.attrs['kind']}"])
    (body,) = op.regions
    carried: Results = [m.values[v] for v in op.operands]
    for _ in m.steps(op):
        m.values.update(zip(body.args, carried, strict=True))
        carried = m.run_region(body)
    return carried


def _if(m: Machine, op: Op) -> Results:
    condition, *_ = op.operands
    then, otherwise = op.regions
    return m.run_region(then if bool(m.values[condition]) else otherwise)


def _while(m: Machine, op: Op) -> Results:
    condition, body = op.regions
    carried: Results = [m.values[v] for v in op.operands]
    while True:
        m.values.update(zip(condition.args, carried, strict=True))
        (proceed,) = m.run_region(condition)
        if not bool(proceed):
            return carried
        m.values.update(zip(body.args, carried, strict=True))
        carried = m.run_region(body)


def _bind(m: Machine, op: Op) -> Results:
    m.current[op.attrs["symbol"]] = int(m.values[op.operands[0]])
    return ()


def _assert(m: Machine, op: Op) -> Results:
    if not bool(m.values[op.operands[0]].all()):
        if op.attrs["status"] == 1:
            raise IndexError(f"index out of range: {op}")
        raise RuntimeError("ZeroDivisionError")
    return ()


BREAKPOINT = "<breakpoint>"
"""The text of a print that stops in the debugger instead."""


def _print(m: Machine, op: Op) -> Results:
    if op.attrs["text"] == BREAKPOINT:
        breakpoint()
        return ()
    print(op.attrs["text"], *(m.values[v].tolist() for v in op.operands))
    return ()


def _barrier(m: Machine, op: Op) -> Results:
    return ()  # phases run one after another here


CONTROL_ROWS: Mapping[str, Callable[[Machine, Op], Results]] = {
    "loop": _loop,
    "if": _if,
    "while": _while,
    "bind": _bind,
    "assert": _assert,
    "print": _print,
    "barrier": _barrier,
}
