"""The bytes predicted from headers are those that the lowerings write, and the parts are the manifest's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.forecast import Prompt, forecast
from handlens_export.forecast.files import bundle_files
from handlens_export.forecast.headers import shapes_of
from handlens_export.pipeline import export
from handlens_export.presets import init
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import Bundle
from handlens_runtime.manifest import Manifest

CLOSE = 0.02


def predicted_and_written(checkpoint: Path, manifest: Manifest, recipe: Recipe) -> dict[str, tuple[int, int]]:
    planned = plan(read(checkpoint), recipe)
    files = bundle_files(planned, recipe, shapes_of(planned))
    return {
        backend: (
            sum(files[backend].values()),
            sum(entry.size for name, entry in manifest.files.items() if name.startswith(f"{backend}/")),
        )
        for backend in recipe.backends
    }


@pytest.mark.parametrize("family", ["llama", "bluelm_v"])
def test_both_backends_write_what_was_predicted(exported: Callable[..., object], family: str) -> None:
    made = exported(family)
    manifest = Bundle.load(made.bundle).manifest
    for backend, (expected, written) in predicted_and_written(made.checkpoint, manifest, Recipe()).items():
        assert expected == pytest.approx(written, rel=CLOSE), backend


def test_nano_and_its_manifest_are_predicted(tmp_path: Path) -> None:
    init("bluelm-v-nano", tmp_path / "nano")
    recipe = Recipe(backends=("onnx",), context=1024, head_bits=4, group=64)
    manifest = export(tmp_path / "nano", tmp_path / "bundle", recipe)
    ((expected, written),) = predicted_and_written(tmp_path / "nano", manifest, recipe).values()
    assert expected == pytest.approx(written, rel=CLOSE)
    found = forecast(plan(read(tmp_path / "nano"), recipe), recipe, Prompt(), None)
    assert found.memory == manifest.memory
    # A bundle of thousands of megabytes has the same few thousand bytes of texts.
    assert found.bytes == pytest.approx(sum(e.size for e in manifest.files.values()), abs=0.02 * written + 20_000)


@pytest.mark.parametrize("family", ["gemma", "idefics3", "llama", "paligemma", "qwen2", "smolvlm", "bluelm_v"])
@pytest.mark.parametrize("variant", [0, 1, 2])
def test_headers_give_every_parameters_shape(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, family: str, variant: int
) -> None:
    from handlens_export.network.load import Parameters

    recipe = Recipe(backends=("onnx",), bits=2)
    planned = plan(read(tiny_checkpoint(family, tmp_path, variant)), recipe)
    shapes = shapes_of(planned)
    expected = Parameters(planned.checkpoint, planned.family, planned.config).shapes
    assert shapes == expected
    assert weigh(shapes, recipe) == weigh(expected, recipe)
