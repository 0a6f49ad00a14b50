"""What rounding costs a model that was trained on so many tokens: the scaling law of quantization-induced degradation
(Ouyang et al., "Low-Bit Quantization Favors Undertrained LLMs", arXiv 2411.17691, ACL 2025).

Fitted there (equation 8) on Pythia, 160 million to 12 billion parameters, checkpoints up to 300 billion tokens, rounded
with GPTQ to 2, 3 and 4 bits. Beyond that it is an extrapolation; other methods have other constants, the same trend.
The paper's own table of tokens is from fits per bit width and does not agree with the unified law: do not mix them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, prod

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.describe import plan
from handlens_export.errors import UnsupportedError
from handlens_export.forecast.headers import shapes_of
from handlens_export.recipe import Recipe

K, OF_TOKENS, OF_PARAMETERS, OF_BITS = 0.017, 0.5251, 0.2261, 5.4967
FORMULA = f"{K} * tokens^{OF_TOKENS} / (parameters^{OF_PARAMETERS} * bits^{OF_BITS}) nats"
VALIDITY = (
    "Fitted on Pythia rounded by GPTQ (arXiv 2411.17691): 160M to 12B parameters, up to 300B tokens, 2 to 4 bits; "
    "beyond that it is an extrapolation, and other methods have other constants."
)
PARAMETERS = (160e6, 12e9)
TOKENS = 300e9
BITS = (2, 3, 4)
LARGEST_LOSS = 700.0
"""Nats a token whose exponential is a number still."""


@dataclass(frozen=True)
class Degradation:
    """At one bit width."""

    bits: int
    loss: float
    """What the loss rises by, in nats a token."""
    extrapolated: tuple[str, ...]
    """What lies outside of what the law was fitted on: `parameters`, `tokens`, `bits`."""

    @property
    def perplexity_factor(self) -> float:
        """What the perplexity is multiplied by."""
        return exp(self.loss) if self.loss < LARGEST_LOSS else inf


@dataclass(frozen=True)
class Advice:
    """What the law says of a checkpoint."""

    parameters: int
    """Of the decoder's layers: the embedding table and the head are not counted."""
    tokens: float
    """It was trained on."""
    predicted: tuple[Degradation, ...]


def advise(checkpoint: Checkpoint, tokens: float, bits: Sequence[int] = (2, 3, 4, 8)) -> Advice:
    """From headers alone. Raises CheckpointError, UnsupportedError."""
    shapes = shapes_of(plan(checkpoint, Recipe()))
    parameters = sum(prod(shape) for name, shape in shapes.items() if name.startswith("decoder.layers."))
    return Advice(parameters, tokens, tuple(degradation(parameters, tokens, one) for one in bits))


def degradation(parameters: int, tokens: float, bits: int) -> Degradation:
    """`parameters`: without embeddings; `tokens`: seen in training. UnsupportedError where one is not positive."""
    for name, value in (("parameters", parameters), ("training tokens", tokens), ("bits", bits)):
        if not value > 0:
            raise UnsupportedError(f"The law wants more than 0 {name}, and was given {value:g}; give the real number.")
    loss = K * tokens**OF_TOKENS / (parameters**OF_PARAMETERS * bits**OF_BITS)
    outside = {
        "parameters": not PARAMETERS[0] <= parameters <= PARAMETERS[1],
        "tokens": tokens > TOKENS,
        "bits": bits not in BITS,
    }
    return Degradation(bits, loss, tuple(name for name, is_outside in outside.items() if is_outside))
