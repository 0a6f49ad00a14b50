"""What leaving tokens of a prompt out does to a bundle: measured on one prompt by its own program, for the manifest."""

from __future__ import annotations

import numpy as np

from handlens_export.photographs import photographs
from handlens_export.quantize.calibration import TEXTS
from handlens_runtime import backends
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.errors import PromptError
from handlens_runtime.golden.asking import DAY
from handlens_runtime.manifest import SparsityEffect
from handlens_runtime.sampler import log_softmax


def effect(bundle: Bundle) -> SparsityEffect | None:
    """A photograph and a question, or texts where these are too few tokens to choose from; None where those are too.

    The first of the bundle's backends answers for all: they choose alike. Raises BackendError.
    """
    backend = backends.load(bundle, next(iter(bundle.manifest.backends)))
    sparse, dense = (Engine(bundle, backend, sparse=how, now=lambda: DAY) for how in (None, False))
    pictures = photographs()[:1] if bundle.manifest.image is not None else []
    for text in (TEXTS[0], "\n\n".join(TEXTS)):
        question = [Message("user", text, images=tuple(pictures))]
        sparse.reset()
        try:
            chosen = log_softmax(sparse.next_logits(question))
        except PromptError:  # a context too short for it
            return None
        if not sparse.kept:
            continue
        dense.reset()
        every = log_softmax(dense.next_logits(question))
        return SparsityEffect(
            prompt_tokens=sparse.stats.prompt_tokens,
            image_tokens=sparse.stats.image_tokens,
            kept=tuple(sparse.stats.kept_tokens),
            divergence=round(float(np.sum(np.exp(every) * (every - chosen))), 4),
        )
    return None
