"""Every error and warning of the package: one class per mistake, its message template in the class.

What flows in: the facts of one mistake and, for mistakes in a kernel, where they stand in the
user's source. What flows out: an exception whose text says what is wrong, quotes the user's line
with a caret, and says what to do. Floor 0: anything may import this module; it imports nothing of
ours.

    Base (RuntimeError)
    ├── InvalidOption      a name that does not exist (option, mode, setting); says the nearest
    ├── InvalidValue       an option or setting that exists, with a value it cannot take
    ├── CaptureError       a part of a graph could not become a kernel; the graph keeps its nodes
    ├── LoweringError      an op or dtype without a row in the lowering tables
    ├── VerifierError      a kernel in the tile IR breaks a rule of the IR
    ├── CodegenError       a target could not print or build a kernel
    ├── AccuracyError      a built kernel failed the comparison with the float64 evaluation
    ├── CacheError         the artifact cache cannot be used (permissions, damage)
    ├── TargetIncomplete   a target's record has no row for some op
    ├── KernelError        a mistake in a user's kernel or in how it is called: the classes below
    └── BaseWarning        what is printed and goes on; Settings.ignore_warnings silences it

A template's field names, in order of appearance, are the constructor's parameters; each may be
given by position or by name and is kept as an attribute: ``LoweringError("erf", torch.int8, "no
row").dtype``. ``advice`` is a second template: the sentence that says what to do.

Where the mistake is: ``raise exc.RankMismatch(2, 3, "x").at(location)``, or ``with
exc.located(location):`` around code that raises; the innermost location wins.

File length: one table of all errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import linecache
import string
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

_Self = TypeVar("_Self", bound="Base")

# ---------------------------------------------------------------------- where


@dataclasses.dataclass(frozen=True)
class SourceLocation:
    """A place in the user's source. Lines count from 1, columns from 0, in characters."""

    file: str
    line: int
    column: int | None = None
    end_column: int | None = None
    function: str = ""
    text: str | None = None
    """the line; None: read from the file when it is rendered"""

    def render(self) -> str:
        """``File "k.py", line 3, in f``, the line, and a caret below the columns."""
        where = f'  File "{self.file}", line {self.line}'
        if self.function:
            where += f", in {self.function}"
        full = (
            self.text if self.text is not None else linecache.getline(self.file, self.line)
        ).rstrip()
        text = full.lstrip()
        if not text:
            return where
        lines = [where, f"    {text}"]
        if self.column is not None:
            start = max(self.column - (len(full) - len(text)), 0)
            end = len(full) if self.end_column is None else self.end_column
            width = max(min(end, len(full)) - max(self.column, len(full) - len(text)), 1)
            lines.append("    " + " " * start + "^" * width)
        return "\n".join(lines)


@contextlib.contextmanager
def located(location: SourceLocation | None) -> Iterator[None]:
    """Errors of ours that are raised inside are said to stand at ``location``, unless they know."""
    try:
        yield
    except Base as error:
        if error.location is None:
            error.location = location
        raise


# ---------------------------------------------------------------------- the base


class Base(RuntimeError):
    """Common base: ``except torch_helion.exc.Base`` catches this package's errors and no other."""

    message: ClassVar[str] = "{why}"
    advice: ClassVar[str] = ""
    defaults: ClassVar[dict[str, object]] = {}

    def __init__(self, *values: object, **named: object) -> None:
        kind = type(self)
        names = _field_names(kind.message + kind.advice)
        if len(values) > len(names):
            raise TypeError(f"{kind.__name__} takes {names}, got {len(values)} values")
        given = {**dict(zip(names, values, strict=False)), **named}
        self.fields: dict[str, Any] = {}
        self.location: SourceLocation | None = None
        for name in names:
            if name not in given and name not in self.defaults:
                raise TypeError(f"{kind.__name__} needs {name!r}")
            self.fields[name] = given.pop(name, self.defaults.get(name))
        if given:
            raise TypeError(f"{kind.__name__} has no field {sorted(given)}; it has {names}")
        super().__init__(*self.fields.values())  # so that pickling and copying rebuild it

    def at(self: _Self, location: SourceLocation | None) -> _Self:
        """The same error, said to stand at ``location``."""
        self.location = location
        return self

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __str__(self) -> str:
        kind = type(self)
        parts = [kind.message.format(**self.fields).strip()]
        if self.location is not None:
            parts.append(self.location.render())
        if kind.advice:
            parts.append(kind.advice.format(**self.fields))
        return "\n".join(parts)


