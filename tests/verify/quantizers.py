"""What each quantizer costs SmolLM2: perplexity of the eager network, the decoder's linears alone rounded, beside the
float one's, and beside llama.cpp's own quantizer on the same float weights.

All are calibrated on the same two texts, far behind what is measured.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bundles
import numpy as np
import reading
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from logits import eager_scores
from outcome import Cases, Outcome
from passages import handbook, novel, windows

from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, describe, plan
from handlens_export.forecast.files import weight_bytes
from handlens_export.measuring import calibration_of, tokenizer_of
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.quantize.calibrated import Calibration, in_layers
from handlens_export.quantize.formats import is_product, weigh
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.weight import in_float
from handlens_export.reader.evaluation_set import USUAL
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.sweep.items import answer_items
from handlens_export.sweep.quality import Quality, quality
from handlens_export.transform.transformed import transformed
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.evaluation.scoring import paired_interval
from handlens_runtime.manifest import Manifest
from handlens_runtime.tokenizer import Tokenizer

TOKENS, WINDOW = 20_000, 512
SEQUENCES = 64
TEXTS = {"Moby Dick": novel, "the Debian handbook": handbook}
BEHIND = 400_000
"""Characters of each text before its calibration set; what is measured ends long before."""
RECIPES: dict[str, dict[str, Any]] = {
    "round": {},
    "clip": {"method": "clip"},
    "gptq": {"method": "gptq"},
    "rsq": {"method": "rsq"},
    "rotate, gptq": {"method": "gptq", "rotate": True},
    "rotate, rsq": {"method": "rsq", "rotate": True},
    "smooth, round": {"smooth": True},
}
AT_64 = ("round", "clip", "gptq", "rsq", "rotate, rsq")
PLANTED, TIMES, OUTLIER_TOKENS = 8, 30.0, 4_096
READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Linears that read what a layer's norms give."""
QUESTIONS, STRATA, AT_ONCE = 5_060, 22, 506
"""Asked of the reader; kinds times groups of them; how many are held at a time."""
READABLE = 0.8
"""Share of questions that float must answer right for answers alone to tell methods apart."""
OF_THE_READER = ("round", "clip", "gptq", "rsq", "rotate, rsq")
PEERS = {"Q4_0": 2, "Q4_K_M": 15}
"""llama.cpp's own quantizer: its file types."""
Scores = dict[str, float]
"""Perplexity by text."""


def by_method(group: int, methods: tuple[str, ...], share: float) -> Outcome:
    """Perplexity by method at four bits; head and embedding stay in float, so that only the method differs.

    Passed where the best method's increase is at most `share` of Q4_0's on both texts.
    """
    exact = _remembered(f"float-{TOKENS}", partial(_measured, None))
    found: dict[str, dict[str, Any]] = {}
    for name in methods:
        recipe = Recipe(group=group, head_bits=32, embedding_bits=32, **RECIPES[name])
        scores = _remembered(f"{name}-{group}-{TOKENS}", partial(_measured, recipe))
        found[name] = {"bits": _own_bits(recipe), **_increases(scores, exact)}
        _say(name, found[name])
    for name, kind in PEERS.items():
        kept = _remembered(f"{name}-{TOKENS}", partial(_peer, kind))
        found[name] = {"bits": kept["bits"], **_increases(kept["scores"], exact)}
        _say(name, found[name])
    to_peer = {name: {text: found[name][text] / found["Q4_0"][text] for text in TEXTS} for name in methods}
    best = min(methods, key=lambda name: max(to_peer[name].values()))  # one method for both texts
    ratios = to_peer[best]
    values = {
        "tokens of each text": TOKENS,
        "float": exact,
        "increase": found,
        "best": best,
        "best / Q4_0": {text: round(ratio, 3) for text, ratio in ratios.items()},
        "in the papers' order": _ordered(found),
    }
    return Outcome(values, f"best <= {share:g} x Q4_0's increase", max(ratios.values()) <= share)


def _remembered(name: str, compute: Callable[[], Any]) -> Any:
    """As `bundles.remembered`, and computed again where these checks or their texts are others."""
    return bundles.remembered(f"quantizers-{_state()}-{name}", compute)


@cache
def _state() -> str:
    here = bundles.ROOT / "tests" / "verify"
    return bundles.digest([here / "quantizers.py", here / "passages.py", here / "logits.py"])


