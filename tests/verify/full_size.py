"""The 3B model through the export, rounded and by GPTQ: memory, time, and whether `plan` knew. For quiet cores.

`resume` kills it. The bundle stays in the cache folder, for `handlens bench`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import bundles
import peak
from outcome import Cases, Outcome
from passages import novel

from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.measuring import calibration_of
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.quantize.calibrated import calibrated_layers
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import LENGTH, Recipe
from handlens_export.stage_cache.store import StageCache

GIB = 1 << 30
NAME = "bluelm-v-3b"
BUNDLE, HOST, PEAK, TIME = 0.02, 0.15, 0.10, 0.25
"""How far `plan` may be off: bytes of a bundle, memory of an export, of a run, time of a calibrated export."""
LAYERS = 4
"""Rounded by the second method, which tell how long all would take."""


def exported() -> Outcome:
    """Both backends from nothing, the cache empty."""
    checkpoint = bundles.full_checkpoint()
    with tempfile.TemporaryDirectory(prefix="handlens-verify-", dir=bundles.verify_folder()) as scratch:
        made, cache = Path(scratch) / "bundle", Path(scratch) / "cache"
        found = peak.run([*_handlens("export"), str(checkpoint), "-o", str(made)], _environment(cache))
        layers = _stages(cache)
        figures = {"resident": found.resident, "bytes": _bytes(made), "seconds": found.seconds, "layers": layers}
        shutil.rmtree(bundles.full_export(), ignore_errors=True)
        whole = Path(scratch) / "whole"
        whole.mkdir()
        made.rename(whole / "bundle")
        (whole / "figures.json").write_text(json.dumps(figures))
        whole.rename(bundles.full_export())
    values = {
        "peak, GiB": round(found.resident / GIB, 2),
        "of it anonymous, GiB": round(found.anonymous / GIB, 2),
        "minutes": round(found.seconds / 60, 1),
        "processor minutes": round(found.cpu_seconds / 60, 1),
        "cores": len(os.sched_getaffinity(0)),
        "bundle, GB": round(figures["bytes"] / 1e9, 2),
    }
    bar = "at most 8 GiB, file-backed pages included, and 12 minutes"
    return Outcome(values, bar, found.resident <= 8 * GIB and found.seconds <= 720)


def predicted() -> Outcome:
    """What `plan` says beforehand, beside the export above and a run of its bundle with a picture and a full cache."""
    if not bundles.full_export().exists():
        exported()
    figures = json.loads((bundles.full_export() / "figures.json").read_text())
    planned = _json([*_handlens("plan"), str(bundles.full_checkpoint()), "--json"])
    values: dict[str, object] = {}
    off = [
        (_off(values, "bundle", planned["bytes"], figures["bytes"]), BUNDLE),
        (_off(values, "host RAM", planned["host"]["peak_bytes"], figures["resident"]), HOST),
    ]
    for backend, memory in planned["memory"]["backends"].items():
        tests = ["--prompts", "16", "--depths", "2032", "--repeat", "1", "--json"]
        measured = _json([*_handlens("bench"), str(bundles.full_export() / "bundle"), "--backend", backend, *tests])
        peak_bytes = measured["peak_memory_pictures_bytes"]
        off.append((_off(values, f"peak, {backend}", memory["peak"], peak_bytes), PEAK))
    bar = f"bundle within {BUNDLE:.0%}, host RAM {HOST:.0%}, peak of a run {PEAK:.0%}"
    return Outcome(values, bar, all(abs(found) <= most for found, most in off))


def by_gptq() -> Outcome:
    """An export for ONNX whose decoder is rounded by GPTQ on 64 x 512 tokens of the novel.

    One that was killed goes on at its layer; its time is then not that of the whole, and not judged.
    """
    folder = bundles.verify_folder() / "gptq"
    made, cache, text = folder / "bundle", folder / "cache", _novel(folder)
    before = _stages(cache)
    words = [str(bundles.full_checkpoint()), "--method", "gptq", "--backend", "onnx"]
    planned = _json([*_handlens("plan"), *words, "--json"])["host"]
    command = [*_handlens("export"), *words, "-o", str(made), "--calibration", str(text), "--force"]
    found = peak.run(command, _environment(cache))
    values: dict[str, object] = {
        "peak, GiB": round(found.resident / GIB, 2),
        "of it anonymous, GiB": round(found.anonymous / GIB, 2),
        "reached after, minutes": round(found.at / 60, 1),
        "stages that an earlier run had finished": before,
        "minutes": round(found.seconds / 60, 1),
        "processor minutes": round(found.cpu_seconds / 60, 1),
        "cores": len(os.sched_getaffinity(0)),
        "planned, minutes": round(planned["seconds"] / 60, 1),
    }
    in_time = before > 0 or abs(planned["seconds"] / found.seconds - 1) <= TIME
    shutil.rmtree(folder)
    bar = f"at most 8 GiB, file-backed pages included; planned time within {TIME:.0%}"
    return Outcome(values, bar, found.resident <= 8 * GIB and in_time)


def by_rsq() -> Outcome:
    """The first layers alone, on the same text: how long all of them would take, and whether `plan` knew."""
    recipe = Recipe(method="rsq")
    planned = plan(read(bundles.full_checkpoint()), recipe)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = describe(planned, recipe, weigh(parameters.shapes, recipe))
        calibration = calibration_of(_novel(Path(scratch)), planned, manifest)
        network = float_network(parameters, planned.config, LENGTH)
        nothing = StageCache(bound=0)
        layers = calibrated_layers(network, parameters, recipe, nothing, calibration, lambda names, made: None)
        began = time.monotonic()
        done = [time.monotonic() - began for _ in islice(layers, LAYERS)]
    whole = done[-1] / LAYERS * planned.config.decoder.layers
    told = _json([*_handlens("plan"), str(bundles.full_checkpoint()), "--method", "rsq", "--json"])
    values: dict[str, object] = {
        "layers": LAYERS,
        "seconds of each": [round(after - before) for before, after in pairwise([0.0, *done])],
        "minutes, all layers": round(whole / 60, 1),
        "planned, minutes": round(told["host"]["calibrated_seconds"] / 60, 1),
        "cores": len(os.sched_getaffinity(0)),
    }
    off = told["host"]["calibrated_seconds"] / whole - 1
    return Outcome(values, f"planned within {TIME:.0%} of what all layers would take", abs(off) <= TIME)


def _novel(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "novel.txt"
    path.write_text(novel(), encoding="utf-8")
    return path


def _stages(cache: Path) -> int:
    return len(list((cache / "stages").glob("*.safetensors")))


def _off(values: dict[str, object], what: str, told: int, found: int) -> float:
    values[what] = {"planned, GB": round(told / 1e9, 3), "found, GB": round(found / 1e9, 3), "%": _percent(told, found)}
    return told / found - 1


def _percent(told: int, found: int) -> float:
    return round(100 * (told / found - 1), 1)


def _json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, env=_environment(None), stdout=subprocess.PIPE, check=True).stdout)


def _handlens(verb: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "handlens", verb]


def _environment(cache: Path | None) -> dict[str, str]:
    paths = os.pathsep.join(str(bundles.ROOT / tree) for tree in ("sdk", "export", "runtime"))
    return {**os.environ, "PYTHONPATH": paths} | ({} if cache is None else {"HANDLENS_CACHE": str(cache)})


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


CASES: Cases = {
    f"{NAME} for both backends": exported,
    f"what plan says of {NAME}": predicted,
    f"{NAME} by GPTQ on 64 x 512 tokens": by_gptq,
    f"{LAYERS} layers of {NAME} by RSQ on 64 x 512 tokens": by_rsq,
}
