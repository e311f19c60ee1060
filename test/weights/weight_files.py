"""Helpers of the tests of weights: files made byte by byte, tensors compared byte by byte."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import subprocess
import sys
from typing import Any

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def raw_bytes(header: bytes | dict[str, Any], data: bytes = b"", pad: int = 0) -> bytes:
    """A file from its header and data, with ``pad`` blanks behind the JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    return struct.pack("<Q", len(text)) + text + data


def raw_file(
    path: pathlib.Path, header: bytes | dict[str, Any], data: bytes = b"", pad: int = 0
) -> pathlib.Path:
    path.write_bytes(raw_bytes(header, data, pad))
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bytes_in(tensor: torch.Tensor) -> bytes:
    t = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    if t.numel() == 0:
        return b""
    return bytes(t.reshape(-1).view(torch.uint8).numpy())


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert bytes_in(got) == bytes_in(want)


def assert_all_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(want)
    for name in want:
        assert_same(got[name], want[name])


def run(*arguments: object, timeout: float = 120, **environment: str) -> tuple[int, str]:
    """Run this Python with arguments; exit status and all output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return done.returncode, done.stdout + done.stderr


def many_tensors() -> dict[str, torch.Tensor]:
    """Every dtype of the format that torch has, odd sizes, specials, nothing, one element."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, torch.Tensor] = {
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "empty": torch.empty(0, 3),
        "empty_inside": torch.empty(2, 0, 5, dtype=torch.int8),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "bool": torch.tensor([True, False, True]),
        "row": torch.arange(7, dtype=torch.int16),
    }
    from torch_helion.weights.dtypes import DTYPES

    for dtype in DTYPES.values():
        if dtype.torch is not None and dtype.name != "BOOL":
            raw = torch.randint(0, 256, (3, 5 * dtype.torch.itemsize), generator=generator)
            found[f"d.{dtype.name}"] = raw.to(torch.uint8).view(dtype.torch)
    return found
