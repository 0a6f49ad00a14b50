"""Methods that look at activations, over a whole checkpoint: layer by layer, kept, and the same bytes after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import handlens
from handlens_export.checkpoint.read import read
from handlens_export.describe import describe, plan
from handlens_export.errors import CalibrationError, UnsupportedError
from handlens_export.measuring import calibration_of
from handlens_export.network.load import Parameters
from handlens_export.network.load import load as load_weights
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.pipeline import export
from handlens_export.prompt_rows import PreparedPrompt
from handlens_export.quantize import calibrated
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.calibration import _shortened, digest
from handlens_export.quantize.formats import weigh
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.weight import QuantizedLinear
from handlens_export.recipe import METHODS, Recipe
from handlens_export.reference import reference
from handlens_export.stage_cache.store import StageCache
from handlens_runtime.bundle import Bundle
from handlens_runtime.prompt import Prompt

pytestmark = pytest.mark.usefixtures("own_cache")

GPTQ = Recipe(method="gptq")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    return tiny_checkpoint("bluelm_v", tmp_path_factory.mktemp("bluelm_v"))


def rows_of(network: Network, seed: int = 0) -> list[Tensor]:
    """Prompts of tokens that the network embeds."""
    torch.manual_seed(seed)
    vocabulary = network.config.decoder.vocab_size
    return [network.decoder.embedding(torch.randint(vocabulary, (1, 24))) for _ in range(6)]


def quantized(folder: Path, recipe: Recipe, kept: StageCache | None = None, name: str = "a set") -> Network:
    planned = plan(read(folder), recipe)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    calibration = Calibration(name, "state", rows_of)
    return quantize_network(parameters, planned.config, recipe, 64, lambda share: None, kept, calibration)[0]


def weights(network: Network) -> dict[str, Tensor]:
    return {
        path: module.quantized.dequantize()
        for path, module in network.named_modules()
        if isinstance(module, QuantizedLinear)
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_linear_is_rounded_whatever_the_method(folder, method):
    network = quantized(folder, Recipe(method=method))
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in network.modules())
    plain = weights(quantized(folder, Recipe()))
    found = weights(network)
    assert found.keys() == plain.keys()
    changed = {path for path in found if not torch.equal(found[path], plain[path])}
    inside = {path for path in found if path.startswith("decoder.layers.")}
    assert changed == (set() if method == "round" else inside)


def test_gptq_keeps_the_float_networks_rows_better_than_rounding(folder):
    planned = plan(read(folder), Recipe())
    exact = Network(planned.config, 64).eval()
    load_weights(exact, planned.checkpoint, planned.family)

    def apart(network: Network) -> float:
        total = 0.0
        with torch.no_grad():
            for rows in rows_of(exact):
                step = exact.decoder.eager_step(rows.shape[1], 0)
                total += float((network.decoder(rows, step) - exact.decoder(rows, step)).square().sum())
        return total

    assert apart(quantized(folder, GPTQ)) < 0.8 * apart(quantized(folder, Recipe()))


def test_what_is_kept_is_not_made_again_and_a_stop_changes_nothing(folder, monkeypatch):
    through = weights(quantized(folder, GPTQ))
    made: list[str] = []
    make = calibrated._make

    def noted(network, index, *rest):
        if made[-1:] == ["stop"]:
            raise KeyboardInterrupt
        made.append(str(index))
        return make(network, index, *rest)

    monkeypatch.setattr(calibrated, "_make", noted)
    layers = plan(read(folder), GPTQ).config.decoder.layers
    assert layers > 1
    monkeypatch.setattr(calibrated, "let_go", lambda: made.append("stop") if made[-1] == "0" else None)
    with pytest.raises(KeyboardInterrupt), StageCache() as kept:
        quantized(folder, GPTQ, kept)
    assert made == ["0", "stop"]
    made.clear()
    monkeypatch.setattr(calibrated, "let_go", lambda: None)
    with StageCache() as kept:
        resumed = weights(quantized(folder, GPTQ, kept))
    assert made == [str(index) for index in range(1, layers)]
    assert all(torch.equal(resumed[path], weight) for path, weight in through.items())
    made.clear()
    with StageCache() as kept:
        quantized(folder, replace(GPTQ, context=32, chunk=16), kept)
    assert made == []


@pytest.mark.parametrize("other", [{"method": "rsq"}, {"group": 64}, {"embedding_bits": 32}, "another set"])
def test_what_reaches_a_layer_is_in_its_key(folder, other, monkeypatch):
    made: list[int] = []
    make = calibrated._make
    monkeypatch.setattr(calibrated, "_make", lambda *given: (made.append(given[1]), make(*given))[1])
    with StageCache() as kept:
        quantized(folder, GPTQ, kept)
        assert 0 in made
        made.clear()
        quantized(folder, GPTQ, kept)
        assert made == []
        recipe = GPTQ if isinstance(other, str) else replace(GPTQ, **other)
        quantized(folder, recipe, kept, other if isinstance(other, str) else "a set")
    assert 0 in made


def test_an_exports_manifest_says_method_and_set_and_its_reference_is_the_same_network(folder, tmp_path):
    text = tmp_path / "set.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    recipe = Recipe(backends=("onnx",), method="gptq")
    manifest = export(folder, tmp_path / "bundle", recipe, calibration=text)
    assert (manifest.quantization.method, manifest.quantization.recipe.method) == ("gptq-2", "gptq")
    assert manifest.quantization.recipe.calibration == digest(text) != digest(None)
    report = handlens.check(tmp_path / "bundle", folder)
    assert report.passed
    for entry in (tmp_path / "cache").rglob("*"):
        if entry.is_file():
            entry.unlink()
    with pytest.raises(UnsupportedError, match="not in the cache any more"):
        reference(Bundle.load(tmp_path / "bundle"), plan(read(folder), recipe), "onnx")


def test_a_long_picture_leaves_room_for_question_and_answer():
    keys = (7, *[("picture", index) for index in range(900)], *range(10, 30))
    prepared = PreparedPrompt(Prompt(tuple(0 if isinstance(k, tuple) else k for k in keys), keys, 1), {})
    kept = _shortened(prepared, 64).prompt
    assert len(kept.ids) == len(kept.keys) == 64
    assert kept.keys[:3] == (7, ("picture", 0), ("picture", 1)) and kept.keys[-20:] == tuple(range(10, 30))
    assert _shortened(prepared, 2000).prompt == prepared.prompt
    text = PreparedPrompt(Prompt(tuple(range(100)), tuple(range(100)), 0), {})
    assert _shortened(text, 64).prompt.ids == tuple(range(64))


def test_a_set_of_questions_is_measured_with_pictures_and_answers(folder, tmp_path):
    """The rows that reach the layers: the picture's, then the question's, and at the end the answer's."""
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    questions = tmp_path / "set.jsonl"
    line = {"image": "red.png", "question": "What colour?", "answer": "red", "kind": "colour"}
    questions.write_text(json.dumps(line) + "\n")
    planned = plan(read(folder), GPTQ)
    parameters = Parameters(planned.checkpoint, planned.family, planned.config)
    network = float_network(parameters, planned.config, 64)
    calibration = calibration_of(questions, planned, describe(planned, GPTQ, weigh(parameters.shapes, GPTQ)))
    (rows,) = calibration.rows(network)
    with_picture = rows.shape[1]
    table = network.decoder.embedding(torch.arange(planned.config.decoder.vocab_size)[None])[0]
    nearest = [int((table - row).square().sum(-1).argmin()) for row in rows[0]]
    text = planned.checkpoint.tokenizer.decode(nearest)
    assert "What colour?" in text and "red" in text[text.index("What colour?") :]
    questions.write_text(json.dumps({**line, "image": None}) + "\n")
    (rows,) = calibration_of(questions, planned, describe(planned, GPTQ, weigh(parameters.shapes, GPTQ))).rows(network)
    assert with_picture >= rows.shape[1] + planned.config.tokens_per_tile
    questions.write_text(json.dumps(line) + "\n")
    before = digest(questions)
    Image.new("RGB", (40, 30), (30, 30, 200)).save(tmp_path / "red.png")
    assert digest(questions) != before


