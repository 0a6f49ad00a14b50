"""The check itself: the prompts, the float checkpoint's answers, then each backend beside its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from handlens_export.check.comparison import DECODE_STEPS, Case, Comparison
from handlens_export.check.report import Distance, Finding, Report
from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, plan
from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.families import find
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import PreparedPrompt, embed, prepare_prompt
from handlens_export.quantize.calibration import TEXTS
from handlens_export.quantize.sensitivity import Sensitivity, sensitivities
from handlens_export.quantize.weight import QuantizedLinear
from handlens_export.reference import recipe_of, reference, rounded
from handlens_runtime import backends
from handlens_runtime.backends.base import Backend
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.chat import Message
from handlens_runtime.manifest import BackendName
from handlens_runtime.tokenizer import Tokenizer

QUESTION = "What is in this picture?"

Progress = Callable[[str, float], None]


def check(
    bundle: Path | Bundle,
    against: Path,
    images: Sequence[Path] = (),
    *,
    lora: Path | None = None,
    backend: BackendName | Backend | None = None,
    sensitivity: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle's programs with the checkpoint folder or GGUF file it was made from.

    `images`: photographs to ask about; the shipped ones where left out. `lora`: the adapter that the bundle was
    exported with. `backend`: one of them, or an instance; all where left out. `sensitivity`: also what each layer's
    attention and MLP cost when they alone are rounded.
    Raises BundleError, CheckpointError, UnsupportedError, ImageError, BackendError.
    """
    report = _Halves(progress or (lambda _name, _share: None), sensitivity)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    checkpoint = read(against, lora)
    _check_same(bundle, checkpoint, against)
    planned = plan(checkpoint, recipe_of(bundle.manifest))
    if images and planned.config.vision is None:
        raise UnsupportedError(f"{bundle.path} reads text only, so it cannot be checked with a picture; leave it out.")
    cases = _cases(bundle, planned, images, report)
    findings: list[Finding] = []
    distances: list[Distance] = []
    chosen: list[BackendName | Backend] = [backend] if backend is not None else list(bundle.manifest.backends)
    for index, one in enumerate(chosen):
        running = backends.load(bundle, one) if isinstance(one, str) else one
        name: BackendName = "executorch" if running.name == "executorch" else "onnx"
        network = reference(bundle, planned, name)
        for done, case in enumerate(cases):
            report(f"check {name}", 0.3 + 0.7 * (index + done / len(cases)) / len(chosen))
            runner = Comparison(bundle, planned, name, running, network, case)
            findings += runner.findings()
            distances.append(runner.distance)
        del network
    costs = _sensitivities(bundle, planned, cases, report) if sensitivity else ()
    report("check", 1.0)
    return Report(tuple(findings), tuple(distances), costs)


def _sensitivities(bundle: Bundle, planned: Plan, cases: Sequence[Case], report: Progress) -> tuple[Sensitivity, ...]:
    """On the check's own prompts."""
    parameters, network = rounded(bundle, planned)

    def on_its_grid(name: str, weight: torch.Tensor) -> torch.Tensor:
        linear = network.get_submodule(name.removesuffix(".weight"))
        return linear.quantized.dequantize() if isinstance(linear, QuantizedLinear) else weight

    return sensitivities(
        parameters,
        planned.config,
        on_its_grid,
        lambda exact: [embed(exact, case.prepared) for case in cases],
        lambda share: report("sensitivity", share),
    )


class _Halves:
    """Progress of a check, which is the first half of the whole where sensitivities follow."""

    def __init__(self, report: Progress, followed: bool) -> None:
        self._report, self._followed = report, followed

    def __call__(self, name: str, share: float) -> None:
        if self._followed and share < 1:
            share = share / 2 + (0.5 if name == "sensitivity" else 0)
        self._report(name, share)


def _check_same(bundle: Bundle, checkpoint: Checkpoint, against: Path) -> None:
    """Refuse a checkpoint of another network, before any weight is read."""
    config, sizes = find(checkpoint.config.get("model_type")).config(checkpoint.config), bundle.manifest.sizes
    names = ("family", "layers", "width", "heads", "kv_heads", "vocabulary", "vision features")
    ours = (bundle.manifest.family, sizes.layers, sizes.width, sizes.heads, sizes.kv_heads, sizes.vocab_size)
    decoder, vision = config.decoder, config.vision
    theirs = (config.family, decoder.layers, decoder.width, decoder.heads, decoder.kv_heads, decoder.vocab_size)
    features = (vision.grid**2, vision.width) if vision else None
    pairs = zip(names, (*ours, sizes.vision_features), (*theirs, features), strict=True)
    differing = [f"{name} {our} where {against} has {their}" for name, our, their in pairs if our != their]
    if differing:
        raise CheckpointError(
            f"{bundle.path} has {', '.join(differing)}; give --against the checkpoint that the bundle was made from."
        )


def _cases(bundle: Bundle, planned: Plan, images: Sequence[Path], report: Progress) -> list[Case]:
    """Prompts with photographs where the network sees, and texts; each with the float network's logits."""
    tokenizer = Tokenizer(bundle.file(TOKENIZER))
    report("check: float checkpoint", 0.0)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    network = float_network(parameters, planned.config, bundle.manifest.sizes.context)
    pictures = list(images) or (photographs() if planned.config.vision else [])
    messages: list[tuple[str, Path | None, Message]] = [
        (path.name, path, Message("user", QUESTION, images=(path,))) for path in pictures if planned.config.vision
    ]
    messages += [(text[:24], None, Message("user", text)) for text in TEXTS[: 1 if planned.config.vision else 5]]
    if bundle.manifest.sparsity is not None:  # long enough to be chosen from
        messages.append(("the texts together", None, Message("user", "\n\n".join(TEXTS))))
    cases = []
    for done, (name, path, message) in enumerate(messages):
        prepared = _cut(prepare_prompt(bundle.manifest, tokenizer, [message]), bundle.manifest.sizes.context)
        with torch.no_grad():
            logits = network.logits(embed(network, prepared))[0, -1].numpy()
        cases.append(Case(name, path, prepared, logits))
        report("check: float checkpoint", 0.3 * (done + 1) / len(messages))
    return cases


def _cut(prepared: PreparedPrompt, context: int) -> PreparedPrompt:
    """The beginning that a small context holds beside the steps of decoding: as good to compare programs by."""
    prompt, most = prepared.prompt, max(1, context - DECODE_STEPS)
    return replace(prepared, prompt=replace(prompt, ids=prompt.ids[:most], keys=prompt.keys[:most]))
