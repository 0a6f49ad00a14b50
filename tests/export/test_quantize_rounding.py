"""Rounding to the nearest grid point, against a naive loop and against the formats that kernels take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handlens_export.quantize.formats import choose_format
from handlens_export.quantize.rounding import quantize


def naive(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What the grid stands for, one weight at a time in float64; four-bit scales as the kernel stores them."""
    result = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group].astype(np.float64)
            if bits == 2:
                low, high = min(part.min(), 0.0), max(part.max(), 0.0)
                scale = (high - low) / 3 or 1.0
                zero = np.clip(np.round(-low / scale), 0, 3)
                grid = np.clip(np.round(part / scale + zero), 0, 3) - zero
            else:
                largest = np.abs(part).max()
                scale = largest / {8: 127, 4: 8, 3: 4}[bits] or 1.0
                if bits < 8:
                    scale = float(torch.tensor(scale, dtype=torch.float32).to(torch.bfloat16))
                grid = np.clip(np.round(part / scale), {8: -127, 4: -8, 3: -4}[bits], {8: 127, 4: 7, 3: 3}[bits])
            result[row, start : start + group] = grid * scale
    return result


def weight_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of different sizes, with an outlier in each, as a trained matrix has."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.linspace(0.1, 2.0, rows)[:, None]
    weight[:, 3] *= 5
    return weight


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (2, 64), (3, 32), (4, 32), (4, 128), (8, 128), (8, 32)])
def test_the_grid_is_a_naive_loops(bits, group):
    weight = weight_of(6, 128)
    found = quantize(weight, bits, group).dequantize().numpy()
    expected = naive(weight.numpy(), bits, group)
    # Where float32 and float64 disagree about a tie, one step: none at this seed.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("bits", "low", "high"), [(2, 0, 3), (3, -4, 3), (4, -8, 7), (8, -127, 127)])
def test_integers_stay_in_their_range_and_use_it(bits, low, high):
    grid = quantize(weight_of(64, 128), bits, 32)
    assert (int(grid.values.min()), int(grid.values.max())) == (low, high)
    assert grid.values.dtype == (torch.uint8 if bits == 2 else torch.int8)
    assert grid.scales.shape == (64, 4) and grid.scales.dtype == torch.float32
    assert (grid.zeros is not None) == (bits == 2)
    assert grid.zeros is None or (grid.zeros.shape == (64, 4) and int(grid.zeros.max()) <= 3)


def test_four_bit_scales_lose_nothing_in_bfloat16():
    scales = quantize(weight_of(64, 128), 4, 32).scales
    assert torch.equal(scales, scales.to(torch.bfloat16).float())


def test_eight_bit_scales_are_the_largest_over_127_to_the_last_bit():
    # An ulp away, every cached layer and every bundle made before would be another one.
    weight = weight_of(64, 128)
    assert torch.equal(quantize(weight, 8, 32).scales, weight.view(64, 4, 32).abs().amax(-1) / 127)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_of_zeros_stay_zeros(bits):
    weight = weight_of(3, 64)
    weight[1] = 0
    grid = quantize(weight, bits, 32)
    assert torch.equal(grid.dequantize()[1], torch.zeros(64))
    # A scale of zero, or one too small for a float, would be refused or divided by in the kernels.
    assert bool((grid.scales >= torch.finfo(torch.float32).tiny).all())


@pytest.mark.parametrize(("bits", "steps", "at_the_top"), [(8, 0.5, 0.5), (4, 0.5, 1.04), (2, 1.0, 1.0)])
def test_no_weight_moves_further_than_its_step_allows(bits, steps, at_the_top):
    """Half a step; one where four bits clip 8 to 7 (and bfloat16 the scale), and where two bits round their zero."""
    weight = weight_of(64, 128, seed=1)
    grid = quantize(weight, bits, 32)
    moved = ((grid.dequantize() - weight).abs().view(64, 4, 32) / grid.scales[..., None]).view(64, 128)
    top = grid.values == grid.values.max()
    assert float(moved[~top].max()) <= steps + 1e-4
    assert float(moved[top].max()) <= at_the_top


def test_more_bits_and_smaller_groups_are_nearer():
    weight = weight_of(64, 256, seed=2)

    def error(bits, group):
        return float((quantize(weight, bits, group).dequantize() - weight).norm() / weight.norm())

    assert error(8, 256) < error(4, 32) < error(2, 32)
    assert error(4, 32) < error(4, 64) < error(4, 128)
    assert error(4, 32) < 0.11 and error(8, 256) < 0.02


def test_one_sided_rows_waste_no_level_at_two_bits():
    weight = torch.rand(8, 32, generator=torch.Generator().manual_seed(3))
    grid = quantize(weight, 2, 32)
    assert float((grid.dequantize() - weight).abs().max()) <= float(weight.max()) / 6 + 1e-6


@pytest.mark.parametrize(
    ("columns", "bits", "group", "expected"),
    [
        (576, 4, 128, (4, 64)),  # SmolLM2's width
        (576, 4, 64, (4, 64)),
        (2560, 4, 128, (4, 128)),
        (2560, 2, 32, (2, 32)),
        (4304, 4, 32, (8, 4304)),  # SigLIP-so400m's feed-forward: 16 is the largest power of two in it
        (72, 4, 32, (8, 72)),
        (96, 4, 64, (4, 32)),
        (32, 2, 128, (2, 32)),
        (31, 4, 32, (8, 31)),
        (4304, 8, 32, (8, 4304)),
        (2560, 8, 128, (8, 2560)),
    ],
)
def test_a_row_gets_the_format_that_kernels_take(columns, bits, group, expected):
    assert choose_format(columns, bits, group) == expected
