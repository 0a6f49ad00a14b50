"""The float network of a checkpoint too large to be held: its matrices stay in the file until they multiply."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.network.rope import tables

HELD = 500_000_000
"""Weights up to which a network is read once and held, 2 GB in float32: reading again at each call takes longer."""


class MappedLinear(nn.Module):
    """A linear whose weight is read at each call."""

    def __init__(self, read: Callable[[], Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.read, self.bias = read, bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, columns) -> (…, rows)."""
        return nn.functional.linear(x, self.read(), self.bias)


class MappedEmbedding(nn.Module):
    """A table of which only the rows asked for are read."""

    def __init__(self, rows: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        """(1, t) int64 -> (1, t, width)."""
        return self.rows(ids.flatten()).view(*ids.shape, -1)


def float_network(parameters: Parameters, config: NetworkConfig, context: int, held: int = HELD) -> Network:
    """The network with a checkpoint's weights in float32; one of more than `held` reads them at each call.

    `context`: positions the rotary tables hold. Raises CheckpointError.
    """
    with torch.device("meta"):
        network = Network(config, context=1)
    network.decoder.cos, network.decoder.sin = tables(config.decoder, context)
    mapped = sum(map(prod, parameters.shapes.values())) > held
    for path in [path for path, _ in network.named_modules() if path]:
        module = network.get_submodule(path)
        leaf = _leaf(parameters, path, module) if mapped else None
        if leaf is None:
            for name, _ in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameters.read(f"{path}.{name}"), requires_grad=False))
        else:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, leaf)
    return network.eval()


def _leaf(parameters: Parameters, path: str, module: nn.Module) -> nn.Module | None:
    """What stands for a module with a large matrix; None for any other."""
    match module:
        case nn.Linear():
            bias = None if module.bias is None else parameters.read(f"{path}.bias")
            return MappedLinear(partial(parameters.read, f"{path}.weight"), bias)
        case nn.Embedding():
            return MappedEmbedding(partial(parameters.rows, f"{path}.weight"))
    return None
