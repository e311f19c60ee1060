"""Prints the body of one phase: loops, scopes, and values on demand.

In: a `PhasePlan` and the kernel's buffers. Out: lines of LLVM text. `memory.py`, `compute.py` and
`reductions.py` hold what a load, a pointwise function and an accumulator look like; they are handed
the `PhaseEmitter` and call back for operands.

Scopes. Every loop of the plan opens a scope; a value is computed in the deepest scope among its
axes and remembered there. An outer scope's lines are written before the loop that is being filled,
so pulling a loop-invariant value from inside a loop places it in front of that loop. Loop counters
and accumulators are stack slots: LLVM promotes them to registers.

Pieces. The vector loop is printed as pieces that differ in how many elements one iteration covers:
a main piece of `unroll` vectors, then single vectors for what is left (masked, or element by
element where masked accesses are slow).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from torch_helion import exc
from torch_helion.codegen.llvm import columns, compute, memory, precision, reductions
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.registers import Piece, Reg, Scope
from torch_helion.codegen.llvm.schedule import Loop, LoopAxis, Node, PhasePlan, Sink
from torch_helion.codegen.llvm.text import Names, SizeEmitter, literal, register_type, splat
from torch_helion.codegen.llvm.vector_math import MathLibrary
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Buffer


class PhaseEmitter:
    """State of printing one phase function."""

    def __init__(
        self,
        plan: PhasePlan,
        buffers: Mapping[str, Buffer],
        pointers: Mapping[str, str],
        sizes: SizeEmitter,
        names: Names,
        math: MathLibrary,
        machine: Machine,
        width: int,
        unroll: int,
        streaming: frozenset[str],
    ) -> None:
        self.plan = plan
        self.buffers = buffers
        self.pointers = pointers
        self.sizes = sizes
        self.names = names
        self.math = math
        self.machine = machine
        self.width = width
        self.unroll = unroll
        self.streaming = streaming
        self.declares: set[str] = set()
        self.slots: list[str] = []  # allocas of the entry block
        self.scopes: list[Scope] = [Scope(None, sizes.code)]
        self.current = self.scopes[0]
        self.index: dict[str, str] = {}  # axis or tile id name -> i64 operand
        self.begin: dict[str, str] = {}  # first index of a block axis's tile
        self.piece: Piece | None = None
        self.filled: set[Value] = set()  # arrays whose sweep is complete
        self.sweep: Loop | None = None  # the vector loop that is being printed
        self.down: str | None = None  # the axis that strips of columns walk down
        self.sweeps_of: dict[Op, list[Loop]] = {}  # the vector loops that a load stands in
        self.accumulators: dict[
            Op, reductions.Accumulator | reductions.ArgAccumulator | columns.Strip
        ] = {}
        self.layout = memory.ScratchLayout(self)
        self.short = self.find_short()

    def find_short(self) -> dict[Op, tuple[str, Value]]:
        """Operations for which a less precise function is enough."""
        return precision.short_functions(self.plan)

    # -- lines
    # --------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.current.code.append(f"  {text}")

    def let(self, text: str, hint: str = "v") -> str:
        name = self.names.fresh(hint)
        self.current.code.append(f"  {name} = {text}")
        return name

    def slot(self, type: str, hint: str) -> str:
        name = self.names.fresh(hint)
        self.slots.append(f"  {name} = alloca {type}, align 64")
        return name

    def call(self, result: str, symbol: str, *arguments: tuple[str, str], hint: str = "v") -> str:
        """Call an intrinsic or library function and declare it; arguments: (type, operand)."""
        self.declares.add(f"declare {result} @{symbol}({', '.join(t for t, _ in arguments)})")
        text = f"call {result} @{symbol}({', '.join(f'{t} {v}' for t, v in arguments)})"
        if result == "void":
            self.line(text)
            return ""
        return self.let(text, hint)

    def call_math(self, function: str, dtype: torch.dtype, width: int, *operands: str) -> str:
        """Call one of our own vector functions."""
        type = register_type(dtype, width)
        symbol = self.math.use(function, "f64" if dtype is torch.float64 else "f32", width)
        arguments = ", ".join(f"{type} {o}" for o in operands)
        return self.let(f"call {type} {symbol}({arguments})", function)

    @contextmanager
    def at(self, scope: Scope) -> Iterator[None]:
        saved, self.current = self.current, scope
        try:
            yield
        finally:
            self.current = saved

    # -- values
    # -------------------------------------------------------------------------------------

    def scope_of(self, names: frozenset[str] | tuple[str, ...]) -> Scope:
        """The deepest open scope among these axes; the grid step's when there is none."""
        for scope in reversed(self.scopes[2:]):
            if scope.axis in names:
                return scope
        return self.scopes[1] if len(self.scopes) > 1 else self.scopes[0]

    def in_vector_scope(self, scope: Scope) -> bool:
        return self.plan.vector is not None and scope.axis == self.plan.vector

    def get(self, value: Value) -> Reg:
        """The registers of a value, computed in its own scope the first time."""
        scope = self.scope_of(value.type.axis_names)
        reg = scope.values.get(value)
        if reg is None:
            with self.at(scope):
                reg = self._produce(value, scope)
            scope.values[value] = reg
        return reg

    def _produce(self, value: Value, scope: Scope) -> Reg:
        array = self.plan.arrays.get(value)
        if array is not None and value in self.filled:
            return compute.load_array(self, value, scope)
        op = self.plan.producer[value]
        if op in self.accumulators:
            raise exc.CodegenError(f"llvm: {value} is read before its reduction is finished")
        reg = compute.produce(self, op, scope)
        if array is not None:
            memory.store_array(self, value, reg, scope)
        return reg

    def widen(self, reg: Reg, scope: Scope) -> tuple[str, ...]:
        """Operand texts of a register for the piece of `scope`: one per vector."""
        if not self.in_vector_scope(scope) or self.piece is None:
            return reg.names
        if reg.vector:
            return reg.names
        if self.piece.width == 1:
            return reg.names * self.piece.count
        return (self.broadcast(reg.names[0], reg.dtype),) * self.piece.count

    def broadcast(self, scalar: str, dtype: torch.dtype) -> str:
        """A scalar in all lanes of a vector (in the innermost scope; LLVM hoists it)."""
        assert self.piece is not None
        element = register_type(dtype)
        if not scalar.startswith("%"):
            return splat(scalar, element)
        key = (scalar, f"{element}x{self.piece.width}")
        if key not in self.current.splats:
            vector = register_type(dtype, self.piece.width)
            one = self.let(f"insertelement {vector} poison, {element} {scalar}, i64 0")
            self.current.splats[key] = self.let(
                f"shufflevector {vector} {one}, {vector} poison, "
                f"<{self.piece.width} x i32> zeroinitializer"
            )
        return self.current.splats[key]

    def lanes(self, element: str = "i64") -> str:
        """Constant vector 0, 1, 2, … of the piece's width."""
        assert self.piece is not None
        return f"<{', '.join(f'{element} {i}' for i in range(self.piece.width))}>"

    # -- the function
    # -------------------------------------------------------------------------------

    def run(self) -> None:
        """Print all grid steps."""
        plan = self.plan
        tiles = {a.name: self.sizes.ceil_div(a.size, plan.blocks[a.name]) for a in plan.grid}
        self.layout.place()
        counter = self.slot("i64", "step")
        with self.loop(counter, "%begin", "%end", "1", None, "step") as step:
            self._decode_step(step, tiles)
            self.nodes(plan.nodes)

    def _decode_step(self, step: str, tiles: Mapping[str, str]) -> None:
        rest = step
        for position, axis in enumerate(reversed(self.plan.grid)):
            last = position == len(self.plan.grid) - 1
            count = tiles[axis.name]
            number = rest if last else self.let(f"urem i64 {rest}, {count}", f"id_{axis.name}")
            if not last:
                rest = self.let(f"udiv i64 {rest}, {count}", "rest")
            block = self.plan.blocks[axis.name]
            self.index[axis.id_name] = number
            first = (
                number
                if block == 1
                else self.let(f"mul nsw i64 {number}, {block}", f"first_{axis.name}")
            )
            self.begin[axis.name] = self.index[axis.name] = first

    @contextmanager
    def loop(
        self, counter: str, lo: str, hi: str, step: str, axis: str | None, hint: str
    ) -> Iterator[str]:
        """A counted loop; its inside is the new innermost scope."""
        head, body, done = (self.names.fresh(f"{hint}_{part}") for part in ("head", "body", "done"))
        outer = self.current
        scope = Scope(axis)
        self.scopes.append(scope)
        self.current = scope
        index = self.names.fresh(hint)
        yield index
        assert self.current is scope
        self.scopes.pop()
        self.current = outer
        test = self.names.fresh("more")
        following = self.names.fresh("next")
        outer.code += [
            f"  store i64 {lo}, ptr {counter}",
            f"  br label {head}",
            f"{head[1:]}:",
            f"  {index} = load i64, ptr {counter}",
            f"  {test} = icmp slt i64 {index}, {hi}",
            f"  br i1 {test}, label {body}, label {done}",
            f"{body[1:]}:",
            *scope.code,
            f"  {following} = add nsw i64 {index}, {step}",
            f"  store i64 {following}, ptr {counter}",
            f"  br label {head}",
            f"{done[1:]}:",
        ]

    @contextmanager
    def inline_scope(self, axis: str | None) -> Iterator[None]:
        """A scope without a loop of its own: values with `axis` belong to this place."""
        outer, scope = self.current, Scope(axis)
        self.scopes.append(scope)
        self.current = scope
        yield
        self.scopes.pop()
        self.current = outer
        outer.code += scope.code

    def nodes(self, nodes: Sequence[Node | columns.Rows]) -> None:
        for node in nodes:
            if isinstance(node, Sink):
                self._sink(node.op)
            elif isinstance(node, columns.Rows):
                node.emit(self)
            elif columns.fits(self, node):
                columns.sweep(self, node)
            else:
                self._sweep(node)

    def _sink(self, op: Op) -> None:
        if op.kind == "store":
            memory.store(self, op, self.current)
        elif op.kind == "assert":
            compute.check(self, op, self.current)
        else:
            self.accumulators[op].update(self.get(op.operands[0]))

    def _sweep(self, loop: Loop) -> None:
        for op in loop.reductions:
            self.accumulators[op] = reductions.start(self, op)
        if loop.axis.name == self.plan.vector:
            self.vector_sweep(loop)
        else:
            lo, hi = self.bounds(loop.axis)
            with self.loop(
                self.slot("i64", f"at_{loop.axis.name}"),
                lo,
                hi,
                "1",
                loop.axis.name,
                loop.axis.name,
            ) as index:
                saved = self.index.get(loop.axis.name)
                self.index[loop.axis.name] = index
                self.nodes(loop.body)
            self.restore(loop.axis.name, saved)
        for op in loop.reductions:
            self.accumulators.pop(op).finish()
        self.filled.update(loop.kept)

    def restore(self, name: str, saved: str | None) -> None:
        if saved is None:
            self.index.pop(name)
        else:
            self.index[name] = saved

    def bounds(self, axis: LoopAxis) -> tuple[str, str]:
        """[lo, hi) of a loop in this grid step."""
        if axis.block is None:
            return "0", self.sizes(axis.axis.size)
        lo = self.begin[axis.name]
        scope = self.scopes[1]
        key = ("hi", axis.name)
        if key not in scope.memo:
            with self.at(scope):
                end = self.let(f"add nsw i64 {lo}, {axis.block}", f"end_{axis.name}")
                size = self.sizes(axis.axis.size)
                scope.memo[key] = self.call(
                    "i64", "llvm.smin.i64", ("i64", end), ("i64", size), hint="end"
                )
        return lo, scope.memo[key]

    # -- the vector loop
    # ------------------------------------------------------------------------------

    def vector_sweep(self, loop: Loop) -> None:
        self.sweep = loop
        lo, hi = self.bounds(loop.axis)
        width, unroll = self.width, self.unroll
        static = int(hi) if lo == "0" and hi.isdigit() else None
        chunk = width * unroll
        if static is None:
            main = self.let(f"sub nsw i64 {hi}, {lo}", "length")
            main = self.let(f"and i64 {main}, {-chunk}", "main")
            main = self.let(f"add nsw i64 {lo}, {main}", "main")
        else:
            main = str(static // chunk * chunk)
        if static is None or static >= chunk:
            self._main_piece(loop, lo, main, Piece(width, unroll), static)
        if static is not None and static % chunk == 0:
            return
        self._tail(loop, main, hi, static)

    def _main_piece(self, loop: Loop, lo: str, hi: str, piece: Piece, static: int | None) -> None:
        """The unrolled piece; long float sums are flushed once a block, so that they do not
        stagnate.
        """
        chunk = piece.width * piece.count
        block = reductions.FLUSH_ITERATIONS * chunk
        flushed = [a for a in self.accumulators.values() if a.flushes]
        if not flushed or (static is not None and static <= block):
            self._piece(loop, lo, hi, piece, chunk)
        else:
            with self.loop(self.slot("i64", "block"), lo, hi, str(block), None, "block") as first:
                end = self.let(f"add nsw i64 {first}, {block}", "block_end")
                end = self.call("i64", "llvm.smin.i64", ("i64", end), ("i64", hi))
                self._piece(loop, first, end, piece, chunk)
                for accumulator in flushed:
                    accumulator.flush()
            return
        for accumulator in flushed:
            accumulator.flush()

    def _tail(self, loop: Loop, lo: str, hi: str, static: int | None) -> None:
        width = self.width
        if static is not None:
            whole = (static - int(lo)) // width * width
            if whole:
                self._piece(loop, lo, str(int(lo) + whole), Piece(width, 1), width)
                lo = str(int(lo) + whole)
            if lo == hi:
                return
        if not self.masked_tails or (static is not None and static - int(lo) <= 1):
            if static is None:
                rest = self.let(f"sub nsw i64 {hi}, {lo}")
                rest = self.let(f"and i64 {rest}, {-width}")
                middle = self.let(f"add nsw i64 {lo}, {rest}", "vectors_end")
                self._piece(loop, lo, middle, Piece(width, 1), width)
                lo = middle
            self._piece(loop, lo, hi, Piece(1, 1), 1)
        else:
            self._piece(loop, lo, hi, Piece(width, 1, "mask"), width)

    @property
    def masked_tails(self) -> bool:
        """Masked vector accesses are one instruction only with AVX-512."""
        return self.machine.vector_bits >= 512

    def _piece(self, loop: Loop, lo: str, hi: str, piece: Piece, step: int) -> None:
        name = loop.axis.name
        with self.loop(self.slot("i64", f"at_{name}"), lo, hi, str(step), name, name) as index:
            saved, self.index[name] = self.index.get(name), index
            saved_piece = self.piece
            if piece.mask is not None:
                piece = Piece(piece.width, piece.count, self._tail_mask(index, hi, piece.width))
            self.piece = piece
            self.nodes(loop.body)
            self.piece = saved_piece
        self.restore(name, saved)

    def _tail_mask(self, index: str, hi: str, width: int) -> str:
        left = self.let(f"sub nsw i64 {hi}, {index}", "left")
        left = self.call("i64", "llvm.smin.i64", ("i64", left), ("i64", str(width)))
        left = self.let(f"trunc i64 {left} to i32", "left")
        one = self.let(f"insertelement <{width} x i32> poison, i32 {left}, i64 0")
        all = self.let(
            f"shufflevector <{width} x i32> {one}, <{width} x i32> poison, "
            f"<{width} x i32> zeroinitializer"
        )
        numbers = ", ".join(f"i32 {i}" for i in range(width))
        return self.let(f"icmp ult <{width} x i32> <{numbers}>, {all}", "mask")

    def set_status(self, code: int, bad: str) -> None:
        """Remember an error status when the i1 `bad` holds."""
        old = self.let("load i64, ptr %status")
        self.line(f"store i64 {self.let(f'select i1 {bad}, i64 {code}, i64 {old}')}, ptr %status")

    def constant(self, value: float | int | bool, dtype: torch.dtype) -> Reg:
        return Reg((literal(value, dtype),), dtype)