BaseError = Base
"""the name that newer programs use"""

# ---------------------------------------------------------------------- inside the package


class InvalidOption(Base, TypeError):
    """A name that does not exist. :func:`invalid_option` builds it from the right names."""

    message = "unknown {kind} {name!r}{hint}"
    defaults: ClassVar[dict[str, object]] = {"hint": ""}


class InvalidValue(Base, ValueError):
    """A known option or setting with a value that it cannot take."""

    message = "{name} cannot be {value!r}: expected {expected}"


class CaptureError(Base):
    """A region cannot become a kernel. The backend then leaves its nodes to the host."""


class LoweringError(Base):
    """No meaning in the tile IR for this op with this dtype."""

    message = "no lowering for {op} ({dtype}): {why}"
    defaults: ClassVar[dict[str, object]] = {
        "dtype": "any dtype",
        "why": "no row in the tables of lowering/",
    }


class VerifierError(Base):
    """The tile IR of a kernel breaks a rule: a fault of the stage that has just run."""


class CodegenError(Base):
    """A target could not print, compile or load a kernel."""


class AccuracyError(Base):
    """A built kernel is farther from the float64 evaluation than the accuracy rule allows."""


class CacheError(Base):
    """The artifact cache cannot be used: wrong owner, open permissions, or a damaged entry."""


class TargetIncomplete(Base):
    """A target's record has no rows for these ops and does not declare them unsupported."""

    message = "target {name!r} has no row for: {gaps}"


# ---------------------------------------------------------------------- calls and specialisation


class KernelError(Base):
    """A mistake in a user's kernel, or in how it is called."""


class InvalidAPIUsage(KernelError):
    """A public function was used in a way that it does not allow."""

    message = "Invalid usage of the API: {why}"


class NoTensorArgs(KernelError):
    """No argument says on which device the kernel runs."""

    message = "Kernel took no tensor or device args, unclear what device to use."
    advice = "Pass at least one tensor (or a torch.device) to the kernel."


class UnsupportedPythonType(KernelError):
    """A value of a type that a kernel does not take."""

    message = "{type} is not supported in Helion kernels."
    advice = (
        "Arguments may be tensors, numbers, strings, dtypes, devices, functions, and lists, "
        "tuples, dicts, named tuples or dataclasses of these."
    )


class TracedArgNotSupported(UnsupportedPythonType):
    """An argument of a type that cannot be traced."""

    message = "{type} is not supported as an arg to traced functions."


class ClosuresNotSupported(KernelError):
    """The kernel itself reads variables of an enclosing function."""

    message = "A kernel with closures ({name}) is not supported."
    advice = "Pass the value as an argument, or move it to module level."


class ClosureMutation(KernelError):
    """A kernel assigns to a variable of an enclosing function."""

    message = "Closure mutation (of {name}) is not allowed in a function arg."
    advice = "Return the new value, or store it into a tensor."


class GlobalMutation(KernelError):
    """A kernel assigns to a global."""

    message = "Global mutation (of {name}) is not allowed in a Helion kernel."
    advice = "Return the new value, or store it into a tensor."


class NamingConflict(KernelError):
    """A name of the kernel hides one that generated code needs."""

    message = "The variable name {name} is reserved in Helion and cannot be used."
    advice = "Choose another name."


class DecoratorAfterHelionKernelDecorator(KernelError):
    """A decorator stands between ``@kernel`` and the function."""

    message = "Decorators after helion kernel decorator are not allowed ({name})."
    advice = "Move the other decorators above @helion.kernel."


class NestedKernelCallsNotSupported(KernelError):
    """A kernel is called on the device, inside of another one."""

    message = "Calling a Helion kernel ({name}) from within another Helion kernel is not supported."
    advice = (
        "Call it as an ordinary function: remove its decorator, or call both kernels one by one."
    )
    defaults: ClassVar[dict[str, object]] = {"name": "a kernel"}


class NotInsideKernel(KernelError):
    """A function of the language was called outside of a kernel."""

    message = "Functions found in helion.language.* must be called from inside a kernel{name}."
    advice = "Did you forget the @helion.kernel decorator?"
    defaults: ClassVar[dict[str, object]] = {"name": ""}


