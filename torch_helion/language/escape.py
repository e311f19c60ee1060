"""Ways out of the language: prints, breakpoints, code of other languages, other devices.

What belongs to GPUs and TPUs is refused on the device with `exc.BackendUnsupported`, in a sentence
that says what to use instead; the names exist so that programs can be imported.
"""

from __future__ import annotations

from typing import Any

from torch_helion.language.context import device_only


def device_print(prefix: str, *values: Any) -> None:
    """Print a text and values when the kernel runs."""
    raise device_only("device_print")


def device_assert(condition: Any, error: str) -> None:
    """End the kernel with an error where `condition` (a bool) is false in some lane.

    `error`: "index out of range" (the call raises IndexError) or "division by zero" (RuntimeError).
    """
    raise device_only("device_assert")


def breakpoint() -> None:
    """Stop in the debugger: refused in compiled code.

    Errors: `exc.BreakpointInDeviceLoopRequiresInterpret`.
    """
    raise device_only("breakpoint")


def inline_triton(triton_source: str, args: Any, output_like: Any) -> Any:
    """Triton code in the kernel: for the Triton target only."""
    raise device_only("inline_triton")


def triton_kernel(triton_source_or_fn: Any, args: Any, output_like: Any) -> Any:
    """A call of a Triton function: for the Triton target only."""
    raise device_only("triton_kernel")


def inline_asm_elementwise(
    asm: str, constraints: str, args: Any, dtype: Any, is_pure: bool, pack: int
) -> Any:
    """Assembly for each element: for the Triton target only."""
    raise device_only("inline_asm_elementwise")


def float4_e2m1fn_x2_to_float32(value: Any) -> Any:
    """Two packed 4-bit floats: refused."""
    raise device_only("float4_e2m1fn_x2_to_float32")


def load_float4_e2m1fn_x16_to_float16(
    storage: Any, group_offsets: Any, extra_mask: Any = None
) -> Any:
    """Sixteen packed 4-bit floats: refused."""
    raise device_only("load_float4_e2m1fn_x16_to_float16")


def load_bfloat16_x16_to_float16(storage: Any, group_offsets: Any, extra_mask: Any = None) -> Any:
    """Sixteen packed bfloat16: refused."""
    raise device_only("load_bfloat16_x16_to_float16")


def make_async_remote_copy(*args: Any, **kwargs: Any) -> Any:
    """Copies between TPUs: refused."""
    raise device_only("make_async_remote_copy")


class AsyncCopyDescriptor:
    """A copy between TPUs that is under way."""


def remote_barrier(*args: Any, **kwargs: Any) -> None:
    """A barrier of several TPUs: refused."""
    raise device_only("remote_barrier")
