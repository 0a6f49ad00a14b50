"""The functions of `import handlens`: a path in, a value out. What does the work is imported when called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from handlens_runtime.errors import HandLensError, OptionError

if TYPE_CHECKING:
    from handlens_export.check import Report
    from handlens_export.forecast import Device, Forecast
    from handlens_export.forecast.qid import Advice
    from handlens_export.recipe import Recipe
    from handlens_export.sweep.run import Asked
    from handlens_export.sweep.table import Table
    from handlens_export.sweep.variants import Variant
    from handlens_runtime.bench import Benchmark, Workload
    from handlens_runtime.bundle import Bundle
    from handlens_runtime.engine import Engine
    from handlens_runtime.evaluation import Evaluation, Perplexity
    from handlens_runtime.golden import Replay
    from handlens_runtime.manifest import BackendName, Manifest

StrPath = str | PathLike[str]
Progress = Callable[[str, float], None]
"""Called with a stage's name and the share of the whole done, 0 to 1."""
Warn = Callable[[str], None]
"""Called with one sentence for each thing that a checkpoint asks for and its bundle does not do."""

WORKSTATION = ("torch", "torchao", "executorch", "onnx", "onnxscript", "safetensors", "gguf", "transformers")
"""What the extra `export` brings."""


def require_workstation(what: str) -> None:
    """Raise HandLensError unless the extra `export` is installed; looks for its packages without importing them."""
    missing = [name for name in WORKSTATION if importlib.util.find_spec(name) is None]
    if missing:
        raise HandLensError(
            f"{what} needs {', '.join(missing)}, which this installation does not have; "
            "install the workstation's packages with: pip install 'handlens[export]'."
        )


def load(
    bundle: StrPath,
    *,
    backend: BackendName | None = None,
    verify: bool = True,
    release_encoder: bool = False,
    sparse: bool | None = None,
) -> Engine:
    """An engine for the bundle folder `bundle`; on its fastest installed backend unless `backend` names one.

    Verifies the bundle first: `verify=False` skips the hashes, never the sizes. `release_encoder` frees the vision
    encoder's memory once a prompt's pictures are encoded. `sparse`: whether layers keep only what matters to them of a
    prompt, where the bundle was exported to; None leaves short prompts whole. Raises BundleError, BackendError.
    """
    from handlens_runtime.engine import Engine

    return Engine(Path(bundle), backend, verify=verify, release_encoder=release_encoder, sparse=sparse)


