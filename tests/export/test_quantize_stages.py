"""Stages of weights: made once, found again only where nothing that decides them has changed, whenever a kill comes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError
from handlens_export.network.families import find
from handlens_export.network.load import Parameters
from handlens_export.quantize import stages as module
from handlens_export.quantize.network import quantize_network
from handlens_export.quantize.stages import SOURCES, code_version, finished, sources, stage_key, stages
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.entries import about, entries, stage_folder
from handlens_export.stage_cache.store import StageCache

pytestmark = pytest.mark.usefixtures("own_cache")

KILLS = 8


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return tiny_checkpoint("bluelm_v", tmp_path / "checkpoint")


@pytest.fixture
def made(monkeypatch):
    """Names of the parameters that are read and rounded, as they are."""
    names: list[str] = []
    make = module._make

    def noted(parameters, name, recipe):
        names.append(name)
        return make(parameters, name, recipe)

    monkeypatch.setattr(module, "_make", noted)
    return names


def parameters_of(folder: Path, lora: Path | None = None) -> Parameters:
    checkpoint = read(folder, lora)
    family = find(checkpoint.config["model_type"])
    return Parameters(checkpoint, family, family.config(checkpoint.config))


def run(folder: Path, recipe: Recipe, progress=lambda share: None) -> dict[str, torch.Tensor]:
    with StageCache() as kept:
        return finished(parameters_of(folder), recipe, kept, progress)


def change(folder: Path, name: str, step: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] += step
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_stages_are_layers_and_what_lies_outside_them(folder):
    found = stages(parameters_of(folder).shapes)
    layers = [f"{part}.layers.{index}" for part in ("vision", "decoder") for index in range(2)]
    assert sorted(found) == sorted([*layers, "vision", "projector", "decoder.embedding", "decoder.head", "decoder"])
    assert found["decoder"] == ["decoder.norm.weight"]
    assert "vision.patch_embedding.weight" in found["vision"]
    assert sum(map(len, found.values())) == len(parameters_of(folder).shapes)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_second_time_nothing_is_made_and_all_is_equal(folder, made, bits):
    recipe = Recipe(("onnx",), bits=bits)
    with StageCache(bound=0) as none:
        expected = finished(parameters_of(folder), recipe, none, lambda share: None)
    first = run(folder, recipe)
    made.clear()
    second = run(folder, recipe)
    assert made == []
    for found in (first, second):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_backends_context_and_chunk_make_nothing_again(folder, made):
    run(folder, Recipe())
    made.clear()
    for recipe in (Recipe(("onnx",)), Recipe(("executorch",)), Recipe(context=77, chunk=5, kv="float")):
        run(folder, recipe)
    assert made == []


def test_a_checkpoint_copied_elsewhere_makes_nothing_again(folder, tiny_checkpoint, tmp_path, made):
    run(folder, Recipe())
    made.clear()
    run(tiny_checkpoint("bluelm_v", tmp_path / "another"), Recipe())
    assert made == []


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (Recipe(bits=8), {"decoder.layers"}),
        (Recipe(group=64), {"decoder.layers"}),
        (Recipe(head_bits=4), {"decoder.head"}),
        (Recipe(embedding_bits=32), {"decoder.embedding"}),
        (Recipe(vision_bits=4), {"vision.layers", "projector"}),
    ],
)
def test_another_format_makes_anew_what_it_formats(folder, made, recipe, parts):
    run(folder, Recipe())
    made.clear()
    run(folder, recipe)
    assert {name for name in parts if any(one.startswith(name) for one in made)} == parts
    assert all(one.startswith(tuple(parts)) for one in made)


def test_one_changed_weight_makes_its_stage_anew_and_no_other(folder, made):
    before = run(folder, Recipe())
    stat = (folder / "model.safetensors").stat()
    made.clear()
    change(folder, "language_model.model.layers.1.mlp.up_proj.weight", 1e-6)
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(folder, Recipe())
    assert set(made) == set(stages(before_names(folder))["decoder.layers.1"])
    made.clear()
    change(folder, "language_model.model.layers.1.mlp.up_proj.weight", -1e-6)
    after = run(folder, Recipe())
    assert all(torch.equal(before[name], after[name]) for name in before)


def before_names(folder: Path) -> list[str]:
    return list(parameters_of(folder).shapes)


def test_the_code_is_part_of_the_key(folder, monkeypatch):
    parameters, names = parameters_of(folder), ["decoder.norm.weight"]
    key = stage_key(parameters, names, Recipe())
    assert stage_key(parameters, names, Recipe()) == key
    monkeypatch.setattr(module, "code_version", lambda: "another")
    assert stage_key(parameters, names, Recipe()) != key


def test_the_familys_config_is_part_of_the_key(folder):
    parameters, names = parameters_of(folder), ["decoder.norm.weight"]
    key = stage_key(parameters, names, Recipe())
    config = find("bluelm_v").config(read(folder).config)
    other = replace(config, decoder=replace(config.decoder, max_positions=99))
    assert stage_key(Parameters(read(folder), find("bluelm_v"), other), names, Recipe()) != key


def test_every_source_is_hashed(monkeypatch, tmp_path):
    code_version.cache_clear()
    whole = code_version()
    for file in sources():
        rest = [other for other in sources() if other != file]
        code_version.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(module, "sources", lambda *_, rest=rest: rest)
            assert code_version() != whole, file
    code_version.cache_clear()


@pytest.mark.parametrize("family", ["bluelm_v", "gemma"])
def test_no_code_that_computes_a_stage_is_left_out_of_the_key(tiny_checkpoint, tmp_path, family):
    """Every file of the exporter whose code runs from a tensor to a finished stage is among the hashed ones."""
    parameters = parameters_of(tiny_checkpoint(family, tmp_path / "c"))
    ran: set[Path] = set()
    root = Path(module.PACKAGE)

    def note(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(str(root)):
            ran.add(Path(frame.f_code.co_filename))

    sys.setprofile(note)
    try:
        for name in parameters.shapes:
            module._make(parameters, name, Recipe(("onnx",), bits=2))
            module._make(parameters, name, Recipe())
    finally:
        sys.setprofile(None)
    assert ran and ran <= {*sources(), root / "recipe.py"}, SOURCES


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    make = module._make

    def meanwhile(parameters, name, recipe):
        if name == "decoder.layers.0.mlp.up_proj.weight":
            change(folder, "language_model.model.layers.0.mlp.up_proj.weight", 1.0)
        return make(parameters, name, recipe)

    monkeypatch.setattr(module, "_make", meanwhile)
    with pytest.raises(CheckpointError, match="changed while it was read; export again once nothing writes to it"):
        run(folder, Recipe())
    assert "decoder.layers.0" not in {about(entry).get("stage") for entry in entries(stage_folder())}


def test_damage_in_the_cache_means_making_again(folder, made):
    before = {name: tensor.clone() for name, tensor in run(folder, Recipe()).items()}
    for entry in entries(stage_folder()):
        content = bytearray(entry.path.read_bytes())
        content[-1] ^= 1
        entry.path.write_bytes(content)
    made.clear()
    after = run(folder, Recipe())
    assert len(made) == len(parameters_of(folder).shapes)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_is_there_counts_as_done_at_once(folder):
    run(folder, Recipe())
    removed = next(e for e in entries(stage_folder()) if about(e)["stage"] == "decoder.layers.1")
    removed.path.unlink()
    shares: list[float] = []
    run(folder, Recipe(), shares.append)
    parameters = parameters_of(folder)
    sizes = {name: torch.Size(shape).numel() for name, shape in parameters.shapes.items()}
    missing = sum(size for name, size in sizes.items() if name.startswith("decoder.layers.1."))
    done = 1 - missing / sum(sizes.values())
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert any(share == pytest.approx(done) for share in shares)
    assert len([share for share in shares if share > done + 1e-9]) == len(stages(sizes)["decoder.layers.1"])


def test_a_tied_head_is_rounded_for_both_its_uses(tiny_checkpoint, tmp_path):
    parameters = parameters_of(tiny_checkpoint("gemma", tmp_path / "gemma"))
    with StageCache() as kept:
        network, _ = quantize_network(
            parameters, find("gemma").config(read(tmp_path / "gemma").config), Recipe(), 32, lambda share: None, kept
        )
    assert torch.equal(network.decoder.head.quantized.values, network.decoder.embedding.table.quantized.values)


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tiny_checkpoint, tmp_path):
    """kill -9 at seeded moments, while rounding and while lowering; the bundle is that of an undisturbed export."""
    folder = tiny_checkpoint("llama", tmp_path / "checkpoint")
    chosen = random.Random(4)
    moments = [chosen.random() for _ in range(KILLS)] + [1.5]
    program = Path(__file__).with_name("killed_export.py")
    paths = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", program, folder, tmp_path / "bundles", json.dumps(moments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    _, *killed, last = map(json.loads, ran.stdout.splitlines())
    assert [run["signal"] for run in killed] == [signal.SIGKILL] * len(moments) and last["signal"] == 0
    for run in (*killed, last):
        assert not set(run["before"]) & set(run["made"])
    assert sum(bool(run["made"]) for run in killed) > 3 and last["made"] == []
    assert contents(tmp_path / "bundles" / "alone") == contents(tmp_path / "bundles" / "killed")
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["alone", "killed"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
