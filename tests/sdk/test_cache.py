"""`handlens cache`: what it shows of the stages on disk, and what it clears."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from handlens.cli import app
from handlens_export.stage_cache.entries import entries
from handlens_export.stage_cache.store import StageCache
from handlens_runtime import kept


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "")
    return tmp_path / "cache" / "stages"


@pytest.fixture
def filled(folder):
    """Two layers of one checkpoint used two days ago, one of another used now."""
    now = time.time()
    for index, (checkpoint, days) in enumerate((("/ckpt/old", 2), ("/ckpt/old", 2), ("/ckpt/new", 0))):
        with StageCache() as kept:
            kept.put(
                f"{index}", {"w": torch.zeros(500)}, {"checkpoint": checkpoint, "stage": f"decoder.layers.{index}"}
            )
        (path,) = folder.glob(f"{index}-*")
        os.utime(path, (now - days * 86400, now - days * 86400))
    gc.collect()
    return folder


def shown(runner, *words: str) -> str:
    result = runner.invoke(app, ["cache", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_empty_cache_is_said_to_be_empty(runner, folder):
    assert shown(runner) == f"{folder}: 0 entries, 0 B of at most 20.0 GB.\n"


def test_it_shows_each_checkpoint(runner, filled):
    first, _, new, old = shown(runner).splitlines()
    assert first.startswith(f"{filled}: 3 entries, ") and first.endswith("of at most 20.0 GB.")
    assert new.split()[:2] == ["/ckpt/new", "1"] and old.split()[:2] == ["/ckpt/old", "2"]


def test_json_has_the_same(runner, filled):
    told = json.loads(shown(runner, "--json"))
    assert told["folder"] == str(filled) and told["most_bytes"] == kept.DEFAULT_BOUND
    assert told["entries"] == 3 and told["bytes"] == sum(entry.size for entry in entries(filled))
    assert [(row["checkpoint"], row["entries"]) for row in told["checkpoints"]] == [("/ckpt/new", 1), ("/ckpt/old", 2)]
    assert sum(row["bytes"] for row in told["checkpoints"]) == told["bytes"]


def test_a_file_that_is_no_entry_is_of_an_unknown_checkpoint(runner, filled):
    (filled / "x-y.safetensors").write_bytes(b"?")
    assert any(line.startswith("unknown") for line in shown(runner).splitlines())


def test_clear_removes_all(runner, filled):
    assert shown(runner, "clear").startswith("Removed 3 entries, ")
    assert entries(filled) == []
    assert json.loads(shown(runner, "clear", "--json"))["removed"] == 0


def test_clear_leaves_what_is_younger(runner, filled):
    assert shown(runner, "clear", "--older-than", "1").startswith("Removed 2 entries, ")
    assert len(entries(filled)) == 1


def test_clear_leaves_what_a_running_export_uses(runner, filled):
    with StageCache() as kept:
        assert kept.get("0") is not None
        told = json.loads(shown(runner, "clear", "--json"))
        assert (told["removed"], told["in_use"]) == (2, 1)
        assert " stay: an export uses them." in shown(runner, "clear")


def test_older_than_needs_clear(runner, filled):
    result = runner.invoke(app, ["cache", "--older-than", "3"])
    assert result.exit_code == 2 and len(entries(filled)) == 3
    assert "says what to clear; write: handlens cache clear" in result.stderr


def test_other_words_are_refused_in_one_line(runner, filled):
    result = runner.invoke(app, ["cache", "remove"])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and len(entries(filled)) == 3


def test_it_needs_nothing_of_the_workstation():
    """A base install has it too: neither torch nor anything else of the extra `export` is loaded."""
    program = "import sys; from handlens_export.stage_cache import entries; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], env=paths(), capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def paths() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)}


def test_what_loads_keep_is_shown_and_cleared_too(runner, folder):
    packed = folder.parent / "packed" / "a.xnnpack"
    packed.parent.mkdir(parents=True)
    written = kept.partial(packed)
    written.write_bytes(bytes(1000))
    kept.keep(written, packed, {})
    assert f"{packed.parent}: 1 entry, 1.0 kB: weights packed for this processor.\n" in shown(runner)
    assert json.loads(shown(runner, "--json"))["packed"] == {"entries": 1, "bytes": 1000}
    assert shown(runner, "clear", "--older-than", "1").startswith("Removed 0 entries")
    assert shown(runner, "clear").startswith("Removed 1 entry, 1.0 kB.")
    assert list(packed.parent.iterdir()) == []
