"""Networks whose attention looks at some tokens more than at others: what the choice of tokens is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import torch
from tiny_networks import network_of

from handlens_export.lower import onnx_attention
from handlens_export.network import zipvl
from handlens_export.network.network import Network
from handlens_export.network.rope import tables

CONTEXT, TAU = 420, 0.8


class Decoder(Protocol):
    """A program, and how many rows each layer's cache holds; `kept` (layers, t): which of the last pass's."""

    lengths: Any
    kept: Any

    def decode(self, rows: torch.Tensor, position: int, tau: float) -> torch.Tensor: ...


def sharp_network(**changes) -> Network:
    network = network_of(**changes)
    network.decoder.cos, network.decoder.sin = tables(network.config.decoder, CONTEXT)
    for layer in network.decoder.layers:
        layer.attention.q_proj.weight.mul_(6)
    return network


def rows_of(count: int) -> torch.Tensor:
    return torch.randn(1, count, 128, generator=torch.Generator().manual_seed(1))


@contextmanager
def choices() -> Iterator[list[list[int]]]:
    """Places that the layers of an eager network choose meanwhile, one layer after the other."""
    places: list[list[int]] = []
    choose = zipvl.chosen

    def noted(*given: Any) -> torch.Tensor:
        found = choose(*given)
        places.append(found.tolist())
        return found

    with patch.object(zipvl, "chosen", noted), patch.object(onnx_attention, "chosen", noted):
        yield places


def kept_by(reference: Network) -> list[int]:
    """Rows in each layer's cache."""
    return [layer.attention.cached.keys.shape[1] for layer in reference.decoder.layers]


def converse(program: Decoder, reference: Network, least_cosine: float) -> None:
    """Prompts and answers; each pass gives the reference's logits and leaves the same rows in each layer's cache."""
    rows, position = rows_of(CONTEXT), 0
    for count, prompt in ((170, True), (1, False), (1, False), (140, True), (1, False)):
        part = rows[:, position : position + count]
        with choices() as chosen:
            expected = reference.logits(part, position, prompt)[0, -1]
        found = program.decode(part, position, TAU if prompt else 1.0)
        assert torch.cosine_similarity(found, expected, 0) > least_cosine
        assert program.lengths.tolist() == kept_by(reference)
        assert (program.kept.sum(1) < count).all() == prompt
        assert not prompt or [row.nonzero()[0].tolist() for row in program.kept] == chosen
        position += count
    assert max(program.lengths) < 0.8 * position


def go_back(program: Decoder) -> None:
    """A step behind a prompt gives the same once a later prompt has run and is forgotten: lengths alone tell."""
    rows = rows_of(300)
    program.lengths = program.lengths * 0
    program.decode(rows[:, :170], 0, TAU)
    after_first = program.lengths.copy()
    expected = program.decode(rows[:, 170:171], 170, 1.0)
    program.lengths = after_first
    program.decode(rows[:, 150:300], 170, TAU)
    program.lengths = after_first
    assert torch.equal(program.decode(rows[:, 170:171], 170, 1.0), expected)
