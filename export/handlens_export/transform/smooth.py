"""SmoothQuant+ (arXiv 2312.03788): channels whose activations are large get larger weights and smaller activations, so
that rounding the weights does less to what matters; the network computes what it did.

The factor of channel j is max|x_j|^alpha / max|w_j|^(1 - alpha), over a calibration set and over all linears that read
x; one alpha serves the whole model, the one of ALPHAS that leaves the whole model's output nearest to the float one's
once all weights are rounded, or none where no alpha does better than leaving the weights as they are. Factors are
folded into what comes before: a norm's weight, or the up projection's rows for the down projection. (The output
projection has none: its inputs are the values of fewer heads than it has columns.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from handlens_export.network.config import NetworkConfig
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.network.rope import tables
from handlens_export.quantize.calibrated import CODE, Calibration, spread
from handlens_export.quantize.float_layers import float_layer, linears, passed, set_weight
from handlens_export.quantize.formats import Matrix, matrix
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.stages import code_version, stage_key
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import Stage, StageCache

ALPHAS = (None, *(step / 20 for step in range(21)))
"""None leaves every channel as it is. The authors' search has no such choice: where there are no outliers, each of its
alphas can be worse than none (quantize/LOG.md)."""
COMPARED = 8
"""Prompts whose outputs are compared: at each alpha their rows are held until the last layer."""
LEAST = 1e-5
"""Of a factor, as in the authors' code."""
READS = {
    "attention_norm": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp_norm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
"""What factors are folded into, and the linears that read it."""


class Smoothed(Parameters):
    """Parameters of the smoothed network: read, each scaled as it is read, like those of the checkpoint."""

    def __init__(self, plain: Parameters, factors: Stage, name: str) -> None:
        """`factors` by what they are folded into, `decoder.layers.3.mlp_norm`; `name` says how they were found."""
        self.__dict__.update(plain.__dict__)
        self._plain, self._factors = plain, factors
        self.settings = f"{plain.settings} smoothed {name}"

    def stored(self, name: str) -> Tensor:
        """One parameter of the smoothed network: in float32 where it was scaled."""
        return self.scaled(name, torch.float32)

    def scaled(self, name: str, kind: torch.dtype) -> Tensor:
        """The same, what was scaled in any type of floats."""
        weight = self._plain.stored(name)
        path, _, what = name.rpartition(".")
        layer, inner = _split(path)
        divided = self._factors.get(path)
        source = next((f"{layer}.{key}" for key, readers in READS.items() if inner in readers), "")
        multiplied = self._factors.get(source) if what == "weight" else None
        if divided is None and multiplied is None:
            return weight
        out = weight.double()
        if multiplied is not None:
            out = out * multiplied.double()
        if divided is not None:
            out = out / (divided.double() if out.dim() == 1 else divided.double()[:, None])
        return out.to(kind)


@torch.no_grad()
def smoothed(
    parameters: Parameters,
    config: NetworkConfig,
    recipe: Recipe,
    kept: StageCache,
    calibration: Calibration,
    progress: Callable[[float], None] = lambda share: None,
) -> Smoothed:
    """The parameters, smoothed at the best alpha; found once, and kept. Raises CheckpointError, TargetError."""
    key = _key(parameters, recipe, calibration)
    factors = kept.get(key) if kept.working else None
    if factors is None:
        factors = _search(parameters, config, recipe, calibration, progress)
        factors = kept.put(key, factors, {"checkpoint": str(parameters.path.resolve()), "stage": "smoothing"})
    return Smoothed(parameters, factors, key)


def factors_of(activations: Tensor, weights: Sequence[Tensor], alpha: float | None) -> Tensor:
    """Factors (channels,) from activations' maxima (channels,) and the weights (rows, channels) that read them."""
    if alpha is None:
        return torch.ones_like(activations)
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    return (activations**alpha / largest.clamp_min(LEAST) ** (1 - alpha)).clamp_min(LEAST)


def _search(
    parameters: Parameters,
    config: NetworkConfig,
    recipe: Recipe,
    calibration: Calibration,
    progress: Callable[[float], None],
) -> Stage:
    """Layer by layer, the float network's rows beside those of a rounded one for each alpha."""
    network = float_network(parameters, config, 1)
    exact = list(calibration.rows(network))
    network.decoder.cos, network.decoder.sin = tables(config.decoder, max(rows.shape[1] for rows in exact))
    places = spread(len(exact), COMPARED)
    tried = {alpha: [exact[place] for place in places] for alpha in ALPHAS}
    found: dict[float | None, Stage] = {alpha: {} for alpha in ALPHAS}
    for index in range(config.decoder.layers):
        layer = float_layer(parameters, config, index)
        plain = {name: linear.weight for name, linear in linears(layer)}
        grids = {name: _grid(parameters, f"decoder.layers.{index}.{name}.weight", recipe) for name in plain}
        largest, exact = _maxima(layer, network, exact)
        for alpha in ALPHAS:
            for target, readers in READS.items():
                factors = factors_of(largest[target], [plain[name] for name in readers], alpha)
                found[alpha][f"decoder.layers.{index}.{target}"] = factors
                for name in readers:
                    set_weight(layer, name, _as_rounded(plain[name], factors, grids[name]))
            set_weight(
                layer, "attention.o_proj", _as_rounded(plain["attention.o_proj"], None, grids["attention.o_proj"])
            )
            tried[alpha] = [passed(layer, network, rows) for rows in tried[alpha]]
        progress((index + 1) / config.decoder.layers)
    norm = network.decoder.norm  # some rows are a thousand times larger than the rest before it
    losses = {
        alpha: sum(float((norm(a) - norm(exact[b])).square().sum()) for a, b in zip(rows, places, strict=True))
        for alpha, rows in tried.items()
    }
    return found[min(losses, key=losses.__getitem__)]


def _as_rounded(weight: Tensor, factors: Tensor | None, grid: Matrix | None) -> Tensor:
    """What a linear does to unscaled inputs once its scaled weight is rounded."""
    if grid is None:
        return weight
    if factors is None:
        return quantize(weight, grid.bits, grid.group).dequantize()
    return quantize(weight * factors, grid.bits, grid.group).dequantize() / factors


def _maxima(layer: DecoderLayer, network: Network, hidden: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Largest absolute values of what each of READS gives, and the layer's outputs."""
    seen: dict[str, Tensor] = {}

    def note(target: str, rows: Tensor) -> None:
        largest = rows.abs().flatten(0, -2).amax(0)
        seen[target] = torch.maximum(seen[target], largest) if target in seen else largest

    hooks = [
        layer.attention_norm.register_forward_hook(lambda _, __, out: note("attention_norm", out)),
        layer.mlp_norm.register_forward_hook(lambda _, __, out: note("mlp_norm", out)),
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: note("mlp.up_proj", given[0])),
    ]
    after = [passed(layer, network, rows) for rows in hidden]
    for hook in hooks:
        hook.remove()
    return seen, after


def _grid(parameters: Parameters, name: str, recipe: Recipe) -> Matrix | None:
    return matrix(name, parameters.shapes[name], recipe)


def _split(path: str) -> tuple[str, str]:
    """`decoder.layers.3.mlp.up_proj` -> `decoder.layers.3`, `mlp.up_proj`."""
    parts = path.split(".")
    return (".".join(parts[:3]), ".".join(parts[3:])) if parts[:2] == ["decoder", "layers"] else ("", path)


def _key(parameters: Parameters, recipe: Recipe, calibration: Calibration) -> str:
    everything = stage_key(parameters, parameters.shapes, recipe)
    state = json.dumps(["smoothing", code_version(CODE), calibration.digest, calibration.state, everything])
    return hashlib.sha256(state.encode()).hexdigest()
