"""Bytes that a decode step reads and the feed-forward width, from a manifest's sums, against the network's matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handlens_export.forecast.evidence import BLUELM
from handlens_export.forecast.files import weight_bytes as counted
from handlens_export.network.network import Network
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe
from handlens_runtime.bench.gguf_twin import shape_of
from handlens_runtime.bench.traffic import weight_bytes
from handlens_runtime.manifest import BackendName, Manifest

GOLDEN = Path(__file__).parents[1] / "golden/manifest.json"


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in Network(BLUELM, context=1).named_parameters()}


def manifest_of(shapes: dict[str, tuple[int, ...]], recipe: Recipe) -> Manifest:
    manifest = Manifest.model_validate_json(GOLDEN.read_bytes())
    decoder = BLUELM.decoder
    names = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim")
    sizes = manifest.sizes.model_copy(update={name: getattr(decoder, name) for name in names})
    quantization = manifest.quantization.model_copy(update={"parts": weigh(shapes, recipe)})
    return manifest.model_copy(update={"sizes": sizes, "quantization": quantization})


@pytest.mark.parametrize("backend", ["executorch", "onnx"])
@pytest.mark.parametrize(("bits", "group", "head_bits"), [(4, 32, 8), (4, 128, 4), (8, 32, 8), (32, 32, 32)])
def test_weights_read_a_step_are_those_counted_matrix_by_matrix(
    shapes: dict[str, tuple[int, ...]], backend: BackendName, bits: int, group: int, head_bits: int
) -> None:
    recipe = Recipe(bits=bits, group=group, head_bits=head_bits)
    parts = counted(shapes, recipe, backend)
    found = weight_bytes(manifest_of(shapes, recipe), backend)
    assert found == pytest.approx(parts["decoder"] + parts["head"], rel=0.002)


def test_the_feed_forward_width_follows_from_the_parameters(shapes: dict[str, tuple[int, ...]]) -> None:
    assert shape_of(manifest_of(shapes, Recipe())).mlp_width == BLUELM.decoder.mlp_width
