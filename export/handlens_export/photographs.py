"""The few photographs HandLens ships, for calibration and for `check`; licences in assets/photographs/LICENSES.md."""

from __future__ import annotations

from pathlib import Path

from handlens_export.errors import ExportError

_HERE = Path(__file__).resolve().parent


def photographs() -> list[Path]:
    """All of them, by name. Raises ExportError where the installation lacks them."""
    # Installed, they lie in the package; in a checkout, in its assets.
    for folder in (_HERE / "photographs", _HERE.parents[1] / "assets" / "photographs"):
        found = sorted(folder.glob("*.jpg"))
        if found:
            return found
    raise ExportError(f"{_HERE / 'photographs'} is missing from this installation; install handlens again.")
