"""ONNX Runtime's leaves for linears, the embedding, the norms and the encoder's attention.

Each has two forwards. In a trace it is one ONNX Runtime contrib operator over packed weights. In eager it computes what
that operator's CPU kernel computes, its rounding of activations included, so that an eager network is the program's
reference. It knows nothing about files, sessions or the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens_export.errors import UnsupportedError
from handlens_export.network.layers import RMSNorm
from handlens_export.network.vision import VisionAttention
from handlens_export.quantize.formats import ONNX_BLOCK
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from handlens_export.stage_cache.tensor_file import let_go

Attributes: TypeAlias = dict[
    str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]
]
"""An ONNX node's attributes, as torch.onnx.ops takes them."""
INT8_BLOCKS: dict[int, tuple[int, ...]] = {2: (32, 64, 128), 4: (16, 32, 64, 128, 256), 8: (16, 32, 64, 128, 256)}
"""Block sizes, by weight bits, for which MatMulNBits multiplies in int8, measured on onnxruntime 1.32 (x86-64).
With any other it dequantizes the weight and leaves activations in float."""
INT8_ACTIVATIONS = 4
"""`accuracy_level` at which MatMulNBits may round activations to int8."""
LARGEST_BLOCK = 256


def block_size(weight: QuantizedWeight, name: str) -> int:
    """The power of two that divides the weight's group, as MatMulNBits wants it; UnsupportedError if below 16."""
    if weight.per_row:
        return ONNX_BLOCK
    block = min(weight.group & -weight.group, LARGEST_BLOCK)
    if block < 16:
        raise UnsupportedError(
            f"{name} is quantized in groups of {weight.group} columns, but the onnx backend's kernels need a group "
            "that 16 divides; choose --group 32, 64 or 128, or 8 bits with a scale per row."
        )
    return block


