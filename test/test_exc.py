"""Errors and warnings: every class can be made, says its template, and quotes the line."""

from __future__ import annotations

import copy
import linecache
import pickle
import string

import pytest

from torch_helion import exc

CLASSES = [c for c in vars(exc).values() if isinstance(c, type) and issubclass(c, exc.Base)]

# Names that programs written for the language catch.
NAMES = [
    "TensorOperationInWrapper",
    "TensorOperationsInHostCall",
    "WrongDevice",
    "TiledKMatmulAccumulationWarning",
    "BlockSizeIgnoredInInterpretMode",
    "NotInsideKernel",
    "DeviceAPIOnHost",
    "HostTensorDirectUsage",
    "RankMismatch",
    "ShapeMismatch",
    "InvalidIndexingType",
    "OverpackedTile",
    "FailedToUnpackTile",
    "IncorrectTileUsage",
    "TileOfTile",
    "InvalidTileRange",
    "CannotModifyHostVariableOnDevice",
    "CannotReadDeviceVariableOnHost",
    "DeviceTensorSubscriptAssignmentNotAllowed",
    "RequiresTensorInAssignment",
    "NonTensorSubscriptAssign",
    "AtomicOnDeviceTensor",
    "NotAllowedOnDevice",
    "AssignmentMultipleTargets",
    "InvalidAssignment",
    "StatementNotSupported",
    "InvalidDeviceForLoop",
    "LoopFunctionNotInFor",
    "DeviceLoopElseBlock",
    "StarredArgsNotSupportedOnDevice",
    "NestedDeviceLoopsConflict",
    "NestedGridLoop",
    "TopLevelStatementBetweenLoops",
    "LoopDependencyError",
    "BarrierOnlyAllowedAtTopLevel",
    "BarrierRequiresPersistent",
    "NoDeviceLoopsInKernel",
    "EmptyDeviceLoopAfterDCE",
    "ClosuresNotSupported",
    "ClosureMutation",
    "GlobalMutation",
    "NamingConflict",
    "UndefinedVariable",
    "UnsupportedPythonType",
    "TracedArgNotSupported",
    "TypeInferenceError",
    "CantCombineTypesInControlFlow",
    "ControlFlowTensorMismatch",
    "CantReadOnDevice",
    "InvalidSequenceSubscription",
    "FailedToUnpackTupleAssign",
    "ReductionOnNonTile",
    "InvalidReductionDim",
    "MultipleReductionDims",
    "ReductionDimInvalidForShape",
    "DotBatchDimensionMismatch",
    "UnsupportedSplitOperation",
    "DataDependentOutputShapeNotSupported",
    "ShapeSpecializingCall",
    "ShapeSpecializingAllocation",
    "SpecializeOnDevice",
    "SpecializeArgType",
    "RegisterTunableArgTypes",
    "TunableTypeNotSupported",
    "TunableNameConflict",
    "ConfigSpecFragmentWithSymInt",
    "InvalidJaggedTileUsage",
    "InvalidAPIUsage",
    "InvalidConfig",
    "NotEnoughConfigs",
    "NoConfigFound",
    "AutotuneError",
    "AutotuningDisallowedInEnvironment",
    "CacheAssertionError",
    "NoTensorArgs",
    "IndexOffsetOutOfRangeForInt32",
    "InputTensorNumelExceedsIndexType",
    "NestedKernelCallsNotSupported",
    "DecoratorAfterHelionKernelDecorator",
    "InternalError",
    "TorchOpTracingError",
    "InductorLoweringError",
    "ErrorCompilingKernel",
    "TritonError",
    "TritonUnrecoverableRuntimeError",
    "BackendImplementationMissing",
    "BackendUnsupported",
    "MissingEnableTile",
    "CuteBackendUnavailable",
    "GraphModuleUnsupportedOps",
    "NotAllowedInHelperFunction",
    "RefEagerModeCodePrintError",
    "DuplicateStoreIndicesError",
    "BreakpointInDeviceLoopRequiresInterpret",
    "IncompatibleInterpretModes",
    "AutodiffKernelNotCalled",
    "AutodiffNotSupported",
    "NoAOTHeuristicWarning",
    "ProcessGroupNameNotFound",
    "InconsistantConfigsAcrossRanks",
    "BaseWarning",
    "Base",
]


