"""Check names the stage that departs: each is damaged in turn, and no other is blamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from handlens_export.check import check
from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.photographs import photographs
from handlens_export.pipeline import export
from handlens_export.recipe import Recipe
from handlens_runtime import backends
from handlens_runtime.bundle import MANIFEST, SEAL, Bundle, seal
from handlens_runtime.errors import BackendError, ImageError

BACKENDS = ("executorch", "onnx")


def failed(report, backend) -> set[str]:
    return {finding.stage for finding in report.findings if finding.backend == backend and not finding.passed}


def damaged_checkpoint(checkpoint: Path, folder: Path, tensor: str) -> Path:
    """A copy in which one tensor's rows have changed places, so that sizes and statistics stay as they were.

    A bundle of the whole checkpoint beside it is a bundle that was damaged in this part, the other way round.
    """
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = tensors[tensor].roll(1, dims=0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("tensor", "stages"),
    [
        ("vision_tower.encoder.layers.1.mlp.fc2.weight", {"vision encoder"}),
        ("vision_tower.embeddings.patch_embedding.weight", {"vision encoder"}),
        ("downsampler.weight", {"projector"}),
        ("projector.fc2.bias", {"projector"}),
        ("language_model.model.embed_tokens.weight", {"embedding"}),
        ("language_model.model.layers.0.self_attn.v_proj.weight", {"prefill", "decode"}),
        ("language_model.model.norm.weight", {"prefill", "decode"}),
        ("language_model.lm_head.weight", {"prefill", "decode"}),
    ],
)
def test_the_damaged_part_is_named_and_no_other(exported, tmp_path, tensor, stages):
    made = exported("bluelm_v")
    damaged = damaged_checkpoint(made.checkpoint, tmp_path / "damaged", tensor)
    report = check(made.bundle, damaged, photographs()[:1])
    assert not report.passed
    for backend in BACKENDS:
        assert failed(report, backend) == stages
        assert report.departs(backend) == next(s for s in ("prefill", *sorted(stages)) if s in stages)


def test_a_bundle_made_of_damaged_weights_is_found_out(exported, tmp_path):
    """The one damage that is done as it would happen, through a whole export."""
    made = exported("bluelm_v")
    damaged = damaged_checkpoint(made.checkpoint, tmp_path / "damaged", "projector.fc1.weight")
    export(damaged, tmp_path / "bundle", Recipe(backends=("onnx",)))
    report = check(tmp_path / "bundle", made.checkpoint, photographs()[:1])
    assert failed(report, "onnx") == {"projector"}


@pytest.mark.parametrize(
    ("field", "value"), [("mean", [0.5, 0.5, 0.55]), ("resampling", "nearest"), ("thumbnail", "none")]
)
def test_a_damaged_image_rule_is_preprocessing(exported, tmp_path, field, value):
    made = exported("bluelm_v")
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert manifest["image"][field] != value
    manifest["image"][field] = value
    content = json.dumps(manifest).encode()
    (bundle / MANIFEST).write_bytes(content)
    (bundle / SEAL).write_bytes(seal(content))
    report = check(bundle, made.checkpoint, photographs()[:1])
    for backend in BACKENDS:
        assert failed(report, backend) == {"preprocessing"}
    json.loads(json.dumps(report.to_json(), allow_nan=False))  # a script can read it


class OneRowLate:
    """A program that is right for chunks and a position off for single rows."""

    def __init__(self, inner):
        self.name, self.kv_bytes, self.encode, self.embed = inner.name, inner.kv_bytes, inner.encode, inner.embed
        self._inner = inner

    def decode(self, rows, position):
        return self._inner.decode(rows, position - (len(rows) == 1))


class NotANumber(OneRowLate):
    """A program whose logits overflow."""

    def decode(self, rows, position):
        return self._inner.decode(rows, position) * float("inf")


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_decoding_is_named_and_prefill_is_not(exported, backend):
    made = exported("bluelm_v")
    bundle = Bundle.load(made.bundle)
    damaged = OneRowLate(backends.load(bundle, backend))
    report = check(bundle, made.checkpoint, photographs()[:1], backend=damaged)
    assert failed(report, backend) == {"decode"} and report.departs(backend) == "decode"


def test_logits_that_are_no_numbers_do_not_pass(exported):
    made = exported("bluelm_v")
    bundle = Bundle.load(made.bundle)
    report = check(bundle, made.checkpoint, photographs()[:1], backend=NotANumber(backends.load(bundle, "onnx")))
    assert report.departs("onnx") == "prefill"
    json.dumps(report.to_json(), allow_nan=False)


def test_what_a_text_program_embeds_inside_is_judged_by_prefill(exported, tmp_path):
    made = exported("llama")
    damaged = damaged_checkpoint(made.checkpoint, tmp_path / "damaged", "model.embed_tokens.weight")
    report = check(made.bundle, damaged)
    assert report.departs("onnx") == "embedding" and failed(report, "onnx") == {"embedding"}
    assert report.departs("executorch") == "prefill"


def test_one_backend_alone_can_be_checked(exported):
    made = exported("bluelm_v")
    report = check(made.bundle, made.checkpoint, photographs()[:1], backend="onnx")
    assert {finding.backend for finding in report.findings} == {"onnx"}
    assert report.passed and report.to_json()["departs"] == {"onnx": None}


def test_the_distance_to_the_float_checkpoint_is_no_verdict(exported):
    made = exported("bluelm_v")
    report = check(made.bundle, made.checkpoint, photographs()[:1], backend="onnx")
    for distance in report.distances:
        assert 0.9 < distance.cosine < 0.99999  # four bits are seen
        assert distance.kl > 0
    assert {d.prompt for d in report.distances} == {f.prompt for f in report.findings}


def test_a_context_too_small_for_a_photograph_is_checked_with_its_beginning(exported, tmp_path):
    made = exported("bluelm_v")
    export(made.checkpoint, tmp_path / "bundle", Recipe(backends=("onnx",), context=64, kv="float"))
    report = check(tmp_path / "bundle", made.checkpoint, photographs()[:1])
    assert report.passed
    assert {"prefill", "decode"} <= {f.stage for f in report.findings if f.prompt == photographs()[0].name}


def test_another_checkpoint_is_refused_by_what_differs(exported, tiny_checkpoint, tmp_path):
    bundle = exported("bluelm_v").bundle
    other = tiny_checkpoint("llama", tmp_path / "llama")
    with pytest.raises(CheckpointError, match=r"family bluelm_v where .*llama has llama.*; give --against") as error:
        check(bundle, other)
    assert "\n" not in str(error.value)
    sibling = tiny_checkpoint("bluelm_v", tmp_path / "sibling", variant=2)
    with pytest.raises(CheckpointError, match=r"has kv_heads 2 where .*sibling has 1, vision features"):
        check(bundle, sibling)


def test_pictures_that_cannot_be_read_are_named(exported, tmp_path):
    made = exported("bluelm_v")
    (tmp_path / "no.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match=r"no\.jpg"):
        check(made.bundle, made.checkpoint, [tmp_path / "no.jpg"])


def test_a_picture_for_a_bundle_that_only_reads_is_refused(exported, tmp_path):
    made = exported("llama")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UnsupportedError, match="reads text only"):
        check(made.bundle, made.checkpoint, [tmp_path / "a.png"])


def test_a_backend_that_the_bundle_lacks_is_refused(exported, tmp_path):
    checkpoint = exported("llama").checkpoint
    export(checkpoint, tmp_path / "bundle", Recipe(backends=("onnx",)))
    with pytest.raises(BackendError, match="has no executorch program; choose one that it has: onnx"):
        check(tmp_path / "bundle", checkpoint, backend="executorch")


def test_progress_grows_to_the_whole(exported):
    shares = []
    check(exported("llama").bundle, exported("llama").checkpoint, progress=lambda name, share: shares.append(share))
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0


def test_rows_of_one_direction_count_by_their_worst():
    from handlens_export.check.comparison import _cosine

    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]).numpy()
    assert _cosine(a, a) == pytest.approx(1.0)
    b = a.copy()
    b[2] = [4.0, -3.0]
    assert _cosine(a, b) == pytest.approx(0.0)
    assert _cosine(a[:2], a) == 0.0


def test_what_each_layer_costs_is_told_with_the_bundles_own_weights(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("bluelm_v", tmp_path / "checkpoint")
    recipe = Recipe(backends=("onnx",), layer_bits=(("decoder.layers.0.mlp", 32),))
    export(checkpoint, tmp_path / "bundle", recipe)
    shares: list[float] = []
    report = check(tmp_path / "bundle", checkpoint, sensitivity=True, progress=lambda _, share: shares.append(share))
    layers = Bundle.load(tmp_path / "bundle").manifest.sizes.layers
    costs = {one.place: one.kl for one in report.sensitivities}
    assert list(costs) == [f"decoder.layers.{index}.{part}" for index in range(layers) for part in ("attention", "mlp")]
    assert costs.pop("decoder.layers.0.mlp") == 0 < min(costs.values())
    assert len(report.to_json()["sensitivities"]) == 2 * layers
    assert shares == sorted(shares) and shares[-1] == 1
    assert check(tmp_path / "bundle", checkpoint).sensitivities == ()
