"""Kernels with one mistake each, and the error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import torch_helion.language as hl
from torch_helion import exc
from torch_helion.config_spec import EnumFragment, IntegerFragment

Broken = tuple[type[exc.Base], Callable[..., Any], tuple[Any, ...]]
BROKEN: list[Broken] = []


def broken(error: type[exc.Base], *args: Any) -> Any:
    """The line of the mistake ends with the comment `here`."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        BROKEN.append((error, fn, args or (torch.ones(8, 8),)))
        return fn

    return register


# -- structure ------------------------------------------------------------------------------------


@broken(exc.NoDeviceLoopsInKernel)
def no_loop(x):
    return x + 1


@broken(exc.TopLevelStatementBetweenLoops)
def between(x):
    for tile in hl.tile(8):
        x[tile, 0] = 1.0
    y = x + 1  # here
    for tile in hl.tile(8):
        x[tile, 1] = 2.0
    return y


@broken(exc.NestedGridLoop)
def nested_grid(x):
    if x.size(0) > 4:
        for tile in hl.tile(8):  # here
            x[tile, 0] = 1.0
    return x


@broken(exc.LoopFunctionNotInFor)
def no_for(x):
    tiles = hl.tile(8)  # here
    for tile in hl.tile(8):
        x[tile, 0] = 1.0
    return tiles


@broken(exc.EmptyDeviceLoopAfterDCE)
def stores_nothing(x):
    for tile in hl.tile(8):  # here
        y = x[tile, :] + 1  # noqa: F841
    return x


@broken(exc.LoopDependencyError)
def depends(x):
    out = torch.empty_like(x)
    for tile in hl.tile(8):
        out[tile, :] = x[tile, :]
    for tile in hl.tile(8):
        x[tile, :] = out[tile, :] + 1  # here
    return x


@broken(exc.BarrierOnlyAllowedAtTopLevel)
def barrier_inside(x):
    for tile in hl.tile(8):
        hl.barrier()  # here
        x[tile, 0] = 1.0
    return x


@broken(exc.DeviceLoopElseBlock)
def for_else(x):
    for tile in hl.tile(8):
        for k in hl.tile(8):  # here
            x[tile, k] = 1.0
        else:
            pass
    return x


@broken(exc.InvalidDeviceForLoop)
def for_over_tensor(x):
    for tile in hl.tile(8):
        for v in x[tile, :]:  # here
            x[tile, 0] = v
    return x


@broken(exc.InvalidJaggedTileUsage)
def jagged_outermost(x):
    for tile in hl.jagged_tile(x[:, 0]):  # here
        x[tile, 0] = 1.0
    return x


# -- statements and names -------------------------------------------------------------------------


@broken(exc.NotAllowedOnDevice)
def with_with(x):
    for tile in hl.tile(8):
        with torch.no_grad():  # here
            x[tile, 0] = 1.0
    return x


@broken(exc.NotAllowedOnDevice)
def conditional_expression(x):
    for tile in hl.tile(8):
        x[tile, 0] = 1.0 if tile.id else 2.0  # here
    return x


@broken(exc.NotAllowedOnDevice)
def item(x):
    for tile in hl.tile(8):
        x[tile, 0] = x[tile, :].sum().item()  # here
    return x


@broken(exc.AssignmentMultipleTargets)
def two_targets(x):
    for tile in hl.tile(8):
        a = b = x[tile, 0]  # here
        x[tile, 1] = a + b
    return x


@broken(exc.InvalidAssignment)
def attribute_target(x):
    for tile in hl.tile(8):
        x.name = 1  # here
        x[tile, 0] = 1.0
    return x


@broken(exc.CannotModifyHostVariableOnDevice)
def rebinds(x):
    for tile in hl.tile(8):
        x = x[tile, :] + 1  # here
    return x


@broken(exc.CannotReadDeviceVariableOnHost)
def leaks(x):
    for tile in hl.tile(8):
        y = x[tile, 0]
        x[tile, 1] = y
    return y  # here


@broken(exc.UndefinedVariable)
def undefined(x):
    for tile in hl.tile(8):
        x[tile, 0] = nothing_of_this_name  # noqa: F821  # here
    return x


@broken(exc.StarredArgsNotSupportedOnDevice)
def starred(x):
    sizes = [8, 8]
    for tile in hl.tile(8):
        x[tile, :] = x[tile, :].reshape(*sizes)  # here
    return x


@broken(exc.HostTensorDirectUsage)
def whole_tensor(x):
    for tile in hl.tile(8):
        x[tile, :] = x + 1  # here
    return x


