"""A network with packed leaves, made matrix by matrix: one is in float at any time, the rest on their grids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from handlens_export.errors import CheckpointError
from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.network.rope import tables
from handlens_export.quantize.formats import Part, matrix, weigh
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import PartQuantization


def quantize_network(
    parameters: Parameters, config: NetworkConfig, recipe: Recipe, context: int, progress: Callable[[float], None]
) -> tuple[Network, dict[Part, PartQuantization]]:
    """Read, round and place every weight; returns the network and what each part came to.

    Raises CheckpointError where a weight cannot be read or is no finite number.
    """
    with torch.device("meta"):
        network = Network(config, context=1)
    network.decoder.cos, network.decoder.sin = tables(config.decoder, context)
    paths = [path for path, _ in network.named_modules()]
    for done, path in enumerate(paths):
        if path:
            _place(network, path, parameters, recipe)
        progress((done + 1) / len(paths))
    return network.eval(), weigh(parameters.shapes, recipe)


def _place(network: Network, path: str, parameters: Parameters, recipe: Recipe) -> None:
    """Give one module its weights: on a grid where it is a linear or the embedding table, else in float."""
    module = network.get_submodule(path)
    weight = f"{path}.weight"
    grid = matrix(weight, parameters.shapes[weight], recipe) if weight in parameters.shapes else None
    if grid is not None:
        rounded = quantize(_read(parameters, weight), grid.bits, grid.group)
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else _read(parameters, f"{path}.bias")
            leaf: nn.Module = QuantizedLinear(rounded, bias)
        else:
            leaf = QuantizedEmbedding(rounded)
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, leaf)
        return
    for name, _ in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(_read(parameters, f"{path}.{name}"), requires_grad=False))


def _read(parameters: Parameters, name: str) -> Tensor:
    """One parameter; rounded, a value that is no number would pass for an ordinary one."""
    weight = parameters.read(name)
    if not bool(weight.isfinite().all()):
        raise CheckpointError(
            f"{parameters.sources[name]} holds values that are not finite numbers, which cannot be rounded; "
            "give a checkpoint whose training did not diverge."
        )
    return weight
