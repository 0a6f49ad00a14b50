"""A sweep: what it tries, how it measures, and that what it found is not lost."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from math import exp
from pathlib import Path

import pytest
import torch

from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.errors import TargetError, UnsupportedError
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.prompt_rows import embed, prepare_prompt
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe
from handlens_export.sweep import run
from handlens_export.sweep.items import answer_items, text_items
from handlens_export.sweep.quality import quality
from handlens_export.sweep.run import Asked, sweep
from handlens_export.sweep.variants import variants
from handlens_runtime.chat import Message
from handlens_runtime.errors import EvaluationError
from handlens_runtime.evaluation import QuestionSet, read_set
from handlens_runtime.evaluation.scoring import exact_match
from handlens_runtime.manifest import Manifest
from handlens_runtime.tokenizer import Tokenizer

ASSETS = Path(__file__).resolve().parents[2] / "assets"
TEXT = "The quick brown fox jumps over the lazy dog while it rains in the mountains. " * 30
ONNX = Recipe(backends=("onnx",))


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    return tiny_checkpoint("bluelm_v", tmp_path_factory.mktemp("bluelm_v"))


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def other(tmp_path) -> Path:
    (tmp_path / "other.txt").write_text("Pack my box with five dozen liquor jugs, and sphinx of black quartz. " * 30)
    return tmp_path / "other.txt"


@cache
def prepared(folder: Path, target: Path) -> tuple[Network, Manifest, Tokenizer]:
    planned = plan(read(folder), ONNX)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    (target / "tokenizer.json").write_text(planned.checkpoint.tokenizer_json, encoding="utf-8")
    network = float_network(parameters, planned.config, planned.context)
    return network, describe(planned, ONNX, weigh(parameters.shapes, ONNX)), Tokenizer(target / "tokenizer.json")


def test_methods_bits_and_groups_are_combined_each_once():
    found = variants(["round", "rotate+rsq"], [4, 8], [32, 64])
    assert [one.name for one in found] == [
        "round, 4 bits, groups of 32",
        "rotate+rsq, 4 bits, groups of 32",
        "round, 4 bits, groups of 64",
        "rotate+rsq, 4 bits, groups of 64",
        "round, 8 bits, a scale per row",
        "rotate+rsq, 8 bits, a scale per row",
    ]
    assert found[1].recipe.rotate and not found[1].recipe.smooth and found[1].recipe.method == "rsq"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ((["awq"], [4], [32]), "--methods names 'awq'; give round, clip, gptq, rsq, each with rotate"),
        ((["rotate+rotate+rsq"], [4], [32]), "--methods names 'rotate"),
        ((["round"], [5], [32]), "--bits 5 is not a format of the executorch backend"),
        ((["round"], [2], [32]), "--bits 2 is not a format of the executorch backend"),
        ((["round"], [4], [48]), "--group 48 is not possible"),
        (([], [4], [32]), "name at least one method"),
    ],
)
def test_what_no_export_can_do_is_refused_before_any_work(asked, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        variants(*asked)


def test_perplexity_is_the_whole_networks(folder, tmp_path):
    network, manifest, tokenizer = prepared(folder, tmp_path)
    items = list(text_items(TEXT, tokenizer, 300, manifest.sizes.context, None))
    found = quality(network, items, lambda share: None)
    scores = []
    for begin in range(0, 300, min(512, manifest.sizes.context)):
        ids = torch.tensor(tokenizer.encode(TEXT)[begin : min(300, begin + min(512, manifest.sizes.context))])
        with torch.no_grad():
            rows = network.decoder.embedding(ids[None])
            hidden = network.decoder(rows, network.decoder.eager_step(len(ids), 0))
            logits = network.decoder.head(hidden)[0].log_softmax(-1)
        scores.append(logits[:-1].gather(1, ids[1:, None]).double())
    assert found.perplexity == pytest.approx(exp(-float(torch.cat(scores).mean())), rel=1e-5)
    assert found.exact_match is None and found.divergence(found) == 0


def test_right_answers_are_those_that_greedy_decoding_gives(tmp_path):
    network, manifest, tokenizer = prepared(ASSETS / "reader", tmp_path)
    asked = read_set(ASSETS / "reader" / "gate" / "questions.jsonl").spread(8)
    for question in asked.questions:
        prompt = prepare_prompt(manifest, tokenizer, [Message("user", question.question, images=(question.image,))])
        rows = embed(network, prompt)
        ids: list[int] = []
        while len(ids) < 40:
            with torch.no_grad():
                best = int(network.logits(rows)[0, -1].argmax())
                if best in manifest.chat.stop_ids:
                    break
                ids.append(best)
                rows = torch.cat((rows, network.decoder.embedding(torch.tensor([[best]]))), dim=1)
        alone = QuestionSet(asked.path, asked.sha256, (question,))
        items = list(answer_items(alone, manifest, tokenizer))
        right = quality(network, items, lambda share: None).exact_match
        assert right == float(exact_match(tokenizer.decode(ids), question.answer))


@pytest.mark.parametrize("family", ["smolvlm", "llama"])
def test_an_answer_is_what_the_template_writes_behind_its_prompt(tiny_checkpoint, tmp_path, family):
    """smolvlm writes a space before an answer: its model gives that too."""
    _, manifest, tokenizer = prepared(tiny_checkpoint(family, tmp_path / family), tmp_path)
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"image": None, "question": "Where?", "answer": "Paris", "kind": "place"}) + "\n")
    (item,) = answer_items(read_set(path), manifest, tokenizer)
    said = [Message("user", "Where?"), Message("assistant", "Paris")]
    whole = prepare_prompt(manifest, tokenizer, said, answer=False).prompt.ids
    begin = item.first + 1
    assert tuple(item.expected.tolist()) == whole[begin : begin + len(item.expected)]
    assert tokenizer.decode(item.expected.tolist()).strip() == "Paris"
    assert int(item.expected[-1]) in item.stops


def test_a_network_that_gives_no_numbers_is_no_good_one(folder, tmp_path):
    network, manifest, tokenizer = prepared(folder, tmp_path)
    items = list(text_items(TEXT, tokenizer, 60, manifest.sizes.context, None))
    exact = quality(network, items, lambda share: None)
    broken = replace(exact, distributions=exact.distributions * float("nan"))
    assert broken.divergence(exact) == float("inf")


def test_rows_come_in_order_and_a_stopped_sweep_goes_on(folder, text, other, tmp_path, monkeypatch):
    wanted = variants(["round", "gptq"], [4], [32, 64])
    asked = Asked(text=text, tokens=120)
    quantize = run.quantize_network
    done: list[str] = []

    def stopping(parameters, config, recipe, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(f"{recipe.method} {recipe.group}")
        return quantize(parameters, config, recipe, *rest)

    monkeypatch.setattr(run, "quantize_network", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(folder, tmp_path / "out", wanted, asked, calibration=other)
    kept = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [row["name"] for row in kept] == ["float", wanted[0].name, wanted[1].name]
    monkeypatch.setattr(run, "quantize_network", quantize)
    shares: list[float] = []
    table = sweep(
        folder, tmp_path / "out", wanted, asked, calibration=other, progress=lambda stage, share: shares.append(share)
    )
    assert [row.name for row in table.rows] == ["float", *(one.name for one in wanted)]
    assert [row.seconds for row in table.rows[:3]] == [row["seconds"] for row in kept]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    exact, rounded, by_gptq, in_64s, _ = table.rows
    assert exact.kl == 0 < by_gptq.kl < rounded.kl
    assert 4.25 <= in_64s.bits_per_weight < rounded.bits_per_weight == 4.5
    monkeypatch.setattr(run, "float_network", None)  # nothing is computed where all rows are there
    assert sweep(folder, tmp_path / "out", wanted, asked, calibration=other) == table


def test_a_folder_with_another_sweep_is_left_as_it_is(folder, text, tmp_path):
    wanted = variants(["round"], [4], [32])
    sweep(folder, tmp_path / "out", wanted, Asked(text=text, tokens=60))
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    with pytest.raises(TargetError, match="holds a sweep of another checkpoint, text, set or HandLens; choose another"):
        sweep(folder, tmp_path / "out", wanted, Asked(text=text, tokens=90))
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before
    (tmp_path / "out" / "sweep.json").write_text("{}")
    with pytest.raises(TargetError, match=r"is no table of a sweep .*; remove it, or choose another folder"):
        sweep(folder, tmp_path / "out", wanted, Asked(text=text, tokens=60))


def test_what_tells_nothing_is_refused(folder, text, tmp_path):
    with pytest.raises(UnsupportedError, match="give --text, --questions or both"):
        Asked()
    with pytest.raises(UnsupportedError, match="--tokens is 1, which tells nothing"):
        Asked(text=text, tokens=1)
    wanted = variants(["round"], [4], [32])
    with pytest.raises(EvaluationError, match="cannot be read"):
        sweep(folder, tmp_path / "out", wanted, Asked(text=tmp_path / "none.txt"))
    with pytest.raises(UnsupportedError, match="flatters the methods that look at activations"):
        sweep(folder, tmp_path / "out", wanted, Asked(text=text), calibration=text)
    questions = tmp_path / "set.jsonl"
    questions.write_text(json.dumps({"image": None, "question": "Where?", "answer": "Paris", "kind": "place"}) + "\n")
    with pytest.raises(UnsupportedError, match="is both what the variants are tried on and what activations"):
        sweep(folder, tmp_path / "out", wanted, Asked(questions=questions), calibration=questions)
    assert not (tmp_path / "out").exists()
    with pytest.raises(TargetError, match="cannot be a folder"):
        sweep(folder, text, variants(["round"], [4], [32]), Asked(text=text))


def test_a_network_that_sees_the_answer_before_it_gives_it_is_refused(tiny_checkpoint, text, tmp_path):
    whole = tiny_checkpoint("paligemma", tmp_path / "paligemma")
    with pytest.raises(UnsupportedError, match="reads a prompt as a whole"):
        sweep(whole, tmp_path / "out", variants(["round"], [4], [32]), Asked(text=text))
    assert not (tmp_path / "out").exists()
