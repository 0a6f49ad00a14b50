"""HandLens: make a vision-language model run on a phone.

    import handlens

    engine = handlens.load("bundle/")
    for token in engine.generate([handlens.Message("user", "What is this?", images=("photo.jpg",))]):
        print(token.text, end="", flush=True)

Importing this module costs a few milliseconds: what a name stands for is imported when the name is first used, and
torch only by `export`, `init`, `plan`, `calibrate`, `check` against a checkpoint and the ExecuTorch backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from handlens._api import advise, bench, calibrate, check, evaluate, export, init, load, perplexity, plan, sweep

if TYPE_CHECKING:
    from handlens_export.check import Report
    from handlens_export.errors import (
        CalibrationError,
        CheckpointError,
        ExportError,
        GateError,
        TargetError,
        UnsupportedError,
    )
    from handlens_export.forecast import Device, Forecast
    from handlens_export.recipe import Recipe
    from handlens_runtime.bench import Benchmark, Workload
    from handlens_runtime.bundle import Bundle
    from handlens_runtime.chat import Message
    from handlens_runtime.engine import Engine, Token
    from handlens_runtime.errors import (
        BackendError,
        BundleError,
        BusyError,
        EvaluationError,
        HandLensError,
        ImageError,
        OptionError,
        PromptError,
    )
    from handlens_runtime.evaluation import Evaluation, Perplexity
    from handlens_runtime.golden import Replay
    from handlens_runtime.manifest import Manifest
    from handlens_runtime.options import Options
    from handlens_runtime.stats import Stats

__version__ = "0.1.0"

_HOME = {
    "BackendError": "handlens_runtime.errors",
    "Benchmark": "handlens_runtime.bench",
    "Bundle": "handlens_runtime.bundle",
    "BundleError": "handlens_runtime.errors",
    "BusyError": "handlens_runtime.errors",
    "CalibrationError": "handlens_export.errors",
    "CheckpointError": "handlens_export.errors",
    "Device": "handlens_export.forecast",
    "Engine": "handlens_runtime.engine",
    "Evaluation": "handlens_runtime.evaluation",
    "EvaluationError": "handlens_runtime.errors",
    "ExportError": "handlens_export.errors",
    "Forecast": "handlens_export.forecast",
    "GateError": "handlens_export.errors",
    "HandLensError": "handlens_runtime.errors",
    "ImageError": "handlens_runtime.errors",
    "Manifest": "handlens_runtime.manifest",
    "Message": "handlens_runtime.chat",
    "OptionError": "handlens_runtime.errors",
    "Options": "handlens_runtime.options",
    "Perplexity": "handlens_runtime.evaluation",
    "PromptError": "handlens_runtime.errors",
    "Recipe": "handlens_export.recipe",
    "Replay": "handlens_runtime.golden",
    "Report": "handlens_export.check",
    "Stats": "handlens_runtime.stats",
    "TargetError": "handlens_export.errors",
    "Token": "handlens_runtime.engine",
    "UnsupportedError": "handlens_export.errors",
    "Workload": "handlens_runtime.bench",
}
"""Where each lazily imported name lives."""

__all__ = [
    "BackendError",
    "Benchmark",
    "Bundle",
    "BundleError",
    "BusyError",
    "CalibrationError",
    "CheckpointError",
    "Device",
    "Engine",
    "Evaluation",
    "EvaluationError",
    "ExportError",
    "Forecast",
    "GateError",
    "HandLensError",
    "ImageError",
    "Manifest",
    "Message",
    "OptionError",
    "Options",
    "Perplexity",
    "PromptError",
    "Recipe",
    "Replay",
    "Report",
    "Stats",
    "TargetError",
    "Token",
    "UnsupportedError",
    "Workload",
    "__version__",
    "advise",
    "bench",
    "calibrate",
    "check",
    "evaluate",
    "export",
    "init",
    "load",
    "perplexity",
    "plan",
    "sweep",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'handlens' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
