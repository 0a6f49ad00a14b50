"""The turns: each test is measured round by round, every runner once a round, the order turned around each time.

    load      a new process a round, after one that warms the file cache; the last ones stay
    warm-up   the longest prompt, so that all of the cache has its pages
    tests     prompts from the shortest; decoding from the deepest, the read bandwidth in the same rounds
    pictures  the bundle alone

So a machine that slows down for a while slows both, and a ratio is taken within a round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Literal

from handlens_runtime import backends
from handlens_runtime.backends.onnx import thread_count
from handlens_runtime.bench import gguf_twin, traffic
from handlens_runtime.bench.bandwidth import READ_BYTES, Bandwidth
from handlens_runtime.bench.llama_cpp_runner import require
from handlens_runtime.bench.remote import started
from handlens_runtime.bench.results import Benchmark, Found, Line, Pictures, Samples
from handlens_runtime.bench.runner import Opened, Runner
from handlens_runtime.bench.workload import STEPS, Trial, Workload, fitting
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import OptionError
from handlens_runtime.manifest import BackendName

Progress = Callable[[str, float], None]
Peer = Literal["llama.cpp", "dense"]
_ABOUT_THE_PROMPT = (
    "Prompts are random tokens: the share of a picture that is kept, and with it the gain, may be another; the numbers "
    "behind an answer of `handlens run` say it."
)
PICTURE = (768, 1536)
"""Width and height in pixels: BlueLM-V-3B's own picture (section 4.3), nine tiles of 384."""
BUSY = 0.5
"""Share of the cores in use, before the run begins, from which its numbers are doubtful."""
BANDWIDTH_S = 0.5
"""Seconds that each measurement of the read bandwidth takes."""
LOAD_COST, STEP_COST, PICTURE_COST = 300, 4, 100
"""What loading, a decode step and a picture take, in tokens of a prompt: for the progress bar alone."""


@dataclass
class Entrant:
    """Who takes part: how to open it, and what it has shown so far."""

    open: Callable[[], AbstractContextManager[tuple[Runner, Opened, float]]]
    weight_bytes: int
    row_bytes: float
    """Keys and values of one token, all layers."""
    loads: list[tuple[float, float]] = field(default_factory=list)
    """Seconds with imports done, and from the process's start."""
    seconds: dict[Trial, list[float]] = field(default_factory=dict)
    kept: dict[Trial, float] = field(default_factory=dict)
    peak_memory: int = 0


def bench(
    bundle: Bundle,
    backend: BackendName | None = None,
    *,
    vs: Peer | None = None,
    workload: Workload | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure a bundle on this machine; with `vs`, in turns with llama.cpp on a GGUF file of the same shape, or, where
    it chooses among a prompt's tokens, with itself keeping all.

    `threads`: the physical cores of this process where left out. Raises BackendError, OptionError.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"--threads is {threads}; choose at least 1.")
    chooses = bundle.manifest.sparsity is not None
    if vs == "dense" and not chooses:
        raise OptionError(
            f"{bundle.path} keeps all of a prompt; export it with --sparsity zipvl, or leave out --vs dense."
        )
    busy = _busy(os.getloadavg()[0], os.cpu_count() or 1)
    workload, threads = workload or Workload(), threads or thread_count()
    name = backends.chosen(bundle, backend)
    tests, notes = fitting(workload, bundle.manifest)
    notes = (*busy, *notes)
    longest = max(test.end for test in tests)
    entrants = [_ours(bundle, name, threads, True if chooses else None)]
    if chooses:
        notes = (*notes, _ABOUT_THE_PROMPT)
    if vs == "dense":
        entrants.append(_ours(bundle, name, threads, False))
    if vs == "llama.cpp":
        require()
        tell = progress or (lambda _stage, _share: None)
        tell("write a GGUF file of the same shape", 0.0)
        entrants.append(_llama_cpp(bundle, longest, threads))
        notes = (*notes, _about_the_peer(bundle))
    found = measure(
        entrants,
        tests,
        workload.repeat,
        Bandwidth(threads, READ_BYTES).measure,
        picture=PICTURE if bundle.manifest.image is not None else None,
        progress=progress,
    )
    graphs = bundle.manifest.backends[name]
    return Benchmark(
        model=bundle.manifest.name,
        parameters=bundle.manifest.sizes.parameters,
        bytes=sum(bundle.manifest.files[file].size for file in graphs.files),
        threads=threads,
        repeat=workload.repeat,
        found=found[0],
        vs=found[1] if vs is not None else None,
        notes=notes,
    )


