"""Reading one part of a config.json, with transformers' own defaults for what it leaves out."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from transformers.configuration_utils import PreTrainedConfig  # of its own module: `plan` loads no more of it
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.config import Activation

ACTIVATION_NAMES: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
INERT = frozenset(
    {
        # Written by older releases, trainers and converters; none of them is read by transformers' forward pass.
        *("torch_dtype", "rope_theta", "rope_scaling", "auto_map", "transformers.js_config", "is_llama_config"),
        *("neftune_noise_alpha", "perceiver_config", "unsloth_version", "unsloth_fixed", "freeze_config"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "tie_word_embeddings"),
        *("use_cache", "model_type", "initializer_range", "num_image_tokens", "max_window_layers"),
    }
)
"""Fields that change no logits although the config class of transformers 5 does not declare all of them."""


def completed(model_type: str, given: dict[str, Any]) -> PreTrainedConfig:
    """The config class's reading of `given`, nested parts included. Raises CheckpointError where it cannot be read."""
    try:
        # A copy: the class writes into nested dicts.
        config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(given))
    except Exception as error:  # the class raises errors of several libraries
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"config.json is no {model_type} configuration ({reason}); save it again with transformers."
        ) from error
    return config


class Fields:
    """One part of a config.json: typed look-ups, and refusals that name the field."""

    def __init__(
        self, config: PreTrainedConfig, given: dict[str, Any], where: str = "", inert: frozenset[str] = frozenset()
    ) -> None:
        """`config`: the completed part; `given`: what config.json itself says of it; `where`: its name and a dot.

        A field that neither the config class nor INERT nor `inert` knows is refused by name, unless it is null or
        false: a custom field usually changes the mathematics, and one that is switched off does not.
        """
        self._values: dict[str, Any] = config.to_dict()
        self._where = where
        known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map) | INERT | inert
        for name, value in given.items():
            if name not in known and not name.startswith("_") and value is not None and value is not False:
                raise UnsupportedError(
                    f"config.json has the field {where}{name} ({value!r}), which neither HandLens nor transformers' "
                    f"{type(config).__name__} knows; remove it if the network computes the same without it."
                )
        self.must("is_encoder_decoder", False)
        self.must("add_cross_attention", False)

    def get(self, name: str) -> Any:
        """The field as it stands; None where there is none."""
        return self._values.get(name)

    def leave_out(self, name: str) -> None:
        """Forget a field that another one switches off."""
        self._values.pop(name, None)

    def integer(self, name: str) -> int:
        """A positive whole number."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"config.json's {self._where}{name} is {value!r}; expected a positive whole number.")
        return value

    def number(self, name: str) -> float:
        """A positive number."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"config.json's {self._where}{name} is {value!r}; expected a positive number.")
        return float(value)

    def side(self, name: str) -> int:
        """A length in pixels given as a number or as two equal ones."""
        value = self.get(name)
        if isinstance(value, list | tuple) and len(value) == 2:
            if value[0] != value[1]:
                raise self.refusal(name, "a square")
            self._values[name] = value[0]
        return self.integer(name)

    def flag(self, name: str) -> bool:
        """True or false; null and nothing are false."""
        return bool(self.get(name))

    def activation(self, name: str) -> Activation:
        """An activation function that the network has."""
        value = self.get(name)
        if value not in ACTIVATION_NAMES:
            raise self.refusal(name, f"one of {', '.join(ACTIVATION_NAMES)}")
        return ACTIVATION_NAMES[value]

    def must(self, name: str, *allowed: object) -> None:
        """Refuse the field unless it is absent, null or one of `allowed`."""
        if self.get(name) is not None and self.get(name) not in allowed:
            raise self.refusal(name, " or ".join(repr(value) for value in allowed) if allowed else "none")

    def refusal(self, name: str, expected: str) -> UnsupportedError:
        """The error that says a field has a value this network cannot honour."""
        return UnsupportedError(
            f"config.json's {self._where}{name} is {self.get(name)!r}, which changes the mathematics in a way that "
            f"HandLens does not have (it has {expected}); export a checkpoint without it."
        )
