"""A network with packed leaves, made matrix by matrix: one is in float at any time, the rest on their grids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from handlens_export.errors import CheckpointError
from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.network.rope import tables
from handlens_export.quantize.rounding import choose_format, quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import PartQuantization

Part = Literal["vision", "projector", "embedding", "decoder", "head"]
Bits = Literal[2, 4, 8, 32]


@dataclass
class _Tally:
    """What a part's weights came to."""

    parameters: int = 0
    bytes: int = 0
    exceptions: Counter[str] = field(default_factory=Counter)


def quantize_network(
    parameters: Parameters, config: NetworkConfig, recipe: Recipe, context: int, progress: Callable[[float], None]
) -> tuple[Network, dict[Part, PartQuantization]]:
    """Read, round and place every weight; returns the network and what each part came to.

    Raises CheckpointError where a weight cannot be read or is no finite number.
    """
    with torch.device("meta"):
        network = Network(config, context=1)
    network.decoder.cos, network.decoder.sin = tables(config.decoder, context)
    tallies: dict[Part, _Tally] = {}
    paths = [path for path, _ in network.named_modules()]
    for done, path in enumerate(paths):
        if path:
            part = _part(path)
            _place(network, path, part, parameters, recipe, tallies.setdefault(part, _Tally()))
        progress((done + 1) / len(paths))
    return network.eval(), {part: _summary(part, tally, recipe) for part, tally in tallies.items() if tally.parameters}


def _place(network: Network, path: str, part: Part, parameters: Parameters, recipe: Recipe, tally: _Tally) -> None:
    """Give one module its weights: on a grid where it is a linear or the embedding table, else in float."""
    module = network.get_submodule(path)
    bits = _bits(part, recipe)
    if isinstance(module, nn.Linear | nn.Embedding) and bits < 32:
        grid = _round(path, parameters, bits, recipe.group, tally)
        bias = None
        if isinstance(module, nn.Linear) and module.bias is not None:
            bias = _read(parameters, f"{path}.bias")
            tally.parameters, tally.bytes = tally.parameters + bias.numel(), tally.bytes + bias.nbytes
        leaf = QuantizedLinear(grid, bias) if isinstance(module, nn.Linear) else QuantizedEmbedding(grid)
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, leaf)
        return
    for name, _ in module.named_parameters(recurse=False):
        weight = _read(parameters, f"{path}.{name}")
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
        tally.parameters, tally.bytes = tally.parameters + weight.numel(), tally.bytes + weight.nbytes
        if bits < 32 and isinstance(module, nn.Conv2d) and name == "weight":
            tally.exceptions[f"{path.rpartition('.')[2]} {_shape(weight)}: float, a convolution"] += 1


def _round(path: str, parameters: Parameters, bits: int, group: int, tally: _Tally) -> QuantizedWeight:
    weight = _read(parameters, f"{path}.weight")
    got, columns = choose_format(weight.shape[1], bits, group)
    grid = quantize(weight, got, columns)
    tally.parameters, tally.bytes = tally.parameters + weight.numel(), tally.bytes + grid.nbytes
    if (got, columns) != choose_format(group, bits, group) and bits != 8:
        form = f"groups of {columns}" if got < 8 else "8 bits, a scale per row"
        name = re.sub(r"\d+", "*", path)
        tally.exceptions[f"{name} {_shape(weight)}: {form}, because {group} does not divide {weight.shape[1]}"] += 1
    return grid


def _read(parameters: Parameters, name: str) -> Tensor:
    """One parameter; rounded, a value that is no number would pass for an ordinary one."""
    weight = parameters.read(name)
    if not bool(weight.isfinite().all()):
        raise CheckpointError(
            f"{parameters.sources[name]} holds values that are not finite numbers, which cannot be rounded; "
            "give a checkpoint whose training did not diverge."
        )
    return weight


def _part(path: str) -> Part:
    if path.startswith("vision"):
        return "vision"
    if path.startswith("projector"):
        return "projector"
    if path.startswith("decoder.embedding"):
        return "embedding"
    return "head" if path.startswith("decoder.head") else "decoder"


def _bits(part: Part, recipe: Recipe) -> Bits:
    if part in ("vision", "projector"):
        return cast(Bits, recipe.vision_bits)
    if part == "embedding":
        return cast(Bits, recipe.embedding_bits)
    return cast(Bits, recipe.head_bits if part == "head" else recipe.bits)


def _summary(part: Part, tally: _Tally, recipe: Recipe) -> PartQuantization:
    bits = _bits(part, recipe)
    return PartQuantization(
        bits=bits,
        group=recipe.group if bits < 8 else None,
        symmetric=bits != 2,
        parameters=tally.parameters,
        bytes=tally.bytes,
        exceptions=tuple(f"{count} x {what}" for what, count in sorted(tally.exceptions.items())),
    )


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
