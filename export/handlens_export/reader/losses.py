"""What training minimizes, and the counts of right answers that are told beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from handlens_export.network.projector import merge_patches
from handlens_export.reader.batch import Batch
from handlens_export.reader.labels import EMPTY, SLOTS
from handlens_export.reader.model import Networks, Reader
from handlens_export.reader.turns import TOLD

Loss = Literal["dense", "slots", "heads", "language", "rows", "answers", "pointers"]
"""
dense     the encoder's features tell what stands under each patch
slots     so do the projector's rows, under each of their patches
heads     both, but only the heads that tell it learn
language  the decoder answers from the oracle's rows
rows      the projector's rows are the oracle's
answers   the decoder answers from the projector's rows
pointers  one head of attention finds what a question names, another the letter that is said next: with `language`, with
          `answers`, or with both, whose mean it is
"""
EMPTY_WEIGHT = 0.15
"""Of a slot without a character: most are, and most of them are easy."""


def losses_of(
    names: Iterable[Loss], networks: Networks, batch: Batch, frozen: bool = False
) -> tuple[dict[Loss, Tensor], dict[str, Tensor]]:
    """Each loss by its name, and what to tell: by name, (right, all), with nothing moved off the device.

    `frozen`: the encoder does not learn.
    """
    names = set(names)
    losses: dict[Loss, Tensor] = {}
    told: dict[str, Tensor] = {}
    reader = networks.reader
    labels = batch.labels.long()
    passes: list[tuple[Tensor, ...]] = []
    if names & {"dense", "slots", "heads", "rows", "answers"}:
        with torch.set_grad_enabled("heads" not in names and not frozen):
            features = reader.features(batch.tiles)
        with torch.set_grad_enabled("heads" not in names):
            rows = reader.rows(features)
        if names & {"dense", "heads"}:
            seen, told["characters"] = dense(networks.head(features), under(labels, 1))
        if names & {"slots", "heads"}:
            kept, told["row characters"] = dense(networks.row_head(rows), under(labels, reader.sizes.downsample))
        if "dense" in names:
            losses["dense"] = seen
        if "slots" in names:
            losses["slots"] = kept
        if "heads" in names:
            losses["heads"] = seen + kept
    if names & {"rows", "language"}:
        known = networks.oracle(labels[..., :SLOTS], labels[..., -2], labels[..., -1])
        if "rows" in names:
            losses["rows"] = row_distance(rows, known.detach())
        if "language" in names:
            losses["language"], told["oracle"], taken = answers(reader, known, batch)
            passes.append(taken)
    if "answers" in names:
        losses["answers"], told["exact"], taken = answers(reader, rows, batch)
        passes.append(taken)
    if "pointers" in names:
        found = [pointers(reader, taken, batch) for taken in passes]
        losses["pointers"] = torch.stack([loss for loss, _ in found]).mean()
        told |= found[-1][1]  # from pixels, where there are both
    return losses, told


def dense(scores: tuple[Tensor, Tensor, Tensor], known: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy over characters, shapes and colours; the slots with a character that are right, and all."""
    characters, shapes, colours = (part.float() for part in scores)
    filled = known[0] != EMPTY
    weight = torch.where(filled, 1.0, EMPTY_WEIGHT)
    each = F.cross_entropy(characters.flatten(0, -2), known[0].flatten(), reduction="none")
    loss = (each * weight.flatten()).sum() / weight.sum()
    loss = loss + 0.3 * F.cross_entropy(shapes.flatten(0, -2), known[1].flatten())
    loss = loss + 0.3 * F.cross_entropy(colours.flatten(0, -2), known[2].flatten())
    right = (characters.argmax(-1) == known[0]) & filled
    return loss, torch.stack((right.sum(), filled.sum())).detach()


def under(labels: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (n, patches, LABELS) -> characters (n, m, factor**2, SLOTS), shapes and colours (n, m, factor**2)."""
    merged = merge_patches(labels, factor)
    merged = merged.view(*merged.shape[:2], factor**2, labels.shape[-1])
    return merged[..., :SLOTS], merged[..., -2], merged[..., -1]


def row_distance(rows: Tensor, known: Tensor) -> Tensor:
    """Mean squared distance in units of the known rows' own variance."""
    known = known.float()
    return (rows.float() - known).pow(2).mean() / known.var().clamp_min(1e-4)


def answers(reader: Reader, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Cross-entropy of the answers' tokens; (2, kinds): answers all of whose tokens are the likeliest, and all; and the
    rows that each of the decoder's layers takes.

    With the tokens before it given, an answer is right throughout exactly if greedy decoding would say it. A token
    counts by one over the root of its answer's length: else `yes` would weigh nothing beside a line of forty letters.
    """
    logits, taken = reader.logits(rows.flatten(0, -2), batch)
    logits = logits.float()
    ones = torch.ones_like(batch.targets, dtype=torch.float32)
    length = torch.zeros(len(batch.kinds), device=ones.device).index_add(0, batch.answers, ones)
    weight = length.rsqrt()[batch.answers]
    loss = (F.cross_entropy(logits, batch.targets, reduction="none") * weight).sum() / weight.sum()
    wrong = torch.zeros_like(length).index_add(0, batch.answers, (logits.argmax(-1) != batch.targets).float())
    counts = torch.zeros(2, len(TOLD), device=ones.device)
    counts = counts.index_add(1, batch.kinds, torch.stack(((wrong == 0).float(), torch.ones_like(wrong))))
    return loss, counts, taken


def pointers(reader: Reader, taken: tuple[Tensor, ...], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy between attention and where a question's names and an answer's letters stand on the picture; how
    many have more than half of the attention, and all.

    Names are the last head but one's of the layer before the middle, letters the last one's of the middle layer: of six
    layers and four heads, those that had learned it best by themselves.
    """
    sizes = reader.sizes
    middle = sizes.layers // 2
    loss, told = torch.zeros((), device=batch.ids.device), dict[str, Tensor]()
    for name, pairs, layer, head in (
        ("named", batch.naming, max(0, middle - 1), sizes.heads - 2),
        ("said", batch.saying, middle, sizes.heads - 1),
    ):
        queries, places = pairs.T
        whole = reader.attention(taken, batch, layer, head)
        found = whole.flatten(0, 1)[queries, places % whole.shape[-1]]
        loss = loss - found.sum() / max(1, len(pairs))
        told[name] = torch.stack(((found > math.log(0.5)).sum(), torch.ones_like(queries).sum())).detach()
    return loss, told
