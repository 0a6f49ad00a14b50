"""How a network does: perplexity on a text, right answers, and how far its next tokens are from the float network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf

import torch
from torch import Tensor

from handlens_export.network.network import Network
from handlens_export.quantize.float_layers import head_in_float, passed
from handlens_export.quantize.sensitivity import divergence
from handlens_export.quantize.weight import in_float
from handlens_export.sweep.items import Encoded, Item

LARGEST_LOSS = 700.0
"""Nats a token whose exponential is a number still."""
COMPARED = 256
"""Positions, spread over all, whose whole distribution is compared: each is a row as long as the vocabulary."""


@dataclass(frozen=True)
class Quality:
    """What a network makes of the items."""

    perplexity: float | None
    """On the text; None without one."""
    right: tuple[bool, ...]
    """Of each question, whether it is answered right to the letter."""
    tokens_right: float | None
    """Share of the answers' tokens that have the highest score after the right ones before them; None without any."""
    distributions: Tensor
    """Log-probabilities (COMPARED, vocab_size) of the next token."""

    @property
    def exact_match(self) -> float | None:
        """Share of questions answered right; None without any."""
        return sum(self.right) / len(self.right) if self.right else None

    def divergence(self, exact: Quality) -> float:
        """From the float network's (see `sensitivity.divergence`)."""
        return divergence(exact.distributions, self.distributions)


@torch.no_grad()
def quality(network: Network, items: Sequence[Item], progress: Callable[[float], None]) -> Quality:
    """Layer by layer, so that one layer at a time is in float."""
    total = sum(len(item.expected) for item in items)
    compared = set(range(0, total, max(1, total // COMPARED)))
    scores, right, kept = 0.0, [], []
    tokens = answers = hits = place = 0
    for item, found in _log_probabilities(network, items, progress):
        if item.kind == "text":
            scores += float(found.gather(1, item.expected[:, None]).double().sum())
            tokens += len(item.expected)
        else:
            best = found.argmax(-1)
            right.append(_right(item, best))
            hits += int((best == item.expected).sum())
            answers += len(item.expected)
        kept += [row.clone() for index, row in enumerate(found) if place + index in compared]
        place += len(item.expected)
    progress(1.0)
    return Quality(
        perplexity=_perplexity(-scores / tokens) if tokens else None,
        right=tuple(right),
        tokens_right=hits / answers if answers else None,
        distributions=torch.stack(kept),
    )


def _perplexity(loss: float) -> float:
    return exp(loss) if loss < LARGEST_LOSS else inf  # also where it is no number


def _right(item: Item, best: Tensor) -> bool:
    """Whether the best tokens are the answer's, and then any that ends a turn where one does."""
    if int(item.expected[-1]) not in item.stops:
        return torch.equal(best, item.expected)
    return torch.equal(best[:-1], item.expected[:-1]) and int(best[-1]) in item.stops


def _log_probabilities(
    network: Network, items: Sequence[Item], progress: Callable[[float], None]
) -> Iterator[tuple[Item, Tensor]]:
    """Each item's (n, vocab_size) at the positions it asks about."""
    encoded: Encoded = {}
    hidden = [item.rows(network, encoded) for item in items]
    encoded.clear()
    head = head_in_float(network)
    layers = network.decoder.layers
    for index, layer in enumerate(layers):
        with in_float(layer):
            hidden = [passed(layer, network, rows) for rows in hidden]  # type: ignore[arg-type]
        progress((index + 1) / (len(layers) + 1))
    for item, rows in zip(items, hidden, strict=True):
        asked = rows[:, item.first : item.first + len(item.expected)]
        yield item, head(network.decoder.norm(asked))[0].log_softmax(-1)
