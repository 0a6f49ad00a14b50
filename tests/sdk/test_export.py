from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handlens.cli import app
from handlens_export import fallback, pipeline
from handlens_export.errors import TargetError
from handlens_export.gate import Gate
from handlens_export.recipe import Recipe
from handlens_runtime.manifest import Manifest


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> list[tuple[object, ...]]:
    """What the command line asks of the pipeline, which answers at once."""
    seen: list[tuple[object, ...]] = []

    def export(
        source: Path,
        target: Path,
        recipe: Recipe,
        *,
        lora: Path | None = None,
        calibration: Path | None = None,
        target_bits: float | None = None,
        gate: Gate | None = None,
        force: bool = False,
        jobs: int | None = None,
        progress: Callable[[str, float], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> Manifest:
        shown = (source, target, recipe, lora, force) if gate is None else (source, target, gate)
        seen.append((*shown, *(one for one in (calibration, target_bits) if one is not None)))
        if target.name == "taken":
            raise TargetError("taken exists; give --force.")
        assert progress is not None and warn is not None
        if source.name == "beams":
            warn("beams sets num_beams 4.")
        for stage, share in (("read", 0.0), ("quantize", 0.5), ("quantize", 0.55), ("quantize", 0.9)):
            progress(stage, share)
        return manifest

    monkeypatch.setattr(pipeline, "export", export)
    return seen


def test_without_options_the_recipe_is_the_default(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle"])
    assert result.exit_code == 0, result.stderr
    assert calls == [(Path("ckpt"), Path("bundle"), Recipe(), None, False)]
    assert "tiny, 1.5M parameters, 9 B for onnx" in result.stdout


def test_every_option_reaches_the_recipe(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    options = (
        "--backend onnx --method rsq --smooth --rotate --bits 2 --group 64 --vision-bits 4 --embedding-bits 32 "
        "--kv float --context 512 --chunk 64 --max-portable 0.25 --lora lora --calibration set.txt --force"
    )
    result = runner.invoke(app, ["export", "ckpt", "-o", "b", *options.split()])
    assert result.exit_code == 0, result.stderr
    recipe = Recipe(
        ("onnx",),
        method="rsq",
        smooth=True,
        rotate=True,
        bits=2,
        group=64,
        vision_bits=4,
        embedding_bits=32,
        kv="float",
        context=512,
        chunk=64,
        max_portable=0.25,
    )
    assert calls == [(Path("ckpt"), Path("b"), recipe, Path("lora"), True, Path("set.txt"))]


def test_json_is_one_object_and_progress_goes_to_stderr(
    runner: CliRunner, calls: list[tuple[object, ...]], manifest: Manifest
) -> None:
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle", "--json"])
    outcome = json.loads(result.stdout)
    assert (outcome["bundle"], outcome["bytes"]) == ("bundle", 9)
    assert outcome["manifest"] == manifest.model_dump(mode="json")
    # A line for a new stage and for each tenth, not for every call.
    assert [line.split(" (")[0].strip() for line in result.stderr.splitlines()] == [
        "0% read",
        "50% quantize",
        "90% quantize",
    ]


def test_what_the_bundle_will_not_do_is_told(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    result = runner.invoke(app, ["export", "beams", "-o", "bundle"])
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "handlens: beams sets num_beams 4."
    as_json = runner.invoke(app, ["export", "beams", "-o", "bundle", "--json"])
    assert json.loads(as_json.stdout)["warnings"] == ["beams sets num_beams 4."]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "taken"], "taken exists; give --force."),
        (["-o", "b", "--bits", "5"], "--bits 5"),
        (["-o", "b", "--bits", "many"], "neither a number of bits nor auto"),
        (["-o", "b", "--bits", "4", "--target-bits", "5"], "stands in place of --bits"),
        (["-o", "b", "--layer-bits", "decoder.layers.0"], "is no place and its bits"),
        (["-o", "b", "--backend", "qnn"], "'qnn' is not one of executorch, onnx"),
        (["-o", "b", "--kv", "int4"], "int4"),
        ([], "--output"),
    ],
)
def test_mistakes_leave_with_2(
    runner: CliRunner, calls: list[tuple[object, ...]], arguments: list[str], says: str
) -> None:
    result = runner.invoke(app, ["export", "ckpt", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


def test_bits_by_layer_and_on_average_reach_the_pipeline(runner: CliRunner, calls: list[tuple[object, ...]]) -> None:
    words = ["--layer-bits", "decoder.layers.0=8", "--layer-bits", "decoder.layers.3.mlp=32"]
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle", *words])
    assert result.exit_code == 0, result.stderr
    recipe = Recipe(layer_bits=(("decoder.layers.0", 8), ("decoder.layers.3.mlp", 32)))
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle", "--target-bits", "4.5"])
    assert result.exit_code == 0, result.stderr
    ckpt, bundle = Path("ckpt"), Path("bundle")
    assert calls == [(ckpt, bundle, recipe, None, False), (ckpt, bundle, Recipe(), None, False, 4.5)]


def test_auto_bits_are_those_that_the_gate_lets_pass(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, manifest: Manifest
) -> None:
    asked: list[Gate] = []
    monkeypatch.setattr(fallback, "export_until_passed", lambda *_, gate, **__: asked.append(gate) or manifest)
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle", "--bits", "auto", "--gate", "set.jsonl"])
    assert result.exit_code == 0, result.stderr
    assert asked == [Gate(Path("set.jsonl"))]


@pytest.mark.parametrize(("more", "accuracy"), [([], 0.9), (["--gate-accuracy", "0.75"], 0.75)])
def test_a_gate_reaches_the_pipeline(
    runner: CliRunner, calls: list[tuple[object, ...]], more: list[str], accuracy: float
) -> None:
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle", "--gate", "set.jsonl", *more])
    assert result.exit_code == 0, result.stderr
    assert calls == [(Path("ckpt"), Path("bundle"), Gate(Path("set.jsonl"), accuracy))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gate-accuracy", "0.9"], "give --gate too"),
        (["--gate", "set.jsonl", "--gate-accuracy", "95"], "--gate-accuracy is 95.0, but a share lies between 0 and 1"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(
    runner: CliRunner, calls: list[tuple[object, ...]], words: list[str], said: str
) -> None:
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle", *words])
    assert (result.exit_code, calls) == (2, [])
    assert said in result.stderr


def test_what_the_gate_found_is_said(
    runner: CliRunner, calls: list[tuple[object, ...]], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"onnx": {"exact_match": 0.9615, "character_accuracy": 0.99}}
    found = {"set_sha256": "9" * 64, "questions": 26, "accuracy": 0.9, "backends": scores}
    passed = Manifest.model_validate({**manifest.model_dump(), "gate": found})
    monkeypatch.setattr(pipeline, "export", lambda *_, **__: passed)
    result = runner.invoke(app, ["export", "ckpt", "-o", "bundle"])
    assert "Gate: of 26 questions, answered exactly: 96.2% on onnx." in result.stdout