def _own_bits(recipe: Recipe) -> float:
    """Of the linears, scales included, as ExecuTorch stores them (bfloat16)."""
    planned = _planned()
    shapes = Parameters(planned.checkpoint, planned.family, planned.config).shapes
    linears = {name: shape for name, shape in shapes.items() if in_layers(name) and is_product(name, shape)}
    assert len(linears) == 210
    return 8 * sum(weight_bytes(linears, recipe, "executorch").values()) / sum(map(prod, linears.values()))


def _increases(scores: Scores, exact: Scores) -> Scores:
    return {text: round(scores[text] - exact[text], 3) for text in TEXTS}


def _ordered(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    pairs = [("rsq", "gptq"), ("gptq", "round"), ("smooth, round", "round")]
    return {
        f"{a} <= {b}": all(found[a][text] <= found[b][text] for text in TEXTS)
        for a, b in pairs
        if a in found and b in found
    }


def _say(name: str, found: dict[str, Any]) -> None:
    print(name, found, file=sys.stderr, flush=True)


def _measured(recipe: Recipe | None) -> Scores:
    planned = _planned()
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    if recipe is None:
        return _scores(float_network(parameters, planned.config, WINDOW))
    calibration = Calibration(_state(), "", _rows)
    with StageCache() as kept:
        rewritten = transformed(parameters, planned.config, recipe, kept, calibration)
        network, _ = quantize_network(rewritten, planned.config, recipe, WINDOW, lambda share: None, kept, calibration)
        with in_float(network):
            return _scores(network)


def _scores(network: Network) -> Scores:
    with TemporaryDirectory() as folder:
        file = _tokenizer_file(folder)
        texts = {name: windows(file, TOKENS, WINDOW, text()) for name, text in TEXTS.items()}
    return {name: _perplexity(network, parts) for name, parts in texts.items()}


def _perplexity(network: Network, parts: list[list[int]]) -> float:
    return float(np.exp(-np.concatenate([eager_scores(network, ids, WINDOW) for ids in parts]).mean()))


def _peer(kind: int) -> dict[str, Any]:
    """llama.cpp's quantizer on the same float weights: its linears in our network, and their bits, scales included."""
    with TemporaryDirectory() as folder:
        exact, rounded = Path(folder) / "float.gguf", Path(folder) / "rounded.gguf"
        _in_float(bundles.smollm2_checkpoint(), exact)
        _quantize(exact, rounded, kind)
        checkpoint = read(rounded)
        planned = plan(checkpoint, Recipe())
        parameters = Parameters(checkpoint, planned.family, planned.config)
        network = float_network(_with_layers_of(parameters), planned.config, WINDOW)
        return {"bits": _bits(rounded), "scores": _scores(network)}


def _with_layers_of(parameters: Parameters) -> Parameters:
    """The float checkpoint's parameters but for the decoder layers'."""
    planned = _planned()
    plain = Parameters(planned.checkpoint, planned.family, planned.config)
    read_plain = plain.read

    def either(name: str) -> torch.Tensor:
        return parameters.read(name) if in_layers(name) else read_plain(name)

    plain.read = either  # type: ignore[method-assign]
    return plain


def _in_float(source: Path, target: Path) -> None:
    """The same GGUF file with every tensor in float32."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
        writer.add_tensor(tensor.name, weight, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantize(source: Path, target: Path, kind: int) -> None:
    import llama_cpp

    llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = kind
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    assert code == 0, f"llama_model_quantize gave {code}"


_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def _bits(path: Path) -> float:
    linears = [one for one in GGUFReader(path).tensors if one.name.startswith("blk.") and len(one.shape) == 2]
    assert len(linears) == 210
    return 8 * sum(int(one.n_bytes) for one in linears) / sum(prod(one.shape.tolist()) for one in linears)


@torch.no_grad()
def _rows(network: Network) -> list[torch.Tensor]:
    """SEQUENCES windows of WINDOW tokens, half of each text."""
    tokenizer = tokenizer_of(_planned())
    rows, each = [], SEQUENCES // len(TEXTS)
    for text in TEXTS.values():
        ids = tokenizer.encode(text()[BEHIND : BEHIND + 8 * each * WINDOW])[: each * WINDOW]
        rows += [
            network.decoder.embedding(torch.tensor([ids[begin : begin + WINDOW]]))
            for begin in range(0, len(ids), WINDOW)
        ]
    return rows


def _tokenizer_file(folder: str) -> Path:
    path = Path(folder) / TOKENIZER
    path.write_text(_planned().checkpoint.tokenizer_json, encoding="utf-8")
    return path


@cache
def _planned() -> Plan:
    return plan(read(bundles.smollm2_checkpoint()), Recipe())


class Planted(Parameters):
    """The same network with outliers in PLANTED of the channels that every layer's linears read: half of them TIMES as
    large in the activations and that much smaller in the weights, half the other way round.
    """

    def __init__(self, plain: Parameters) -> None:
        self.__dict__.update(plain.__dict__)
        self._plain = plain
        self.settings = f"{plain.settings} planted"
        width = plain.shapes["decoder.embedding.table.weight"][1]
        chosen = torch.randperm(width, generator=torch.Generator().manual_seed(0))[:PLANTED]
        self._factors = torch.ones(width)
        self._factors[chosen[: PLANTED // 2]] = TIMES
        self._factors[chosen[PLANTED // 2 :]] = 1 / TIMES

    def stored(self, name: str) -> torch.Tensor:
        weight = self._plain.stored(name)
        if not in_layers(name):
            return weight
        kind = name.split(".")[-2]
        if kind.endswith("_norm"):
            return weight.float() * self._factors
        return weight.float() / self._factors if kind in READERS else weight


def outliers() -> Outcome:
    """SmolLM2 with outliers planted, which change nothing in float: what rounding then loses, and who gets it back."""
    recipes = {"round": {}, "smooth, round": {"smooth": True}, "rotate, round": {"rotate": True}}
    float_and = {
        None: None,
        **{name: Recipe(head_bits=32, embedding_bits=32, **more) for name, more in recipes.items()},
    }
    found: dict[str, float] = {}
    for name, recipe in float_and.items():
        for planted in (True, False):
            key = f"{name or 'float'}{', planted' if planted else ''}"
            found[key] = _remembered(f"outliers-{key}", partial(_with_outliers, recipe, planted))
            _say(key, {"perplexity": found[key]})
    exact, plain, worse = found["float"], found["round"], found["round, planted"]
    recovered = {
        name: round((worse - found[f"{name}, planted"]) / (worse - plain), 3) for name in recipes if name != "round"
    }
    values = {"tokens": OUTLIER_TOKENS, "perplexity": {name: round(value, 2) for name, value in found.items()}}
    values["planted over not, same method"] = {
        name: round(found[f"{name}, planted"] / found[name], 4) for name in float_and if name is not None
    }
    same = abs(found["float, planted"] / exact - 1) < 1e-3
    return Outcome(
        {**values, "recovered of what planting made rounding lose": recovered},
        "planting changes nothing in float; smoothing, and rotation, whose norms are fused first, each recover 0.9",
        same and min(recovered.values()) >= 0.9,
    )


def _with_outliers(recipe: Recipe | None, planted: bool) -> float:
    planned = _planned()
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    parameters = Planted(parameters) if planted else parameters
    with TemporaryDirectory() as folder:
        parts = windows(_tokenizer_file(folder), OUTLIER_TOKENS, WINDOW)
    if recipe is None:
        return _perplexity(float_network(parameters, planned.config, WINDOW), parts)
    calibration = Calibration(f"{_state()} outliers", "", lambda network: _rows(network)[::4])
    with StageCache() as kept:
        source = transformed(parameters, planned.config, recipe, kept, calibration)
        network, _ = quantize_network(source, planned.config, recipe, WINDOW, lambda share: None, kept, calibration)
        with in_float(network):
            return _perplexity(network, parts)


def reader(bits: int) -> Outcome:
    """The reader by method, its decoder's linears alone rounded, paired question by question with the float one.

    At four bits the best method is to be at most half a point below float, its interval included; at three RSQ is to
    recover half of what rounding loses. Where float answers fewer than 80 % right, the share of the answers' tokens and
    the divergence from float stand in.
    """
    exact = _remembered(f"reader-float-{QUESTIONS}", partial(_read, None))
    found: dict[str, dict[str, Any]] = {}
    for name in OF_THE_READER:
        recipe = Recipe(bits=bits, head_bits=32, embedding_bits=32, vision_bits=32, **RECIPES[name])
        one = _remembered(f"reader-{name}-{bits}-{QUESTIONS}", partial(_read, recipe))
        pairs = list(zip(one["right"], exact["right"], strict=True))
        low, high = paired_interval(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs), len(pairs))
        found[name] = {
            "points": round(100 * (sum(one["right"]) - sum(exact["right"])) / len(pairs), 2),
            "interval": [round(100 * low, 2), round(100 * high, 2)],
            "tokens": round(100 * (one["tokens"] - exact["tokens"]), 2),
            "KL": one["KL"],
        }
        _say(name, found[name])
    values = {
        "questions": len(exact["right"]),
        "float": {"exact": round(sum(exact["right"]) / len(exact["right"]), 4), "tokens": round(exact["tokens"], 4)},
        **found,
    }
    recovered = {"KL": 1 - found["rsq"]["KL"] / found["round"]["KL"]}
    if found["round"]["tokens"] < 0:
        recovered["tokens"] = 1 - found["rsq"]["tokens"] / found["round"]["tokens"]
    values["RSQ recovers of rounding's loss"] = {name: round(share, 3) for name, share in recovered.items()}
    if bits == 3:
        return Outcome(
            values, "RSQ recovers at least half of the divergence and of the tokens", min(recovered.values()) >= 0.5
        )
    best = max(one["interval"][0] for one in found.values())
    bar = "the best method at most 0.5 points below float, its interval included"
    if sum(exact["right"]) / len(exact["right"]) >= READABLE:
        return Outcome(values, bar, best >= -0.5)
    stands_in = f"; its answers' tokens too, for float answers fewer than {READABLE:.0%} right"
    return Outcome(values, bar + stands_in, best >= -0.5 and max(one["tokens"] for one in found.values()) >= -0.5)


def _read(recipe: Recipe | None) -> dict[str, Any]:
    planned, parameters, manifest, _ = _reader()
    exact = _exact_answers()
    if recipe is None:
        found = exact
    else:
        calibration = calibration_of(reading.CHECKPOINT / "gate" / "questions.jsonl", planned, manifest)
        with StageCache() as kept:
            source = transformed(parameters, planned.config, recipe, kept, calibration)
            network, _ = quantize_network(
                source, planned.config, recipe, planned.context, lambda share: None, kept, calibration
            )
            found = list(_answers(network))
    return {
        "right": [hit for one in found for hit in one.right],
        "tokens": float(np.mean([one.tokens_right for one in found])),
        "KL": float(np.mean([one.divergence(other) for one, other in zip(found, exact, strict=True)])),
    }


@cache
def _exact_answers() -> list[Quality]:
    planned, parameters, _, _ = _reader()
    return list(_answers(float_network(parameters, planned.config, planned.context)))


def _answers(network: Network) -> Iterator[Quality]:
    """AT_ONCE questions at a time."""
    _, _, manifest, tokenizer = _reader()
    asked = reading.questions("quantizers", QUESTIONS // STRATA, USUAL)
    with in_float(network):
        for begin in range(0, len(asked.questions), AT_ONCE):
            part = replace(asked, questions=asked.questions[begin : begin + AT_ONCE])
            yield quality(network, list(answer_items(part, manifest, tokenizer)), lambda share: None)
            print(f"{begin + len(part.questions)} of {len(asked.questions)}", file=sys.stderr, flush=True)


@cache
def _reader() -> tuple[Plan, Parameters, Manifest, Tokenizer]:
    planned = plan(read(reading.CHECKPOINT), Recipe())
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    manifest = describe(planned, Recipe(), weigh(parameters.shapes, Recipe()))
    return planned, parameters, manifest, tokenizer_of(planned)


CASES: Cases = {
    "SmolLM2 by method, 4.5 bits (groups of 32), beside llama.cpp": partial(by_method, 32, tuple(RECIPES), 0.5),
    "SmolLM2 by method, 4.25 bits (groups of 64), beside llama.cpp": partial(by_method, 64, AT_64, 1.0),
    "SmolLM2 with outliers planted": outliers,
    "the reader by method, 4 bits": partial(reader, 4),
    "the reader by method, 3 bits": partial(reader, 3),
}
