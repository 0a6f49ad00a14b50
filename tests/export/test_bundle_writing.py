"""Bundles appear whole or not at all, and a whole one that was damaged afterwards is refused."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path

import pytest

from handlens_export.bundle import check_target, file_entries, staged, write_manifest
from handlens_export.errors import TargetError
from handlens_runtime.bundle import MANIFEST, SEAL, Bundle, seal
from handlens_runtime.engine import Engine
from handlens_runtime.errors import BackendError, BundleError
from handlens_runtime.manifest import Manifest

POSITIONS = 12
"""Random positions in each file, beside its first, middle and last byte."""


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def old(tmp_path) -> Path:
    """What stands for a bundle of an earlier export."""
    target = tmp_path / "bundle"
    target.mkdir()
    for name in (MANIFEST, SEAL):
        (target / name).write_text("old")
    return target


def fail_halfway(target: Path, failure: BaseException) -> None:
    with staged(target) as folder:
        (folder / "half").write_text("written")
        raise failure


def test_what_was_staged_becomes_the_target(tmp_path):
    with staged(tmp_path / "deep" / "bundle") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "deep" / "bundle").exists()
    assert names(tmp_path) == ["deep", "deep/bundle", "deep/bundle/file"]


def test_an_old_bundle_is_replaced_when_the_new_one_is_whole(tmp_path, old):
    with staged(old) as folder:
        (folder / "file").write_text("new")
        assert (old / MANIFEST).read_text() == "old"
    assert names(tmp_path) == ["bundle", "bundle/file"]


@pytest.mark.parametrize("failure", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_leaves_nothing_behind(tmp_path, failure):
    with pytest.raises(type(failure)):
        fail_halfway(tmp_path / "bundle", failure)
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_bundle(tmp_path, old, failure):
    with pytest.raises(type(failure)):
        fail_halfway(old, failure)
    assert names(tmp_path) == ["bundle", f"bundle/{MANIFEST}", f"bundle/{SEAL}"]


def test_a_rename_that_fails_puts_the_old_bundle_back(tmp_path, old, monkeypatch):
    rename = Path.rename

    def fail_at_the_end(self, to):
        if self.name == "new":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_at_the_end)
    with pytest.raises(TargetError, match=r"bundle could not be written \(Permission denied\)"), staged(old) as folder:
        (folder / "file").write_text("new")
    assert names(tmp_path) == ["bundle", f"bundle/{MANIFEST}", f"bundle/{SEAL}"]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(TargetError, match=r"No space left on device.*make room") as error, staged(tmp_path / "bundle"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


def test_an_existing_target_is_refused_without_force(old):
    with pytest.raises(TargetError, match="already exists; give another place, or --force"):
        check_target(old, force=False)
    check_target(old, force=True)


@pytest.mark.parametrize("kind", ["file", "folder", "web app", "link", "dangling link"])
def test_force_replaces_nothing_but_a_bundle(tmp_path, old, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("thesis")
    elif kind.endswith("link"):
        target.symlink_to(old if kind == "link" else tmp_path / "nowhere")
    else:
        target.mkdir()
        (target / ("thesis.txt" if kind == "folder" else MANIFEST)).write_text("{}")
    before = names(tmp_path)
    with pytest.raises(TargetError, match="is not a bundle, so --force does not replace it"):
        check_target(target, force=True)
    assert names(tmp_path) == before


def test_an_empty_folder_may_be_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", force=True)
    assert names(tmp_path) == ["empty"]


def test_checking_a_target_makes_nothing(tmp_path):
    check_target(tmp_path / "not" / "there" / "bundle", force=False)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"file cannot be written to \(Not a directory\); give another place"):
        check_target(tmp_path / "file" / "bundle", force=False)


def test_every_file_is_listed_with_size_and_hash(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    entries = file_entries(tmp_path)
    assert list(entries) == ["a", "deep/b"]
    assert entries["deep/b"].size == 3
    assert entries["deep/b"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture(scope="module")
def whole(exported) -> Path:
    return exported("bluelm_v").bundle


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def test_any_flipped_byte_is_refused_with_the_files_name(copied):
    chance = random.Random(0)
    files = [path for path in sorted(copied.rglob("*")) if path.is_file()]
    assert {MANIFEST, SEAL, "tokenizer.json", "model.pte", "decoder.onnx.data"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        last = len(content) - 1
        for position in (0, last // 2, last, *(chance.randint(0, last) for _ in range(POSITIONS))):
            damaged = bytearray(content)
            damaged[position] ^= 1 << chance.randint(0, 7)
            path.write_bytes(damaged)
            with pytest.raises(BundleError) as error:
                Bundle.load(copied)
            assert path.name in str(error.value) and "\n" not in str(error.value), (path, position)
        path.write_bytes(content)
    Bundle.load(copied)


def test_any_truncation_is_refused_with_the_files_name(copied):
    for path in [path for path in sorted(copied.rglob("*")) if path.is_file()]:
        content = path.read_bytes()
        for size in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            # Sizes are looked at even by who skips the hashes.
            with pytest.raises(BundleError) as error:
                Bundle.load(copied, verify=False)
            assert path.name in str(error.value) and "\n" not in str(error.value), (path, size)
        path.unlink()
        with pytest.raises(BundleError, match=path.name):
            Bundle.load(copied)
        path.write_bytes(content)
    Bundle.load(copied)


def test_a_method_that_the_program_lacks_is_named(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["backends"]["executorch"]["decoder"]["method"] = "other_decoder"
    content = json.dumps(manifest).encode()
    (copied / MANIFEST).write_bytes(content)
    (copied / SEAL).write_bytes(seal(content))
    with pytest.raises(BackendError, match=r"model\.pte lacks the method other_decoder; export") as error:
        Engine(copied, "executorch")
    assert "\n" not in str(error.value)


def test_a_manifest_is_written_as_it_is_read(whole, tmp_path):
    manifest = Bundle.load(whole).manifest
    write_manifest(tmp_path, manifest)
    assert (tmp_path / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
    assert Manifest.model_validate_json((tmp_path / MANIFEST).read_bytes()) == manifest
