"""Host parts: heavy operations are warned of once, data that they read is there for bind()."""

from __future__ import annotations

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion import exc


def prepared(x):
    return torch.softmax(x, -1)


def host_of_many_operations(x: torch.Tensor) -> torch.Tensor:
    y = prepared(x)
    z = (x * 2).exp()
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile, :] = y[tile, :] + z[tile, :]
    return out


def test_operations_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = helion.kernel(host_of_many_operations)
    for columns in (3, 4):
        x = torch.randn(2, columns)
        torch.testing.assert_close(kernel(x), torch.softmax(x, -1) + (x * 2).exp())
    text = capsys.readouterr().err
    assert text.count("WARNING[TensorOperationsInHostCall]") == 1 and "(softmax)" in text
    assert "y = prepared(x)\n        ^^^^^^^^^^^" in text
    assert text.count("WARNING[TensorOperationInWrapper]") == 2
    assert "(mul)" in text and "(exp)" in text


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        ([exc.TensorOperationsInHostCall], 2),
        ([exc.TensorOperationInWrapper], 0),
        (["TensorOperationInWrapper"], 0),
        ([exc.BaseWarning], 0),
    ],
)
def test_ignored(ignored: list[object], left: int, capsys: pytest.CaptureFixture[str]) -> None:
    helion.kernel(host_of_many_operations, ignore_warnings=ignored).bind((torch.ones(2, 2),))
    assert capsys.readouterr().err.count("WARNING") == left


def reads_data(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    rounds = [i * 2 for i in range(n.max().item())]
    if int(n[0]) > 2:
        x.add_(1)
    out = torch.zeros_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + len(rounds)
    return out


def test_a_host_part_that_reads_data_is_bound_on_copies() -> None:
    x, n = torch.randn(5), torch.tensor([3, 1])
    before = x.clone()
    bound = helion.kernel(reads_data).bind((x, n))
    assert torch.equal(x, before), "binding runs nothing on the caller's own tensors"
    assert len(bound.config_spec.block_sizes) == 1 and bound.to_triton_code()
    torch.testing.assert_close(bound(x, n), before + 4)
    torch.testing.assert_close(bound(x, torch.tensor([1, 1])), before + 2)


@helion.kernel
def up_to_an_item(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for tile in hl.tile(n.max().item() + 1):
        out[tile, :] = x[tile, :] + 1
    return out


def test_items_in_the_range_of_the_grid() -> None:
    x = torch.randn(6, 3)
    for numbers in ([1, 2], [4, 0], [0, 0], [5, 5]):
        n = torch.tensor(numbers)
        rows = max(numbers) + 1
        want = torch.cat([x[:rows] + 1, torch.zeros(6 - rows, 3)])
        torch.testing.assert_close(up_to_an_item(x, n), want)
    assert up_to_an_item.bind((x, torch.tensor([2, 1]))).to_triton_code()