def test_the_built_in_set_is_measured_again_where_its_layers_are_gone(folder, tmp_path):
    with pytest.warns(UserWarning, match="give it a text of some 30,000 tokens"):
        export(folder, tmp_path / "bundle", replace(GPTQ, backends=("onnx",)))
    bundle = Bundle.load(tmp_path / "bundle")
    kept = weights(reference(bundle, plan(read(folder), GPTQ), "onnx"))
    for entry in (tmp_path / "cache").rglob("*"):
        if entry.is_file():
            entry.unlink()
    again = weights(reference(bundle, plan(read(folder), GPTQ), "onnx"))
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[path], weight) for path, weight in again.items())


def test_progress_of_a_smoothed_export_only_grows(folder, tmp_path):
    shares: list[float] = []
    recipe = Recipe(backends=("onnx",), smooth=True, method="clip")
    export(folder, tmp_path / "bundle", recipe, progress=lambda stage, share: shares.append(share))
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("content", "named"), [(None, "cannot be read"), (b"", "is empty"), (b"  \n", "is empty"), (b"\xff\xfe", "no text")]
)
def test_a_set_that_is_none_is_refused_before_any_work(folder, tmp_path, content, named):
    path = tmp_path / "set.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=named):
        export(folder, tmp_path / "bundle", GPTQ, calibration=path)
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "cache").exists()


def test_a_set_without_a_method_that_needs_one_is_refused(folder, tmp_path):
    with pytest.raises(UnsupportedError, match="add --method gptq, --smooth or --target-bits"):
        export(folder, tmp_path / "bundle", Recipe(), calibration=tmp_path / "set.txt")
    with pytest.raises(UnsupportedError, match="choose one of round, clip, gptq, rsq"):
        Recipe(method="awq")  # type: ignore[arg-type]
