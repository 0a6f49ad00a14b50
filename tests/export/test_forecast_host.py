"""What `plan` says of the export itself: parts side by side, memory of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.forecast import calibrated
from handlens_export.forecast.evidence import BLUELM
from handlens_export.forecast.files import bundle_files
from handlens_export.forecast.headers import shapes_of
from handlens_export.forecast.host import LIBRARIES, Host, calibrating_seconds, estimate_host, part_seconds
from handlens_export.memory import estimate
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe
from handlens_export.transform import smooth

BOTH = Recipe()


@pytest.fixture
def host(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Host]:
    def predicted(jobs: int, recipe: Recipe = BOTH) -> Host:
        folder = tmp_path / "checkpoint"
        planned = plan(read(folder if folder.exists() else tiny_checkpoint("bluelm_v", folder)), recipe)
        shapes = shapes_of(planned)
        memory = estimate(planned.config, recipe, planned.context, planned.max_chunk, weigh(shapes, recipe))
        files = bundle_files(planned, recipe, shapes)
        return estimate_host(planned.config, recipe, shapes, files, memory, planned.context, jobs)

    return predicted


def test_more_parts_at_once_take_less_time_and_more_memory(host: Callable[..., Host]) -> None:
    one, two, many = host(1), host(2), host(16)
    assert one.seconds > two.seconds >= many.seconds
    assert LIBRARIES < one.peak_bytes < two.peak_bytes < many.peak_bytes


def test_time_is_that_of_the_part_waited_for_last(host: Callable[..., Host]) -> None:
    """Of many at once, only the longest counts: ExecuTorch's decoder here."""
    both, executorch = host(16), host(16, Recipe(backends=("executorch",)))
    assert abs(both.seconds - executorch.seconds) < 1


def test_only_a_rounded_cache_is_calibrated_and_only_for_onnx() -> None:
    assert calibrating_seconds("onnx", "decoder", 2_700_000_000, int8_cache=True) > 100
    for backend, part, rounded in (
        ("onnx", "decoder", False),
        ("onnx", "vision", True),
        ("executorch", "decoder", True),
    ):
        assert calibrating_seconds(backend, part, 2_700_000_000, rounded) == 0


def test_a_method_that_looks_at_activations_adds_its_time_and_memory(host: Callable[..., Host]) -> None:
    plain, clip, gptq = host(1), host(1, Recipe(method="clip")), host(1, Recipe(method="gptq"))
    both = host(1, Recipe(method="gptq", smooth=True))
    assert plain.calibrated_seconds == 0
    assert 0 < clip.calibrated_seconds < gptq.calibrated_seconds < both.calibrated_seconds
    for each in (clip, gptq, both):  # so small a network needs more to be lowered
        assert each.seconds == pytest.approx(plain.seconds + each.calibrated_seconds)
        assert each.peak_bytes >= plain.peak_bytes


def test_gptqs_memory_is_its_rows_and_hessians() -> None:
    """Of the full-size model: rows of 64 x 512 tokens, those between an MLP's linears, and some Hessians of 6,912."""
    width, gated = 2560, 6912
    shapes = {"decoder.layers.0.mlp.down_proj.weight": (width, gated)}
    config = replace(BLUELM.decoder, layers=1)
    told = calibrated.added_bytes(config, Recipe(method="gptq"), shapes, 2048)
    rows, hessian = 4 * 64 * 512 * (2 * width + gated), 4 * gated**2
    assert rows + 2 * hessian < told < rows + 10 * hessian
    assert calibrated.added_bytes(config, BOTH, shapes, 2048) == 0


def test_smoothing_is_counted_as_it_searches() -> None:
    assert (len(smooth.ALPHAS), smooth.COMPARED) == (calibrated.ALPHAS, calibrated.COMPARED)


def test_parts_of_the_full_size_model_take_what_was_measured() -> None:
    """Seconds of one core of a Zen 3; the longest are to begin first."""
    measured = {("executorch", "decoder"): 185, ("executorch", "vision"): 55, ("onnx", "decoder"): 254}
    for (backend, part), seconds in measured.items():
        told = part_seconds(backend, part, 2_390_000_000, True, BLUELM)
        assert told == pytest.approx(seconds, rel=0.15), (backend, part)
