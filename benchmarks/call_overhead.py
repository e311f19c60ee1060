"""What a call costs before and between kernels: microseconds of graphs whose arithmetic is next to
nothing.

What flows in: nothing but options. What flows out: a table of microseconds per call. The floor is
what Dynamo and AOTAutograd cost with a compiler that returns constants made beforehand; no backend
of this kind can be faster. Three graphs: one small kernel; a chain of 20 small kernels (each needs
the sum of the one before); 20 small kernels of different sizes with an output each.

    python benchmarks/call_overhead.py --threads 1
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from harness import facts_text, geomean, has_compiler, machine_facts, save, time_interleaved

if True:  # torch is imported by the harness first, in the process with the right allocator
    import torch
    from torch._dynamo.backends.common import aot_autograd

KERNELS = 20


def one(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def chain(x: torch.Tensor) -> torch.Tensor:
    """A whole reduction between each two pointwise steps: twenty kernels to a compiler of loops."""
    for _ in range(KERNELS):
        x = x - x.sum() * 1e-3
    return x


def outputs(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sizes differ, so that nothing fuses."""
    return tuple(x * 2 + i for i, x in enumerate(inputs))


GRAPHS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "one kernel": (one, (torch.randn(64),)),
    "chain of 20": (chain, (torch.randn(64),)),
    "20 outputs": (outputs, tuple(torch.randn(48 + 16 * i) for i in range(KERNELS))),
}


def constants(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """A "compiled" graph that returns tensors made now: what is left is the cost of the entry."""
    node = next(n for n in graph.graph.nodes if n.op == "output")
    metas = [n.meta["val"] for n in node.args[0]]
    with torch.utils._python_dispatch._disable_current_modes():
        made = [torch.zeros(m.shape, dtype=m.dtype) for m in metas]

    def call(inputs: list[Any]) -> list[torch.Tensor]:
        inputs.clear()
        return list(made)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def candidates(backends: Sequence[str]) -> dict[str, Callable[[Callable[..., Any]], Any]]:
    """How each column compiles a function."""
    made: dict[str, Callable[[Callable[..., Any]], Any]] = {
        "eager": lambda f: f,
        "floor": lambda f: torch.compile(f, backend=aot_autograd(fw_compiler=constants)),
    }
    for backend in backends:
        made[backend] = lambda f, b=backend: torch.compile(f, backend=b)
    if "inductor" in backends:
        quiet = {"size_asserts": False}
        made["inductor*"] = lambda f: torch.compile(f, options=quiet)
    return made


def measure(
    function: Callable[..., Any],
    args: tuple[torch.Tensor, ...],
    backends: Sequence[str],
    seconds: float,
) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds per call, and what went wrong, by column."""
    torch._dynamo.reset()
    calls: dict[str, Callable[[], object]] = {}
    problems: dict[str, str] = {}
    expected = function(*args)
    for name, compile_it in candidates(backends).items():
        try:
            run = compile_it(function)
            result = run(*args)
            if name != "floor":
                torch.testing.assert_close(result, expected)
        except Exception as error:  # the other columns go on
            problems[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        calls[name] = lambda run=run: run(*args)
    samples = time_interleaved(calls, seconds, shortest_sample=1e-3)
    return {name: statistics.median(s) * 1e6 for name, s in samples.items()}, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per graph")
    parser.add_argument("--backends", default="", help="default: inductor if it can, helion")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--default-malloc", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backends = args.backends.split(",") if args.backends else []
    backends = backends or [*(["inductor"] if has_compiler() else []), "helion"]
    facts = machine_facts()
    columns = list(candidates(backends))
    lines = [
        facts_text(facts),
        f"{args.threads} threads; microseconds per call; inductor*: without size assertions",
        f"{'graph':14}" + "".join(f"{c:>12}" for c in columns) + f"{'helion-floor':>14}",
    ]
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for name, (function, inputs) in GRAPHS.items():
            times, problems = measure(function, inputs, backends, args.seconds)
            above = times.get("helion", math.nan) - times.get("floor", math.nan)
            cells = "".join(f"{times.get(c, math.nan):12.1f}" for c in columns)
            lines.append(f"{name:14}{cells}{above:14.1f}")
            lines += [f"    {column}: {why[:140]}" for column, why in problems.items()]
            rows.append({"graph": name, "microseconds": times, "problems": problems})
    if all("inductor" in r["microseconds"] and "helion" in r["microseconds"] for r in rows):
        ratio = geomean([r["microseconds"]["inductor"] / r["microseconds"]["helion"] for r in rows])
        lines.append(f"inductor / helion, geomean: {ratio:.2f}")
    print("\n".join(lines))
    if not args.no_save:
        save("call_overhead", facts, rows, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
