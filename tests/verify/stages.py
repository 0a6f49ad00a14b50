"""`check` passes for every family and names the damaged stage: its tests, counted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

from bundles import ROOT
from outcome import Cases, Outcome


def tests(path: str, bar: str) -> Outcome:
    """Run a file of tests and count."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "",
            f"--junitxml={report}",
            path,
        ]
        code = subprocess.run(command, cwd=ROOT).returncode
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    values = {"tests": len(cases), "failed": failed, "skipped": skipped}
    return Outcome(values, bar, code == 0 and bool(cases) and not skipped)


CASES: Cases = {
    "check passes for every family on five photographs": partial(
        tests, "tests/export/test_families_end_to_end.py", "every family, five photographs"
    ),
    "check names each damaged stage": partial(tests, "tests/export/test_check.py", "six stages, damaged in turn"),
}
