"""What a person gets from the base install: how large, how fast to say what it can do, and that it runs a bundle."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bundles
from outcome import Cases, Outcome

from handlens_export.photographs import photographs

MEGABYTES = 280
SECONDS = 0.4
RUNS = 7


def base_install() -> Outcome:
    """A virtual environment that holds nothing else; its packages are downloaded or come from pip's own cache."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        python = _install(home)
        packages = next((home / "venv/lib").glob("python3*/site-packages"))
        size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
        command = str(python.parent / "handlens")
        torch = (
            subprocess.run([python, "-c", "import torch"], cwd=home, env=_environment(), capture_output=True).returncode
            == 0
        )
        picture, question = str(photographs()[0]), "What is this?"
        run = [
            command,
            "run",
            str(bundles.nano()),
            "--backend",
            "onnx",
            "--image",
            picture,
            question,
            "--max-tokens",
            "8",
        ]
        answer = subprocess.run(run, cwd=home, env=_environment(), capture_output=True, text=True)
        seconds = _help_seconds([command, "--help"], home)
    values = {
        "megabytes of site-packages": round(size, 1),
        "torch importable": torch,
        "handlens --help, median s": seconds,
        "exit code of a run with a photograph": answer.returncode,
        "what it said": answer.stdout.strip()[-200:] or answer.stderr.strip()[-500:],
    }
    passed = size <= MEGABYTES and not torch and seconds <= SECONDS and answer.returncode == 0
    return Outcome(values, f"<= {MEGABYTES} MB, no torch, --help <= {SECONDS} s, runs a bundle with onnx", passed)


def _install(home: Path) -> Path:
    """The environment's interpreter, without pip in it: what is in site-packages came with HandLens."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    python = home / "venv/bin/python"
    # From a copy: a build folder in the checkout would be found by the next one.
    shutil.copytree(bundles.ROOT, home / "source", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", str(home / "source")]
    subprocess.run(install, check=True)
    return python


def _environment() -> dict[str, str]:
    """This process's, without what leads Python to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _help_seconds(command: list[str], home: Path) -> float:
    """Median over fresh processes, the first of which compiles and is not counted."""
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=home, env=_environment(), check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times[1:]), 3)


CASES: Cases = {"the base install is small, quick to help, and runs a bundle": base_install}
