"""Other bits for single layers, three bits in the kernels' four, and who gets more bits where a mean is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import handlens
from handlens_export import fallback
from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.errors import GateError, UnsupportedError
from handlens_export.gate import Gate
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import float_network
from handlens_export.network.network import Network
from handlens_export.pipeline import export
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.formats import matrix, weigh
from handlens_export.quantize.mixed import between, choose, with_target
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.sensitivity import POSITIONS, Sensitivity, sensitivities
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache

pytestmark = pytest.mark.usefixtures("own_cache")

ONNX = Recipe(backends=("onnx",))


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    return tiny_checkpoint("bluelm_v", tmp_path_factory.mktemp("bluelm_v"))


def parameters_of(folder: Path) -> Parameters:
    planned = plan(read(folder), Recipe())
    return Parameters(planned.checkpoint, planned.family, planned.config)


def rows_of(network: Network) -> list[Tensor]:
    torch.manual_seed(0)
    return [network.decoder.embedding(torch.randint(network.config.decoder.vocab_size, (1, 24))) for _ in range(3)]


def in_three_bits(name: str, weight: Tensor) -> Tensor:
    return quantize(weight, 3, 32).dequantize()


def test_the_longest_name_that_fits_counts():
    places = (("decoder.layers.1", 8), ("decoder.layers.1.mlp", 4), ("decoder.layers.1.mlp.down_proj", 32))
    recipe = replace(ONNX, bits=2, layer_bits=places)

    def bits(name: str) -> int:
        grid = matrix(f"decoder.layers.{name}.weight", (64, 64), recipe)
        return 32 if grid is None else grid.bits

    assert bits("1.attention.q_proj") == 8
    assert bits("1.mlp.up_proj") == 4
    assert bits("1.mlp.down_proj") == 32
    assert bits("10.mlp.up_proj") == bits("0.mlp.up_proj") == 2


def test_a_layer_that_is_not_there_is_refused(folder):
    with pytest.raises(UnsupportedError, match=r"names decoder.layers.99, but .* has layers 0 to \d+; choose among"):
        plan(read(folder), Recipe(layer_bits=(("decoder.layers.99", 8),)))


def test_a_manifest_says_what_got_other_bits(folder):
    shapes = parameters_of(folder).shapes
    plain, mixed = (
        weigh(shapes, recipe)["decoder"] for recipe in (ONNX, replace(ONNX, layer_bits=(("decoder.layers.0.mlp", 8),)))
    )
    assert mixed.bytes > plain.bytes
    said = set(mixed.exceptions) - set(plain.exceptions)
    assert len(said) == 3 and all("8 bits, by the recipe's layer_bits" in line for line in said)


def test_three_bits_are_stored_as_four(folder):
    shapes = parameters_of(folder).shapes
    three, four = (weigh(shapes, replace(ONNX, bits=bits))["decoder"] for bits in (3, 4))
    assert (three.bits, three.stored_bits, four.stored_bits) == (3, 4, None)
    assert three.bytes == four.bytes


@pytest.mark.parametrize("recipe", [Recipe(bits=3), Recipe(layer_bits=(("decoder.layers.0.mlp", 8),))])
def test_programs_of_such_bits_compute_what_their_reference_does(folder, tmp_path, recipe):
    manifest = export(folder, tmp_path / "bundle", recipe)
    assert set(manifest.backends) == {"executorch", "onnx"}
    report = handlens.check(tmp_path / "bundle", folder)
    assert report.passed
    assert manifest.quantization.recipe.bits == recipe.bits
    assert manifest.quantization.recipe.layer_bits == recipe.layer_bits


def test_sensitivity_is_the_divergence_with_that_part_alone_rounded(folder):
    parameters = parameters_of(folder)
    config = plan(read(folder), Recipe()).config
    found = sensitivities(parameters, config, in_three_bits, rows_of)
    assert [one.place for one in found] == [
        f"decoder.layers.{index}.{part}" for index in range(config.decoder.layers) for part in ("attention", "mlp")
    ]
    exact = float_network(parameters, config, 64)
    prompts = rows_of(exact)

    def answers(network: Network) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.decoder.head(network.decoder(rows, network.decoder.eager_step(rows.shape[1], 0))
            )[0, -POSITIONS:] for rows in prompts]).log_softmax(-1)  # fmt: skip

    expected = answers(exact)
    for one in found:
        other = float_network(parameters, config, 64)
        count = 0
        for name, module in other.get_submodule(one.place).named_modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(in_three_bits(name, module.weight.detach()), requires_grad=False)
                count += module.weight.numel()
        moved = answers(other)
        kl = float((expected.exp() * (expected - moved)).sum(-1).mean())
        assert one.kl == pytest.approx(kl, rel=1e-3) and one.kl > 0
        assert one.parameters == count


def test_those_that_gain_most_a_weight_get_more_bits_as_far_as_the_target_reaches():
    found = [
        Sensitivity("a", 1.0, 100), Sensitivity("b", 3.0, 600), Sensitivity("c", 1.5, 100), Sensitivity("d", 0.1, 200)
    ]  # fmt: skip
    assert choose(found, 4.4, 4, 8) == ["c"]
    assert choose(found, 5.0, 4, 8) == ["a", "c"]
    assert choose(found, 8.0, 4, 8) == ["a", "b", "c", "d"]
    assert choose(found, 4.0, 4, 8) == []


@pytest.mark.parametrize(
    ("backends", "target", "expected"),
    [(("executorch", "onnx"), 4.5, (4, 8)), (("onnx",), 3.0, (2, 4)), (("onnx",), 8.0, (8, 8)), (("onnx",), 4, (4, 8))],
)
def test_a_target_lies_between_formats_that_all_backends_have(backends, target, expected):
    assert between(Recipe(backends=backends), target) == expected


@pytest.mark.parametrize("target", [3.5, 9.0])
def test_a_target_that_no_kernel_reaches_is_refused(target):
    with pytest.raises(UnsupportedError, match=f"--target-bits is {target:g}, but the kernels of .* take 4, 8; choose"):
        between(Recipe(), target)


def test_a_target_is_kept_and_what_was_measured_is_not_measured_again(folder):
    parameters, config = parameters_of(folder), plan(read(folder), Recipe()).config

    def never(network: Network) -> list[Tensor]:
        raise AssertionError("measured again")

    with StageCache() as kept:
        recipe = with_target(parameters, config, Recipe(), 6.0, kept, Calibration("a set", "", rows_of))
        again = with_target(parameters, config, Recipe(), 6.0, kept, Calibration("a set", "", never))
    assert recipe == again and recipe.layer_bits
    grids = {name: matrix(name, shape, recipe) for name, shape in parameters.shapes.items() if "decoder.layers" in name}
    linears = [grid for grid in grids.values() if grid is not None]
    weights = sum(grid.rows * grid.columns for grid in linears)
    mean = sum(grid.rows * grid.columns * grid.bits for grid in linears) / weights
    assert 5.0 < mean <= 6.0


def test_an_export_with_a_target_says_what_got_more_bits(folder, tmp_path):
    manifest = export(folder, tmp_path / "bundle", ONNX, target_bits=6)
    assert {bits for _, bits in manifest.quantization.recipe.layer_bits} == {8}
    assert handlens.check(tmp_path / "bundle", folder).passed
    with pytest.raises(UnsupportedError, match="leave out --layer-bits"):
        export(folder, tmp_path / "other", replace(ONNX, layer_bits=(("decoder.layers.0", 8),)), target_bits=6)


def test_bits_rise_until_the_gate_passes(folder, tmp_path, monkeypatch):
    tried: list[float] = []

    def exported(source, target, recipe, *, target_bits, **options):
        tried.append(target_bits or recipe.bits)
        options["progress"]("lower", 0.5)
        if len(tried) < 3:
            raise GateError("The onnx program answers 1 of 9 questions", "ask for less")
        return "manifest"

    monkeypatch.setattr(fallback, "export", exported)
    said: list[str] = []
    shares: list[float] = []
    gate = Gate(tmp_path / "set.jsonl")
    found = fallback.export_until_passed(
        folder, tmp_path / "bundle", Recipe(), gate=gate, warn=said.append,
        progress=lambda stage, share: shares.append(share),
    )  # fmt: skip
    assert found == "manifest" and tried == [4, 4.5, 5.0]
    failed = "With {} bits a weight: The onnx program answers 1 of 9 questions; more are tried."
    assert said == [failed.format("4"), failed.format("4.5")]
    assert shares == sorted(shares)


def test_a_gate_that_nothing_passes_is_a_sentence_and_no_bundle(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fallback, "TRIED", (4.0, 6.0))
    questions = tmp_path / "set.jsonl"
    questions.write_text(
        json.dumps({"image": None, "question": "Who?", "kind": "field", "answer": "nobody would say this"}) + "\n"
    )
    with pytest.raises(GateError, match="eight bits are all there are"):
        handlens.export(folder, tmp_path / "bundle", ONNX, gate=questions, target_bits="auto", warn=lambda _: None)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(UnsupportedError, match="give its questions with --gate"):
        handlens.export(folder, tmp_path / "bundle", ONNX, target_bits="auto")
