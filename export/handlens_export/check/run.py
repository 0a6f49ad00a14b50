"""The check itself: the prompts, the float checkpoint's answers, then each backend beside its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from handlens_export.check.comparison import Case, Comparison
from handlens_export.check.report import Distance, Finding, Report
from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, plan
from handlens_export.errors import CheckpointError
from handlens_export.network.load import load
from handlens_export.network.network import Network
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import embed, prepare_prompt
from handlens_export.quantize.calibration import TEXTS
from handlens_export.reference import recipe_of, reference
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
    backend: BackendName | Backend | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle's programs with the checkpoint folder or GGUF file it was made from.

    `images`: photographs to ask about; the shipped ones where left out. `backend`: one of them, or an instance; all
    where left out. Raises BundleError, CheckpointError, ImageError, BackendError.
    """
    report = progress or (lambda _name, _share: None)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    planned = plan(read(against), recipe_of(bundle.manifest))
    _check_same(bundle, planned, against)
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
    report("check", 1.0)
    return Report(tuple(findings), tuple(distances))


def _check_same(bundle: Bundle, planned: Plan, against: Path) -> None:
    config, sizes = planned.config.decoder, bundle.manifest.sizes
    ours = (bundle.manifest.family, sizes.layers, sizes.width, sizes.vocab_size)
    theirs = (planned.config.family, config.layers, config.width, config.vocab_size)
    if ours != theirs:
        raise CheckpointError(
            f"{bundle.path} was made from a {ours[0]} of {ours[1]} layers, width {ours[2]} and vocabulary {ours[3]}, "
            f"but {against} is a {theirs[0]} of {theirs[1]}, {theirs[2]} and {theirs[3]}; "
            "give --against the checkpoint that the bundle was made from."
        )


def _cases(bundle: Bundle, planned: Plan, images: Sequence[Path], report: Progress) -> list[Case]:
    """Prompts with photographs where the network sees, and texts; each with the float network's logits."""
    tokenizer = Tokenizer(bundle.file(TOKENIZER))
    report("check: float checkpoint", 0.0)
    network = Network(planned.config, bundle.manifest.sizes.context).eval()
    load(network, planned.checkpoint, planned.family)
    pictures = list(images) or (photographs() if planned.config.vision else [])
    messages: list[tuple[str, Path | None, Message]] = [
        (path.name, path, Message("user", QUESTION, images=(path,))) for path in pictures if planned.config.vision
    ]
    messages += [(text[:24], None, Message("user", text)) for text in TEXTS[: 1 if planned.config.vision else 5]]
    cases = []
    for done, (name, path, message) in enumerate(messages):
        prepared = prepare_prompt(bundle.manifest, tokenizer, [message])
        with torch.no_grad():
            logits = network.logits(embed(network, prepared))[0, -1].numpy()
        cases.append(Case(name, path, prepared, logits))
        report("check: float checkpoint", 0.3 * (done + 1) / len(messages))
    return cases
