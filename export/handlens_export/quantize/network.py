"""A network with packed leaves, from its finished stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.network.rope import tables
from handlens_export.quantize.calibrated import Calibration, calibrated_layers, in_layers
from handlens_export.quantize.formats import Matrix, Part, matrix, weigh
from handlens_export.quantize.stages import finished, rounded
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_runtime.manifest import PartQuantization


def quantize_network(
    parameters: Parameters,
    config: NetworkConfig,
    recipe: Recipe,
    context: int,
    progress: Callable[[float], None],
    kept: StageCache | None = None,
    calibration: Calibration | None = None,
) -> tuple[Network, dict[Part, PartQuantization]]:
    """Read, round and place every weight; returns the network and what each part came to.

    Stages that `kept` has are not made again; those made are put there, and the network's tensors are then
    memory-mapped. Without it, all of them are in memory. `calibration` is for the recipes whose method looks at
    activations. Raises TargetError where the cache's disk is full, and
    CheckpointError where a weight cannot be read or is no finite number.
    """
    with torch.device("meta"):
        network = Network(config, context=1)
    network.decoder.cos, network.decoder.sin = tables(config.decoder, context)
    kept = kept or StageCache(bound=0)
    layered = recipe.method != "round"
    names = [name for name in parameters.shapes if not (layered and in_layers(name))]
    share = sum(prod(parameters.shapes[name]) for name in names) / sum(map(prod, parameters.shapes.values()))
    place = partial(_place_all, network.eval(), parameters, recipe)
    place(names, finished(parameters, recipe, kept, lambda done: progress(done * share), names))
    if layered:
        assert calibration is not None, f"{recipe.method} needs a calibration set"
        for done in calibrated_layers(network, parameters, recipe, kept, calibration, place):
            progress(share + (1 - share) * done)
    return network, weigh(parameters.shapes, recipe)


def _place_all(
    network: Network, parameters: Parameters, recipe: Recipe, names: Iterable[str], tensors: dict[str, Tensor]
) -> None:
    """Give the modules of some parameters their weights."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        weight = f"{path}.weight"
        grid = matrix(weight, parameters.shapes[weight], recipe) if weight in parameters.shapes else None
        _place(network, path, grid, tensors)


def _place(network: Network, path: str, grid: Matrix | None, tensors: dict[str, Tensor]) -> None:
    """Give one module its weights: on a grid where it is a linear or the embedding table, else in float."""
    module = network.get_submodule(path)
    if grid is None:
        for name, _ in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(tensors[f"{path}.{name}"], requires_grad=False))
        return
    weight = rounded(tensors, f"{path}.weight", grid.bits, grid.group)
    parent, _, name = path.rpartition(".")
    leaf: nn.Module = QuantizedEmbedding(weight)
    if isinstance(module, nn.Linear):
        leaf = QuantizedLinear(weight, None if module.bias is None else tensors[f"{path}.bias"])
    setattr(network.get_submodule(parent), name, leaf)
