"""ExecuTorch's leaves: the linear XNNPACK recognizes, the cache inside the program, the byte embedding.

Each leaf has two faces. In a trace it calls the kernels' operators; in eager it computes what those kernels compute
in plain torch, so that the eager network is the yardstick for the program.
"""

from __future__ import annotations

import executorch.exir.passes._quant_patterns_and_replacements
import executorch.kernels.quantized  # noqa: F401  registers their out variants
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers update_cache and custom_sdpa
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from handlens_export.network.attention import CachedAttention, Step, attend
from handlens_export.network.config import DecoderConfig
from handlens_export.network.rope import rotate
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear, QuantizedWeight

decomposed = torch.ops.quantized_decomposed


def linear(leaf: QuantizedLinear) -> nn.Linear:
    """The linear whose export XNNPACK delegates: int8 activations per token, asymmetric, times the stored grid."""
    weight = leaf.quantized
    rows, columns = weight.values.shape
    result = nn.Linear(columns, rows, bias=leaf.bias is not None, device="meta")
    tensor = IntxUnpackedToInt8Tensor(
        qdata=weight.values,
        scale=weight.scales,
        zero_point=torch.zeros_like(weight.scales, dtype=torch.int8),
        target_dtype=torch.int8 if weight.bits == 8 else torch.int4,  # type: ignore[attr-defined]
        block_size=(1, weight.group),
        dtype=torch.float32,
        activation_quantization="int8_asym_per_token",
    )
    result.weight = nn.Parameter(tensor, requires_grad=False)
    if leaf.bias is not None:
        result.bias = nn.Parameter(leaf.bias, requires_grad=False)
    return result


class ByteEmbedding(nn.Module):
    """Rows of an int8 table, scaled group by group: `quantized_decomposed.embedding_byte`."""

    values: Tensor
    scales: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.register_buffer("values", weight.values)
        self.register_buffer("scales", weight.scales)
        self.group = weight.group

    def forward(self, ids: Tensor) -> Tensor:
        """(1, t) int64 -> (1, t, width)."""
        if torch.compiler.is_exporting():
            rows: Tensor = decomposed.embedding_byte.dtype(
                self.values, self.scales, None, -128, 127, ids, dtype=torch.float32
            )
            return rows
        grid = self.values[ids].float().view(*ids.shape, -1, self.group)
        return torch.flatten(grid * self.scales[ids][..., None], -2)


class FloatCache(CachedAttention):
    """Attention over a float cache that is a buffer of the program: update_cache, custom_sdpa."""

    key_cache: Tensor
    value_cache: Tensor

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__(config)
        shape = (1, context, config.kv_heads, config.head_dim)
        self.register_buffer("key_cache", torch.zeros(shape))
        self.register_buffer("value_cache", torch.zeros(shape))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As `CachedAttention.forward`."""
        if not torch.compiler.is_exporting():
            return super().forward(q, k, v, step)
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        torch.ops.llama.update_cache(k, self.key_cache, step.position)
        torch.ops.llama.update_cache(v, self.value_cache, step.position)
        out = torch.ops.llama.custom_sdpa(
            q, self.key_cache, self.value_cache, step.position, None, 0.0, self.causal, self.scale
        )
        result: Tensor = out.flatten(2)
        return result


class Int8Cache(CachedAttention):
    """Attention over an int8 cache with a scale and zero point per token and head: custom_quantized_sdpa.

    The kernel takes q in int8 as well, so the eager face rounds q too.
    """

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__(config)
        for part in ("key", "value"):
            shape = (1, context, config.kv_heads, config.head_dim)
            self.register_buffer(f"{part}_cache", torch.zeros(shape, dtype=torch.int8))
            self.register_buffer(f"{part}_scales", torch.ones((*shape[:3], 1)))
            self.register_buffer(f"{part}_zeros", torch.zeros((*shape[:3], 1), dtype=torch.int8))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """As `CachedAttention.forward`."""
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        rounded_q, rounded_k, rounded_v = round_per_token(q), round_per_token(k), round_per_token(v)
        if not torch.compiler.is_exporting():
            q, k, v = (dequantize_per_token(*rounded) for rounded in (rounded_q, rounded_k, rounded_v))
            return self._eager(q, k, v, step)
        for part, rounded in (("key", rounded_k), ("value", rounded_v)):
            for name, tensor in zip(("cache", "scales", "zeros"), rounded, strict=True):
                torch.ops.llama.update_cache(tensor, self.get_buffer(f"{part}_{name}"), step.position)
        q8, q_scales, q_zeros = rounded_q
        out = torch.ops.llama.custom_quantized_sdpa(
            q8,
            self.get_buffer("key_cache"),
            self.get_buffer("value_cache"),
            step.position,
            None,
            0.0,
            self.causal,
            self.scale,
            q_zeros,
            q_scales,
            self.get_buffer("key_zeros"),
            self.get_buffer("key_scales"),
            self.get_buffer("value_zeros"),
            self.get_buffer("value_scales"),
        )
        result: Tensor = out.flatten(2)
        return result

    def _eager(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if self.keys is not None and self.values is not None and step.position:
            k = torch.cat((self.keys[:, : step.position], k), dim=1)
            v = torch.cat((self.values[:, : step.position], v), dim=1)
        self.keys, self.values = k, v
        return attend(q, k, v, self.causal, self.scale)


def round_per_token(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int8 values, float32 scales and int8 zero points of x (1, t, heads, d), asymmetric per token and head."""
    scales, zeros = decomposed.choose_qparams_per_token_asymmetric.default(x, torch.int8)
    values = decomposed.quantize_per_token(x, scales, zeros, -128, 127, torch.int8)
    return values, scales.to(torch.float32), zeros.to(torch.int8)


def dequantize_per_token(values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Floats again."""
    return (values.float() - zeros.float()) * scales


def swap(module: nn.Module, config: DecoderConfig, context: int, int8_cache: bool) -> None:
    """Replace every leaf of `module` by ExecuTorch's, in place."""
    for name, child in module.named_children():
        if isinstance(child, QuantizedLinear):
            setattr(module, name, linear(child))
        elif isinstance(child, QuantizedEmbedding):
            setattr(module, name, ByteEmbedding(child.quantized))
        elif isinstance(child, CachedAttention):
            setattr(module, name, (Int8Cache if int8_cache else FloatCache)(config, context))
        else:
            swap(child, config, context, int8_cache)
