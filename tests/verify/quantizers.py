"""What each quantizer costs SmolLM2: perplexity of the eager network, weights alone rounded, beside the float one's.

Calibrated on the same novel, far behind what is measured. llama.cpp's own quantizer is not beside them yet.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bundles
import numpy as np
import torch
from logits import eager_scores
from outcome import Cases, Outcome
from passages import novel, windows

from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, plan
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.weight import in_float
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.transform.transformed import transformed
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.tokenizer import Tokenizer

TOKENS, WINDOW, CHUNK = 20_000, 512, 128
BEHIND = 600_000
"""Characters of the novel before the calibration set; what is measured ends long before."""
SEQUENCES = 64
RECIPES: dict[str, dict[str, Any]] = {
    "round": {},
    "clip": {"method": "clip"},
    "gptq": {"method": "gptq"},
    "rsq": {"method": "rsq"},
    "rotate, gptq": {"method": "gptq", "rotate": True},
    "rotate, rsq": {"method": "rsq", "rotate": True},
    "smooth, round": {"smooth": True},
}


def by_method(group: int) -> Outcome:
    """Perplexity by method at four bits; head and embedding stay in float, so that only the method differs."""
    exact = bundles.remembered(f"quantizers-float-{TOKENS}", partial(_perplexity, None))
    found = {}
    for name, options in RECIPES.items():
        recipe = Recipe(group=group, head_bits=32, embedding_bits=32, **options)
        perplexity = bundles.remembered(f"quantizers-{name}-{group}-{TOKENS}", partial(_perplexity, recipe))
        found[name] = {"perplexity": perplexity, "increase": perplexity - exact}
    cost = {name: value["increase"] for name, value in found.items()}
    ordered = cost["rsq"] <= cost["gptq"] <= cost["round"] and cost["smooth, round"] <= cost["round"]
    bits = 4 + 16 / group
    values = {"bits of the linears": bits, "float": exact, "tokens": TOKENS, **found}
    return Outcome(values, "as the papers have it: RSQ <= GPTQ <= rounding, SmoothQuant+ <= rounding", ordered)


def _perplexity(recipe: Recipe | None) -> float:
    planned = _planned()
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    if recipe is None:
        return _score(float_network(parameters, planned.config, WINDOW))
    calibration = Calibration("quantizers", "", _rows)
    with StageCache() as kept:
        rewritten = transformed(parameters, planned.config, recipe, kept, calibration)
        network, _ = quantize_network(rewritten, planned.config, recipe, WINDOW, lambda share: None, kept, calibration)
        with in_float(network):
            return _score(network)


def _score(network: Network) -> float:
    with TemporaryDirectory() as folder:
        texts = windows(_tokenizer_file(folder), TOKENS, WINDOW)
    return float(np.exp(-np.concatenate([eager_scores(network, ids, CHUNK) for ids in texts]).mean()))


@torch.no_grad()
def _rows(network: Network) -> list[torch.Tensor]:
    with TemporaryDirectory() as folder:
        tokenizer = Tokenizer(_tokenizer_file(folder))
    ids = tokenizer.encode(novel()[BEHIND : BEHIND + 8 * SEQUENCES * WINDOW])[: SEQUENCES * WINDOW]
    return [
        network.decoder.embedding(torch.tensor([ids[begin : begin + WINDOW]])) for begin in range(0, len(ids), WINDOW)
    ]


def _tokenizer_file(folder: str) -> Path:
    path = Path(folder) / TOKENIZER
    path.write_text(_planned().checkpoint.tokenizer_json, encoding="utf-8")
    return path


@cache
def _planned() -> Plan:
    return plan(read(bundles.smollm2_checkpoint()), Recipe())


CASES: Cases = {f"SmolLM2 by method, 4 bits in groups of {group}": partial(by_method, group) for group in (32, 64)}
