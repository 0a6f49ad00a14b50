"""Fixtures that tests of all packages share."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from handlens_runtime.verdicts import cache_folder

_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Nothing of this machine's earlier exports and loads is seen, and nothing is left there.

    Before any module is imported: ExecuTorch's backend compiles native code then. Stages and packed weights are not
    kept; tests of them turn that on.
    """
    os.environ["HANDLENS_CACHE_BYTES"] = "0"
    if not hasattr(config, "workerinput"):  # workers share what the first of them compiled
        fetched = cache_folder() / "materials"
        config.stash[_CACHE] = os.environ["HANDLENS_CACHE"] = tempfile.mkdtemp(prefix="handlens-tests-")
        if fetched.exists():  # `make test` has fetched them: tests use no network
            (Path(config.stash[_CACHE]) / "materials").symlink_to(fetched.resolve())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache folder of these tests."""
    if _CACHE in config.stash:
        shutil.rmtree(config.stash[_CACHE], ignore_errors=True)


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
