"""Checkpoint to bundle, in reading order: read, quantize, lower, record, gate where asked, bundle."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from handlens_export.bundle import check_target, file_entries, staged, write_golden, write_manifest
from handlens_export.checkpoint.read import read
from handlens_export.describe import KV_SCALES, Plan, describe, plan
from handlens_export.errors import UnsupportedError
from handlens_export.forecast.host import calibrating_seconds, cores, estimate_seconds, part_seconds
from handlens_export.gate import Gate, check_readable, judge
from handlens_export.lower.jobs import Job, run
from handlens_export.lower.lowering import LoweringSpec, check_delegation, find
from handlens_export.measuring import calibration_of
from handlens_export.network import decoding
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.calibration import scale_rows
from handlens_export.quantize.formats import Part, weigh
from handlens_export.quantize.kv_scales import Scales, calibrate, save_scales
from handlens_export.quantize.mixed import between, with_target
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.stages import one_thread
from handlens_export.quantize.weight import shallow_copy
from handlens_export.recipe import Recipe
from handlens_export.sparsity import effect
from handlens_export.stage_cache.store import StageCache
from handlens_export.stage_cache.tensor_file import let_go
from handlens_export.transform.transformed import transformed
from handlens_runtime import heap
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.evaluation import read_set
from handlens_runtime.golden import record
from handlens_runtime.manifest import BackendGraphs, BackendName, Manifest, PartQuantization
from handlens_runtime.tokenizer import Tokenizer

Progress = Callable[[str, float], None]
"""Called with a stage's name ("read", "quantize", "lower", …) and the share of the whole done, 0 to 1."""

Warn = Callable[[str], None]
"""Called with one sentence for each thing that the checkpoint asks for and the bundle does not do."""

SHARES = {"read": 0.01, "quantize": 0.08, "lower": 0.7, "record": 0.2, "bundle": 0.01}
"""Of the time of an export that looks at no activations, from one of bluelm-v-3b for both backends."""
GATE_SHARE = 0.5
"""Of the time of an export with a gate; a guess, for its set may hold ten questions or ten thousand."""


TOO_FEW = (
    "--method {} was given no --calibration, and the prompts built in are too few for it; "
    "give it a text of some 30,000 tokens, or questions, like what the model will read."
)


