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


class Module(Protocol):
    """A file of this folder."""

    def load(self, bundle: Bundle) -> Backend:
        """The backend with the bundle's programs."""


def load(bundle: Bundle, name: str | None = None) -> Backend:
    """The backend `name` with the bundle's programs; None chooses.

    The choice is executorch where the bundle has it and it is installed: it loads several times as fast and in less
    memory, and with AVX-512 VNNI decodes twice as fast as ONNX Runtime; without, it decodes at two thirds of its speed.
    Else onnx, which the base install brings. Raises BackendError.
    """
    return find(bundle, chosen(bundle, name)).load(bundle)


def chosen(bundle: Bundle, name: str | None = None) -> BackendName:
    """The backend that `load` takes. Raises BackendError where the bundle has no program for it."""
    name = name or _choose(bundle)
    have = ", ".join(bundle.manifest.backends)
    if name not in bundle.manifest.backends:
        raise BackendError(f"{bundle.path} has no {name} program; choose one that it has: {have}.")
    return name


def find(bundle: Bundle, name: BackendName) -> Module:
    """The module of a backend, imported; no program is loaded yet. Raises BackendError where its package is missing."""
    have = ", ".join(bundle.manifest.backends)
    module_name = f"{__name__}.{name}"
    if importlib.util.find_spec(module_name) is None:
        raise BackendError(f"This HandLens has no backend {name}; choose another of the bundle's: {have}.")
    try:
        return cast(Module, importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        raise BackendError(
            f"The {name} backend needs a package that is missing ({error}); run {_INSTALL[name]}."
        ) from error
    except ImportError as error:
        raise BackendError(
            f"A package of the {name} backend is installed but does not load ({error}); "
            f"install it anew in a fresh environment with {_INSTALL[name]}."
        ) from error


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