def fields_of(cls: type[exc.Base]) -> list[str]:
    names = (n for _, n, _, _ in string.Formatter().parse(cls.message + cls.advice) if n)
    return list(dict.fromkeys(names))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_language_exist(name: str) -> None:
    assert issubclass(getattr(exc, name), exc.Base)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_class_can_be_made(cls: type[exc.Base]) -> None:
    values = {name: f"<{name}>" for name in fields_of(cls)}
    error = cls(**values)
    assert all(value in str(error) for value in values.values())
    assert "{" not in str(error) and cls.__doc__
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is cls and str(again) == str(error)
    required = [n for n in values if n not in cls.defaults]
    cls(**{n: "x" for n in required})
    if required:
        with pytest.raises(TypeError, match="needs"):
            cls()


def test_families() -> None:
    assert issubclass(exc.AssignmentMultipleTargets, exc.NotAllowedOnDevice)
    assert issubclass(exc.NoConfigFound, exc.AutotuneError)
    assert issubclass(exc.TensorOperationsInHostCall, exc.TensorOperationInWrapper)
    assert issubclass(exc.InvalidOption, TypeError) and issubclass(exc.InvalidValue, ValueError)
    assert not issubclass(exc.BaseWarning, exc.KernelError)


def test_the_users_line_is_quoted_with_a_caret() -> None:
    text = "    out[tile] = x[tile, 0]\n"
    place = exc.SourceLocation("kernel.py", 7, 16, 26, "softmax", text)
    error = exc.RankMismatch(1, 2).at(place)
    assert str(error).split("\n") == [
        "Expected ndim=1, but got ndim=2.",
        '  File "kernel.py", line 7, in softmax',
        "    out[tile] = x[tile, 0]",
        "                ^^^^^^^^^^",
        "You have too few or too many indices or dimensions: give one for each.",
    ]


@pytest.mark.parametrize(
    ("column", "end", "caret"),
    [(None, None, None), (4, None, "^" * 5), (4, 6, "^^"), (6, 6, "  ^"), (4, 99, "^" * 5)],
)
def test_carets(column: int | None, end: int | None, caret: str | None) -> None:
    lines = exc.SourceLocation("f.py", 1, column, end, text="\t   a + b").render().split("\n")
    assert lines[1] == "    a + b"
    assert (lines[2:] or [None])[0] == (None if caret is None else "    " + caret)


def test_lines_are_read_from_the_file(tmp_path) -> None:
    file = tmp_path / "user.py"
    file.write_text("first\n  second(1)\n")
    linecache.checkcache(str(file))
    place = exc.SourceLocation(str(file), 2, 2, 8)
    assert place.render().endswith("    second(1)\n    ^^^^^^")
    assert exc.SourceLocation(str(file), 99).render() == f'  File "{file}", line 99'


def test_the_innermost_place_wins() -> None:
    inner, outer = exc.SourceLocation("a.py", 1), exc.SourceLocation("b.py", 2)
    with pytest.raises(exc.TileOfTile) as caught, exc.located(outer), exc.located(inner):
        raise exc.TileOfTile()
    assert caught.value.location == inner
    with pytest.raises(ZeroDivisionError), exc.located(outer):
        _ = 1 // 0


def test_warnings_are_printed_unless_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    warning = exc.TensorOperationsInHostCall("torch.mm")
    assert exc.warn(warning)
    said = capsys.readouterr().err
    assert said.startswith("WARNING[TensorOperationsInHostCall]: ") and "torch.mm" in said
    for ignored in (
        exc.TensorOperationsInHostCall,
        exc.TensorOperationInWrapper,
        exc.BaseWarning,
        "TensorOperationInWrapper",
    ):
        assert not exc.warn(warning, [ignored])
    assert exc.warn(warning, [exc.WrongDevice])
    assert capsys.readouterr().err != ""


def test_shapes_that_differ_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="mismatch"):
        raise exc.ShapeMismatch("[4]", "[5]")
