"""Reading a processor's configuration: pixel values, and the tokens that a picture's text is made of."""

from __future__ import annotations

from typing import Any, TypedDict

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.config import NetworkConfig
from handlens_runtime.manifest import Resampling

RESAMPLING: dict[int, Resampling] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
HALF = [0.5, 0.5, 0.5]


class Pixels(TypedDict):
    """The fields of an ImageRule that say how pixels become numbers."""

    resampling: Resampling
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def settings(checkpoint: Checkpoint, defaults: dict[str, Any]) -> dict[str, Any]:
    """The image processor's settings over its class's `defaults`."""
    return defaults | {name: value for name, value in checkpoint.processor.items() if value is not None}


def pixels(given: dict[str, Any]) -> Pixels:
    """Resampling and normalization. Raises UnsupportedError, CheckpointError."""
    resample = given.get("resample")
    if resample not in RESAMPLING:
        raise UnsupportedError(
            f"preprocessor_config.json asks for resample {resample!r}; HandLens has "
            f"{', '.join(f'{number} ({name})' for number, name in RESAMPLING.items())}."
        )
    normalize = given.get("do_normalize", True)
    return Pixels(
        resampling=RESAMPLING[resample],
        rescale=float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0,
        mean=_channels(given, "image_mean") if normalize else (0.0, 0.0, 0.0),
        std=_channels(given, "image_std") if normalize else (1.0, 1.0, 1.0),
    )


def _channels(given: dict[str, Any], name: str) -> tuple[float, float, float]:
    value = given.get(name, HALF)
    if isinstance(value, int | float):
        value = [value] * 3
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise CheckpointError(f"preprocessor_config.json's {name} is {value!r}; expected three numbers.")
    return float(value[0]), float(value[1]), float(value[2])


def must(given: dict[str, Any], name: str, allowed: object) -> None:
    """Refuse a setting that is there and is not `allowed`."""
    if given.get(name, allowed) != allowed:
        raise UnsupportedError(
            f"preprocessor_config.json sets {name} to {given[name]!r}; HandLens has this family's {allowed!r} only."
        )


def must_agree(what: str, found: object, expected: object) -> None:
    """Refuse a processor that does not fit the network beside it."""
    if found != expected:
        raise CheckpointError(
            f"The processor's {what} is {found!r} where config.json makes it {expected!r}; "
            "save processor and model of one checkpoint together."
        )


def token_of(checkpoint: Checkpoint, token_id: Any, config: NetworkConfig) -> str:
    """The text of the image token's id, which tokenizer.json and the embedding table must both have."""
    known = isinstance(token_id, int) and 0 <= token_id < config.decoder.vocab_size
    token: str | None = checkpoint.tokenizer.id_to_token(token_id) if known else None
    if token is None:
        raise CheckpointError(
            f"config.json says that token {token_id!r} stands for images, but tokenizer.json and the vocabulary of "
            f"{config.decoder.vocab_size} have no such token; save tokenizer and model of one checkpoint together."
        )
    return token


def named_token(checkpoint: Checkpoint, name: str, default: str) -> str:
    """A token that tokenizer_config.json may name otherwise than usual, at its top or in `extra_special_tokens`."""
    extra = checkpoint.tokenizer_config.get("extra_special_tokens")
    value = checkpoint.tokenizer_config.get(name) or (extra.get(name) if isinstance(extra, dict) else None) or default
    return str(value)
