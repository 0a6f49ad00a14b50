"""Reading a configuration without loading torch, which takes longer than everything that `plan` does."""

from __future__ import annotations

import sys

_alone = False


def own_process() -> None:
    """Say that this process runs one verb and ends: the command line, not a program that imports handlens."""
    global _alone
    _alone = True


def without_torch() -> None:
    """Let transformers' configuration classes load as they do where torch is not installed: 1 second less, or 3.

    Only in a process of our own, for transformers' models cannot be loaded in it afterwards.
    """
    if not _alone or "torch" in sys.modules or "transformers" in sys.modules:
        return
    import transformers.utils
    from transformers.utils import import_utils

    for module in (import_utils, transformers.utils):
        module.is_torch_available = _no


def _no() -> bool:
    return False