def measure(
    entrants: Sequence[Entrant],
    tests: Sequence[Trial],
    repeat: int,
    bandwidth: Callable[[float], float],
    *,
    picture: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> list[Found]:
    """The entrants' numbers, in their order; the first one is shown pictures of that size too."""
    done = _Done(len(entrants), tests, repeat, picture is not None, progress)
    with ExitStack() as stack:
        opened = _load(entrants, repeat, stack, done)
        runners = [runner for runner, _ in opened]
        for runner in runners:
            done("warm up", max(test.end for test in tests))
            runner.prefill(max(test.depth or test.tokens for test in tests))
        bandwidths = {
            test: [_round(entrants, runners, test, number, bandwidth, done) for number in range(repeat)]
            # From the deepest, which needs the longest cache: for the others it is only cut.
            for test in sorted(tests, key=lambda test: (test.depth is not None, -(test.depth or -test.tokens)))
        }
        for entrant, runner in zip(entrants, runners, strict=True):
            entrant.peak_memory = runner.peak_memory()
            entrant.kept = {test: runner.kept(test.tokens if test.depth is None else test.depth) for test in tests}
        pictures = _pictures(runners[0], picture, repeat, done) if picture is not None else None
        peak = runners[0].peak_memory() if pictures is not None else None
        released = runners[0].peak_memory_released() if pictures is not None else None
    return [
        Found(
            name=said["name"],
            file=said["file"],
            load=Samples(tuple(load for load, _ in entrant.loads)),
            load_from_start=Samples(tuple(load for _, load in entrant.loads)),
            lines=tuple(_line(entrant, test, bandwidths[test]) for test in tests),
            pictures=pictures if first else None,
            peak_memory=entrant.peak_memory,
            peak_memory_pictures=peak if first else None,
            peak_memory_released=released if first else None,
            kv_bytes=said["kv_bytes"],
            weight_bytes=entrant.weight_bytes,
        )
        for entrant, (_, said), first in zip(entrants, opened, (True, *[False] * len(entrants)), strict=False)
    ]


def _load(entrants: Sequence[Entrant], repeat: int, stack: ExitStack, done: _Done) -> list[tuple[Runner, Opened]]:
    """Open each entrant once to warm the file cache and `repeat` times for the clock; the last ones stay open."""
    opened: list[tuple[Runner, Opened]] = []
    for number in range(repeat + 1):
        for entrant in entrants:
            done("load", LOAD_COST)
            if number < repeat:
                with entrant.open() as (_, said, from_start):
                    times = (said["load_s"], from_start)
            else:
                runner, said, from_start = stack.enter_context(entrant.open())
                times = (said["load_s"], from_start)
                opened.append((runner, said))
            if number > 0:
                entrant.loads.append(times)
    return opened


def _round(
    entrants: Sequence[Entrant],
    runners: Sequence[Runner],
    test: Trial,
    number: int,
    bandwidth: Callable[[float], float],
    done: _Done,
) -> float | None:
    """One test, each runner once; returns the read bandwidth of the round where the test decodes."""
    pairs = list(zip(entrants, runners, strict=True))
    for entrant, runner in pairs if number % 2 == 0 else reversed(pairs):
        done(test.name, _cost(test))
        taken = runner.prefill(test.tokens) if test.depth is None else runner.decode(test.depth, test.tokens)
        entrant.seconds.setdefault(test, []).append(taken)
    return None if test.depth is None else bandwidth(BANDWIDTH_S)


def _line(entrant: Entrant, test: Trial, bandwidths: Sequence[float | None]) -> Line:
    seconds = Samples(tuple(entrant.seconds[test]))
    kept = entrant.kept[test]
    if test.depth is None:
        return Line(test, seconds, None, None, kept)
    read = Samples(tuple(value for value in bandwidths if value is not None))
    step = traffic.step_bytes(entrant.weight_bytes, entrant.row_bytes, kept * test.depth, STEPS)
    return Line(test, seconds, step, read, kept)


def _pictures(runner: Runner, size: tuple[int, int], repeat: int, done: _Done) -> Pictures:
    runner.encode_tile()  # to warm up
    tile, pictures = [], []
    for _ in range(repeat):
        done("pictures", PICTURE_COST)
        tile.append(runner.encode_tile())
        pictures.append(runner.encode_picture(*size))
    return Pictures(
        tile=Samples(tuple(tile)),
        size=size,
        tiles=pictures[0]["tiles"],
        image_decode=Samples(tuple(picture["image_decode_s"] for picture in pictures)),
        encode=Samples(tuple(picture["encode_s"] for picture in pictures)),
    )


def _ours(bundle: Bundle, backend: BackendName, threads: int, sparse: bool | None) -> Entrant:
    options = {"path": str(bundle.path), "backend": backend, "threads": threads, "sparse": sparse}
    return Entrant(
        open=lambda: started("bundle", options),
        weight_bytes=traffic.weight_bytes(bundle.manifest, backend),
        row_bytes=traffic.cache_bytes(bundle.manifest, backend) / bundle.manifest.sizes.context,
    )


def _llama_cpp(bundle: Bundle, context: int, threads: int) -> Entrant:
    shape = gguf_twin.shape_of(bundle.manifest)
    options = {
        "path": str(gguf_twin.write(shape)),
        "vocab_size": shape.vocab_size,
        "row_bytes": gguf_twin.row_bytes(shape),
        "context": context,
        "threads": threads,
    }
    return Entrant(
        open=lambda: started("llama.cpp", options),
        weight_bytes=gguf_twin.step_weights(shape),
        row_bytes=gguf_twin.row_bytes(shape),
    )


def _busy(load: float, cores: int) -> tuple[str, ...]:
    """A sentence where other programs want the cores too."""
    if load < BUSY * cores:
        return ()
    return (
        f"This machine was busy when the run began (load {load:.1f} on {cores} cores): all rates are too low, and "
        "llama.cpp's most, whose threads spin while they wait for each other, so that ratios are wrong too.",
    )


def _about_the_peer(bundle: Bundle) -> str:
    shape = gguf_twin.shape_of(bundle.manifest)
    kinds = {bits: gguf_twin.QUANTIZED[bits][0] if bits in gguf_twin.QUANTIZED else "F32" for bits in (4, 8, 32)}
    mixed = ""
    if bundle.manifest.quantization.recipe.layer_bits:
        mixed = f"; here some layers have more or fewer than {shape.bits} bits, so that the two do not read as much"
    return (
        f"llama.cpp ran a file of the same shape and vocabulary with RANDOM weights, on which speed does not depend: "
        f"layers {kinds[shape.bits]}, head {kinds[shape.head_bits]}, float16 cache, its own defaults otherwise{mixed}."
    )


def _cost(test: Trial) -> int:
    return test.tokens if test.depth is None else test.tokens * STEP_COST


class _Done:
    """Counts what was begun, in tokens of a prompt."""

    def __init__(
        self, entrants: int, tests: Sequence[Trial], repeat: int, pictures: bool, progress: Progress | None
    ) -> None:
        warm_up = max(test.end for test in tests)
        rounds = repeat * sum(map(_cost, tests))
        self._total = entrants * ((repeat + 1) * LOAD_COST + warm_up + rounds)
        self._total += repeat * PICTURE_COST if pictures else 0
        self._begun = 0
        self._progress = progress

    def __call__(self, stage: str, cost: int) -> None:
        """A stage begins."""
        if self._progress is not None:
            self._progress(stage, self._begun / self._total)
        self._begun += cost