@broken(exc.DeviceTensorSubscriptAssignmentNotAllowed)
def into_value(x):
    for tile in hl.tile(8):
        y = x[tile, :]
        y[0] = 1.0  # here
        x[tile, :] = y
    return x


@broken(exc.NonTensorSubscriptAssign)
def into_number(x):
    n = 3
    for tile in hl.tile(8):
        n[tile] = x[tile, 0]  # here
    return x


@broken(exc.RequiresTensorInAssignment)
def stores_text(x):
    for tile in hl.tile(8):
        x[tile, 0] = "a"  # here
    return x


@broken(exc.InvalidSequenceSubscription, [torch.ones(8), torch.ones(8)])
def list_by_counter(xs):
    for tile in hl.tile(8):
        for i in range(2):
            xs[0][tile] = xs[i][tile]  # here
    return xs


@broken(exc.FailedToUnpackTupleAssign)
def unpacks_wrongly(x):
    for tile in hl.tile(8):
        a, b = (x[tile, 0], x[tile, 1], x[tile, 2])  # here
        x[tile, 0] = a + b
    return x


@broken(exc.CantCombineTypesInControlFlow)
def arms_differ(x):
    for tile in hl.tile(8):
        if x[0, 0] > 0:  # here
            y = x[tile, 0]
        else:
            y = "text"
        x[tile, 0] = y
    return x


@broken(exc.ControlFlowTensorMismatch)
def dtypes_differ(x):
    for tile in hl.tile(8):
        acc = hl.zeros([tile], dtype=torch.float32)
        for k in hl.tile(8):  # here
            acc = (acc + x[tile, k].sum(-1)).to(torch.bfloat16)
        x[tile, 0] = acc
    return x


# -- tiles and indices ----------------------------------------------------------------------------


@broken(exc.TileOfTile)
def tile_of_tile(x):
    for tile in hl.tile(8):
        for k in hl.tile(tile):  # here
            x[tile, k] = 1.0
    return x


@broken(exc.InvalidTileRange)
def backwards(x):
    for tile in hl.tile(8, 2):  # here
        x[tile, 0] = 1.0
    return x


@broken(exc.OverpackedTile)
def overpacked(x):
    for tile in hl.tile([8]):
        x[tile, 0] = 1.0  # here
    return x


@broken(exc.FailedToUnpackTile)
def one_tile_two_names(x):
    for a, b in hl.tile(8):  # here
        x[a, b] = 1.0
    return x


@broken(exc.Base)
def list_of_one_two_names(x):
    for a, b in hl.tile([8]):  # here
        x[a, b] = 1.0
    return x


@broken(exc.IncorrectTileUsage)
def tile_as_value(x):
    for tile in hl.tile(8):
        x[tile, 0] = torch.sin(tile)  # here
    return x


@broken(exc.IncorrectTileUsage)
def tile_times(x):
    for tile in hl.tile(8):
        x[tile, 0] = tile * 2  # here
    return x


@broken(exc.RankMismatch)
def too_many_indices(x):
    for tile in hl.tile(8):
        x[tile, 0] = x[tile, 0, 0]  # here
    return x


@broken(exc.RankMismatch)
def wrong_rank(x):
    for tile in hl.tile(8):
        x[tile, 0] = x[tile, :]  # here
    return x


@broken(exc.ShapeMismatch)
def misaligned(x):
    for tr, tc in hl.tile(x.shape):
        d = tr.index[:, None] - tc.index
        keep = (tr.index > 0) & (d >= 0)  # here
        x[tr, tc] = keep.to(x.dtype)
    return x


@broken(exc.ShapeMismatch)
def stores_another_axis(x):
    for i, j in hl.tile([8, 8]):
        x[i, 0] = x[0, j]  # here
    return x


@broken(exc.InvalidIndexingType)
def float_index(x):
    for tile in hl.tile(8):
        x[tile, 0] = x[tile, 1.5]  # here
    return x


@broken(exc.DataDependentOutputShapeNotSupported)
def mask_index(x):
    for tile in hl.tile(8):
        y = x[tile, 0]
        x[tile, 0] = x[y > 0, 0]  # here
    return x


@broken(exc.DataDependentOutputShapeNotSupported)
def nonzero(x):
    for tile in hl.tile(8):
        x[tile, 0] = torch.nonzero(x[tile, 0])  # here
    return x


# -- functions ------------------------------------------------------------------------------------


@broken(exc.SpecializeOnDevice)
def specializes(x):
    for tile in hl.tile(8):
        n = hl.specialize(x.size(1))  # here
        x[tile, 0] = n
    return x


