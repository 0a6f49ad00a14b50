"""How well a run reads pages that it does not learn from, by the groups and kinds of the evaluation set."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from torch import Tensor

from handlens_export.reader.batch import Batch, assemble
from handlens_export.reader.draw import seen
from handlens_export.reader.evaluation_set import USUAL, groups
from handlens_export.reader.examples import asked_example
from handlens_export.reader.losses import answers
from handlens_export.reader.model import Reader
from handlens_export.reader.pool import normalized
from handlens_export.reader.stages import MANY
from handlens_export.reader.tokenizer import IMAGE, build
from handlens_export.reader.turns import TOLD, Turns, encode

TILES = 200
"""Of a batch, at most."""

Drawn = tuple[str, Tensor, Tensor, Turns]
"""Group, tiles, labels, and questions that stand alone."""


def draw(task: tuple[str, int]) -> Drawn:
    """A page of a group, from seeds that neither training nor the evaluation set uses."""
    name, _ = task
    group, random = groups()[name], Random(f"validation {task}")
    made = asked_example(random, group.layouts, group.typefaces, random.choice(MANY), 6)
    tiles, known, picture, _ = seen(made)
    return name, torch.from_numpy(tiles), torch.from_numpy(known), encode(build(), picture, made.turns, alone=True)


def exact(reader: Reader, drawn: list[Drawn], device: torch.device) -> dict[str, float]:
    """Share of the answers that greedy decoding would give, by `group` and `group kind`."""
    counts = {name: torch.zeros(2, len(TOLD), device=device) for name in USUAL}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    # A compiled network would be compiled again for these shapes.
    with torch.no_grad(), autocast, torch.compiler.set_stance("force_eager"):
        for name in USUAL:
            for batch in _batches([page for page in drawn if page[0] == name], device):
                counts[name] += answers(reader, reader.rows(reader.features(batch.tiles)), batch)[1]
    told: dict[str, float] = {}
    for name, count in counts.items():
        right, asked = count.cpu().numpy()
        told[name] = float(right.sum() / max(1, asked.sum()))
        told |= {f"{name} {TOLD[k]}": float(right[k] / asked[k]) for k in np.flatnonzero(asked)}
    return told


def _batches(pages: list[Drawn], device: torch.device) -> Iterator[Batch]:
    image = build().get_vocab()[IMAGE]
    pages = sorted(pages, key=lambda page: len(page[1]))
    while pages:
        many = max(1, TILES // len(pages[0][1]))
        chosen = [page for page in pages[:many] if len(page[1]) == len(pages[0][1])]
        pages = pages[len(chosen) :]
        tiles = normalized(torch.cat([page[1] for page in chosen]).to(device))
        yield assemble([page[3] for page in chosen], image, tiles, torch.cat([page[2] for page in chosen]).to(device))