class GraphModuleUnsupportedOps(KernelError):
    """A GraphModule argument holds nodes that have no meaning inside of a kernel."""

    message = "GraphModule contains unsupported operations: {ops}."
    advice = "Only call_function and call_method nodes on the inputs are supported."


class IndexOffsetOutOfRangeForInt32(KernelError):
    """``index_dtype=torch.int32`` with a tensor whose offsets do not fit."""

    message = "Kernel index_dtype is {index_dtype}, but tensor {name} has offsets out of its range."
    advice = "Use @helion.kernel(index_dtype=torch.int64), or leave index_dtype out."
    defaults: ClassVar[dict[str, object]] = {"index_dtype": "torch.int32", "name": "argument"}


class InputTensorNumelExceedsIndexType(IndexOffsetOutOfRangeForInt32):
    """``index_dtype=torch.int32`` with a tensor of more than 2³¹ - 1 elements."""

    message = "Kernel index_dtype is {index_dtype}, but tensor {name} has more elements than that."


# ---------------------------------------------------------------------- structure of a kernel


class NoDeviceLoopsInKernel(KernelError):
    """A kernel without a loop over tiles."""

    message = "Kernel contains no device loops."
    advice = "Add an outermost hl.tile() or hl.grid() loop to the kernel body."


class EmptyDeviceLoopAfterDCE(KernelError):
    """Nothing that a loop computes is stored."""

    message = "Device loop is empty after dead-code elimination."
    advice = "Store a result into a tensor inside of the loop: nothing that it computes is used."


class TopLevelStatementBetweenLoops(KernelError):
    """A statement of the host between two loops of one launch."""

    message = "Statements cannot appear between top level loops."
    advice = "Move the statement before the first loop or behind the last one."


class NestedGridLoop(KernelError):
    """The outermost device loop stands under a host statement."""

    message = "Grid loops must be at the top level of a function."
    advice = "Take the loop out of the `if`, `for` or `with`, or compute its bounds there instead."


class NestedDeviceLoopsConflict(KernelError):
    """Device loops are nested in a way that cannot be run."""

    message = "Nested device loops must have distinct block sizes{why}."
    advice = "Give each loop its own tile range or register_block_size()."
    defaults: ClassVar[dict[str, object]] = {"why": ""}


class LoopDependencyError(KernelError):
    """A later loop of a launch reads what an earlier one writes."""

    message = "Loop dependency detected: '{name}' was written in a previous loop."
    advice = "Put hl.barrier() between the loops, or make two kernels of them."


class BarrierOnlyAllowedAtTopLevel(KernelError):
    """``hl.barrier()`` inside a loop."""

    message = "hl.barrier() is only allowed at the top level between loops."
    advice = "Split the loop in two and put the barrier between them."


class BarrierRequiresPersistent(KernelError):
    """A config whose pid_type does not allow a barrier."""

    message = "hl.barrier() requires pid_type to be persistent_blocked or persistent_interleaved"
    advice = "Set pid_type='persistent_blocked' in the Config, or leave it out (got {pid_type!r})."
    defaults: ClassVar[dict[str, object]] = {"pid_type": "flat"}


class InvalidDeviceForLoop(KernelError):
    """A ``for`` on the device over something else than a range of the language."""

    message = "For loops on device must use hl.tile() or hl.grid(), got {type}."
    advice = (
        "Loop over hl.tile, hl.grid, hl.static_range, range, or a tuple or list of constant length."
    )


class LoopFunctionNotInFor(KernelError):
    """``hl.tile`` and others used as a value."""

    message = "{name} must be called from a for loop, e.g. `for ... in {name}(...)`."
    advice = "Write `for i in {name}(...):`."


class DeviceLoopElseBlock(KernelError):
    """``for ... else`` on the device."""

    message = "for...else block is not allowed in a {name} device loop."
    advice = "Move the statements of the else block behind the loop."
    defaults: ClassVar[dict[str, object]] = {"name": "hl.tile"}


# ---------------------------------------------------------------------- statements and names


class NotAllowedOnDevice(KernelError):
    """Python that has no meaning inside a device loop."""

    message = "The statement {name} is not allowed inside the `hl.tile` or `hl.grid` loop."
    advice = "Do it on the host (before or behind the loop), or write it with torch operations."


class AssignmentMultipleTargets(NotAllowedOnDevice):
    """``a = b = value`` on the device."""

    message = "Assignment with multiple targets (a=b=1) is not allowed inside the `hl.tile` loop."
    advice = "Write one assignment for each name."


