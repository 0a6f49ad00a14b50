"""Real weights on real text: each program's perplexity beside its reference's; and the capital of France."""

from __future__ import annotations

from functools import partial

import bundles
import numpy as np
from logits import eager_scores
from outcome import Cases, Outcome
from passages import windows

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.load import load
from handlens_export.network.network import Network
from handlens_export.recipe import Recipe
from handlens_export.reference import recipe_of, reference
from handlens_runtime.bundle import TOKENIZER, Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.manifest import BackendName
from handlens_runtime.options import Options

TOKENS = 20_000
WINDOW = 512
CHUNK = 128
MOST = 0.01
BACKENDS: tuple[BackendName, ...] = ("executorch", "onnx")
SOURCE = (
    "SmolLM2-135M-Instruct from a GGUF file of type Q4_1: its weights are already on a 4-bit grid of their own (16 "
    "levels between each 32 weights' least and largest), and those dequantized weights are the 'float checkpoint' here"
)


def perplexity(group: int, backend: BackendName) -> Outcome:
    """Windows of the novel, each from an empty cache: the program token by token, the reference in passes of 128."""
    bundle = Bundle.load(bundles.smollm2(group))
    texts = windows(bundle.file(TOKENIZER), TOKENS, WINDOW)
    engine = Engine(bundle, backend)
    found = np.concatenate([engine.score_ids(ids) for ids in texts])
    del engine
    network = reference(bundle, plan(read(bundles.smollm2_checkpoint()), recipe_of(bundle.manifest)), backend)
    expected = np.concatenate([eager_scores(network, ids, CHUNK) for ids in texts])
    apart = float(np.exp(expected.mean() - found.mean()) - 1)
    values = {
        "perplexity": _perplexity(found),
        "its reference's": _perplexity(expected),
        "relative difference": apart,
        "standard error of it": float((found - expected).std() / len(found) ** 0.5),
        "tokens scored": len(found),
        "float checkpoint's": bundles.remembered("float-perplexity", _float_perplexity),
        "source": SOURCE,
    }
    return Outcome(values, f"within {MOST:.0%} of its reference", abs(apart) <= MOST)


def _float_perplexity() -> float:
    bundle = Bundle.load(bundles.smollm2(32))
    planned = plan(read(bundles.smollm2_checkpoint()), Recipe())
    network = Network(planned.config, WINDOW).eval()
    load(network, planned.checkpoint, planned.family)
    texts = windows(bundle.file(TOKENIZER), TOKENS, WINDOW)
    return _perplexity(np.concatenate([eager_scores(network, ids, CHUNK) for ids in texts]))


def _perplexity(scores: np.ndarray) -> float:
    return float(np.exp(-scores.mean()))


def capital(group: int, backend: BackendName) -> Outcome:
    """Greedy."""
    engine = Engine(bundles.smollm2(group), backend)
    question = Message("user", "What is the capital of France?")
    answer = "".join(token.text for token in engine.generate([question], Options(max_tokens=64, temperature=0.0)))
    return Outcome({"answer": answer}, "the answer names Paris", "Paris" in answer)


GRID = [(group, backend) for group in (32, 64) for backend in BACKENDS]
CASES: Cases = {
    f"{backend}, groups of {group}, perplexity on {TOKENS:,} tokens": partial(perplexity, group, backend)
    for group, backend in GRID
}
CASES |= {
    f"{backend}, groups of {group}, the capital of France": partial(capital, *one)
    for one in GRID
    for group, backend in [one]
}
