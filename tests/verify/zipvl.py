"""Sparse prompts: what the reader's answers and SmolLM2's perplexity lose by the share of tokens that is kept.

The eager network in float chooses as the programs do (`network.zipvl`). Beside it, at equal share of the pictures'
tokens: the same share in every layer and for every prompt, and FastV (arXiv 2403.06764), which drops pictures' tokens
behind a layer for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import takewhile
from math import ceil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, cast

import bundles
import numpy as np
import reading
import torch
from outcome import Cases, Outcome
from passages import windows
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from handlens_export.checkpoint.read import read
from handlens_export.describe import Plan, describe, plan
from handlens_export.measuring import tokenizer_of
from handlens_export.network.attention import Step
from handlens_export.network.config import DecoderConfig
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.network.rope import rotate
from handlens_export.network.zipvl import SparseAttention, ZipVL, attention_of, largest, probes, swap, tally
from handlens_export.network.zipvl_chunks import ChunkedSparseAttention
from handlens_export.prompt_rows import prepare_prompt
from handlens_export.quantize.formats import weigh
from handlens_export.reader.evaluation_set import USUAL
from handlens_export.recipe import TAU, Recipe
from handlens_export.sweep.items import Encoded, Item, answer_items
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.chat import Message
from handlens_runtime.evaluation import Question, QuestionSet
from handlens_runtime.evaluation.scoring import paired_interval
from handlens_runtime.golden.asking import DAY
from handlens_runtime.manifest import Manifest
from handlens_runtime.prompt import Key
from handlens_runtime.tokenizer import Tokenizer

PAIRED, CURVE, BLOCK, EACH = 5_000, 500, 250, 245
"""Questions of the bar, of the curve, and how many are kept at a time; how many of each kind and group are drawn, of
which a few are about pages that turn out too small."""
LEAST_VISION = 500
"""Tokens of pictures in a prompt."""
LARGE = ((3, 4), (4, 3), (4, 4))
"""Pages of as many tiles."""
TAUS, NOVEL_TAUS = (0.9, 0.95, TAU, 0.99), (0.99, TAU, 0.95, 0.9, 0.8)
FEWER, POINTS = 0.45, 0.5
DENSE, ADAPTIVE, FIXED, FASTV, CHUNKED = "dense", "zipvl", "fixed", "fastv", "chunks"
LOW_BITS, ALL_QUERIES, CACHE_ONLY = "the rest at low bits", "all queries", "cache only"
PART_TAUS = (TAU, 0.9)
CHUNKS = (512, 256, 128)
"""Rows of a pass."""
BEHIND = 2
"""FastV's layers that see all (its K)."""
LENGTH, FOLLOWING, TEXTS = 1_536, 256, 16
"""SmolLM2: tokens of a prompt, tokens after it, prompts."""


@dataclass
class Prompt:
    """What comparisons need to know of the prompt that a network is given."""

    pictures: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Which of its rows are a picture's, (t,)."""
    left: Tensor | None = None
    """What FastV left, places."""


class FixedShare(SparseAttention):
    """The same share of the tokens in every layer and of every prompt, the choice as ZipVL's."""

    def __init__(self, config: DecoderConfig, share: float) -> None:
        super().__init__(config, ZipVL(TAU))
        self.share = share

    def chosen(self, q: Tensor, k: Tensor) -> Tensor:
        rows = probes(q.shape[1])
        attention = attention_of(q, k, rows, self.causal, self.scale)
        return largest(*tally(attention, rows, self.causal), ceil(self.share * q.shape[1]))


class FastV(SparseAttention):
    """All tokens up to layer BEHIND; from there on those of the pictures that the last token attended to most there."""

    def __init__(self, config: DecoderConfig, share: float, layer: int, prompt: Prompt) -> None:
        super().__init__(config, ZipVL(TAU))
        self.share, self.layer, self.prompt = share, layer, prompt

    def chosen(self, q: Tensor, k: Tensor) -> Tensor:
        t, pictures = q.shape[1], self.prompt.pictures
        if self.layer == BEHIND - 1:
            scores = attention_of(q, k, torch.tensor([t - 1]), self.causal, self.scale)[0]
            scores = scores.masked_fill(~pictures, torch.inf)
            count = t - int(pictures.sum()) + round(self.share * int(pictures.sum()))
            self.prompt.left = scores.topk(count).indices.sort().values
        if self.layer < BEHIND:
            return torch.arange(t)
        assert self.prompt.left is not None
        return self.prompt.left