class InvalidAssignment(NotAllowedOnDevice):
    """Assignment to something else than a name, a tuple of names or a subscript."""

    message = "Assignment target must be Name or Subscript inside the `hl.tile` or `hl.grid` loop."
    advice = "Assign to a name, a tuple of names, or x[...]."


class NotAllowedInHelperFunction(NotAllowedOnDevice):
    """Python that has no meaning inside a function that a device loop calls."""

    message = "The statement {name} is not allowed inside a helper function on the device."


class StatementNotSupported(KernelError):
    """A statement that the front end does not know."""

    message = "The statement {name} is not supported."
    advice = "Write it with assignments, `if`, `for` and `while`."


class StarredArgsNotSupportedOnDevice(KernelError):
    """``f(*args)`` on the device."""

    message = "*/** args are not supported inside the `hl.tile` or `hl.grid` loop."
    advice = "Write the arguments one by one."


class UndefinedVariable(KernelError):
    """A name that nothing defines."""

    message = "{name} is not defined."
    advice = "Define it before the loop, or pass it as an argument."


class CannotModifyHostVariableOnDevice(KernelError):
    """Rebinding, in a device loop, a name that the host defines."""

    message = "Cannot modify host variable '{name}' inside `hl.tile` or `hl.grid` loop."
    advice = "Use x[tile] = ... to store into a tensor, or another name for a value of the loop."


class CannotReadDeviceVariableOnHost(KernelError):
    """Reading, behind a loop, a name that only the loop defines."""

    message = "Cannot read variable '{name}' defined inside `hl.tile` or `hl.grid` loop from host."
    advice = "Store the value into a tensor that is made before the loop, and read that."


class CantReadOnDevice(KernelError):
    """A host value that cannot be used in a device loop."""

    message = "Can't read {name} inside the `hl.tile` or `hl.grid` loop."
    advice = "Pass what is needed of it as a tensor, number or function."


class DeviceAPIOnHost(KernelError):
    """A function that only exists in device loops was called outside of one."""

    message = "{name} is only allowed inside the `hl.tile` or `hl.grid` loop."
    advice = "Move the call into the loop; on the host use the torch function."


class HostTensorDirectUsage(KernelError):
    """A whole host tensor was used in a device loop."""

    message = (
        "Direct use of host tensor '{name}' in op '{op}' not allowed inside the `hl.tile` or "
        "`hl.grid` loop."
    )
    advice = "First load it using {name}[...] or hl.load({name}, ...)."
    defaults: ClassVar[dict[str, object]] = {"op": "torch"}


class TypeInferenceError(KernelError):
    """A call or operation on the device has no valid result."""

    message = "{why}"


class CantCombineTypesInControlFlow(TypeInferenceError):
    """The arms of an ``if``, or the rounds of a loop, give a name values of different kinds."""

    message = "Cannot combine types for {name!r} in control flow: {left} and {right}"
    advice = "Give the variable the same kind of value on all paths."


class ControlFlowTensorMismatch(CantCombineTypesInControlFlow):
    """The arms of an ``if``, or the rounds of a loop, give a tensor different shapes or dtypes."""

    message = "Tensor mismatch in control flow for {name!r}: {left} and {right}"
    advice = "Give the variable one shape and one dtype on all paths (use .to(dtype) or hl.zeros)."


class InvalidSequenceSubscription(TypeInferenceError):
    """A tuple or list was indexed by something that is no constant."""

    message = "Cannot subscript a sequence with non constant keys: {key}"
    advice = "Use a constant, or hl.static_range so that the index is one."


class FailedToUnpackTupleAssign(TypeInferenceError):
    """``a, b = value`` where the value has another length or none."""

    message = "Failed to unpack values in tuple assignment: expected {expected} values, got {got}"
    advice = "Assign to as many names as there are values."


class RequiresTensorInAssignment(TypeInferenceError):
    """A value that is no tensor was stored into one."""

    message = "Expected tensor in right-hand side of assignment, got {type}."
    advice = "Store a tensor or a number of the tensor's dtype."


class NonTensorSubscriptAssign(TypeInferenceError):
    """``x[...] = value`` where x is no tensor, or the value cannot be stored."""

    message = "Expected tensor in subscript assignment, got {left} and {right}."
    advice = "Assign into a tensor that the host has made."


