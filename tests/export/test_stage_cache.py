"""What is put into the stage cache comes out the same or not at all, and how its folder is kept within bounds."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from handlens_export.errors import TargetError
from handlens_export.stage_cache import tensor_file
from handlens_export.stage_cache.entries import PARTIAL, Entry, about, clear, entries, stage_folder, trim
from handlens_export.stage_cache.store import StageCache
from handlens_runtime.errors import OptionError
from handlens_runtime.kept import size_bound

NOTE = {"checkpoint": "/some/where", "stage": "decoder.layers.0"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "")
    return tmp_path / "cache" / "stages"


def stage(seed: int, size: int = 1000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "w.values": torch.randint(-8, 8, (size // 10, 10), generator=generator, dtype=torch.int8),
        "w.scales": torch.rand((size // 10, 1), generator=generator),
        "w.zeros": torch.randint(0, 4, (7, 3), generator=generator, dtype=torch.uint8),
        "norm": torch.rand(13, generator=generator),
    }


def keep(key: str, seed: int = 0, size: int = 1000) -> None:
    with StageCache() as kept:
        kept.put(key, stage(seed, size), NOTE)


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor]) -> bool:
    return one is not None and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_put_in_is_found_by_its_key(folder):
    with StageCache() as kept:
        assert kept.get("a") is None
        assert same(kept.put("a", stage(1), NOTE), stage(1))
        kept.put("ab", stage(2), NOTE)
    with StageCache() as kept:
        assert same(kept.get("a"), stage(1)) and same(kept.get("ab"), stage(2))
    assert [about(entry) for entry in entries(folder)] == [NOTE, NOTE]


def test_files_are_safetensors(folder):
    keep("a", 3)
    (entry,) = entries(folder)
    assert same(load_file(entry.path), stage(3))


def test_each_tensor_has_a_storage_of_its_own_size():
    """XNNPACK's exporter takes a tensor's whole storage for its content."""
    keep("a")
    with StageCache() as kept:
        found = kept.get("a")
    assert found is not None
    for tensor in found.values():
        assert tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes() == tensor.nbytes


def test_writing_to_what_was_found_changes_no_file():
    keep("a", 1)
    with StageCache() as kept:
        found = kept.get("a")
        assert found is not None
        found["norm"].zero_()
        assert same(kept.get("a"), stage(1))


def test_pages_let_go_are_read_again():
    keep("a", 1)
    with StageCache() as kept:
        found = kept.get("a")
        assert same(found, stage(1))
        tensor_file.let_go()
        assert same(found, stage(1))


def test_any_flipped_byte_and_any_cut_is_noticed_and_the_entry_removed(folder):
    keep("a")
    (entry,) = entries(folder)
    whole = entry.path.read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :] for at in range(0, len(whole), 37)]
    damaged += [whole[:length] for length in (0, 1, 7, 100, len(whole) - 1)] + [whole + b"\0"]
    for content in damaged:
        entry.path.write_bytes(content)
        with StageCache() as kept:
            assert kept.get("a") is None
        assert entries(folder) == []
    keep("a")
    assert entries(folder)[0].path == entry.path


def test_a_file_under_another_ones_name_is_not_taken(folder):
    keep("a")
    (entry,) = entries(folder)
    entry.path.rename(entry.path.with_name(entry.path.name.replace("a-", "b-", 1).replace("0", "1", 1)))
    with StageCache() as kept:
        assert kept.get("b") is None


def test_the_least_recently_used_go_first(folder, monkeypatch):
    for seed, key in enumerate(("a", "b", "c")):
        keep(key, seed)
        os.utime(entries(folder)[-1].path, (1000 + seed, 1000 + seed))
    with StageCache() as kept:
        assert kept.get("a") is not None
    size = entries(folder)[0].size
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", str(2 * size + 10))
    gc.collect()
    with StageCache():
        pass
    assert {entry.path.name[0] for entry in entries(folder)} == {"a", "c"}


def test_what_a_running_export_uses_is_not_removed(folder):
    keep("a")
    keep("b")
    with StageCache() as running:
        running.get("a")
        running.put("c", stage(5), NOTE)
        trim(folder, 0)
        assert {entry.path.name[0] for entry in entries(folder)} == {"a", "c"}
        removed, held = clear(folder)
        assert removed == [] and len(held) == 2
    gc.collect()
    removed, held = clear(folder)
    assert len(removed) == 2 and held == [] and entries(folder) == []


def test_tensors_outlive_an_entry_that_someone_removes(folder):
    keep("a", 1)
    with StageCache() as kept:
        found = kept.get("a")
    for entry in entries(folder):
        entry.path.unlink()
    assert same(found, stage(1))


def test_clear_spares_what_was_used_lately(folder):
    keep("old")
    keep("new")
    old = next(entry for entry in entries(folder) if entry.path.name.startswith("old"))
    os.utime(old.path, (time.time() - 100, time.time() - 100))
    removed, _ = clear(folder, older_than=50)
    assert [entry.path for entry in removed] == [old.path] and len(entries(folder)) == 1


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(folder):
    keep("a")
    dead, living, young = (folder / f".{name}{PARTIAL}" for name in ("dead", "living", "young"))
    dead.write_bytes(b"half of it")
    living.write_bytes(b"half of it")
    young.touch()
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with StageCache():
            pass
    assert (dead.exists(), living.exists(), young.exists()) == (False, True, True)


def test_a_full_disk_is_one_sentence_and_leaves_the_cache_sound(folder, monkeypatch):
    keep("a")
    (entry,) = entries(folder)

    def full(file, tensors, note):
        file.write(b"as much as there was room for")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with StageCache() as kept:
        assert kept.get("a") is not None  # in use: it makes no room
        monkeypatch.setattr(tensor_file, "write", full)
        with pytest.raises(TargetError, match=r"No space left on device\); make room there, or name another") as error:
            kept.put("b", stage(1), NOTE)
        assert "\n" not in str(error.value)
    assert [path.name for path in folder.iterdir()] == [entry.path.name]


def test_a_full_disk_first_costs_what_nobody_uses(folder, monkeypatch):
    keep("a")
    keep("b")
    write, calls = tensor_file.write, []

    def full_once(file, tensors, note):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, tensors, note)

    monkeypatch.setattr(tensor_file, "write", full_once)
    with StageCache() as kept:
        assert kept.get("a") is not None
        assert same(kept.put("c", stage(1), NOTE), stage(1))
    assert {entry.path.name[0] for entry in entries(folder)} == {"a", "c"}


def test_a_write_that_the_system_refuses_leaves_no_piece(folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with StageCache() as kept, pytest.raises(TargetError, match=r"could not be written \(File too large"):
            kept.put("a", stage(1, size=100_000), NOTE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.iterdir()) == []


def test_without_a_folder_to_write_to_nothing_is_kept_and_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "file"))
    with StageCache() as kept:
        made = stage(1)
        assert kept.put("a", made, NOTE) is made and kept.get("a") is None
        assert not kept.working and kept.refusal is not None
        assert "Not a directory" in kept.refusal and "HANDLENS_CACHE" in kept.refusal


def test_zero_bytes_turn_it_off(folder, monkeypatch):
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "0")
    with StageCache() as kept:
        kept.put("a", stage(1), NOTE)
        assert not kept.working and kept.refusal is None
    assert not folder.exists()


@pytest.mark.parametrize("given", ["20GB", "-1", "many", "1.5"])
def test_a_bound_that_is_no_number_of_bytes_is_refused(monkeypatch, given):
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", given)
    with pytest.raises(OptionError, match=r"HANDLENS_CACHE_BYTES is '.*', but it must be a whole number of bytes"):
        size_bound()


def test_many_at_once_share_it(folder, monkeypatch):
    """Each puts, finds and trims; under a bound that holds a third of it all."""
    keep("probe")
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", str(entries(folder)[0].size * 4))

    def work(worker: int) -> int:
        wrong = 0
        for turn in range(12):
            with StageCache() as kept:
                key = (worker + turn) % 11
                found = kept.get(f"k{key}")
                found = kept.put(f"k{key}", stage(key), NOTE) if found is None else found
                wrong += not same(found, stage(key))
        return wrong

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 0
    gc.collect()
    with StageCache():
        pass
    assert sum(entry.size for entry in entries(folder)) <= size_bound()
    assert not list(folder.glob(f".*{PARTIAL}"))


def test_about_a_file_that_cannot_be_read_is_nothing(tmp_path):
    for content in (b"", b"12345", b"\xff" * 30, (3).to_bytes(8, "little") + b"[1]"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        assert about(Entry(path, 0, 0.0)) == {}
    assert about(Entry(tmp_path / "absent", 0, 0.0)) == {}


def test_the_folder_is_below_the_cache_folder(tmp_path):
    assert stage_folder() == tmp_path / "cache" / "stages"
    assert entries(stage_folder()) == []
