"""What leaving tokens of a prompt out does to a bundle: measured on one prompt by its own program, for the manifest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from handlens_export.photographs import photographs
from handlens_export.quantize.calibration import TEXTS
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.errors import PromptError
from handlens_runtime.golden.asking import DAY
from handlens_runtime.manifest import SparsityEffect
from handlens_runtime.sampler import log_softmax


def effect(bundle: Bundle, progress: Callable[[float], None]) -> SparsityEffect | None:
    """A photograph and a question, or texts where these are too few tokens to choose from, by the first of the bundle's
    backends; None where the texts are too few too, or more than the context holds. `progress`: the share done. Raises
    BackendError.
    """
    backend = next(iter(bundle.manifest.backends))
    engine = Engine(bundle, backend, now=lambda: DAY)
    pictures = photographs()[:1] if bundle.manifest.image is not None else []
    for text in (TEXTS[0], "\n\n".join(TEXTS)):
        question = [Message("user", text, images=tuple(pictures))]
        try:
            chosen = log_softmax(engine.next_logits(question))
        except PromptError:
            return None
        if not engine.kept:
            continue
        progress(0.5)
        stats, engine.sparse = engine.stats, False
        engine.reset()
        every = log_softmax(engine.next_logits(question))
        return SparsityEffect(
            backend=backend,
            prompt_tokens=stats.prompt_tokens,
            image_tokens=stats.image_tokens,
            kept=tuple(stats.kept_tokens),
            divergence=round(float(np.sum(np.exp(every) * (every - chosen))), 4),
        )
    return None