def export(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    lora: Path | None = None,
    calibration: Path | None = None,
    target_bits: float | None = None,
    gate: Gate | None = None,
    force: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Export the checkpoint folder or GGUF file `source` into the bundle folder `target`; returns its manifest.

    Raises CheckpointError, UnsupportedError, TargetError. `target` is written beside and renamed: it is whole or
    it is not there. An existing `target` is replaced only with `force`, and only once the new one is whole.
    Methods other than `round`, and smoothing, measure activations on the file `calibration`, a text or an evaluation
    set (JSONL); left out, on a few prompts and photographs. CalibrationError where it cannot be read.
    With `target_bits` in place of the recipe's bits, the layers that are worth it get more than the others, so that the
    decoder's linears have as many a weight on average; what each is worth is measured on the same set.
    With a `gate`, each backend's program first answers its questions; GateError where too few are right,
    EvaluationError where its set cannot be read or asked.
    Finished layers are kept in the cache folder: an export that was killed goes on where it was, and one with other
    backends, context or chunk rounds nothing again. Raises TargetError also where the cache's disk is full.
    `jobs` programs are lowered at once, each in a process of its own; left out, as many as there are cores.
    What the checkpoint asks for and does not get goes to `warn`; without one, to Python's `warnings`.
    """
    if jobs is not None and jobs < 1:
        raise UnsupportedError(f"jobs is {jobs}, but at least one program must be lowered at a time; give 1 or more.")
    stage = _Stages(progress or (lambda _stage, _share: None), gated=gate is not None)
    _refuse_idle(calibration, recipe, target_bits)
    if target_bits is not None:
        between(recipe, target_bits)
    check_target(target, force)
    questions = None if gate is None else read_set(gate.path)
    planned = plan(read(source, lora), recipe)
    if questions is not None:
        check_readable(questions, planned)
    for sentence in decoding.warnings(planned.checkpoint):
        (warn or warnings.warn)(sentence)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    stage.quantize_longer(
        *estimate_seconds(planned.config, recipe, parameters.shapes, planned.context, jobs or cores())
    )
    measured = None
    if recipe.looks_at_activations or target_bits is not None:
        measured = calibration_of(calibration, planned, describe(planned, recipe, weigh(parameters.shapes, recipe)))
    if calibration is None and recipe.method in ("gptq", "rsq"):
        (warn or warnings.warn)(TOO_FEW.format(recipe.method))
    stage.done("read")

    with ExitStack() as work:
        kept = work.enter_context(StageCache())
        recipe, network, parts = _quantized(planned, parameters, recipe, target_bits, kept, measured, stage)
        if kept.refusal is not None:
            (warn or warnings.warn)(kept.refusal)
        gc.collect()
        heap.trim()  # the rows of a calibration are gigabytes, which what is forked from here would have beside its own
        stage.done("quantize")

        folder = work.enter_context(staged(target))
        (folder / TOKENIZER).write_text(planned.checkpoint.tokenizer_json, encoding="utf-8")
        tokenizer = Tokenizer(folder / TOKENIZER)
        manifest = describe(planned, recipe, parts, _digest(measured, recipe))

        def scaled(network: Network) -> tuple[Scales, ...]:
            scales = calibrate(network, scale_rows(calibration, network, manifest, tokenizer, planned.bos_id))
            save_scales(folder / KV_SCALES, scales)
            return scales

        graphs = _lower(
            network,
            parts["decoder"].parameters,
            _spec(planned, recipe),
            scaled,
            recipe,
            folder,
            jobs or cores(),
            stage.within("lower"),
        )
        del network
        stage.done("lower")

        manifest = manifest.model_copy(update={"backends": graphs, "files": file_entries(folder)})
        # What leaving tokens out does is measured as long as one backend's golden answers take.
        sparse = manifest.sparsity is not None and manifest.sparsity.leaves_out
        answered = len(graphs) / (len(graphs) + sparse)
        golden = record(Bundle(folder, manifest), progress=stage.within("record", part=answered))
        manifest = write_golden(folder, manifest, golden)
        if manifest.sparsity is not None and sparse:
            found = effect(Bundle(folder, manifest), stage.within("record", answered, 1 - answered))
            told = manifest.sparsity.model_copy(update={"effect": found})
            manifest = manifest.model_copy(update={"sparsity": told})
        stage.done("record")

        if gate is not None and questions is not None:
            judged = judge(Bundle(folder, manifest), questions, gate.accuracy, stage.part_of("gate"))
            manifest = manifest.model_copy(update={"gate": judged})
            stage.done("gate")

        write_manifest(folder, manifest)
        stage.done("bundle")
    return manifest


def _digest(measured: Calibration | None, recipe: Recipe) -> str | None:
    """Of the set that something was measured on; whole networks of one format may not have needed it."""
    return measured.digest if measured and (recipe.looks_at_activations or recipe.layer_bits) else None


def _quantized(
    planned: Plan,
    parameters: Parameters,
    recipe: Recipe,
    target_bits: float | None,
    kept: StageCache,
    measured: Calibration | None,
    stage: _Stages,
) -> tuple[Recipe, Network, dict[Part, PartQuantization]]:
    """Choose the bits of layers where a mean of them is asked for, transform, round; the recipe as it was settled."""
    begun = 0.0
    if target_bits is not None:
        assert measured is not None, "a mean of bits needs a calibration set"
        begun = 0.3
        told = stage.within("quantize", part=begun)
        recipe = with_target(parameters, planned.config, recipe, target_bits, kept, measured, told)
    searching = 0.5 * (1 - begun) if recipe.smooth else 0.0
    told = stage.within("quantize", begun, searching)
    rewritten = transformed(parameters, planned.config, recipe, kept, measured, told)
    told = stage.within("quantize", begun + searching, 1 - begun - searching)
    return recipe, *quantize_network(rewritten, planned.config, recipe, planned.context, told, kept, measured)


def _refuse_idle(calibration: Path | None, recipe: Recipe, target_bits: float | None) -> None:
    """UnsupportedError for a calibration set that nothing would look at, and for two wishes for bits."""
    if target_bits is not None and recipe.layer_bits:
        raise UnsupportedError("--target-bits chooses the bits of layers itself; leave out --layer-bits, or it.")
    if calibration is not None and not recipe.looks_at_activations and target_bits is None:
        raise UnsupportedError(
            "--calibration has no use where nothing looks at activations; add --method gptq, --smooth or "
            "--target-bits, or drop it."
        )


def _lower(
    network: Network,
    parameters: int,
    spec: LoweringSpec,
    scaled: Callable[[Network], tuple[Scales, ...]],
    recipe: Recipe,
    folder: Path,
    at_once: int,
    progress: Callable[[float], None],
) -> dict[BackendName, BackendGraphs]:
    """Each backend's programs, their parts side by side; the only one that needs calibrated scales begins with them."""
    todo = {}
    for backend in recipe.backends:
        for part in find(backend).parts(network):
            job = Job(f"Lowering {part} for {backend}", *_job(backend, part, network, parameters, spec, scaled, folder))
            todo[backend, part] = job
    # The longest first: one that began last would be waited for alone.
    names = sorted(todo, key=lambda name: -todo[name].weight)
    made = dict(zip(names, run([todo[name] for name in names], at_once, progress), strict=True))
    let_go()
    graphs: dict[BackendName, BackendGraphs] = {}
    for backend in recipe.backends:
        graphs[backend] = find(backend).join([made[name] for name in todo if name[0] == backend], folder)
        check_delegation(backend, graphs[backend], recipe.max_portable, recipe.float_roles)
    return graphs


def _job(
    backend: BackendName,
    part: str,
    network: Network,
    parameters: int,
    spec: LoweringSpec,
    scaled: Callable[[Network], tuple[Scales, ...]],
    folder: Path,
) -> tuple[float, Callable[[Callable[[float], None]], Any]]:
    """How long one part takes, in seconds or so, and what does it."""
    asked: tuple[BackendName, str, int, bool] = (backend, part, parameters, spec.kv == "int8")
    seconds, calibrating = part_seconds(*asked, network.config), calibrating_seconds(*asked)

    def lowered(progress: Callable[[float], None]) -> Any:
        own = spec
        if (backend, part, spec.kv) == ("onnx", "decoder", "int8"):
            with one_thread():  # in this process or in a job's, which has one: scales of the same bits
                own = replace(spec, kv_scales=scaled(network))
            progress(calibrating / seconds)
        told = partial(_rest, progress, calibrating / seconds)
        made = find(backend).lower_part(part, shallow_copy(network), own, folder, told)
        gc.collect()  # programs refer to themselves, and with them to all that was packed
        return made

    return seconds, lowered


def _rest(progress: Callable[[float], None], done: float, share: float) -> None:
    progress(done + (1 - done) * share)


def _spec(planned: Plan, recipe: Recipe) -> LoweringSpec:
    return LoweringSpec(
        context=planned.context,
        max_chunk=planned.max_chunk,
        kv=recipe.kv,
        bos_id=planned.bos_id,
        eos_ids=planned.chat.stop_ids,
        sparsity=None if recipe.tau is None else ZipVL(recipe.tau),
    )


class _Stages:
    """Turns each stage's own share done into the share of the whole."""

    def __init__(self, report: Progress, gated: bool) -> None:
        rest = 1 - GATE_SHARE if gated else 1.0
        self._shares = {"gate": GATE_SHARE, **{name: rest * share for name, share in SHARES.items()}}
        self._report = report
        self._before = 0.0

    def quantize_longer(self, seconds: float, added: float) -> None:
        """Before any stage is done: an export's time, and a method's that looks at activations in it."""
        whole = sum(self._shares[name] for name in SHARES)
        self._shares |= {name: self._shares[name] * (1 - added / seconds) for name in SHARES}
        self._shares["quantize"] += whole * added / seconds

    def within(self, name: str, start: float = 0.0, part: float = 1.0) -> Callable[[float], None]:
        """A callback for the stage `name`, or for a part of it that begins at `start`."""
        return partial(self._tell, name, self._before + start * self._share(name), part * self._share(name))

    def part_of(self, name: str) -> Progress:
        """A callback for the stage `name` that is told its parts' names."""
        return lambda part, share: self._tell(part, self._before, self._share(name), share)

    def done(self, name: str) -> None:
        """The stage is over."""
        self._before += self._share(name)
        self._report(name, min(self._before, 1.0))

    def _tell(self, name: str, base: float, scale: float, share: float) -> None:
        self._report(name, base + scale * share)

    def _share(self, name: str) -> float:
        return self._shares[name.split()[0]]
