"""A .pte through native code: the binding's numbers; packed weights are kept, found again, never trusted blindly."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import export
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
from torchao.quantization.granularity import PerGroup

from handlens_runtime import kept
from handlens_runtime.pte import SLOWER, binding, open_program
from handlens_runtime.pte.build import NativeUnavailableError, executorch_folder, load_library

ROWS = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32)).eval()
    exported = export(model, (torch.zeros(3, 64),))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = tmp_path_factory.mktemp("pte") / "model.pte"
    path.write_bytes(lowered.buffer)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of packed weights; the native code compiled before is at hand."""
    (tmp_path / "cache").mkdir()
    compiled = Path(os.environ["HANDLENS_CACHE"]) / "native"
    (tmp_path / "cache" / "native").symlink_to(compiled)
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "")
    return tmp_path / "cache" / "packed"


def answer(program: Path, warnings: list[str] | None = None) -> bytes:
    said: list[str] = []
    sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
    opened = open_program(program, sha256, ["forward"], said if warnings is None else warnings)
    (rows,) = opened.run("forward", [ROWS])
    assert said == []
    return rows.tobytes()


def expected(program: Path) -> bytes:
    (rows,) = binding.open_program(program, ["forward"]).run("forward", [ROWS])
    return rows.tobytes()


def packed_file(folder: Path) -> Path:
    (found,) = kept.kept_files(folder)
    return found.path


def left_over(folder: Path) -> list[Path]:
    return list(folder.glob(f".*{kept.PARTIAL}"))


def test_native_code_is_used_here():
    assert SLOWER is None


def test_cold_and_warm_answer_as_the_binding_does(program, folder):
    assert [answer(program), answer(program)] == [expected(program)] * 2
    assert left_over(folder) == []


def test_a_second_load_reads_what_the_first_kept(program, folder):
    """Zeros in the file, vouched for by the hash beside it: the answer shows where the weights come from."""
    answer(program)
    path = packed_file(folder)
    content = bytearray(path.read_bytes())
    content[: 64 * 48 * 4] = bytes(64 * 48 * 4)
    path.write_bytes(content)
    note = path.with_name(path.name + kept.NOTE)
    note.write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    assert answer(program) != expected(program)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_weights_leave_memory_and_are_read_again(program, folder, resident):
    sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
    for state in ("packed by this load", "kept by an earlier one"):
        opened = open_program(program, sha256, ["forward"], [])
        opened.run("forward", [ROWS])
        held = resident(packed_file(folder))
        opened.give_back()
        assert resident(packed_file(folder)) == 0 < held, state
        (rows,) = opened.run("forward", [ROWS])
        assert rows.tobytes() == expected(program)
        assert resident(packed_file(folder)) > 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "note", "no note"])
def test_what_is_damaged_is_packed_again(program, folder, damage):
    answer(program)
    path = packed_file(folder)
    note, content = path.with_name(path.name + kept.NOTE), path.read_bytes()
    if damage == "note":
        note.write_text("{")
    elif damage == "no note":
        note.unlink()
    else:
        flipped = bytes([content[100] ^ 1])
        path.write_bytes(
            {"flipped": content[:100] + flipped + content[101:], "cut": content[:-100], "empty": b""}[damage]
        )
    assert answer(program) == expected(program)
    assert kept.find(packed_file(folder)) and len(packed_file(folder).read_bytes()) == len(content)


def test_a_changed_program_gets_weights_of_its_own(program, folder, tmp_path):
    answer(program)
    other = tmp_path / "other.pte"
    other.write_bytes(program.read_bytes() + b"\0")
    assert answer(other) == expected(other)
    assert len(kept.kept_files(folder)) == 2


