"""An export killed at a random moment goes on where it was and ends in the same bytes; exports share their layers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bundles
import full_size
from outcome import Cases, Outcome

EXPORT = (
    "import json, sys; from pathlib import Path; from handlens_export.pipeline import export; "
    "from handlens_export.recipe import Recipe; options = json.loads(sys.argv[3]); "
    "options['backends'] = tuple(options['backends']); export(Path(sys.argv[1]), Path(sys.argv[2]), Recipe(**options))"
)
ONNX = '{"backends": ["onnx"]}'
BOTH = '{"backends": ["executorch", "onnx"]}'
SEED = 4
MOST_DRAWS = 5


def twenty_kills() -> Outcome:
    """Ten at any moment of the export, ten once some number of layers is finished, which is a blink on nano."""
    return _kills(ONNX, tries=20)


def two_kills_of_both() -> Outcome:
    """At any moment of an export for both backends."""
    return _kills(BOTH, tries=2)


def two_kills_at_full_size() -> Outcome:
    """The 3B model, both backends, beside the bundle that `full_size` exported undisturbed: half an hour."""
    if not bundles.full_export().exists():
        full_size.exported()
    figures = json.loads((bundles.full_export() / "figures.json").read_text())
    alone = _contents(bundles.full_export() / "bundle")
    undisturbed = alone, figures["seconds"], figures["layers"]
    return _kills(BOTH, tries=2, checkpoint=bundles.full_checkpoint(), undisturbed=undisturbed)


def _kills(
    recipe: str,
    tries: int,
    checkpoint: Path | None = None,
    undisturbed: tuple[dict[str, str], float, int] | None = None,
) -> Outcome:
    """`undisturbed`: an export's files, seconds and layers, where one is at hand."""
    checkpoint = checkpoint or bundles.nano_checkpoint()
    chosen = random.Random(SEED)
    values: dict[str, object] = {"tries": tries}
    killed, redone, finished, differ = 0, 0, [], []
    with tempfile.TemporaryDirectory(prefix="handlens-verify-") as scratch:
        if undisturbed is None:
            began = time.monotonic()
            alone = _contents(_run(Path(scratch) / "alone", recipe, checkpoint=checkpoint))
            undisturbed = alone, time.monotonic() - began, len(_entries(Path(scratch) / "alone"))
        alone, whole, stages = undisturbed
        for index in range(tries):
            for again in range(MOST_DRAWS):  # one that came to its end before its moment is no try
                home = Path(scratch) / f"{index}-{again}"
                ripe = _later(whole * chosen.random()) if index % 2 == 0 else _at(home, chosen.randrange(1, stages))
                if _kill(home, recipe, ripe, checkpoint):
                    killed += 1
                    break
            before = _entries(home)
            finished.append(len(before))
            if not (home / "bundle").exists():
                _run(home, recipe, checkpoint=checkpoint)
            resumed = _contents(home / "bundle")
            redone += len(before.items() - _entries(home).items())
            differ += [index] if resumed != alone else []
            shutil.rmtree(home)
    values |= {"killed": killed, "finished layers at the kill": finished, "redone": redone, "that differ": differ}
    bar = "each is killed, none differs by a byte, no finished layer is made again"
    return Outcome(values, bar, killed == tries and not redone and not differ)


def shared() -> Outcome:
    """Two exports at once, then other backends, another chunk and another context: all from the same cache."""
    with tempfile.TemporaryDirectory(prefix="handlens-verify-") as scratch:
        alone, home = _contents(_run(Path(scratch) / "alone", ONNX)), Path(scratch) / "shared"
        both = [_start(home, ONNX, name) for name in ("one", "other")]
        codes = [process.wait() for process in both]
        differ = [name for name in ("one", "other") if _contents(home / name) != alone]
        before = _entries(home)
        for name, recipe in (("chunk", '{"chunk": 64, "context": 512, "backends": ["onnx"]}'), ("both", BOTH)):
            _run(home, recipe, name)
        made = len(_entries(home).items() - before.items())
    values = {"exit codes": codes, "that differ": differ, "layers": len(before), "made again": made}
    return Outcome(values, "the same bytes; nothing is rounded again", codes == [0, 0] and not differ and not made)


def _start(home: Path, recipe: str, name: str = "bundle", checkpoint: Path | None = None) -> subprocess.Popen[bytes]:
    checkpoint = checkpoint or bundles.nano_checkpoint()
    home.mkdir(exist_ok=True)
    paths = os.pathsep.join(str(bundles.ROOT / tree) for tree in ("export", "runtime"))
    environment = {**os.environ, "PYTHONPATH": paths, "HANDLENS_CACHE": str(home / "cache"), "HANDLENS_CACHE_BYTES": ""}
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, checkpoint, home / name, recipe]
    return subprocess.Popen(command, env=environment)


def _run(home: Path, recipe: str, name: str = "bundle", checkpoint: Path | None = None) -> Path:
    code = _start(home, recipe, name, checkpoint).wait()
    if code:
        raise RuntimeError(f"an export ended with {code}")
    return home / name


def _kill(home: Path, recipe: str, ripe: Callable[[], bool], checkpoint: Path) -> bool:
    """Kill an export once it is ripe; whether it was still at work."""
    process = _start(home, recipe, checkpoint=checkpoint)
    while process.poll() is None and not ripe():
        time.sleep(0.001)
    process.kill()
    return process.wait() == -signal.SIGKILL and not (home / "bundle").exists()


def _later(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _at(home: Path, count: int) -> Callable[[], bool]:
    return lambda: len(_entries(home)) >= count


def _entries(home: Path) -> dict[str, int]:
    """Finished layers by file name, with what changes when one is written anew: its inode."""
    return {path.name: path.stat().st_ino for path in (home / "cache" / "stages").glob("*.safetensors")}


def _contents(folder: Path) -> dict[str, str]:
    """sha256 of each file."""
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in folder.rglob("*") if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CASES: Cases = {
    "20 kills of a bluelm-v-nano export": twenty_kills,
    "2 kills of an export for both backends": two_kills_of_both,
    "2 kills of an export at full size": two_kills_at_full_size,
    "exports share what they made": shared,
}
