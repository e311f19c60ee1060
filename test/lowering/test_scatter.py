"""Scatters of one element into each row become choices by position; other forms are left alone."""

from __future__ import annotations

import pytest
import torch

from torch_helion.capture import graph_pass


@pytest.fixture
def records():
    found: list[graph_pass.GraphRecord] = []
    graph_pass.listeners.append(found.append)
    yield found
    graph_pass.listeners.remove(found.append)


def put(index: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.zeros(5, 7).scatter(1, index, -1.0) * scale


def test_one_element_a_row_is_a_kernel(records) -> None:
    index, scale = torch.randint(0, 7, (5, 1)), torch.randn(5, 7)
    got = torch.compile(put, backend="helion")(index, scale)
    assert torch.equal(got, put(index, scale))
    assert len(records[-1].regions) == 1 and records[-1].covered == records[-1].eligible


def test_a_tensor_as_source(records) -> None:
    def fn(x, index, source):
        return torch.scatter(x, 0, index, source).exp()

    x, index, source = torch.randn(4, 9), torch.randint(0, 4, (1, 9)), torch.randn(1, 9)
    got = torch.compile(fn, backend="helion")(x, index, source)
    torch.testing.assert_close(got, fn(x, index, source))
    assert records[-1].covered == records[-1].eligible


@pytest.mark.parametrize("bad", [7, -1])
def test_an_index_out_of_range_is_an_error(bad: int) -> None:
    index = torch.randint(0, 7, (5, 1))
    compiled = torch.compile(put, backend="helion")
    compiled(index, torch.randn(5, 7))
    index[2] = bad
    with pytest.raises((IndexError, RuntimeError)):
        compiled(index, torch.randn(5, 7))


@pytest.mark.parametrize("shape", [(5, 2), (3, 1)])
def test_rejects_several_elements_and_part_of_the_rows(records, shape: tuple[int, int]) -> None:
    index, scale = torch.randint(0, 7, shape), torch.randn(5, 7)
    got = torch.compile(put, backend="helion")(index, scale)
    assert torch.equal(got, put(index, scale))
    assert any("scatter" in d.target for d in records[-1].declined)
