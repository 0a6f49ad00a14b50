"""The gate: what it lets through is in the manifest, what it stops leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from handlens.cli import app
from handlens_export import pipeline
from handlens_export.errors import GateError
from handlens_export.gate import Gate
from handlens_export.pipeline import export
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.errors import EvaluationError, OptionError
from handlens_runtime.options import Options

ONNX = Recipe(backends=("onnx",), context=256)
ASKED = ("What is this?", "What is it?", "A cat?", "Who?")


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory) -> Path:
    """A folder with a checkpoint, and a set that its program answers right in three of four questions."""
    folder = tmp_path_factory.mktemp("gate")
    checkpoint = tiny_checkpoint("bluelm_v", folder / "checkpoint")
    export(checkpoint, folder / "plain", ONNX)
    Image.new("RGB", (40, 30), (200, 40, 40)).save(folder / "red.png")
    engine, said = Engine(folder / "plain"), {}
    for question in ASKED:
        message = Message("user", question, (folder / "red.png",))
        said[question] = list(engine.generate([message], Options(40, temperature=0.0, repetition_penalty=1.0)))
    # A random network does not end its answers: whatever it says after its first word becomes an end token.
    first = {tokens[0].id for tokens in said.values()}
    ends = {token.id for tokens in said.values() for token in tokens} - first
    config = json.loads((checkpoint / "generation_config.json").read_text())
    config["eos_token_id"] = [*config["eos_token_id"], *sorted(ends)]
    (checkpoint / "generation_config.json").write_text(json.dumps(config))
    lines = []
    for question, tokens in said.items():
        ids = [token.id for token in tokens]
        answer = engine.tokenizer.decode(ids[: next(i for i, token in enumerate(ids) if token in ends)])
        lines.append({"image": "red.png", "question": question, "answer": answer, "kind": "noise"})
    lines[-1]["answer"] += "!"
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_bundle_that_answers_gets_its_name_and_says_so(made, tmp_path):
    told = []
    gate = Gate(made / "set.jsonl", 0.75)
    manifest = export(
        made / "checkpoint", tmp_path / "b", ONNX, gate=gate, progress=lambda what, share: told.append((what, share))
    )
    assert manifest.gate is not None and Bundle.load(tmp_path / "b").manifest == manifest
    assert manifest.gate.set_sha256 == hashlib.sha256((made / "set.jsonl").read_bytes()).hexdigest()
    assert (manifest.gate.questions, manifest.gate.accuracy) == (4, 0.75)
    score = manifest.gate.backends["onnx"]
    assert score.exact_match == 0.75 < score.character_accuracy < 1
    shares = [round(share, 9) for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert sum(what == "gate onnx" for what, _ in told) == 4
    # The same artefact gives the same answers to the verb.
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "b"), str(made / "set.jsonl"), "--json"])
    assert json.loads(result.stdout)["scores"][-1]["exact_match"] == 0.75


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over-an-old-one"])
def test_a_bundle_that_does_not_leaves_all_as_it_was(made, tmp_path, existing):
    target = tmp_path / "bundle"
    if existing:
        shutil.copytree(made / "plain", target)
    sentence = r"The onnx program answers 3 of 4 questions of .* exactly \(75\.0%.*asks for 90\.0%.*--bits auto"
    with pytest.raises(GateError, match=sentence) as error:
        export(made / "checkpoint", target, ONNX, gate=Gate(made / "set.jsonl"), force=existing)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if existing else [])
    if existing:
        assert Bundle.load(target).manifest == Bundle.load(made / "plain").manifest


@pytest.fixture
def no_work(monkeypatch):
    """Reading a weight is an error."""

    def refuse(*_):
        raise AssertionError("a weight was read before the refusal")

    monkeypatch.setattr(pipeline, "quantize_network", refuse)


@pytest.mark.usefixtures("no_work")
def test_a_set_that_cannot_be_asked_is_refused_before_any_work(made, tiny_checkpoint, tmp_path):
    checkpoint, target = tiny_checkpoint("llama", tmp_path / "llama"), tmp_path / "bundle"
    with pytest.raises(EvaluationError, match=r"line 1, shows a picture, but .*llama reads text only"):
        export(checkpoint, target, ONNX, gate=Gate(made / "set.jsonl"))
    (tmp_path / "set.jsonl").write_text('{"image": null}')
    with pytest.raises(EvaluationError, match="line 1: the key 'question' is missing"):
        export(checkpoint, target, ONNX, gate=Gate(tmp_path / "set.jsonl"))
    assert not target.exists()


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "0.9", float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(OptionError, match="a share lies between 0 and 1"):
        Gate(Path("set.jsonl"), share)
