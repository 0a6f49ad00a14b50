"""Parts of a lowering side by side: each in a process of its own, which gives back all of its memory when it ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from handlens_export.errors import ExportError, TargetError
from handlens_export.forecast.host import can_fork

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Job:
    """One part."""

    name: str
    """As it is told where it fails."""
    weight: float
    """Its share of the time of all jobs."""
    run: Callable[[Progress], Any]
    """What it gives must be picklable."""


def run(jobs: Sequence[Job], at_once: int, progress: Progress) -> list[Any]:
    """What each job gives, in order. With `at_once` 1, or where processes cannot be forked, one after another in this
    process; else in forked ones, which see this process's memory as it is and leave it so.

    A job's ExportError, OSError or other exception is raised here, and the other jobs end. Raises TargetError where a
    job was killed.
    """
    shares = [0.0] * len(jobs)
    whole = sum(job.weight for job in jobs)

    def told(index: int, share: float) -> None:
        shares[index] = share
        progress(sum(job.weight * done for job, done in zip(jobs, shares, strict=True)) / whole)

    if at_once == 1 or len(jobs) == 1 or not can_fork():
        given = []
        for index, job in enumerate(jobs):
            given.append(job.run(lambda share, index=index: told(index, share)))  # type: ignore[misc]
            told(index, 1.0)
        return given
    return _forked(jobs, at_once, told)


def _forked(jobs: Sequence[Job], at_once: int, told: Callable[[int, float], None]) -> list[Any]:
    context = multiprocessing.get_context("fork")
    alive, held = os.pipe()  # its end tells the jobs that this process is no more, killed or not
    given: dict[int, Any] = {}
    waiting = list(enumerate(jobs))
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(job, theirs, alive, held), daemon=True)
                process.start()
                theirs.close()
                running[ours] = index, process
            for ours in [end for end in running if end in wait(list(running))]:
                index, process = running[ours]
                try:
                    kind, value = ours.recv()
                except EOFError:
                    process.join()
                    raise TargetError(
                        f"{jobs[index].name} was killed (exit code {process.exitcode}), most often for want of memory; "
                        "export again with --jobs 1: what is finished is kept."
                    ) from None
                if kind == "share":
                    told(index, value)
                    continue
                process.join()
                del running[ours]
                ours.close()
                if kind == "failed":
                    raise value
                given[index] = value
                told(index, 1.0)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
        os.close(alive)
        os.close(held)
    return [given[index] for index in range(len(jobs))]


def _work(job: Job, to: Connection, alive: int, held: int) -> None:
    """In the new process. Its threads are its own: those of torch's that the fork left behind are not asked again."""
    os.close(held)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends the jobs
    torch.set_num_threads(1)
    gc.disable()  # a tenth of the time of lowering; programs that refer to themselves end with the process
    try:
        to.send(("given", job.run(lambda share: to.send(("share", share)))))
    except (ExportError, OSError) as error:
        to.send(("failed", error))
    except Exception as error:
        to.send(("failed", RuntimeError(f"{job.name}: {error}\n{traceback.format_exc()}")))
    to.close()
    os._exit(0)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)
