"""What training minimizes, and the shares of right answers that are told beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from handlens_export.reader.batch import Batch
from handlens_export.reader.labels import EMPTY
from handlens_export.reader.model import Networks, Reader

Loss = Literal["dense", "language", "rows", "answers"]
"""
dense     the encoder's features tell what stands under each patch
language  the decoder answers from the oracle's rows
rows      the projector's rows are the oracle's
answers   the decoder answers from the projector's rows
"""
EMPTY_WEIGHT = 0.15
"""Of a slot without a character: most are, and most of them are easy."""


def losses_of(names: Iterable[Loss], networks: Networks, batch: Batch) -> tuple[dict[Loss, Tensor], dict[str, float]]:
    """Each loss by its name, and what to tell: shares between 0 and 1."""
    names = set(names)
    losses: dict[Loss, Tensor] = {}
    told: dict[str, float] = {}
    reader = networks.reader
    rows = features = None
    seen = batch.characters.shape[0] > 0
    if names & {"dense", "rows", "answers"} and seen:
        features = reader.features(batch.tiles)
        if names & {"rows", "answers"}:
            rows = reader.rows(features)
    if "dense" in names and features is not None:
        losses["dense"], told["characters"] = dense(networks.head(features), batch)
    known = networks.oracle(batch.characters, batch.shapes, batch.colours)
    if "rows" in names and rows is not None:
        losses["rows"] = row_distance(rows, known.detach())
    if "language" in names:
        losses["language"], shares = answers(reader, known, batch)
        told |= {f"oracle {kind}": share for kind, share in shares.items()}
    if "answers" in names:
        losses["answers"], shares = answers(reader, rows if rows is not None else known, batch)
        told |= shares
    return losses, told


def dense(scores: tuple[Tensor, Tensor, Tensor], batch: Batch) -> tuple[Tensor, float]:
    """Cross-entropy over characters, shapes and colours; the share of slots with a character that are right."""
    characters, shapes, colours = (part.float() for part in scores)
    filled = batch.characters != EMPTY
    weight = torch.where(filled, 1.0, EMPTY_WEIGHT)
    each = F.cross_entropy(characters.flatten(0, -2), batch.characters.flatten(), reduction="none")
    loss = (each * weight.flatten()).sum() / weight.sum()
    loss = loss + 0.3 * F.cross_entropy(shapes.flatten(0, -2), batch.shapes.flatten())
    loss = loss + 0.3 * F.cross_entropy(colours.flatten(0, -2), batch.colours.flatten())
    right = (characters.argmax(-1) == batch.characters)[filled].float().mean()
    return loss, float(right) if filled.any() else 1.0


def row_distance(rows: Tensor, known: Tensor) -> Tensor:
    """Mean squared distance in units of the known rows' own variance."""
    known = known.float()
    return (rows.float() - known).pow(2).mean() / known.var().clamp_min(1e-4)


def answers(reader: Reader, rows: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers' tokens; the share of answers all of whose tokens are the likeliest, by kind.

    With the tokens before it given, an answer is right throughout exactly if greedy decoding would say it.
    """
    wanted = batch.targets >= 0
    logits = reader.logits(rows.flatten(0, -2), batch, wanted).float()
    targets = batch.targets[wanted]
    loss = F.cross_entropy(logits, targets)
    right = torch.zeros_like(batch.targets, dtype=torch.bool)
    right[wanted] = logits.argmax(-1) == targets
    return loss, _by_kind(right, wanted, batch)


def _by_kind(right: Tensor, wanted: Tensor, batch: Batch) -> dict[str, float]:
    """An answer is a run of wanted positions; the k-th of a row belongs to the k-th kind."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for row, kinds in enumerate(batch.kinds):
        begins = wanted[row] & ~F.pad(wanted[row][:-1], (1, 0))
        number = begins.cumsum(0)
        for k, kind in enumerate(kinds):
            counts[kind].append(bool(right[row][wanted[row] & (number == k + 1)].all()))
    told = {kind: sum(found) / len(found) for kind, found in counts.items()}
    everything = [one for found in counts.values() for one in found]
    return {"exact": sum(everything) / len(everything), **told}