class DeviceTensorSubscriptAssignmentNotAllowed(TypeInferenceError):
    """``value[...] = ...`` of a tensor that lives in the loop."""

    message = "Cannot assign to subscript of device tensor '{name}'."
    advice = "Build a new value with torch.where, or make the tensor on the host and store into it."


class AtomicOnDeviceTensor(TypeInferenceError):
    """An atomic operation on a tensor that lives in the loop."""

    message = "hl.{name}() target must be host-allocated tensor (i.e. allocated outside the loop)."
    advice = "Make the target before the loop, for example with torch.zeros."
    defaults: ClassVar[dict[str, object]] = {"name": "atomic_add"}


# ---------------------------------------------------------------------- tiles and indices


class IncorrectTileUsage(TypeInferenceError):
    """A tile was used as a value."""

    message = "Tiles can only be used in tensor indexing (`x[tile]`) or in `hl.*` ops, got {name}."
    advice = (
        "Use tile.index for the positions, tile.begin, tile.end or tile.block_size for numbers."
    )


class TileOfTile(TypeInferenceError):
    """``hl.tile(tile)``."""

    message = "Expected size arg to `tile` got `Tile`."
    advice = "Consider using `hl.tile(other_tile.begin, other_tile.end)`."


class OverpackedTile(TypeInferenceError):
    """A tuple of one tile was used as a tile."""

    message = "Got a tile wrapped inside a container when indexing a tensor: {type}"
    advice = "Write `for tile in hl.tile(n)`, or unpack: `for (tile,) in hl.tile([n])`."


class FailedToUnpackTile(TypeInferenceError):
    """One tile was unpacked into several names."""

    message = "Failed to unpack a tile into a tuple assignment."
    advice = "Expected a sequence, but got a single tile: did you mean hl.tile([m, n])?"


class InvalidTileRange(TypeInferenceError):
    """A tile's range ends before it begins."""

    message = "hl.tile() begin must be less than or equal to end: begin={begin}, end={end}"
    advice = "Swap the bounds; an empty range (begin == end) is allowed."


class InvalidJaggedTileUsage(TypeInferenceError):
    """``hl.jagged_tile`` without its parent's axes."""

    message = "Invalid hl.jagged_tile() usage: {why}"
    advice = "Nest it in the tile loops of its parent tensor and index with both."


class InvalidIndexingType(TypeInferenceError):
    """An index of a type that no tensor takes."""

    message = "Expected tile/int/None/1d-tensor/etc in tensor[...], got {type}."
    advice = "Index with tiles, integers, integer tensors, `:`, `None` or `...`."


class RankMismatch(TypeInferenceError):
    """As many dimensions as needed, but other than there are."""

    message = "Expected ndim={expected}, but got ndim={got}{hint}."
    advice = "{what}"
    defaults: ClassVar[dict[str, object]] = {
        "hint": "",
        "what": "You have too few or too many indices or dimensions: give one for each.",
    }


class ShapeMismatch(TypeInferenceError, ValueError):
    """Two shapes that cannot be joined. A ValueError, too: programs may catch either."""

    message = "Shape mismatch between {left} and {right}"
    advice = "Insert a dimension with [:, None], or make both of the same tiles."


class DataDependentOutputShapeNotSupported(TypeInferenceError):
    """An operation whose result has a size that only the data tell."""

    message = "{name} with data-dependent output shape is not supported."
    advice = "Use torch.where, or a mask in hl.load and hl.store, instead."


class ReductionOnNonTile(TypeInferenceError):
    """A reduction over something that is no dimension of a tile."""

    message = "Reduction must be over a tile or reduction dimension (in `{name}`)."
    advice = "Reduce over a dimension that was indexed by a tile or by `:`."


class InvalidReductionDim(TypeInferenceError):
    """A reduction's dim is of no valid kind."""

    message = "Invalid reduction dim={dim!r}: expected an int or a single-element list."
    advice = "Give one dimension as an int."


class MultipleReductionDims(TypeInferenceError):
    """A reduction over several dimensions at once."""

    message = "Multiple reduction dims are not supported."
    advice = "Reduce over one dimension after the other."


class ReductionDimInvalidForShape(TypeInferenceError):
    """A reduction over a dimension that the value does not have."""

    message = "Reduction dim {dim} is invalid for shape {shape}."
    advice = "Use a dim that the value has."


