"""Mistakes around kernels: in decorators, arguments, configs, tuning, modes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion import exc

Misuse = tuple[type[exc.Base], Callable[[], Any]]
MISUSES: list[Misuse] = []


def misuse(error: type[exc.Base]) -> Any:
    def register(fn: Callable[[], Any]) -> Callable[[], Any]:
        MISUSES.append((error, fn))
        return fn

    return register


def double(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * 2
    return out


def phases(x):
    for tile in hl.tile(x.size(0)):
        x[tile] = 1.0
    hl.barrier()
    for tile in hl.tile(x.size(0)):
        x[tile] = x[tile] + 1
    return x


def stores_by_index(x, i):
    out = torch.zeros_like(x)
    for tile in hl.tile(i.size(0)):
        out[i[tile]] = x[i[tile]]
    return out


def takes_no_tensor(n):
    out = torch.empty(n)
    for tile in hl.tile(n):
        out[tile] = 1.0
    return out


def logged(fn):
    return fn


@misuse(exc.NotInsideKernel)
def language_outside_of_kernels():
    hl.zeros([8])


@misuse(exc.NoTensorArgs)
def nothing_has_a_device():
    helion.kernel(takes_no_tensor)(3)


@misuse(exc.UnsupportedPythonType)
def argument_of_a_strange_type():
    helion.kernel(double)({1, 2})


@misuse(exc.ClosuresNotSupported)
def kernel_in_a_function():
    scale = 2.0

    @helion.kernel
    def scaled(x):
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            out[tile] = x[tile] * scale
        return out

    scaled(torch.ones(8))


@misuse(exc.DecoratorAfterHelionKernelDecorator)
def decorator_below():
    @helion.kernel
    @logged
    def copied(x):
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            out[tile] = x[tile]
        return out

    copied(torch.ones(8))


@misuse(exc.NestedKernelCallsNotSupported)
def kernel_in_a_kernel():
    @helion.kernel
    def outer(x):
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            out[tile] = INNER(x[tile])
        return out

    outer(torch.ones(8))


INNER = helion.kernel(double)


@misuse(exc.InvalidAPIUsage)
def two_kinds_of_configs():
    helion.kernel(double, config=helion.Config(block_sizes=[8]), configs=[])


@misuse(exc.InvalidAPIUsage)
def arguments_in_a_star():
    @helion.kernel
    def any_number(*xs):
        return xs


@misuse(exc.InvalidConfig)
def too_many_block_sizes():
    helion.kernel(double, config=helion.Config(block_sizes=[8, 8])).bind(
        (torch.ones(8),)
    ).compile_config()


@misuse(exc.InvalidConfig)
def misspelled_key():
    helion.kernel(double).bind((torch.ones(8),)).compile_config({"block_sise": [8]})


@misuse(exc.InvalidConfig)
def singular_and_plural():
    helion.Config(block_size=8, block_sizes=[8])


@misuse(exc.BarrierRequiresPersistent)
def flat_with_a_barrier():
    helion.kernel(phases).bind((torch.ones(8),)).compile_config({"pid_type": "flat"})


@misuse(exc.NotEnoughConfigs)
def search_among_one():
    bound = helion.kernel(double).bind((torch.ones(8),))
    helion.autotuner.FiniteSearch(bound, (torch.ones(8),), configs=[helion.Config()]).autotune()


@misuse(exc.AutotuningDisallowedInEnvironment)
def tuning_where_it_is_forbidden():
    with mock.patch.dict(os.environ, {"HELION_DISALLOW_AUTOTUNING": "1"}):
        helion.kernel(double)(torch.ones(8))


@misuse(exc.InputTensorNumelExceedsIndexType)
def index_type_too_narrow():
    helion.kernel(double, index_dtype=torch.int8)(torch.ones(1000))


@misuse(exc.IndexOffsetOutOfRangeForInt32)
def strides_too_wide():
    helion.kernel(double, index_dtype=torch.int8)(torch.ones(100, 100)[:, 0])


@misuse(exc.RefEagerModeCodePrintError)
def code_of_the_reference_mode():
    helion.kernel(double, ref_mode=helion.RefMode.EAGER).bind((torch.ones(8),)).to_code()


@misuse(exc.IncompatibleInterpretModes)
def two_interpreters():
    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        helion.kernel(double, ref_mode=helion.RefMode.EAGER)(torch.ones(8))


@misuse(exc.DuplicateStoreIndicesError)
def places_that_are_stored_to_twice():
    index = torch.tensor([1, 1, 2])
    helion.kernel(stores_by_index, ref_mode=helion.RefMode.EAGER)(torch.ones(8), index)


@misuse(exc.AutodiffKernelNotCalled)
def backward_of_what_was_never_called():
    helion.experimental.backward(helion.kernel(double), torch.ones(8), torch.ones(8))


@misuse(exc.BackendImplementationMissing)
def unknown_backend():
    helion.kernel(double, backend="pallas")(torch.ones(8))


@misuse(exc.CuteBackendUnavailable)
def backend_of_other_hardware():
    helion.kernel(double, backend="cute")(torch.ones(8))


@misuse(exc.GraphModuleUnsupportedOps)
def graph_with_weights():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.scale

    helion.kernel(with_function)(torch.ones(8), torch.fx.symbolic_trace(Scaled()))


def with_function(x, f):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = f(x[tile])
    return out