class Partly(SparseAttention):
    """A part of the method. The cache keeps what is chosen; all of a prompt's rows attend, to that and to themselves,
    or to all as if nothing were left out.
    """

    def __init__(self, config: DecoderConfig, tau: float, whole: bool) -> None:
        super().__init__(config, ZipVL(tau))
        self.whole = whole

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if not step.prompt:
            return super().forward(q, k, v, step)
        assert not step.position, "of a conversation's first prompt alone"
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        self.kept, t = self.chosen(q, k), q.shape[1]
        self.keys, self.values = k[:, self.kept], v[:, self.kept]
        seen = torch.eye(t, dtype=torch.bool)
        seen[:, slice(None) if self.whole else self.kept] = True
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = seen.tril() if self.causal else seen
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)


FIELDS = ("right", "hits", "tokens", "vision", "kept", "all", "same")
Found = dict[str, list[Any]]
"""Of each question: whether it is answered right, tokens of the answer that are right, of how many, tokens of pictures,
the shares of them and of the whole prompt that are kept; in chunks, how much of the choice is the whole prompt's."""


Way = tuple[str, float]
"""Of choosing: its name, and its tau, share or rows of a pass."""


def by_share() -> Outcome:
    """ZipVL at its own tau beside all tokens, paired; by tau, and the others at equal share, on fewer questions."""
    layers = _reader()[0].config.decoder.layers
    all_dense, sparse = _answers(((DENSE, 0.0), (ADAPTIVE, TAU)), PAIRED)
    others = [tau for tau in TAUS if tau != TAU]
    by_tau = dict(zip(others, _answers([(ADAPTIVE, tau) for tau in others], CURVE), strict=True))
    by_tau[TAU] = _first(sparse)
    curve = {DENSE: _summary(_first(all_dense))}
    curve |= {f"{ADAPTIVE} {tau:g}": _summary(by_tau[tau]) for tau in sorted(by_tau, reverse=True)}
    equal: dict[tuple[str, float], Way] = {}
    for tau, one in by_tau.items():
        equal[FIXED, tau] = FIXED, round(float(np.mean(one["all"])), 4)
        behind = (float(np.mean(one["kept"])) * layers - BEHIND) / (layers - BEHIND)
        if behind > 0:  # what the layers that FastV thins out may keep
            equal[FASTV, tau] = FASTV, round(behind, 4)
    for (kind, tau), one in zip(equal, _answers(list(equal.values()), CURVE), strict=True):
        apart = {f"{ADAPTIVE} beyond it": _paired(by_tau[tau], one)}
        curve[f"{kind}, as much as {tau:g}"] = _summary(one) | apart
    kept = float(np.mean(sparse["kept"]))
    values = {
        "questions": len(sparse["right"]),
        f"{LEAST_VISION} vision tokens and more, mean": round(float(np.mean(sparse["vision"]))),
        DENSE: _summary(all_dense),
        f"{ADAPTIVE} {TAU:g}": _summary(sparse),
        "points, and their interval": _paired(sparse, all_dense),
        f"by kind, {DENSE} and {ADAPTIVE} {TAU:g}": _by_kind(all_dense, sparse),
        f"curve, {CURVE} questions": curve,
    }
    bar = f"at most {POINTS} points below dense, its interval included, with {FEWER:.0%} fewer of the pictures' tokens"
    return Outcome(values, bar, _paired(sparse, all_dense)[1] >= -POINTS and 1 - kept >= FEWER)


def _paired(found: Found, other: Found) -> list[float]:
    """Points by which more of the questions are answered right, and their 95 % interval."""
    pairs = list(zip(found["right"], other["right"], strict=True))
    more, fewer = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    bounds = paired_interval(more, fewer, len(pairs))
    return [round(100 * one, 2) for one in ((more - fewer) / len(pairs), *bounds)]