class DotBatchDimensionMismatch(TypeInferenceError):
    """``hl.dot`` of batches of different sizes."""

    message = "hl.dot requires matching batch dimensions, got {left} and {right}."
    advice = "Batch sizes must be equal or 1."


class UnsupportedSplitOperation(TypeInferenceError):
    """``torch.split`` and others on the device."""

    message = "{op} is not supported in Helion device loops."
    advice = "For splitting the last dimension with size 2, use hl.split() instead."


class DuplicateStoreIndicesError(KernelError):
    """Several lanes of one store write the same place (interpret mode)."""

    message = "Store operation has duplicate indices, which is undefined behavior: {name}"
    advice = "Use hl.atomic_add, or make the indices unique."
    defaults: ClassVar[dict[str, object]] = {"name": "store"}


# ---------------------------------------------------------------------- sizes and tunables


class ShapeSpecializingCall(KernelError):
    """A call that would make a size a constant."""

    message = "Call would force shape specialization of {name}."
    advice = "Use hl.specialize() on the size, or static_shapes=True."
    defaults: ClassVar[dict[str, object]] = {"name": "a size"}


class ShapeSpecializingAllocation(KernelError):
    """A device tensor of a size that is no constant."""

    message = "Using a tensor size in a device allocation requires specialization{name}."
    advice = "Use hl.specialize() to specialize the size, or the tile as the shape."
    defaults: ClassVar[dict[str, object]] = {"name": ""}


class SpecializeOnDevice(KernelError):
    """``hl.specialize`` inside a loop."""

    message = "hl.specialize() must be called outside the `hl.tile` or `hl.grid` loop."
    advice = "Move the call before the loop."


class SpecializeArgType(KernelError):
    """``hl.specialize`` of something that is no size."""

    message = "hl.specialize() must be called on a size (or a sequence of sizes), got: {type}"
    advice = "Pass x.size(dim), x.stride(dim) or x.shape."


class RegisterTunableArgTypes(KernelError):
    """``hl.register_tunable`` with arguments of wrong types."""

    message = (
        "hl.register_tunable() expects string literal and ConfigSpecFragment, got {left}, {right}."
    )
    advice = 'Write hl.register_tunable("name", PowerOfTwoFragment(1, 64)).'


class TunableTypeNotSupported(KernelError):
    """A tunable whose values no kernel can hold."""

    message = "hl.register_tunable() only supports integer, float, and boolean types, got {type}"
    advice = "Use a fragment of ints, floats or bools."


class TunableNameConflict(KernelError):
    """Two tunables of one name, or the name of a Config field."""

    message = "Tunable parameter with name {name} already exists."
    advice = "Choose a name that neither a tunable nor a field of Config has."


class ConfigSpecFragmentWithSymInt(KernelError):
    """A fragment whose bounds are no constants."""

    message = "ConfigSpecFragment with SymInt arg is not supported: {name}"
    advice = "Use hl.specialize() on the size, or static_shapes=True."
    defaults: ClassVar[dict[str, object]] = {"name": "bounds must be constants"}


# ---------------------------------------------------------------------- configs and tuning


class InvalidConfig(KernelError):
    """A Config that this kernel, or this target, cannot take."""

    message = "{why}"


class NotEnoughConfigs(KernelError):
    """A search over fewer than two configs."""

    message = "FiniteSearch requires at least two configs, but got {count}."
    advice = "Pass config=... to use a single one."


class AutotuneError(KernelError):
    """A search for the best config failed."""

    message = "{why}"


class TooLargeToTune(AutotuneError):
    """A search would need more memory for copies of the arguments than there is to spare."""

    message = "The arguments take {size} MiB: too much to measure on copies."
    advice = "Tune with smaller ones: the result serves sizes that are near."


class NoConfigFound(AutotuneError):
    """No config of a search works."""

    message = "No working config found from autotuning{why}"
    advice = "See the log for the failure of each config (TORCH_HELION_LOGS=+tune)."
    defaults: ClassVar[dict[str, object]] = {"why": ""}


class AutotuningDisallowedInEnvironment(AutotuneError):
    """A search would be needed and the environment forbids it."""

    message = "Autotuning is disabled by HELION_DISALLOW_AUTOTUNING=1 in the environment{why}."
    advice = "Pass a config to the kernel: @helion.kernel(config=helion.Config(...))."
    defaults: ClassVar[dict[str, object]] = {"why": ""}