def blocks(per_group: Tensor, weight: QuantizedWeight, block: int) -> Tensor:
    """Scales or zero points (rows, groups) repeated to one per block, (rows, ceil(columns / block))."""
    count = -(-weight.values.shape[1] // block)
    repeat = count if weight.per_row else weight.group // block
    return per_group.repeat_interleave(repeat, dim=1)[:, :count].contiguous()


def pack(values: Tensor, bits: int) -> Tensor:
    """uint8 (rows, n) below 2**bits to bytes (rows, ceil(n * bits / 8)), the first value in the lowest bits."""
    per_byte = 8 // bits
    if per_byte == 1:
        return values.contiguous()
    values = F.pad(values, (0, -values.shape[1] % per_byte)).view(values.shape[0], -1, per_byte)
    packed: Tensor = values[..., 0].clone()
    for i in range(1, per_byte):
        packed |= values[..., i] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What `pack` packed: (rows, bytes) to (rows, bytes * 8 / bits)."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    values: Tensor = (packed[..., None] >> shifts) & (2**bits - 1)
    return values.flatten(1)


def unsigned(weight: QuantizedWeight) -> Tensor:
    """The grid's integers as uint8: a symmetric grid is shifted by 2**(bits-1), the kernels' zero point by default."""
    if weight.zeros is not None:
        return weight.values.to(torch.uint8)
    # In two's complement the shift is a sum of bytes that wraps around: no wider copy of a large matrix is made.
    shifted: Tensor = weight.values.view(torch.uint8) + 2 ** (weight.stored_bits - 1)
    return shifted


def round_activations(x: Tensor, block: int) -> Tensor:
    """x (…, columns) on MatMulNBits' int8 grid: in blocks along the row, scale absmax / 127, ties to even."""
    columns = x.shape[-1]
    padded = F.pad(x, (0, -columns % block))
    grid = padded.view(*x.shape[:-1], -1, block)
    scale = grid.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    rounded: Tensor = (grid * inverse).round() * scale
    return rounded.flatten(-2)[..., :columns]


class PackedLinear(nn.Module):
    """A linear as the contrib operator MatMulNBits: packed weights of 2, 4 or 8 bits, activations in int8."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: QuantizedLinear, name: str) -> None:
        super().__init__()
        weight = linear.quantized
        self.rows, self.columns = weight.values.shape
        self.bits = weight.stored_bits
        self.block = block_size(weight, name)
        padded = F.pad(unsigned(weight), (0, -self.columns % self.block))
        self.register_buffer("packed", pack(padded, self.bits).view(self.rows, -1, self.block * self.bits // 8))
        self.register_buffer("scales", blocks(weight.scales.float(), weight, self.block))
        zeros = None if weight.zeros is None else pack(blocks(weight.zeros, weight, self.block), self.bits)
        self.register_buffer("zeros", zeros)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def dequantize(self) -> Tensor:
        """float32 (rows, columns)."""
        count = self.scales.shape[1]
        grid = unpack(self.packed.flatten(1), self.bits).view(self.rows, count, self.block).float()
        if self.zeros is None:
            grid -= 2 ** (self.bits - 1)
        else:
            grid -= unpack(self.zeros, self.bits)[:, :count, None].float()
        weight: Tensor = grid * self.scales[..., None]
        return weight.view(self.rows, -1)[:, : self.columns]

    def forward(self, x: Tensor) -> Tensor:
        """(…, columns) -> (…, rows)."""
        if torch.compiler.is_exporting():
            return self._operator(x)
        if self.block in INT8_BLOCKS[self.bits]:
            x = round_activations(x, self.block)
        return F.linear(x, self.dequantize(), self.bias)

    def _operator(self, x: Tensor) -> Tensor:
        attributes: Attributes = {"K": self.columns, "N": self.rows, "bits": self.bits, "block_size": self.block}
        inputs: list[Tensor | None] = [x, self.packed, self.scales, self.zeros, None, self.bias]
        while inputs[-1] is None:
            inputs.pop()
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            inputs,
            {**attributes, "accuracy_level": INT8_ACTIVATIONS},
            dtype=torch.float32,
            shape=(*x.shape[:-1], self.rows),
            version=1,
        )


class PackedEmbedding(nn.Module):
    """A table lookup as the contrib operator GatherBlockQuantized."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, table: QuantizedEmbedding) -> None:
        super().__init__()
        weight = table.quantized
        self.columns, self.bits = weight.values.shape[1], weight.bits
        # Unlike MatMulNBits, the lookup takes a block longer than the row: one scale stays one.
        longest = max(16, 1 << (self.columns - 1).bit_length())
        self.block = longest if weight.per_row else block_size(weight, "the embedding table")
        self.register_buffer("packed", pack(unsigned(weight), self.bits))
        self.register_buffer("scales", blocks(weight.scales.float(), weight, self.block))
        zeros = None if weight.zeros is None else pack(blocks(weight.zeros, weight, self.block), self.bits)
        self.register_buffer("zeros", zeros)

    def forward(self, ids: Tensor) -> Tensor:
        """(1, t) int64 -> (1, t, width)."""
        if torch.compiler.is_exporting():
            return self._operator(ids)
        rows = unpack(self.packed[ids.flatten()], self.bits)[:, : self.columns].float()
        zeros: Tensor | float = 2.0 ** (self.bits - 1)
        if self.zeros is not None:
            zeros = self._widen(unpack(self.zeros[ids.flatten()], self.bits).float())
        looked_up: Tensor = (rows - zeros) * self._widen(self.scales[ids.flatten()])
        return looked_up.view(*ids.shape, self.columns)

    def _widen(self, per_block: Tensor) -> Tensor:
        return per_block.repeat_interleave(self.block, dim=1)[:, : self.columns]

    def _operator(self, ids: Tensor) -> Tensor:
        attributes: Attributes = {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}
        return torch.onnx.ops.symbolic(
            "com.microsoft::GatherBlockQuantized",
            [self.packed, ids, self.scales, *([] if self.zeros is None else [self.zeros])],
            attributes,
            dtype=torch.float32,
            shape=(*ids.shape, self.columns),
            version=1,
        )


class FusedRMSNorm(nn.Module):
    """RMSNorm as one operator; ONNX Runtime fuses the residual before it when it loads the program."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        if not torch.compiler.is_exporting():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            [x, self.weight],
            {"axis": -1, "epsilon": self.eps, "stash_type": 1},
            dtype=torch.float32,
            shape=x.shape,
        )


class FusedVisionAttention(nn.Module):
    """The encoder's attention as MultiHeadAttention, which never holds a (patches, patches) matrix whole."""

    def __init__(self, attention: VisionAttention) -> None:
        super().__init__()
        self.eager = attention

    def forward(self, x: Tensor) -> Tensor:
        """(n, patches, width) -> the same."""
        eager = self.eager
        if not torch.compiler.is_exporting():
            out: Tensor = eager(x)
            return out
        attended = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            [eager.q_proj(x), eager.k_proj(x), eager.v_proj(x)],
            {"num_heads": eager.heads},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )
        result: Tensor = eager.out_proj(attended)
        return result


def swap_leaves(parent: nn.Module, path: str = "") -> None:
    """Put this backend's leaves in the place of quantized linears, the embedding table, norms and vision attention.

    One at a time, and no list of all modules is held meanwhile: unpacked integers go as the packed bytes come.
    """
    for name in [name for name, _ in parent.named_children()]:
        child = parent.get_submodule(name)
        swap_leaves(child, f"{path}{name}.")
        leaf = _leaf(child, path + name)
        if leaf is not None:
            setattr(parent, name, leaf)
            let_go()  # the layer's file stays mapped, for its norms


def _leaf(module: nn.Module, path: str) -> nn.Module | None:
    match module:
        case QuantizedLinear():
            return PackedLinear(module, path)
        case QuantizedEmbedding():
            return PackedEmbedding(module)
        case RMSNorm():
            return FusedRMSNorm(module)
        case VisionAttention():
            return FusedVisionAttention(module)
    return None
