"""ExecuTorch's leaves: the linear XNNPACK recognizes, the byte embedding; cached attention has its own module.

Each leaf has two faces. In a trace it calls the kernels' operators; in eager it computes what those kernels compute
in plain torch, so that the eager network is the yardstick for the program.
"""

from __future__ import annotations

import executorch.exir.passes._quant_patterns_and_replacements
import executorch.kernels.quantized  # noqa: F401  registers their out variants
import torch
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from handlens_export.lower.executorch_attention import FloatCache, Int8Cache
from handlens_export.network.attention import CachedAttention
from handlens_export.network.config import DecoderConfig
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
