"""Leaves with a weight on a grid, and copies of a network that share the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear, shallow_copy


@pytest.fixture
def grid():
    return quantize(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)), 4, 32)


def test_a_linear_multiplies_by_what_its_grid_stands_for(grid):
    x, bias = torch.randn(1, 5, 64), torch.randn(48)
    torch.testing.assert_close(QuantizedLinear(grid, bias)(x), x @ grid.dequantize().T + bias)
    torch.testing.assert_close(QuantizedLinear(grid, None)(x), x @ grid.dequantize().T)


def test_an_embedding_looks_up_rows_of_its_grid(grid):
    ids = torch.tensor([[0, 47, 3, 3]])
    torch.testing.assert_close(QuantizedEmbedding(grid)(ids), grid.dequantize()[ids])


@pytest.mark.parametrize(
    ("bits", "group", "expected"),
    [
        (2, 32, 48 * 64 // 4 + 96 * 4 + 96 // 4),  # integers, scales, and zero points packed as the integers are
        (4, 32, 48 * 64 // 2 + 96 * 4),
        (4, 64, 48 * 64 // 2 + 48 * 4),
        (8, 64, 48 * 64 + 48 * 4),
    ],
)
def test_bytes_are_counted_as_packed(bits, group, expected):
    assert quantize(torch.randn(48, 64), bits, group).nbytes == expected


def test_a_scale_per_row_is_known_as_such(grid):
    assert not grid.per_row
    assert quantize(torch.randn(4, 64), 8, 64).per_row


def test_a_copys_leaves_can_be_swapped_and_its_weights_are_the_same(grid):
    network = nn.Sequential(QuantizedLinear(grid, torch.randn(48)), nn.LayerNorm(48), QuantizedEmbedding(grid))
    network[1].register_buffer("table", torch.randn(4))
    copied = shallow_copy(network)
    assert copied is not network and copied[0] is not network[0]
    assert copied[0].quantized is grid and copied[0].bias is network[0].bias
    assert copied[1].weight is network[1].weight and copied[1].table is network[1].table
    copied[0] = nn.Identity()
    assert isinstance(network[0], QuantizedLinear)
