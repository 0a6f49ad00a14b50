"""What `plan` says of the export itself: parts side by side, memory of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.forecast.evidence import BLUELM
from handlens_export.forecast.files import bundle_files
from handlens_export.forecast.headers import shapes_of
from handlens_export.forecast.host import LIBRARIES, Host, calibrating_seconds, estimate_host, part_seconds
from handlens_export.memory import estimate
from handlens_export.quantize.formats import weigh
from handlens_export.recipe import Recipe

BOTH = Recipe()


@pytest.fixture
def host(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Host]:
    def predicted(jobs: int, recipe: Recipe = BOTH) -> Host:
        folder = tmp_path / "checkpoint"
        planned = plan(read(folder if folder.exists() else tiny_checkpoint("bluelm_v", folder)), recipe)
        shapes = shapes_of(planned)
        memory = estimate(planned.config, recipe, planned.context, planned.max_chunk, weigh(shapes, recipe))
        return estimate_host(planned.config, recipe, shapes, bundle_files(planned, recipe, shapes), memory, jobs)

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


def test_parts_of_the_full_size_model_take_what_was_measured() -> None:
    """Seconds of one core of a Zen 3; the longest are to begin first."""
    measured = {("executorch", "decoder"): 185, ("executorch", "vision"): 55, ("onnx", "decoder"): 254}
    for (backend, part), seconds in measured.items():
        told = part_seconds(backend, part, 2_390_000_000, True, BLUELM)
        assert told == pytest.approx(seconds, rel=0.15), (backend, part)
