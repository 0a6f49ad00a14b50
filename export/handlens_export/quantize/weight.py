"""A weight on its grid: what a quantizer gives and a lowering takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from handlens_export.quantize.formats import stored_bits

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and scales of one matrix: weight = (values - zeros) * scales, group by group along a row."""

    values: Tensor
    """int8 (rows, columns); signed -2**(bits-1)..2**(bits-1)-1 without zeros, else 0..2**bits-1 stored as uint8."""
    scales: Tensor
    """float32 (rows, columns / group)."""
    zeros: Tensor | None
    """uint8 (rows, columns / group), None where the grid is symmetric."""
    bits: int
    group: int
    """Columns that share a scale; all of them where it is a scale per row."""

    @property
    def per_row(self) -> bool:
        """One scale per output row."""
        return self.group == self.values.shape[1]

    @property
    def stored_bits(self) -> int:
        """Bits that a kernel takes each integer in."""
        return stored_bits(self.bits)

    @property
    def nbytes(self) -> int:
        """Packed integers, float32 scales, packed zero points."""
        count = self.values.numel()
        packed = count * self.stored_bits // 8 + self.scales.numel() * 4
        return packed + (self.zeros.numel() * self.bits // 8 if self.zeros is not None else 0)

    def dequantize(self) -> Tensor:
        """float32 (rows, columns)."""
        return self.rows(slice(None))

    def rows(self, chosen: Tensor | slice) -> Tensor:
        """Some rows, float32 (chosen, columns), without the others ever being in float."""
        values = self.values[chosen]
        grid = values.to(torch.float32).view(len(values), -1, self.group)
        if self.zeros is not None:
            grid.sub_(self.zeros[chosen].to(torch.float32)[..., None])
        return grid.mul_(self.scales[chosen][..., None]).view(values.shape)


class QuantizedLinear(nn.Module):
    """A linear whose weight is on a grid: the leaf between quantization and lowering. Eager: weight-only."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.quantized = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, columns) -> (…, rows)."""
        return nn.functional.linear(x, self.quantized.dequantize(), self.bias)


class QuantizedEmbedding(nn.Module):
    """An embedding table on a grid; stands where `TokenEmbedding.table` does."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.quantized = weight

    def forward(self, ids: Tensor) -> Tensor:
        """(1, t) int64 -> (1, t, width)."""
        return self.quantized.rows(ids.flatten()).view(*ids.shape, -1)


@contextmanager
def in_float(module: nn.Module) -> Iterator[None]:
    """While the block runs, the linears inside hold their weights unpacked: for more than one pass."""
    held = {path: leaf for path, leaf in module.named_modules() if isinstance(leaf, QuantizedLinear)}
    for path, leaf in held.items():
        parent, _, name = path.rpartition(".")
        linear = nn.Linear(1, 1, bias=leaf.bias is not None, device="meta")
        linear.weight = nn.Parameter(leaf.quantized.dequantize(), requires_grad=False)
        if leaf.bias is not None:
            linear.bias = nn.Parameter(leaf.bias, requires_grad=False)
        setattr(module.get_submodule(parent), name, linear)
    try:
        yield
    finally:
        for path, leaf in held.items():
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, leaf)


def shallow_copy(network: Module) -> Module:
    """The same modules anew, so that leaves can be swapped, around the same tensors."""
    shared: dict[int, object] = {}
    for module in network.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            shared[id(tensor)] = tensor
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            shared[id(module.quantized)] = module.quantized
            if isinstance(module, QuantizedLinear) and module.bias is not None:
                shared[id(module.bias)] = module.bias
    return copy.deepcopy(network, shared)