class CacheAssertionError(AutotuneError):
    """``HELION_ASSERT_CACHE_HIT=1`` and the config was not in the cache."""

    message = "Expected cache hit for kernel '{name}', but got cache miss."
    advice = "Unset HELION_ASSERT_CACHE_HIT, or tune the kernel once before."


class InconsistantConfigsAcrossRanks(AutotuneError):
    """Ranks of a distributed program chose different configs. (The name is Helion's.)"""

    message = "Inconsistent configs across ranks: {why}"


class NoResultFromRank(AutotuneError):
    """The rank of a distributed program that searches for all has failed, or does not answer."""

    message = "The rank that searches for all {why}."
    advice = "See its log, or call autotune() again: then all search again."


# ---------------------------------------------------------------------- stages and targets


class InternalError(Base):
    """A fault of this package, not of the kernel."""

    message = "{type}: {why}"
    advice = "This is a fault of torch_helion: please report it with the kernel."


class TorchOpTracingError(TypeInferenceError):
    """A torch operation on the device raised, or is not supported."""

    message = "{op}: {why}"
    advice = "The operation must work on values of these shapes and dtypes in eager mode, too."


class InductorLoweringError(KernelError):
    """A torch operation that has no meaning in the tile IR. (The name is Helion's.)"""

    message = "{why}"
    advice = "Do it on the host, or write it with operations that have one (docs/operators.md)."


class ErrorCompilingKernel(KernelError):
    """A kernel that is right could not be compiled."""

    message = "Error compiling kernel: {why}"


class BackendUnsupported(KernelError):
    """A feature that the target does not have."""

    message = "Backend '{backend}' does not support {feature}."
    advice = "Write it with torch operations or other functions of hl: those every target has."


class BackendImplementationMissing(BackendUnsupported):
    """A target that does not exist here, or lacks a part."""

    message = "Backend '{backend}' has no implementation of {feature}."
    advice = "Leave backend out: it is chosen by the device of the tensors."


class CuteBackendUnavailable(BackendUnsupported):
    """``backend="cute"``."""

    message = "Backend '{backend}' is not available: {feature}."
    advice = "Leave backend out: it is chosen by the device of the tensors."
    defaults: ClassVar[dict[str, object]] = {
        "backend": "cute",
        "feature": "torch_helion has no CuTe target",
    }


class TritonError(KernelError):
    """The Triton target's compiler raised."""

    message = "Error from Triton code: {why}"


class TritonUnrecoverableRuntimeError(TritonError):
    """A kernel has left the device in a state in which nothing more can run."""

    message = "An unrecoverable Triton runtime error occurred: {why}"


class MissingEnableTile(BackendUnsupported):
    """The tileir backend without its environment variable."""

    message = "Backend '{backend}' needs {feature}."
    defaults: ClassVar[dict[str, object]] = {"backend": "tileir", "feature": "ENABLE_TILE=1"}


class StackTensorcOnHost(KernelError):
    """A StackTensor was indexed on the host. (The name is Helion's.)"""

    message = "StackTensor must be created from within the `hl.tile` or `hl.grid` loop."


class StackTensorDevPtrOnHost(KernelError):
    """The pointers of a StackTensor were not loaded into the loop."""

    message = "StackTensor must be created from a dev_ptr tensor defined on device."
    advice = "Use `hl.load` or dev_ptrs[...] to load the pointers first."


class StackTensorDevPtrDtype(KernelError):
    """The pointers of a StackTensor have another dtype than int64 or uint64."""

    message = (
        "StackTensor must be created from a dev_ptr tensor of dtype int64 or uint64, got {dtype}."
    )


class StackTensorExampleOnDevice(KernelError):
    """The example of a StackTensor is a value of the loop."""

    message = "hl.stacktensor_like must be called with an example host tensor."


# ---------------------------------------------------------------------- modes and gradients


class IncompatibleInterpretModes(KernelError):
    """Two interpret modes at once."""

    message = "TRITON_INTERPRET=1 and HELION_INTERPRET=1 cannot be used simultaneously."
    advice = "Use either one or the other."


class RefEagerModeCodePrintError(KernelError):
    """There is no generated code in interpret mode."""

    message = "No generated code in ref eager mode."
    advice = "Remove ref_mode=RefMode.EAGER or HELION_INTERPRET=1 to see the code of the kernel."


