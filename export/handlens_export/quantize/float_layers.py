"""The float decoder one layer at a time, so that a network larger than memory is passed through once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from handlens_export.network.attention import CachedAttention
from handlens_export.network.config import NetworkConfig
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import MappedLinear
from handlens_export.network.network import Network
from handlens_export.quantize.weight import QuantizedLinear


def float_layer(parameters: Parameters, config: NetworkConfig, index: int) -> DecoderLayer:
    """One decoder layer with its weights in float32. Raises CheckpointError."""
    layer, prefix = DecoderLayer(config.decoder), f"decoder.layers.{index}."
    for name, _ in list(layer.named_parameters()):
        path, _, kind = name.rpartition(".")
        setattr(layer.get_submodule(path), kind, nn.Parameter(parameters.read(prefix + name), requires_grad=False))
    return layer.eval()


def passed(layer: DecoderLayer, network: Network, rows: Tensor) -> Tensor:
    """Rows (1, t, width) through one layer, from an empty cache, which is left empty."""
    out: Tensor = layer(rows, network.decoder.eager_step(rows.shape[1], 0))
    cached = cast(CachedAttention, layer.attention.cached)
    cached.keys = cached.values = None
    return out


def head_in_float(network: Network) -> nn.Module:
    """The output head with its weight unpacked: it is asked many times, and is the largest matrix."""
    head = network.decoder.head
    match head:
        case MappedLinear():
            weight = head.read()
        case QuantizedLinear():
            weight = head.quantized.dequantize()
        case _:
            return head
    held = nn.Linear(1, 1, bias=head.bias is not None, device="meta")
    held.weight = nn.Parameter(weight, requires_grad=False)
    if head.bias is not None:
        held.bias = nn.Parameter(head.bias, requires_grad=False)
    return held


def linears(layer: DecoderLayer) -> Iterator[tuple[str, nn.Linear]]:
    """A layer's linears by their names in it."""
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def set_weight(layer: DecoderLayer, name: str, weight: Tensor) -> None:
    """Give one linear of a layer another weight."""
    cast(nn.Linear, layer.get_submodule(name)).weight = nn.Parameter(weight, requires_grad=False)
