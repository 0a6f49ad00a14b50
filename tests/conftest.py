"""Fixtures that tests of all packages share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of this machine's earlier exports is seen, and nothing is left there; tests of the cache turn it on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HANDLENS_CACHE_BYTES", "0")
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Callable[..., Path]:
    """`tiny_checkpoint(family, folder, variant=0)` writes a whole tiny random checkpoint and returns its folder."""
    # Imported when first asked for: the runtime's tests need neither torch nor transformers.
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.append(here)
    module = importlib.import_module("tiny_checkpoints")
    build: Callable[..., Path] = module.tiny_checkpoint
    return build