class BreakpointInDeviceLoopRequiresInterpret(KernelError):
    """``breakpoint()`` in compiled code."""

    message = "breakpoint() inside an `hl.tile` or `hl.grid` loop requires an interpret mode."
    advice = "Run with HELION_INTERPRET=1."


class AutodiffKernelNotCalled(KernelError):
    """A backward was asked for before the forward had run."""

    message = "Autodiff: kernel '{name}' must be called before its backward."
    advice = "Call the kernel with the same inputs first."
    defaults: ClassVar[dict[str, object]] = {"name": "kernel"}


class AutodiffNotSupported(KernelError):
    """The backward of a kernel cannot be derived."""

    message = "Autodiff is not supported for {name}: {why}"
    advice = (
        "Wrap the kernel in a torch.autograd.Function with a backward of its own, or call it with "
        "x.detach() where no gradient is needed."
    )
    defaults: ClassVar[dict[str, object]] = {"name": "this kernel"}


# ---------------------------------------------------------------------- warnings


class BaseWarning(Base):
    """Base of the warnings: :func:`warn` prints them. ``ignore_warnings`` takes these classes."""


class TensorOperationInWrapper(BaseWarning):
    """A heavy tensor operation on the host part of a kernel."""

    message = (
        "A tensor operation ({op}) outside of the `hl.tile` or `hl.grid` loop will not be fused "
        "in the generated kernel."
    )
    advice = "Use @helion.kernel(ignore_warnings=[helion.exc.{warning}]) to suppress this warning."
    defaults: ClassVar[dict[str, object]] = {"warning": "TensorOperationInWrapper"}


class TensorOperationsInHostCall(TensorOperationInWrapper):
    """A heavy tensor operation in a function that the host part calls."""

    message = (
        "A tensor operation ({op}) in a function called outside of the `hl.tile` or `hl.grid` loop "
        "will not be fused in the generated kernel."
    )
    defaults: ClassVar[dict[str, object]] = {"warning": "TensorOperationsInHostCall"}


class WrongDevice(BaseWarning):
    """A tensor was made on another device than the kernel's."""

    message = "Operation {op} returned a tensor on {got} device, while the kernel is on {expected}."
    advice = "Pass device=x.device when the tensor is made."


class TiledKMatmulAccumulationWarning(BaseWarning):
    """``acc += a @ b`` in a loop over k: each product is rounded to the inputs' dtype."""

    message = "Detected `acc += a @ b` in a loop over a tiled k: the products lose precision."
    advice = "Use torch.addmm(acc, a, b) or hl.dot(a, b, acc=acc) to accumulate in float32."


class BlockSizeIgnoredInInterpretMode(BaseWarning):
    """A config's block sizes mean nothing in interpret mode."""

    message = "block_size {block_size} is ignored in interpret mode; the whole range is one block."
    defaults: ClassVar[dict[str, object]] = {"block_size": ""}


class NoAOTHeuristicWarning(BaseWarning):
    """No tuned choice of configs lies beside the source of an ``aot_kernel``."""

    message = "No AOT heuristic found for kernel '{name}': using the default config."
    advice = "Run the AOT tuning workflow to make one."


class ProcessGroupNameNotFound(BaseWarning):
    """A distributed kernel without the name of its process group."""

    message = "No argument of kernel '{name}' is annotated with hl.ProcessGroupName."
    defaults: ClassVar[dict[str, object]] = {"name": "kernel"}


def warn(warning: BaseWarning, ignored: Sequence[type[BaseWarning] | str] = ()) -> bool:
    """Print ``warning`` to stderr unless its class, a base of it, or its name is ``ignored``."""
    names = {cls.__name__ for cls in type(warning).__mro__}
    if any((i if isinstance(i, str) else i.__name__) in names for i in ignored):
        return False
    print(f"WARNING[{type(warning).__name__}]: {warning}", file=sys.stderr)
    return True


# ---------------------------------------------------------------------- making errors


def invalid_option(kind: str, name: str, known: Iterable[str]) -> InvalidOption:
    """The error for a wrong ``name`` of some ``kind``: says the nearest right name, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    if near:
        right = next(n for n in names if n.lower() == near[0])
        return InvalidOption(kind, name, f"; did you mean {right!r}?")
    return InvalidOption(kind, name, f"; known: {', '.join(names)}" if names else "")


def _field_names(template: str) -> list[str]:
    found = (name for _, name, _, _ in string.Formatter().parse(template) if name)
    return list(dict.fromkeys(found))
