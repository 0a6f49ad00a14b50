"""The float network gives transformers' logits: the tests of parity, and how far apart the worst logits are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bundles import ROOT
from outcome import Cases, Outcome

TESTS = "tests/export/test_network_parity.py"
FAMILIES = 7
CONFIGS = 3
TOLERANCE = 1e-4


def parity() -> Outcome:
    """Run them with this file as a plug-in that notes the largest difference each test saw."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "differences.json"
        environment = {**os.environ, "HANDLENS_VERIFY_NOTE": str(note)}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "families", TESTS]
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        seen: dict[str, Any] = json.loads(note.read_text())
    worst = max(seen["differences"].values(), default=float("inf"))
    values = {"tests": seen["tests"], "failed": seen["failed"], "worst max abs": worst, "by test": seen["differences"]}
    passed = code == 0 and worst <= TOLERANCE and len(seen["differences"]) >= FAMILIES * CONFIGS
    return Outcome(values, f"max abs <= {TOLERANCE} for {FAMILIES} families x {CONFIGS} configs", passed)


class _Note:
    """What the plug-in gathers."""

    def __init__(self) -> None:
        self.differences: dict[str, float] = {}
        self.tests = self.failed = 0
        self.current = ""


_note = _Note()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Look over the shoulder of the tests' own comparison."""
    for module in {item.module for item in items}:
        plain = module.assert_equal

        def watched(ours: Any, theirs: Any, plain: Any = plain) -> None:
            difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
            _note.differences[_note.current] = max(difference, _note.differences.get(_note.current, 0.0))
            plain(ours, theirs)

        module.assert_equal = watched


def pytest_runtest_call(item: Any) -> None:
    """Know whose comparison it is."""
    _note.current = item.name


def pytest_runtest_logreport(report: Any) -> None:
    """Count."""
    _note.tests += report.when == "call"
    _note.failed += report.failed


def pytest_sessionfinish() -> None:
    """Leave the note for the check."""
    path = os.environ.get("HANDLENS_VERIFY_NOTE")
    if path:
        content = {"tests": _note.tests, "failed": _note.failed, "differences": _note.differences}
        Path(path).write_text(json.dumps(content))


CASES: Cases = {"logits of the float network equal transformers'": parity}
