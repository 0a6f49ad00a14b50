"""What a caller may choose for one generation, checked as soon as it is written down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from handlens_runtime.errors import OptionError
from handlens_runtime.manifest import SamplingDefaults


@dataclass(frozen=True)
class Options:
    """Options of one generation; None means what the bundle's manifest says. Raises OptionError."""

    max_tokens: int = 256
    """Most tokens to generate; an answer ends earlier where the context is full."""
    temperature: float | None = None
    """Divides the logits; 0 is greedy."""
    top_k: int | None = None
    """Keep this many most probable tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the most probable tokens whose probabilities together reach this."""
    min_p: float | None = None
    """Keep tokens at least this times as probable as the most probable one."""
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of tokens in the prompt or the answer; 1 changes nothing."""
    seed: int | None = None
    """Makes sampling repeatable; None draws another answer each time."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer where they appear; not shown themselves."""

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1)
        if self.top_k is not None:
            _whole("top_k", self.top_k, 0)
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        _real("temperature", self.temperature, 0.0, math.inf, "a finite number of at least 0")
        _real("top_p", self.top_p, 0.0, 1.0, "a number from 0 to 1")
        _real("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1")
        _real("repetition_penalty", self.repetition_penalty, 0.0, math.inf, "a finite number above 0")
        if self.repetition_penalty == 0:
            raise OptionError("repetition_penalty is 0; choose a finite number above 0, 1 changes nothing.")
        if isinstance(self.stop, str) or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise OptionError(f"stop is {self.stop!r}; give a sequence of strings, none of them empty.")

    def sampling(self, defaults: SamplingDefaults) -> SamplingDefaults:
        """The sampler's settings, with the bundle's `defaults` where nothing was chosen."""
        chosen = {name: getattr(self, name) for name in SamplingDefaults.model_fields}
        return defaults.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} is {value!r}; choose a whole number of at least {least}.")


def _real(name: str, value: object, least: float, most: float, allowed: str) -> None:
    if value is None:
        return
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and least <= number <= most):
        raise OptionError(f"{name} is {value!r}; choose {allowed}.")