def _by_kind(*ways: Found) -> dict[str, dict[str, list[float]]]:
    """Shares of each kind's questions, and of their answers' tokens, that each way gets right."""
    places: dict[str, list[int]] = {}
    for place, question in enumerate(_asked()):
        places.setdefault(question.kind, []).append(place)

    def share(right: list[Any], of: list[Any], among: list[int]) -> float:
        return round(sum(right[place] for place in among) / sum(of[place] for place in among), 4)

    return {
        kind: {
            "exact": [share(one["right"], [1] * PAIRED, among) for one in ways],
            "tokens": [share(one["hits"], one["tokens"], among) for one in ways],
        }
        for kind, among in places.items()
    }


def _first(found: Found) -> Found:
    return {key: values[:CURVE] for key, values in found.items()}


def _summary(found: Found) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "exact": round(float(np.mean(found["right"])), 4),
        "tokens": round(sum(found["hits"]) / sum(found["tokens"]), 4),
        "kept": round(float(np.mean(found["kept"])), 4),
    }
    return {**summary, "alike": round(float(np.mean(found["same"])), 4)} if found["same"] else summary


def _answers(ways: Sequence[Way], count: int) -> list[Found]:
    """The first `count` questions by each way of choosing; what they have in common is done once."""
    found: list[Found] = [{} for _ in ways]
    named = "+".join(f"{kind}-{amount:g}" for kind, amount in ways)
    for begin in range(0, count, BLOCK):
        compute = partial(_block, ways, begin, min(BLOCK, count - begin))
        for one, block in zip(found, _state_remembered(f"{named}-{begin}", compute), strict=True):
            for key, values in block.items():
                one.setdefault(key, []).extend(values)
    return found


def _state_remembered(name: str, compute: Callable[[], Any]) -> Any:
    """As `bundles.remembered`, and computed again where this check is another."""
    state = bundles.digest([bundles.ROOT / "tests" / "verify" / "zipvl.py"])
    return bundles.remembered(f"zipvl-{state}-{name}", compute)


@torch.no_grad()
def _block(ways: Sequence[Way], begin: int, count: int) -> list[Found]:
    _, manifest, tokenizer, _ = _reader()
    prompt = Prompt()
    networks = [_network(kind, amount, prompt) for kind, amount in ways]
    found: list[Found] = [{key: [] for key in FIELDS} for _ in ways]
    encoded: Encoded = {}
    page, before = None, tuple[Key, ...]()
    for question in _asked()[begin : begin + count]:
        if question.image != page:
            encoded, page, before = {}, question.image, ()
        (item,) = answer_items(replace(_questions(), questions=(question,)), manifest, tokenizer)
        keys = _keys(question)
        prompt.pictures = torch.tensor([isinstance(key, tuple) for key in keys])
        rows = item.rows(networks[0][0], encoded)
        assert item.first + 1 == len(keys)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, keys, strict=False))
        again = min(len(list(same)), len(keys) - 1)  # where all is kept, these rows and what they saw are as before
        before = keys
        for (kind, amount), (network, leaves), one in zip(ways, networks, found, strict=True):
            begins = 0 if leaves else again
            chosen = _prompt(network, rows[:, : len(keys)], leaves, len(keys), begins)
            if kind == CHUNKED:
                whole, chosen = chosen, _prompt(network, rows[:, : len(keys)], leaves, int(amount))
                one["same"].append(_alike(chosen.kept, whole.kept))
            logits = [chosen.logits]
            if rows.shape[1] > len(keys):
                logits.append(network.logits(rows[:, len(keys) :], len(keys))[0])
            _judge(one, item, torch.cat(logits).argmax(-1))
            one["kept"].append(_share(chosen.kept, prompt.pictures))
            one["all"].append(_share(chosen.kept, torch.ones(len(keys))))
            one["vision"].append(int(prompt.pictures.sum()))
    print(f"{ways}: questions {begin} to {begin + count}", file=sys.stderr, flush=True)
    return found


def _judge(found: Found, item: Item, best: Tensor) -> None:
    hits = best == item.expected
    ends = int(item.expected[-1]) in item.stops and int(best[-1]) in item.stops
    found["right"].append(bool(hits[:-1].all()) and (ends or bool(hits[-1])))
    found["hits"].append(int(hits.sum()))
    found["tokens"].append(len(hits))