@pytest.fixture(scope="module")
def doubled(tmp_path_factory) -> Path:
    """Two matrices of four bits with equal bytes, the scales of one twice the other's: outputs a and 2 a."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 32, bias=False), nn.Linear(64, 32, bias=False)
            self.two.weight = nn.Parameter(2 * self.one.weight)

        def forward(self, rows):
            return torch.stack([self.one(rows), self.two(rows)])

    torch.manual_seed(1)
    model = Doubled().eval()
    quantize_(model, Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(32)))
    exported = export(model, (torch.zeros(3, 64),))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = tmp_path_factory.mktemp("pte") / "doubled.pte"
    path.write_bytes(lowered.buffer)
    return path


def test_matrices_of_equal_bytes_and_other_scales_stay_apart(doubled, folder):
    """XNNPACK's file finds them by their bytes alone: the second matrix would get the first one's scales."""
    for _ in range(2):
        warnings: list[str] = []
        found = answer(doubled, warnings)
        assert found == expected(doubled)
        one, two = np.frombuffer(found, np.float32).reshape(2, -1)
        np.testing.assert_allclose(two, 2 * one, rtol=1e-6)
        assert len(warnings) == 1 and "the same bytes" in warnings[0]
    assert packed_file(folder).stat().st_size == 0 and left_over(folder) == []


def test_what_a_killed_process_left_is_swept_and_not_used(program, folder):
    answer(program)
    path = packed_file(folder)
    left = kept.partial(path)
    left.write_bytes(path.read_bytes()[:1000])
    path.unlink()
    assert answer(program) == expected(program)
    assert left_over(folder) == [] and kept.find(path)


CHILD = """
import hashlib, os, sys, time
from pathlib import Path
import numpy as np
from handlens_runtime.pte import open_program
path = Path(sys.argv[1])
program = open_program(path, hashlib.sha256(path.read_bytes()).hexdigest(), ["forward"], [])
rows = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)
print(program.run("forward", [rows])[0].tobytes().hex(), "torch" in sys.modules, flush=True)
sys.stdin.read()
"""


def environment_of_child() -> dict[str, str]:
    roots = [str(Path(__file__).parents[2] / part) for part in ("sdk", "export", "runtime")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}


def child(program: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, str(program)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment_of_child())


def test_processes_share_one_file_and_import_no_torch(program, folder):
    first, second = child(program), child(program)
    try:
        for one in (first, second):
            assert one.stdout.readline().split() == [expected(program).hex(), "False"]
        # Both still run, one of them packed: a third finds the file, for nobody holds its lock.
        before = packed_file(folder).stat().st_ino
        assert answer(program) == expected(program)
        assert packed_file(folder).stat().st_ino == before
    finally:
        for one in (first, second):
            one.communicate("")


def test_a_process_killed_at_any_moment_leaves_it_sound(program, folder):
    for moment in (0.3, 0.5, 0.7, 0.9):
        killed = child(program)
        time.sleep(moment)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert answer(program) == expected(program)
        for found in kept.kept_files(folder):
            kept.remove(found)


def test_a_program_stays_usable_when_others_go_and_the_cache_is_cleared(program, folder):
    sha256 = hashlib.sha256(program.read_bytes()).hexdigest()
    one = open_program(program, sha256, ["forward"], [])
    other, third = (open_program(program, sha256, ["forward"], []) for _ in range(2))
    assert len(kept.clear(folder)) == 1
    del one, other
    assert third.run("forward", [ROWS])[0].tobytes() == expected(program)


@pytest.mark.parametrize("where", ["a file", "too long"])
def test_where_nothing_can_be_kept_it_loads_and_says_so(program, folder, tmp_path, monkeypatch, where):
    cache = tmp_path / ("x" * 120) / ("y" * 120)
    if where == "a file":
        cache = tmp_path / "file"
        cache.write_bytes(b"")
    monkeypatch.setenv("HANDLENS_CACHE", str(cache))
    warnings: list[str] = []
    assert answer(program, warnings) == expected(program)
    (warning,) = warnings
    assert warning.startswith("Weights are packed again at every load, which is slower: ")


def test_the_bound_is_kept(program, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "0")
    answer(program)
    assert kept.kept_files(folder) == []
    other = tmp_path / "other.pte"
    other.write_bytes(program.read_bytes() + b"\0")
    monkeypatch.setenv("HANDLENS_CACHE_BYTES", "")
    answer(program)
    first = packed_file(folder)
    monkeypatch.setattr(kept, "DEFAULT_BOUND", 2 * first.stat().st_size - 1)
    monkeypatch.setattr("handlens_runtime.pte.packed._SPACE", 0.1)
    answer(other)
    assert packed_file(folder) != first


def test_a_full_disk_is_not_filled(program, folder, monkeypatch):
    monkeypatch.setattr("handlens_runtime.pte.packed.shutil.disk_usage", lambda path: type("", (), {"free": 1000}))
    warnings: list[str] = []
    assert answer(program, warnings) == expected(program)
    assert kept.kept_files(folder) == [] and "has 1000 bytes left" in warnings[0]


def test_a_program_without_a_hash_keeps_nothing(program, folder):
    (rows,) = open_program(program, None, ["forward"], []).run("forward", [ROWS])
    assert rows.tobytes() == expected(program) and not folder.exists()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CXX", "/no/such/c++", "CXX names /no/such/c++, which is not there"),
        ("PATH", "/nowhere", "no C++ compiler is installed"),
        ("CXX", "false", "cannot compile native.cpp"),
        ("HANDLENS_CACHE", "/proc/nowhere", "/proc/nowhere/native cannot be written"),
    ],
)
def test_native_code_that_cannot_be_built_says_why(tmp_path, monkeypatch, variable, value, says):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    monkeypatch.setenv(variable, value)
    with pytest.raises(NativeUnavailableError, match=re.escape(says)):
        load_library()
    assert kept.kept_files(tmp_path / "native") == [] and left_over(tmp_path / "native") == []


def test_damaged_native_code_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    load_library()
    path = packed_file(tmp_path / "native")
    path.unlink()  # what is loaded stays as it is
    path.write_bytes(b"?")
    load_library()
    assert kept.find(path)


ALONE = """
import sys
from pathlib import Path
import handlens_runtime.pte as pte
warnings = []
pte.open_program(Path(sys.argv[1]), None, ["forward"], warnings)
print(warnings)
"""


def test_without_a_compiler_the_binding_serves(program, tmp_path):
    environment = {**environment_of_child(), "HANDLENS_CACHE": str(tmp_path), "CXX": "/no/such/c++"}
    words = [sys.executable, "-c", ALONE, str(program)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    line = done.stdout.splitlines()[-1]
    assert line.startswith("['ExecuTorch programs load slower than they could: CXX names /no/such/c++")


def test_executorch_is_found_without_importing_it():
    assert (executorch_folder() / "lib" / "libexecutorch.so").is_file()
