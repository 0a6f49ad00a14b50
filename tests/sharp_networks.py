"""Networks whose attention looks at some tokens more than at others: what the choice of tokens is tested on."""

from __future__ import annotations

import torch
from tiny_networks import network_of

from handlens_export.network.network import Network
from handlens_export.network.rope import tables

CONTEXT, TAU = 420, 0.8


def sharp_network(**changes) -> Network:
    network = network_of(**changes)
    network.decoder.cos, network.decoder.sin = tables(network.config.decoder, CONTEXT)
    for layer in network.decoder.layers:
        layer.attention.q_proj.weight.mul_(6)
    return network


def rows_of(count: int) -> torch.Tensor:
    return torch.randn(1, count, 128, generator=torch.Generator().manual_seed(1))


def kept_by(reference: Network) -> list[int]:
    """Rows in each layer's cache."""
    return [layer.attention.cached.keys.shape[1] for layer in reference.decoder.layers]
