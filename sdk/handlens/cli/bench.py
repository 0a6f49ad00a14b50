"""`handlens bench`: how fast a bundle runs on this machine, in the form of llama-bench's table; beside llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.choices import BackendChoice, PeerChoice
from handlens.cli.interrupt import interruptible
from handlens.cli.outcome import answered, complain
from handlens.cli.progress import duration, shown
from handlens.cli.tables import add_row, plain_table
from handlens.cli.units import count, size
from handlens_runtime.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from handlens_runtime.bench import Benchmark
    from handlens_runtime.bench.results import Found, Samples

PROMPTS = "128,512,2048"
DEPTHS = "16,512,2048"


@answered
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    vs: Annotated[
        PeerChoice | None,
        typer.Option(
            help="Take turns with llama.cpp on a file of the same shape (extra 'bench'), or with the bundle itself "
            "keeping all of a prompt.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        BackendChoice | None, typer.Option(help="What runs it.", show_default="fastest installed")
    ] = None,
    prompts: Annotated[str, typer.Option(metavar="N,…", help="Prompt lengths, in tokens.")] = PROMPTS,
    depths: Annotated[str, typer.Option(metavar="N,…", help="Tokens in the cache when decoding begins.")] = DEPTHS,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Measurements of each test.")] = 3,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of each program.", show_default="physical cores")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, samples included, as one JSON line.")
    ] = False,
) -> None:
    """Measure how fast a bundle runs here.

    Load, vision, prefill, decode, memory; each decode speed as a share of the read bandwidth measured in the same run.
    """
    chosen = {"prompts": _numbers("--prompts", prompts), "depths": _numbers("--depths", depths)}
    with interruptible():
        from handlens import _api
        from handlens_runtime.bench import Workload
        from handlens_runtime.bundle import Bundle

        loaded = Bundle.load(bundle)
        for warning in loaded.warnings:
            complain(warning)
        with shown() as progress:
            found = _api.bench(
                loaded,
                backend=backend,
                vs=vs,
                workload=Workload(repeat=repeat, **chosen),
                threads=threads,
                progress=progress,
            )
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _show(found)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise OptionError(f"{option} is {text!r}; give whole numbers with commas between them, such as 128,512.")
    return tuple(map(int, words))


def _show(found: Benchmark) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in tables(found):
        console.print(table)
        console.print()
    for note in found.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)


def tables(found: Benchmark) -> Iterator[Table]:
    """What ran, its speeds, and the rest; from top to bottom."""
    head = plain_table("model", "size", "params", "backend", "threads", "repeat")
    numbers = (size(found.bytes), count(found.parameters), found.found.name, str(found.threads), str(found.repeat))
    add_row(head, found.model, *numbers)
    yield head
    yield _speeds(found)
    yield _rest(found)


def _speeds(found: Benchmark) -> Table:
    lines = found.found.lines
    kept = ("kept",) if any(line.kept < 1 for line in lines) else ()
    if found.vs is None:
        table = plain_table("test", "t/s", "of bandwidth", *kept)
        for line in lines:
            add_row(table, line.test.name, _pm(line.rate), _percent(line.share), *(f"{line.kept:.0%}" for _ in kept))
        return table
    peer = "llama.cpp" if found.vs.name.startswith("llama.cpp") else "dense"
    table = plain_table("test", "t/s", f"{peer} t/s", "ratio", "of bandwidth", f"{peer} of bandwidth", *kept)
    for ours, theirs, ratio in zip(lines, found.vs.lines, found.ratios(), strict=True):
        shares = (_percent(ours.share), _percent(theirs.share), *(f"{ours.kept:.0%}" for _ in kept))
        add_row(table, ours.test.name, _pm(ours.rate), _pm(theirs.rate), _pm(ratio), *shares)
    return table


def _rest(found: Benchmark) -> Table:
    runs = [found.found, *([] if found.vs is None else [found.vs])]
    table = plain_table("", *(run.name for run in runs))
    read = next((line.read_bandwidth for line in found.found.lines if line.read_bandwidth), None)
    if read is not None:
        add_row(table, "this machine reads", f"{_pm(read, 1e9)} GB/s", *[""] * (len(runs) - 1))
    for label, cells in _facts(runs):
        add_row(table, label, *cells)
    pictures = found.found.pictures
    if pictures is not None:
        width, height = pictures.size
        for label, samples in (
            ("vision, a tile", pictures.tile),
            (f"vision, a picture of {width}x{height}: {pictures.tiles} tiles", pictures.encode),
            ("opening that picture", pictures.image_decode),
        ):
            add_row(table, label, _seconds(samples), *["-"] * (len(runs) - 1))
    return table


def _facts(runs: list[Found]) -> Iterator[tuple[str, list[str]]]:
    yield "load and a first token, imports done", [_seconds(run.load) for run in runs]
    yield "the same, from the process's start", [_seconds(run.load_from_start) for run in runs]
    yield "weights and scales read a step", [size(run.weight_bytes) for run in runs]
    yield "key-value cache", [size(run.kv_bytes) for run in runs]
    yield "peak memory, prompts and decoding", [size(run.peak_memory) for run in runs]
    if any(run.peak_memory_pictures is not None for run in runs):
        for label, peaks in (
            ("peak memory, a picture too", [run.peak_memory_pictures for run in runs]),
            ("peak memory, its encoder released", [run.peak_memory_released for run in runs]),
        ):
            yield label, ["-" if peak is None else size(peak) for peak in peaks]


def _pm(samples: Samples, unit: float = 1.0) -> str:
    return f"{samples.mean / unit:.2f} ± {samples.spread / unit:.2f}"


def _percent(samples: Samples | None) -> str:
    return "" if samples is None else f"{samples.mean:.0%} ± {samples.spread:.0%}"


def _seconds(samples: Samples) -> str:
    if samples.mean < 1:
        return f"{1000 * samples.mean:.0f} ± {1000 * samples.spread:.0f} ms"
    return f"{duration(samples.mean)} ± {duration(samples.spread)}"
