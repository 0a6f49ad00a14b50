"""How each family's config and tensor names map onto the network: a file each, named after `model_type`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol, cast

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import UnsupportedError
from handlens_export.network.config import NetworkConfig
from handlens_runtime.manifest import Chat, ImageRule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Family", "find", "known"]


class Family(Protocol):
    """The parts of a family's module."""

    def config(self, hf: dict[str, Any]) -> NetworkConfig:
        """Sizes and choices from config.json; refuses by name what the network does not have.

        Raises UnsupportedError where a field asks for other mathematics, CheckpointError where it cannot be read.
        """

    def tensor_names(self, config: NetworkConfig) -> dict[str, tuple[str, ...]]:
        """Our parameter name to the checkpoint's possible names, most usual first."""

    def transform(self, name: str, tensor: Tensor, config: NetworkConfig) -> Tensor:
        """What the checkpoint's tensor needs to become our parameter `name`, besides a name."""

    def image_rule(self, checkpoint: Checkpoint, config: NetworkConfig) -> ImageRule:
        """How pictures become tiles and tokens; only in families whose config has a vision encoder."""

    def chat(self, checkpoint: Checkpoint) -> Chat:
        """How messages become a prompt, and where an answer ends."""


def known() -> tuple[str, ...]:
    """Every family's `model_type`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def find(model_type: str | None) -> Family:
    """The family of a config.json's `model_type`, by file name. Raises UnsupportedError for one that has no file."""
    if model_type not in known():
        raise UnsupportedError(
            f"config.json's model_type is {model_type!r}; HandLens has {', '.join(known())}: export one of these."
        )
    return cast(Family, importlib.import_module(f"{__name__}.{model_type}"))
