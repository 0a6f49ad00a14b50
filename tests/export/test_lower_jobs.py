"""Parts lowered side by side: in order, with their errors, and never outliving the export."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handlens_export.errors import TargetError, UnsupportedError
from handlens_export.lower.jobs import Job, can_fork, run

pytestmark = pytest.mark.skipif(not can_fork(), reason="jobs run in this process here")


def gives(value):
    def work(progress):
        progress(0.5)
        return value

    return work


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_what_jobs_give_comes_in_their_order(at_once, tmp_path):
    shares: list[float] = []
    heard = tmp_path / "heard"

    def slow(progress):
        until = time.monotonic() + (60 if at_once > 1 else 0)
        while not heard.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return "first"

    def report(share):
        shares.append(share)
        if round(share, 3) in (0.1, 0.3):  # half of the quick one, before or behind the last
            heard.touch()

    jobs = [Job("slow", 3, slow), Job("quick", 1, gives(b"second" * 100_000))]
    jobs.append(Job("pid", 1, lambda progress: os.getpid()))
    assert run(jobs, at_once, report)[:2] == ["first", b"second" * 100_000]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert heard.exists() or at_once == 1


def test_several_at_once_are_processes_that_leave_this_one_as_it_is():
    seen: list[int] = []
    pids = run(
        [Job(str(i), 1, lambda progress: seen.append(1) or os.getpid()) for i in range(3)], 2, lambda share: None
    )
    assert not seen and len({*pids, os.getpid()}) == 4


def fails(error):
    def work(progress):
        raise error

    return work


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("error", [UnsupportedError("no such kernel"), OSError(28, "No space left on device")])
def test_a_jobs_error_is_raised_and_ends_the_others(error, at_once):
    began = time.monotonic()
    with pytest.raises(type(error), match=str(error.args[-1])):
        run([Job("bad", 1, fails(error)), Job("long", 1, lambda progress: time.sleep(60))], at_once, lambda share: None)
    assert time.monotonic() - began < 30


def test_any_other_error_names_the_job():
    with pytest.raises(RuntimeError, match="Lowering vision: division by zero"):
        run([Job("Lowering vision", 1, lambda p: 1 / 0), Job("other", 1, gives(1))], 2, lambda share: None)


def test_a_job_that_is_killed_is_told_in_a_sentence():
    killed = Job("Lowering decoder", 1, lambda progress: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TargetError, match=r"Lowering decoder was killed .* --jobs 1"):
        run([killed, Job("other", 1, gives(1))], 2, lambda share: None)


ORPHAN = """
import os, sys, time
from pathlib import Path
from handlens_export.lower.jobs import Job, run
def work(progress):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)
run([Job("a", 1, work), Job("b", 1, work)], 2, lambda share: None)
"""


def test_jobs_end_with_an_export_that_is_killed(tmp_path: Path):
    export = subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path)])
    for _ in range(600):
        if len(list(tmp_path.iterdir())) == 2:
            break
        time.sleep(0.1)
    export.kill()
    export.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    for _ in range(100):
        if not any(_lives(pid) for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError("jobs go on after their export was killed")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
