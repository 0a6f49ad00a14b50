"""Exports that run at the same time, were killed, or fail: none touches what is not its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from handlens_export.bundle import staged
from handlens_export.errors import TargetError


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from handlens_export.bundle import staged

target = Path(sys.argv[1])
with staged(target) as folder:
    (folder / "half").write_text("written")
    if target.exists():
        target.rename(folder.parent / "old")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_an_export(target: Path) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED, str(target)], env={"PYTHONPATH": ":".join(sys.path)})
    assert died.returncode == -signal.SIGKILL


def test_two_exports_to_one_target_do_not_touch_one_another(tmp_path):
    target = tmp_path / "bundle"

    def overtaken() -> None:
        with staged(target) as late:
            (late / "file").write_text("late")
            with staged(target) as early:
                assert names(late) == ["file"] and names(early) == []
                (early / "file").write_text("early")

    with pytest.raises(TargetError, match="bundle was written by another export meanwhile"):
        overtaken()
    assert names(tmp_path) == ["bundle", "bundle/file"]
    assert (target / "file").read_text() == "early"


def test_one_that_fails_leaves_the_other_at_work(tmp_path):
    target = tmp_path / "bundle"
    with staged(target) as folder:
        (folder / "file").write_text("whole")
        with pytest.raises(ValueError, match="a bug"), staged(target):
            raise ValueError("a bug")
    assert names(tmp_path) == ["bundle", "bundle/file"]


def test_what_a_killed_export_left_is_swept_away(tmp_path):
    target = tmp_path / "bundle"
    kill_an_export(target)
    with staged(tmp_path / "bundle.2"), staged(tmp_path / "bun"):
        assert [name for name in names(tmp_path) if name.endswith("half")]  # not theirs
    for other in ("bundle.2", "bun"):
        (tmp_path / other).rmdir()
    with staged(target) as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["bundle"]


def test_an_old_bundle_comes_back_from_an_export_killed_while_replacing_it(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "file").write_text("old")
    kill_an_export(target)
    assert not target.exists()
    with pytest.raises(ValueError, match="a bug"), staged(target):
        raise ValueError("a bug")
    assert names(tmp_path) == ["bundle", "bundle/file"]


def test_folders_made_above_the_target_go_upon_a_failure_and_others_stay(tmp_path):
    (tmp_path / "mine").mkdir()

    def fail(others: str | None) -> None:
        with staged(tmp_path / "mine" / "deep" / "deeper" / "bundle"):
            if others:
                (tmp_path / others).write_text("someone's")
            raise ValueError("a bug")

    for others, left in ((None, ["mine"]), ("mine/deep/note", ["mine", "mine/deep", "mine/deep/note"])):
        with pytest.raises(ValueError, match="a bug"):
            fail(others)
        assert names(tmp_path) == left


def test_the_target_is_as_readable_as_any_new_folder(tmp_path):
    (tmp_path / "other").mkdir()
    with staged(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "other").stat().st_mode