@dataclass(frozen=True)
class Chosen:
    """A prompt's last logits (1, vocab_size), and each layer's chosen places."""

    logits: Tensor
    kept: list[Tensor]


def _prompt(network: Network, rows: Tensor, leaves: Sequence[SparseAttention], chunk: int, begin: int = 0) -> Chosen:
    """In passes of `chunk`, from row `begin` on; the last may be longer, none is shorter unless it is the only one."""
    length, logits = rows.shape[1], torch.zeros(0)
    begins = list(range(begin, max(begin + 1, length - chunk + 1), chunk))
    for begin, end in zip(begins, [*begins[1:], length], strict=True):
        logits = network.logits(rows[:, begin:end], begin, prompt=bool(leaves))[0, -1:]
    return Chosen(logits, [cast(Tensor, leaf.kept) for leaf in leaves])


def _share(kept: Sequence[Tensor], tokens: Tensor) -> float:
    """Of these tokens, mean over the layers."""
    return float(np.mean([float(tokens[places].sum() / tokens.sum()) for places in kept])) if kept else 1.0


def _alike(kept: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Of the tokens that one or the other keeps, the share that both do, mean over the layers."""
    sets = [(set(a.tolist()), set(b.tolist())) for a, b in zip(kept, others, strict=True)]
    return float(np.mean([len(a & b) / len(a | b) for a, b in sets]))


def _network(kind: str, amount: float, prompt: Prompt) -> tuple[Network, list[SparseAttention]]:
    planned, _, _, parameters = _reader()
    network, config = float_network(parameters, planned.config, planned.context), planned.config.decoder
    make: dict[str, Callable[[int], SparseAttention]] = {
        ADAPTIVE: lambda layer: SparseAttention(config, ZipVL(amount)),
        FIXED: lambda layer: FixedShare(config, amount),
        FASTV: lambda layer: FastV(config, amount, layer, prompt),
        LOW_BITS: lambda layer: SparseAttention(config, ZipVL(amount, rest="low bits")),
        ALL_QUERIES: lambda layer: Partly(config, amount, whole=False),
        CACHE_ONLY: lambda layer: Partly(config, amount, whole=True),
        CHUNKED: lambda layer: ChunkedSparseAttention(config, ZipVL(TAU)),
    }
    if kind == DENSE:
        return network, []
    leaves = [make[kind](layer) for layer in range(config.layers)]
    for layer, leaf in zip(network.decoder.layers, leaves, strict=True):
        cast(DecoderLayer, layer).attention.cached = leaf
    return network, leaves


def _keys(question: Question) -> tuple[Key, ...]:
    _, manifest, tokenizer, _ = _reader()
    assert question.image is not None
    said = [Message("user", question.question, images=(question.image,))]
    return prepare_prompt(manifest, tokenizer, said, now=lambda: DAY).prompt.keys


@cache
def _questions() -> QuestionSet:
    return reading.questions("zipvl", EACH, USUAL, LARGE)


@cache
def _asked() -> list[Question]:
    """PAIRED of them that have enough tokens of pictures, in an order of their own, so that a part is like all."""
    enough: dict[Path, bool] = {}
    found = []
    for question in _questions().questions:
        if question.image is not None and question.image not in enough:
            pictures = sum(isinstance(key, tuple) for key in _keys(question))
            enough[question.image] = pictures >= LEAST_VISION
        if question.image is not None and enough[question.image]:
            found.append(question)
    pages = sorted({cast(Path, question.image) for question in found})
    Random(0).shuffle(pages)
    place = {page: index for index, page in enumerate(pages)}
    found.sort(key=lambda question: place[cast(Path, question.image)])
    assert len(found) >= PAIRED, f"{len(found)} questions are about pages that large"
    return found[:PAIRED]


@cache
def _reader() -> tuple[Plan, Manifest, Tokenizer, Parameters]:
    planned = plan(read(reading.CHECKPOINT), Recipe())
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    manifest = describe(planned, Recipe(), weigh(parameters.shapes, Recipe()))
    return planned, manifest, tokenizer_of(planned), parameters


def in_chunks() -> Outcome:
    """Passes that choose by what those so far attended to, beside the whole prompt in one."""
    whole, *parts = _answers([(ADAPTIVE, TAU), *((CHUNKED, float(chunk)) for chunk in CHUNKS)], CURVE)
    found = {"in one pass": _summary(whole)}
    found |= {f"in passes of {chunk}": _summary(part) for chunk, part in zip(CHUNKS, parts, strict=True)}
    return Outcome({"questions": CURVE, "by pass": found}, "reported", True)


def in_parts() -> Outcome:
    """What leaving queries out costs beside leaving keys out, of the prompt or of the cache alone."""
    ways = [(DENSE, 0.0), *((kind, tau) for tau in PART_TAUS for kind in (ADAPTIVE, ALL_QUERIES, CACHE_ONLY))]
    answers = zip(ways, _answers(ways, CURVE), strict=True)
    found = {f"{kind} {amount:g}": _summary(one) for (kind, amount), one in answers}
    return Outcome({"questions": CURVE, "by part": found}, "reported", True)


def at_low_bits() -> Outcome:
    """The paper's version 1: what is not chosen stays in the cache at 2 bits. On the curve's questions."""
    found = _answers([(LOW_BITS, tau) for tau in PART_TAUS], CURVE)
    by_tau = {f"{tau:g}": _summary(one) for tau, one in zip(PART_TAUS, found, strict=True)}
    return Outcome({"questions": CURVE, "by tau": by_tau}, "reported", True)


def of_a_novel() -> Outcome:
    """SmolLM2's perplexity on what follows a long prompt of which each layer keeps a share."""
    found = {
        "all": _state_remembered("novel-1", partial(_following, ZipVL(1.0))),
        **{f"{tau:g}": _state_remembered(f"novel-{tau:g}", partial(_following, ZipVL(tau))) for tau in NOVEL_TAUS},
    }
    low_bits = {
        f"{tau:g}": _state_remembered(f"novel-low-{tau:g}", partial(_following, ZipVL(tau, rest="low bits")))
        for tau in PART_TAUS
    }
    values = {"prompts": TEXTS, "tokens of each": LENGTH, "tokens after it": FOLLOWING, "by tau": found}
    values |= {LOW_BITS: low_bits}
    kept = [one["kept"] for one in found.values()]
    return Outcome(values, "reported; the smaller tau, the less is kept", kept == sorted(kept, reverse=True))


@torch.no_grad()
def _following(sparsity: ZipVL) -> dict[str, float]:
    planned = plan(read(bundles.smollm2_checkpoint()), Recipe())
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    network = float_network(parameters, planned.config, LENGTH + FOLLOWING)
    leaves = swap(network.decoder.layers, planned.config.decoder, sparsity)
    with TemporaryDirectory() as folder:
        file = Path(folder) / TOKENIZER
        file.write_text(planned.checkpoint.tokenizer_json, encoding="utf-8")
        parts = windows(file, TEXTS * (LENGTH + FOLLOWING), LENGTH + FOLLOWING)
    scores, kept = [], []
    for ids in map(torch.tensor, parts):
        rows = network.decoder.embedding(ids[None])
        hidden = network.decoder(rows[:, :LENGTH], network.decoder.eager_step(LENGTH, 0, prompt=True))[:, -1:]
        shares = [len(cast(Tensor, leaf.kept)) / LENGTH for leaf in leaves]
        after = network.decoder(rows[:, LENGTH:-1], network.decoder.eager_step(FOLLOWING - 1, LENGTH))
        log_probabilities = network.decoder.head(torch.cat((hidden, after), 1))[0].double().log_softmax(-1)
        scores.append(log_probabilities.gather(1, ids[LENGTH:, None])[:, 0])
        kept.append(float(np.mean(shares)))
    return {
        "perplexity": round(float(torch.cat(scores).mean().neg().exp()), 3),
        "kept": round(float(np.mean(kept)), 4),
    }


CASES: Cases = {
    f"the reader by share kept, {LEAST_VISION} vision tokens and more": by_share,
    "the reader in chunks": in_chunks,
    "the reader by part of the method": in_parts,
    f"the reader with {LOW_BITS}": at_low_bits,
    f"SmolLM2 after {LENGTH} tokens of a novel": of_a_novel,
}
