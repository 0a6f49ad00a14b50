"""Everything the exporter raises towards its user.

HandLensError                 (handlens_runtime.errors)
└── ExportError               base of the workstation's errors
    ├── CheckpointError       a checkpoint cannot be read, or is of a kind that is refused
    ├── UnsupportedError      a config field, bit width or operator that a family or backend does not have
    ├── CalibrationError      a calibration set cannot be read, or is none
    ├── TargetError           the place to write to is taken or not writable
    └── GateError             the exported programs answer fewer questions right than was asked for
"""

from handlens_runtime.errors import HandLensError


class ExportError(HandLensError):
    """Base of the workstation's errors; `str()` is one sentence."""


class CheckpointError(ExportError):
    """A checkpoint cannot be read, or is of a kind that is refused."""


class UnsupportedError(ExportError):
    """A config field, format or operator that the family or the backend does not have."""


class CalibrationError(ExportError):
    """A calibration set cannot be read, or is none."""


class TargetError(ExportError):
    """The place to write to is taken or not writable."""


class GateError(ExportError):
    """The exported programs answer fewer questions right than was asked for; no bundle was written."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}, so no bundle was written; {advice}.")
        self.found = found
