"""Reading a configuration without loading torch, which takes longer than everything that `plan` does."""

from __future__ import annotations

import sys
from importlib import metadata, util
from types import ModuleType
from typing import Any

_alone = False


def own_process() -> None:
    """Say that this process runs one verb and ends: the command line, not a program that imports handlens."""
    global _alone
    _alone = True


def without_torch() -> None:
    """Let transformers' configuration classes load alone: no torch, and no list of its 3,000 modules. 0.4 s, not 3.

    Only in a process of our own, for nothing else of transformers works in it afterwards.
    """
    if not _alone or "torch" in sys.modules or "transformers" in sys.modules:
        return
    found = util.find_spec("transformers")
    if found is None or found.submodule_search_locations is None:
        return
    bare = ModuleType("transformers")
    bare.__spec__, bare.__path__ = found, list(found.submodule_search_locations)
    bare.__dict__["__version__"] = metadata.version("transformers")
    sys.modules["transformers"] = bare
    import transformers.utils
    from transformers.utils import import_utils

    listed = import_utils.define_import_structure

    def listed_but_models(path: str, prefix: str | None = None) -> Any:
        return {} if path.endswith("models/__init__.py") else listed(path, prefix)

    import_utils.define_import_structure = listed_but_models
    for module in (import_utils, transformers.utils):
        module.is_torch_available = _no


def _no() -> bool:
    return False