def export(
    checkpoint: StrPath,
    bundle: StrPath,
    recipe: Recipe | None = None,
    *,
    lora: StrPath | None = None,
    calibration: StrPath | None = None,
    target_bits: float | Literal["auto"] | None = None,
    gate: StrPath | None = None,
    gate_accuracy: float = 0.9,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Export a checkpoint folder or GGUF file into the folder `bundle`; returns the bundle's manifest.

    `bundle` is whole or it is not there; an existing one is replaced only with `force`. `recipe` decides bits,
    cache, context and backends; `lora` is merged into the weights. What the checkpoint asks for and does not get, such
    as beam search, goes to `warn`; without one, to Python's `warnings`. Methods that look at activations measure them
    on `calibration`, a text or an evaluation set, or on a small set of their own. With `target_bits` the decoder's
    linears get that many bits a weight on average, layers that need more getting more; with "auto" as few as let the
    gate pass. With `gate`, an evaluation set as
    `evaluate` reads, every backend must answer at least `gate_accuracy` of its questions, or there is no bundle.
    `jobs` programs are lowered at once, as many as there are cores where left out.
    Needs the extra `export`.
    Raises CheckpointError, UnsupportedError, TargetError, CalibrationError, EvaluationError, GateError.
    """
    require_workstation("export")
    from handlens_export import fallback, pipeline
    from handlens_export.gate import Gate
    from handlens_export.recipe import Recipe

    judged = Gate(Path(gate), gate_accuracy) if gate else None
    if target_bits == "auto":
        found = partial(fallback.export_until_passed, gate=judged)
    else:
        found = partial(pipeline.export, target_bits=target_bits, gate=judged)
    return found(
        Path(checkpoint),
        Path(bundle),
        recipe or Recipe(),
        lora=Path(lora) if lora else None,
        calibration=Path(calibration) if calibration else None,
        force=force,
        jobs=jobs,
        progress=progress,
        warn=warn,
    )


def plan(
    checkpoint: StrPath,
    recipe: Recipe | None = None,
    *,
    device: str | Device | None = None,
    picture: tuple[int, int] = (768, 1536),
    text: int = 64,
    kept: float = 0.5,
    memory: int | None = None,
    first_token: float | None = None,
) -> Forecast:
    """Predict what `export` of a checkpoint takes and gives; reads headers, no weights.

    `device`: predict speed on this one (`handlens plan --device list` names those known; make another as a `Device`).
    `picture`: width and height in pixels; `text`: tokens of the prompt beside it;
    `kept`: the share of the prompt that layers keep, where the recipe has a `tau`. With a limit on `memory` (bytes on
    the device) or on the time to the `first_token` (seconds), the largest tile grid, cache and context that keep them.
    Needs the extra `export`. Raises CheckpointError, and UnsupportedError where nothing keeps the limits.
    """
    require_workstation("plan")
    from handlens_export import forecast
    from handlens_export.checkpoint.read import read
    from handlens_export.recipe import Recipe

    limits = forecast.Limits(memory, first_token)
    target = forecast.find(device) if isinstance(device, str) else device
    asked = forecast.Prompt(picture, text, kept)
    return forecast.choose(read(Path(checkpoint)), recipe or Recipe(), asked, target, limits)


def advise(checkpoint: StrPath, trained_tokens: float) -> Advice:
    """Predict what 2, 3, 4 and 8 bits cost a checkpoint that was trained on so many tokens; reads headers, no weights.

    By a scaling law (`handlens_export.forecast.qid`) that was fitted on GPTQ, 160 million to 12 billion parameters and
    up to 300 billion tokens. Needs the extra `export`. Raises CheckpointError, UnsupportedError.
    """
    require_workstation("advise")
    from handlens_export.checkpoint.read import read
    from handlens_export.forecast import qid

    return qid.advise(read(Path(checkpoint)), trained_tokens)


def sweep(
    checkpoint: StrPath,
    folder: StrPath,
    variants: Sequence[Variant],
    asked: Asked,
    *,
    calibration: StrPath | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Table:
    """Try quantizers on a checkpoint, each whole, beside the float network; the table is kept in `folder` row by row.

    `variants`: what to try (`handlens_export.sweep.variants.variants` makes them of lists). `asked`: the text and the
    questions to try them on. `calibration`: what activations are measured on. A row that `folder` has is not measured
    again. Needs the extra `export`.
    Raises CheckpointError, UnsupportedError, CalibrationError, EvaluationError, TargetError.
    """
    require_workstation("sweep")
    from handlens_export.sweep import run

    return run.sweep(
        Path(checkpoint),
        Path(folder),
        variants,
        asked,
        calibration=Path(calibration) if calibration else None,
        progress=progress,
        warn=warn,
    )


def calibrate() -> Device:
    """Measure this machine's read bandwidth and int8 products, and remember them as the device `this-desktop`.

    Takes a few seconds; other work makes it look slower. Needs the extra `export`.
    """
    require_workstation("calibrate")
    from handlens_export.forecast.calibrate import calibrate
    from handlens_export.forecast.device import keep

    measured = calibrate()
    keep(measured)
    return measured


def init(
    preset: Literal["bluelm-v-nano", "bluelm-v-3b"],
    checkpoint: StrPath,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the folder `checkpoint` with random weights of a preset's sizes. Needs the extra `export`."""
    require_workstation("init")
    from handlens_export import presets

    presets.init(preset, Path(checkpoint), seed=seed, progress=progress, force=force)


@overload
def check(
    bundle: StrPath, against: None = None, *, backend: BackendName | None = None, progress: Progress | None = None
) -> Replay: ...


@overload
def check(
    bundle: StrPath,
    against: StrPath,
    *,
    images: Sequence[StrPath] = (),
    lora: StrPath | None = None,
    backend: BackendName | None = None,
    sensitivity: bool = False,
    progress: Progress | None = None,
) -> Report: ...


def check(
    bundle: StrPath,
    against: StrPath | None = None,
    *,
    images: Sequence[StrPath] = (),
    lora: StrPath | None = None,
    backend: BackendName | None = None,
    sensitivity: bool = False,
    progress: Progress | None = None,
) -> Report | Replay:
    """Does a bundle answer as it should? By itself, or stage by stage beside the checkpoint it was made from.

    Without `against`: what its golden.json asks, on every installed backend, beside the answers recorded at export.
    With it: a comparison on `images`, the exporter's own few where left out, with the checkpoint's weights after
    `lora` is merged, as `export` does, and with `sensitivity` what each layer costs, alone rounded; this needs the
    extra `export`.
    Raises BundleError, BackendError; with `against` also CheckpointError, ImageError.
    """
    if against is None:
        for name, given in (("images", images), ("lora", lora), ("sensitivity", sensitivity)):
            if given:
                raise OptionError(
                    f"{name} needs the checkpoint to compare with; give it as `against` too, or leave it out."
                )
        from handlens_runtime.bundle import Bundle
        from handlens_runtime.golden import replay

        return replay(Bundle.load(Path(bundle)), backend, progress)
    require_workstation("check against a checkpoint")
    from handlens_export import check as checks

    return checks.check(
        Path(bundle),
        Path(against),
        [Path(image) for image in images],
        lora=Path(lora) if lora else None,
        backend=backend,
        sensitivity=sensitivity,
        progress=progress,
    )


def evaluate(
    bundle: StrPath,
    questions: StrPath,
    *,
    backend: BackendName | None = None,
    dense: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a bundle the questions of a JSONL file beside its pictures, greedily, and score the answers.

    `dense`: keep all of a prompt, of a bundle exported to leave tokens out. `limit`: that many questions, spread by a
    fixed seed over kinds and groups. The result's `scores` are per kind and group; `compare` pairs two runs of the same
    questions. Chat templates that write the date see a fixed day.
    Raises BundleError, BackendError, EvaluationError.
    """
    from handlens_runtime.evaluation import evaluate, read_set

    check_limit(limit)
    chosen = read_set(Path(questions))
    if limit is not None:
        chosen = chosen.spread(limit)
    return evaluate(steady_engine(bundle, backend, dense), chosen, progress=progress)


def perplexity(
    bundle: StrPath,
    text: StrPath,
    *,
    backend: BackendName | None = None,
    dense: bool = False,
    limit: int | None = None,
    window: int | None = None,
    after: int = 1,
    progress: Progress | None = None,
) -> Perplexity:
    """How well a bundle predicts the text file `text`, in windows of `window` tokens, by default 512, none overlapping.

    `after`: how many of each are a prompt and not scored, of which a bundle exported to leave tokens out does so,
    unless `dense`; windows are longer by them, unless given. `limit`: score that many tokens, in windows drawn by a
    fixed seed from the whole text; one token after another, so that it takes as long as writing them would. Raises
    BundleError, BackendError, EvaluationError, OptionError.
    """
    from handlens_runtime.evaluation import measure

    check_limit(limit)
    if window is not None and window < 2:
        raise OptionError(f"window is {window}; choose at least 2 tokens.")
    engine = steady_engine(bundle, backend, dense)
    return measure(engine, Path(text), window=window, after=after, limit=limit, progress=progress)


def bench(
    bundle: StrPath | Bundle,
    *,
    backend: BackendName | None = None,
    vs: Literal["llama.cpp", "dense"] | None = None,
    workload: Workload | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure how fast a bundle runs on this machine; other work makes it look slower.

    `vs`: take turns with llama.cpp on a GGUF file of the same shape with random weights, kept in the cache folder,
    which needs the extra `bench`; or, of a bundle that chooses among a prompt's tokens, with itself keeping all.
    `workload`: prompt lengths, depths of the cache and rounds. Each program runs in a process of its own, with
    `threads` threads. Raises BundleError, BackendError, OptionError.
    """
    from handlens_runtime.bench import bench
    from handlens_runtime.bundle import Bundle

    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(Path(bundle))
    return bench(loaded, backend, vs=vs, workload=workload, threads=threads, progress=progress)


def steady_engine(bundle: StrPath | Bundle, backend: BackendName | None, dense: bool = False) -> Engine:
    """An engine for measuring: its clock stands still, so that a template that writes the date changes no answer.

    `dense` as for `evaluate`. Raises OptionError as `check_dense` does.
    """
    from handlens_runtime.bundle import Bundle
    from handlens_runtime.engine import Engine
    from handlens_runtime.golden.asking import DAY

    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(Path(bundle))
    if dense:
        check_dense(loaded)
    return Engine(loaded, backend, sparse=False if dense else None, now=lambda: DAY)


def check_dense(bundle: Bundle) -> None:
    """Raise OptionError for a bundle that need not be told to keep all of a prompt."""
    if bundle.manifest.sparsity is None or not bundle.manifest.sparsity.leaves_out:
        raise OptionError(f"{bundle.path} keeps all of a prompt anyway; give a bundle exported with --sparsity.")


def check_limit(limit: int | None) -> None:
    """Raise OptionError for a limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}; choose a whole number of at least 1, or leave it out.")
