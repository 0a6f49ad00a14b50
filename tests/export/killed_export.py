"""A program that exports in forked processes and kills them (SIGKILL) at given moments; tests run it.

    python killed_export.py CHECKPOINT FOLDER MOMENTS    prints one JSON object a line

First one export without a cache, FOLDER/alone; then one that is killed at each of the moments, shares of the way from 0
to 2, and one to the end, FOLDER/killed. Up to 1 it is rounding weights, and a moment is a number of calls within this
package, so that it is the same in every run whatever the machine's speed; from there on it is a report
of progress.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from handlens_export import pipeline
from handlens_export.quantize import stages
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.entries import about, entries, stage_folder

PACKAGE = str(Path(stages.__file__).parents[1])
HANGS = 120
"""Seconds after which an export is taken to hang."""
NEVER = 1 << 60


class Counter:
    """Ends the process at a number of calls, or of reports."""

    def __init__(self, call: int, report: int) -> None:
        self.left = {"call": call, "report": report}

    def count(self, kind: str) -> None:
        self.left[kind] -= 1
        if self.left[kind] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event != "return" and frame.f_code.co_filename.startswith(PACKAGE):
            self.count("call")


def attempt(checkpoint: Path, bundle: Path, call: int = NEVER, report: int = NEVER) -> dict[str, Any]:
    """One export in a process of its own: what was finished before, what it made, how it ended, what it counted."""
    before = sorted(about(entry)["stage"] for entry in entries(stage_folder()))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(HANGS)
        counter = Counter(call, report)
        _export(checkpoint, bundle, counter, write_end)
        counted = {kind: NEVER - left for kind, left in counter.left.items()}
        os.write(write_end, json.dumps(counted).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    made = sorted({next(iter(stages.stages([line]))) for line in lines if not line.startswith("{")})
    counted = next((json.loads(line) for line in lines if line.startswith("{")), {})
    return {"before": before, "made": made, "signal": os.WTERMSIG(status), "counted": counted}


def _export(checkpoint: Path, bundle: Path, counter: Counter, write_end: int) -> None:
    make, quantize_network = stages._make, pipeline.quantize_network

    def noted(parameters: Any, name: str, recipe: Recipe) -> Any:
        os.write(write_end, f"{name}\n".encode())
        return make(parameters, name, recipe)

    def counted(*arguments: Any) -> Any:
        sys.setprofile(counter.profile)
        try:
            return quantize_network(*arguments)
        finally:
            sys.setprofile(None)

    stages._make, pipeline.quantize_network = noted, counted

    def told(stage: str, _share: float) -> None:
        if stage not in ("read", "quantize"):  # of which a resumed export has fewer
            counter.count("report")

    pipeline.export(checkpoint, bundle, Recipe(backends=("onnx",)), progress=told)


def main() -> None:
    """See the module."""
    stages.code_version()  # once for all of them: someone may be at work on a source
    checkpoint, folder, moments = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    bound = os.environ.pop("HANDLENS_CACHE_BYTES", None)
    os.environ["HANDLENS_CACHE_BYTES"] = "0"
    alone = attempt(checkpoint, folder / "alone")
    print(json.dumps(alone))
    os.environ["HANDLENS_CACHE_BYTES"] = bound or ""
    calls, reports = (alone["counted"][kind] for kind in ("call", "report"))
    for moment in moments:
        when = {"call": 1 + int(moment * calls)} if moment < 1 else {"report": 1 + int((moment - 1) * reports)}
        print(json.dumps(attempt(checkpoint, folder / "killed", **when)), flush=True)
    print(json.dumps(attempt(checkpoint, folder / "killed")))


if __name__ == "__main__":
    main()