@broken(exc.SpecializeArgType)
def specializes_text(x):
    n = hl.specialize("n")  # here
    for tile in hl.tile(8):
        x[tile, 0] = n
    return x


@broken(exc.RegisterTunableArgTypes)
def tunable_types(x):
    n = hl.register_tunable(3, IntegerFragment(1, 4))  # here
    for tile in hl.tile(8):
        x[tile, 0] = n
    return x


@broken(exc.TunableNameConflict)
def tunable_name(x):
    n = hl.register_tunable("num_warps", IntegerFragment(1, 4))  # here
    for tile in hl.tile(8):
        x[tile, 0] = n
    return x


@broken(exc.TunableTypeNotSupported)
def tunable_kind(x):
    n = hl.register_tunable("kind", EnumFragment(("a", "b")))  # here
    for tile in hl.tile(8):
        x[tile, 0] = n
    return x


@broken(exc.AtomicOnDeviceTensor)
def atomic_on_value(x):
    for tile in hl.tile(8):
        y = x[tile, :]
        hl.atomic_add(y, [0, 0], 1.0)  # here
        x[tile, :] = y
    return x


@broken(exc.MultipleReductionDims)
def two_dims(x):
    for i, j in hl.tile([8, 8]):
        x[i, j] = x[i, j] + x[i, j].sum([0, 1])  # here
    return x


@broken(exc.ReductionDimInvalidForShape)
def no_such_dim(x):
    for tile in hl.tile(8):
        x[tile, 0] = hl.reduce(torch.add, x[tile, :], dim=5)  # here
    return x


@broken(exc.InvalidReductionDim)
def strange_dim(x):
    for tile in hl.tile(8):
        x[tile, 0] = hl.reduce(torch.add, x[tile, :], dim=1.5)  # here
    return x


@broken(exc.DotBatchDimensionMismatch, torch.ones(8, 8, 8), torch.ones(4, 8, 8))
def dot_batches(x, y):
    for tile in hl.tile(8):
        x[:, tile, :] = hl.dot(x[:, tile, :], y[:, :, :])  # here
    return x


@broken(exc.TypeInferenceError, torch.ones(8, 6), torch.ones(8, 8))
def dot_inner(x, y):
    for tile in hl.tile(8):
        x[tile, :] = hl.dot(x[tile, :], y[:, :])  # here
    return x


@broken(exc.InvalidAPIUsage)
def strange_eviction(x):
    for tile in hl.tile(8):
        x[tile, 0] = hl.load(x, [tile, 1], eviction_policy="never")  # here
    return x


@broken(exc.UnsupportedSplitOperation)
def chunks(x):
    for tile in hl.tile(8):
        a, b = x[tile, :].chunk(2, -1)  # here
        x[tile, 0] = (a + b).sum(-1)
    return x


@broken(exc.ShapeSpecializingAllocation, torch.ones(8, 8), 5)
def open_size(x, n):
    for tile in hl.tile(8):
        x[tile, 0] = hl.zeros([tile, n]).sum(-1)  # here
    return x


@broken(exc.BackendUnsupported)
def triton_code(x):
    for tile in hl.tile(8):
        x[tile, 0] = hl.inline_triton("{0}", (x[tile, 0],), x[tile, 0])  # here
    return x


@broken(exc.BreakpointInDeviceLoopRequiresInterpret)
def stops(x):
    for tile in hl.tile(8):
        hl.breakpoint()  # here
        x[tile, 0] = 1.0
    return x


@broken(exc.TypeInferenceError)
def torch_refuses(x):
    for tile in hl.tile(8):
        x[tile, 0] = torch.sum(x[tile, :], dim=7)  # here
    return x


# -- the rest of the language ---------------------------------------------------------------------


@broken(exc.NotAllowedOnDevice)
def leaves_a_loop(x):
    for tile in hl.tile(8):
        for i in range(8):
            x[tile, i] = 1.0
            break  # here
    return x


@broken(exc.NotAllowedOnDevice)
def asserts(x):
    for tile in hl.tile(8):
        assert x.size(0) == 8  # here
        x[tile, 0] = 1.0
    return x


@broken(exc.NotAllowedOnDevice)
def names_a_value(x):
    for tile in hl.tile(8):
        if (y := tile.begin) > 0:  # here
            x[tile, 0] = y
    return x


@broken(exc.StatementNotSupported)
def matches(x):
    for tile in hl.tile(8):
        match x.size(0):  # here
            case 8:
                x[tile, 0] = 1.0
    return x


