"""Backends, a file each, found by name: `executorch`, `onnx`. A file `<name>.py` has `load(bundle) -> Backend`."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from typing import Protocol, cast

from handlens_runtime.backends.base import Backend
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import BackendError
from handlens_runtime.manifest import BackendName

_PACKAGES: dict[BackendName, str] = {"executorch": "executorch", "onnx": "onnxruntime"}
_INSTALL: dict[str, str] = {"executorch": 'pip install "handlens[export]"', "onnx": "pip install handlens"}
"""What brings each backend's package; onnxruntime is in the base install."""


class _Module(Protocol):
    def load(self, bundle: Bundle) -> Backend: ...


def load(bundle: Bundle, name: str | None = None) -> Backend:
    """The backend `name` with the bundle's programs; None chooses.

    The choice is executorch where the bundle has it and it is installed: on CPUs the .pte decodes about twice as fast
    as ONNX Runtime. Else onnx, which the base install brings. Raises BackendError.
    """
    name = name or _choose(bundle)
    have = ", ".join(bundle.manifest.backends)
    if name not in bundle.manifest.backends:
        raise BackendError(f"{bundle.path} has no {name} program; choose one that it has: {have}.")
    module_name = f"{__name__}.{name}"
    if importlib.util.find_spec(module_name) is None:
        raise BackendError(f"This HandLens has no backend {name}; choose another of the bundle's: {have}.")
    try:
        module = cast(_Module, importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        raise BackendError(
            f"The {name} backend needs a package that is missing ({error}); run {_INSTALL[name]}."
        ) from error
    except ImportError as error:
        raise BackendError(
            f"A package of the {name} backend is installed but does not load ({error}); "
            f"install it anew in a fresh environment with {_INSTALL[name]}."
        ) from error
    return module.load(bundle)


def installed(bundle: Bundle) -> tuple[BackendName, ...]:
    """Those of the bundle's backends whose package is installed, in the bundle's order; imports none."""
    return tuple(name for name in bundle.manifest.backends if _installed(_PACKAGES[name]))


def _choose(bundle: Bundle) -> str:
    if "executorch" in bundle.manifest.backends and _installed(_PACKAGES["executorch"]):
        return "executorch"
    if "onnx" in bundle.manifest.backends:
        return "onnx"
    return next(iter(bundle.manifest.backends), "onnx")


def _installed(package: str) -> bool:
    # Not find_spec: a folder of that name in the working directory, such as a bundle's own, would count as installed.
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
