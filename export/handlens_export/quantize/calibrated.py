"""The decoder's layers by a method that looks at activations: one after another, each kept as soon as it is done.

A layer's key says, beside what a rounded stage's says, the method, the calibration set and the stages before it, all of
which decide what reaches it. So a run that was killed goes on at its layer, whose inputs it computes again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from handlens_export.errors import CheckpointError
from handlens_export.network.attention import CachedAttention
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.formats import matrix
from handlens_export.quantize.layers import quantize_layer
from handlens_export.quantize.stages import (
    SOURCES,
    as_tensors,
    changed,
    code_version,
    refuse_no_numbers,
    stage_key,
    stages,
)
from handlens_export.quantize.weight import in_float
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import Stage, StageCache
from handlens_export.stage_cache.tensor_file import let_go
from handlens_runtime import heap

CODE = (*SOURCES, "network/*.py", "quantize/*.py", "prompt_rows.py")
"""What the activations depend on, too."""


@dataclass(frozen=True)
class Calibration:
    """What activations are measured on."""

    digest: str
    """sha256 of the set, as a manifest records it."""
    state: str
    """Of all else that decides the rows: how prompts are rendered, tokenized, tiled and cut."""
    rows: Callable[[Network], Sequence[Tensor]]
    """The embedded rows (1, t, width) of each prompt, from a network whose decoder layers have no weights yet."""


def spread(total: int, count: int) -> list[int]:
    """Places of `count` of `total` prompts, at even distances: what stands together in a set is often alike."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def in_layers(name: str) -> bool:
    """Whether a parameter belongs to a decoder layer."""
    return name.startswith("decoder.layers.")


@torch.no_grad()
def calibrated_layers(
    network: Network,
    parameters: Parameters,
    recipe: Recipe,
    kept: StageCache,
    calibration: Calibration,
    place: Callable[[list[str], dict[str, Tensor]], None],
) -> Iterator[float]:
    """Make each layer's tensors, or take them from `kept`, and give them to `place`; the share done after each.

    `network` has its other weights already. Raises CheckpointError, TargetError.
    """
    named = stages(name for name in parameters.shapes if in_layers(name))
    first, keys = "", [""] * len(named)
    if kept.working:
        first = before = _first(parameters, recipe, calibration)
        keys = [before := _key(parameters, names, recipe, before) for names in named.values()]
    found = [kept.get(key) for key in keys]
    last = max((index for index, stage in enumerate(found) if stage is None), default=-1)
    hidden = list(calibration.rows(network)) if last >= 0 else []
    if not all(bool(rows.isfinite().all()) for rows in hidden):
        raise CheckpointError(
            f"{parameters.path} gives rows that are no finite numbers; use --method round, or mend the checkpoint."
        )
    for index, (stage, names) in enumerate(named.items()):
        layer = cast(DecoderLayer, network.decoder.layers[index])
        made = found[index]
        if made is None:
            made, hidden = _make(network, index, names, parameters, recipe, hidden)
            if keys[index] and _key(parameters, names, recipe, keys[index - 1] if index else first) != keys[index]:
                raise changed(parameters)
            made = kept.put(keys[index], made, {"checkpoint": str(parameters.path.resolve()), "stage": stage})
            place(names, made)
        else:
            place(names, made)
            if index < last:
                with in_float(layer):
                    hidden = [layer(rows, network.decoder.eager_step(rows.shape[1], 0)) for rows in hidden]
        cached = cast(CachedAttention, layer.attention.cached)
        cached.keys = cached.values = None
        let_go()  # what is mapped of a finished layer
        heap.trim()  # and its rows, which lie between those of the next
        yield (index + 1) / len(named)


def _make(
    network: Network, index: int, names: list[str], parameters: Parameters, recipe: Recipe, hidden: list[Tensor]
) -> tuple[Stage, list[Tensor]]:
    """One layer, which is left with its weights in float, and the rows that leave it."""
    prefix = f"decoder.layers.{index}."
    layer = cast(DecoderLayer, network.decoder.layers[index])
    made: Stage = {}
    grids = {}
    for name in names:
        weight = parameters.read(name)
        refuse_no_numbers(parameters, name, weight)
        path, _, kind = name.removeprefix(prefix).rpartition(".")
        setattr(layer.get_submodule(path), kind, nn.Parameter(weight, requires_grad=False))
        grid = matrix(name, parameters.shapes[name], recipe)
        if grid is None:
            made[name] = weight
        else:
            grids[path] = grid
    found, after = quantize_layer(layer, hidden, lambda t: network.decoder.eager_step(t, 0), grids, recipe.method)
    for path, rounded in found.items():
        made |= as_tensors(f"{prefix}{path}.weight", rounded)
    return made, after


def _first(parameters: Parameters, recipe: Recipe, calibration: Calibration) -> str:
    """All that decides what reaches the first layer, and how layers are rounded."""
    outside = [name for name in parameters.shapes if not in_layers(name) and not name.startswith("decoder.head")]
    before = stage_key(parameters, outside, recipe)
    return json.dumps([code_version(CODE), recipe.method, calibration.digest, calibration.state, before])


def _key(parameters: Parameters, names: Sequence[str], recipe: Recipe, before: str) -> str:
    """A layer's key, from that of the layer before it."""
    return hashlib.sha256(json.dumps([before, stage_key(parameters, names, recipe)]).encode()).hexdigest()