@broken(exc.NotAllowedInHelperFunction)
def helper_with_with(x):
    def same(v):
        with torch.no_grad():  # here
            return v

    for tile in hl.tile(8):
        x[tile, 0] = same(x[tile, 0])
    return x


@broken(exc.CantReadOnDevice)
def strange_attribute(x):
    for tile in hl.tile(8):
        x[tile, 0] = x.no_such_attribute  # here
    return x


@broken(exc.DeviceAPIOnHost)
def device_function_before(x):
    y = hl.zeros([8])  # here
    for tile in hl.tile(8):
        x[tile, 0] = y[tile]
    return x


@broken(exc.InvalidAPIUsage)
def registers_inside(x):
    for tile in hl.tile(8):
        n = hl.register_block_size(8)  # here
        x[tile, 0] = n
    return x


@broken(exc.NestedDeviceLoopsConflict)
def one_block_for_two(x):
    block = hl.register_block_size(8)
    for a, b in hl.tile([8, 8], block_size=[block, block]):  # here
        x[a, b] = 1.0
    return x


@broken(exc.ClosureMutation)
def nonlocal_count(x):
    count = 0

    def more():
        nonlocal count  # here
        count += 1

    for tile in hl.tile(8):
        x[tile, 0] = 1.0
    more()
    return x


@broken(exc.NamingConflict)
def reserved_name(x):
    __torch_helion_launch__ = 1  # noqa: F841
    for tile in hl.tile(8):
        x[tile, 0] = 1.0
    return x


@broken(exc.ConfigSpecFragmentWithSymInt, torch.ones(8, 8), 4)
def tunable_up_to_argument(x, n):
    k = hl.register_tunable("k", IntegerFragment(1, n))  # here
    for tile in hl.tile(8):
        x[tile, 0] = k
    return x


@broken(exc.StackTensorcOnHost, torch.ones(8), torch.zeros(2, dtype=torch.int64))
def stack_on_host(x, pointers):
    stack = hl.stacktensor_like(x, pointers)  # here
    for tile in hl.tile(8):
        x[tile] = stack[tile].sum(0)
    return x


@broken(exc.StackTensorDevPtrOnHost, torch.ones(8), torch.zeros(2, dtype=torch.int64))
def stack_of_host_pointers(x, pointers):
    for tile in hl.tile(8):
        x[tile] = hl.stacktensor_like(x, pointers)[tile].sum(0)  # here
    return x


@broken(exc.StackTensorDevPtrDtype, torch.ones(8), torch.zeros(2, dtype=torch.int32))
def stack_of_short_pointers(x, pointers):
    for tile in hl.tile(8):
        x[tile] = hl.stacktensor_like(x, pointers[:])[tile].sum(0)  # here
    return x


@broken(exc.StackTensorExampleOnDevice, torch.ones(8), torch.zeros(2, dtype=torch.int64))
def stack_like_a_value(x, pointers):
    for tile in hl.tile(8):
        x[tile] = hl.stacktensor_like(x[tile], pointers[:])[tile].sum(0)  # here
    return x


@broken(exc.TorchOpTracingError)
def shapes_do_not_fit(x):
    for tile in hl.tile(8):
        x[tile, :] = x[tile, :].reshape(tile.block_size, 3)  # here
    return x


@broken(exc.InductorLoweringError)
def no_such_operation(x):
    for tile in hl.tile(8):
        x[tile, 0] = torch.linalg.inv(x[tile, :])[:, 0]  # here
    return x


@broken(exc.InvalidIndexingType)
def slice_of_a_tile(x):
    for tile in hl.tile(8):
        half = x[tile, 0][0:4]  # here
        x[tile, 1] = half.sum()
    return x


@broken(exc.TorchOpTracingError)
def ends_of_tiles(x):
    for tile in hl.tile(8):
        both = torch.cat([x[tile, 0], x[tile, 1]])  # here
        x[tile, 2] = both.sum()
    return x


@broken(exc.ShapeMismatch)
def scatter_of_other_rows(x):
    for a, b in hl.tile([8, 8]):
        i = x[b, :].to(torch.int64)
        x[a, :] = x[a, :].scatter(1, i, 1.0)  # here
    return x


@broken(exc.BackendUnsupported)
def scaled_product(x):
    for tile in hl.tile(8):
        x[tile, :] = hl.dot_scaled(x[tile, :], x[tile, :], "e2m1", x[:, :], x[:, :], "e2m1")  # here
    return x


@broken(exc.TypeInferenceError)
def bound_that_is_no_integer(x):
    for tile in hl.tile(8):
        for k in hl.tile(2.5):  # here
            x[tile, k] = 1.0
    return x
