"""What each layer's attention and MLP cost when rounded: the whole network's answers with that part alone rounded,
beside the float network's.

    float rows ──layer i──▶ float rows ──layer i + 1──▶ …
                └─ part rounded ─▶ a stream of its own ──layer i + 1──▶ … ──▶ its logits beside the float ones

All streams go on together, so each layer's weights are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, prod

import torch
from torch import Tensor

from handlens_export.network.config import NetworkConfig
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.network.rope import tables
from handlens_export.quantize.calibrated import spread
from handlens_export.quantize.float_layers import float_layer, head_in_float, linears, passed, set_weight
from handlens_export.quantize.formats import is_product

PARTS = ("attention", "mlp")
PROMPTS = 4
"""Of a calibration set, spread over it: each takes two passes a layer through half of the network on average."""
POSITIONS = 64
"""Of each prompt, its last ones, whose next token is compared: behind a picture that is the question and the answer."""


@dataclass(frozen=True)
class Sensitivity:
    """One layer's attention or MLP, alone rounded."""

    place: str
    """`decoder.layers.3.mlp`."""
    kl: float
    """Mean Kullback-Leibler divergence of the next token from the float network's, in nats; infinite where it gives no
    numbers."""
    parameters: int
    """Weights that were rounded."""

    @property
    def per_weight(self) -> float:
        """What more bits for it are worth, for each weight that they are spent on."""
        return self.kl / max(1, self.parameters)


@torch.no_grad()
def sensitivities(
    parameters: Parameters,
    config: NetworkConfig,
    rounded: Callable[[str, Tensor], Tensor],
    rows: Callable[[Network], Sequence[Tensor]],
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Sensitivity, ...]:
    """In the order of `places`. `rounded(name, weight)` is what rounding makes of a linear's weight, in float
    again; `rows(network)` embeds the prompts, (1, t, width) each, PROMPTS of which are used. Raises CheckpointError.
    """
    network = float_network(parameters, config, 1)
    given = rows(network)
    exact = [given[place] for place in spread(len(given), PROMPTS)]
    network.decoder.cos, network.decoder.sin = tables(config.decoder, max(prompt.shape[1] for prompt in exact))
    streams: dict[str, list[Tensor]] = {}
    layers = config.decoder.layers
    for index in range(layers):
        layer = float_layer(parameters, config, index)
        for place, hidden in streams.items():
            streams[place] = [passed(layer, network, prompt) for prompt in hidden]
        plain = {name: linear.weight for name, linear in linears(layer)}
        for part in PARTS:
            own = {name: weight for name, weight in plain.items() if name.startswith(part)}
            for name, weight in own.items():
                set_weight(layer, name, rounded(f"decoder.layers.{index}.{name}.weight", weight))
            streams[f"decoder.layers.{index}.{part}"] = [passed(layer, network, prompt) for prompt in exact]
            for name, weight in own.items():
                set_weight(layer, name, weight)
        exact = [passed(layer, network, prompt) for prompt in exact]
        progress(((index + 1) / layers) ** 2)  # the streams grow in number
    head = head_in_float(network)
    # Where each token sees those behind it, only the last one's next token is not in sight already.
    positions = POSITIONS if config.decoder.causal else 1

    def following(prompts: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(network.decoder.norm(rows[:, -positions:]))[0].log_softmax(-1) for rows in prompts])

    expected = following(exact)
    return tuple(
        Sensitivity(place, divergence(expected, following(streams[place])), weights_of(parameters, place))
        for place in places(config)
    )


def places(config: NetworkConfig) -> Iterator[str]:
    """Each layer's attention and MLP, in the order of the data's way."""
    for index in range(config.decoder.layers):
        for part in PARTS:
            yield f"decoder.layers.{index}.{part}"


def weights_of(parameters: Parameters, place: str) -> int:
    """Weights of the linears of a layer, or of a part of it."""
    shapes = ((name, shape) for name, shape in parameters.shapes.items() if name.startswith(f"{place}."))
    return sum(prod(shape) for name, shape in shapes if is_product(name, shape))


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean Kullback-Leibler divergence of log-probabilities (positions, vocab_size) from the expected ones, in nats;
    infinite where one of them holds no numbers.
    """
    kl = float((expected.exp() * (expected - found)).sum(-1).double().mean())
    return max(0.0, kl) if isfinite(kl) else inf
