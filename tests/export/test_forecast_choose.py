"""Limits are kept, by the largest choices that keep them; a refusal names what really fits. At full size, from a
checkpoint whose weights are a hole in a file: nothing here may read them.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest

import handlens
from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.forecast import Device, Forecast
from handlens_export.forecast.device import SHIPPED, find, keep
from handlens_export.presets.sizes import FULL, config, image_rule, tensors
from handlens_export.presets.tokenizer import SPECIAL, build
from handlens_export.recipe import Recipe

PHONE = "dimensity-9300"
ET = Recipe(backends=("executorch",))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bluelm-v-3b, 6 GB of weights of which none is on the disk."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "config.json").write_text(json.dumps(config(FULL, {token: i for i, token in enumerate(SPECIAL)})))
    (folder / "preprocessor_config.json").write_text(json.dumps(image_rule(FULL)))
    build(2_000).save(str(folder / "tokenizer.json"))
    header, end = {}, 0
    for spec in tensors(FULL):
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [end, end + 2 * spec.count]}
        end += 2 * spec.count
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def first_token(found: Forecast) -> float:
    return found.speeds["executorch"].first_token_seconds


def test_without_limits_it_is_the_recipes_own(full: Path) -> None:
    found = handlens.plan(full, ET, device=PHONE)
    assert (found.context, found.max_grid, found.tiles, found.prompt_tokens) == (2048, (4, 4), 9, 9 * 196 + 64)
    assert 2.2e9 < found.memory.peak < 2.8e9
    assert first_token(found) == pytest.approx(4.76, rel=0.25)
    assert found.fits
    assert found.bytes == pytest.approx(2.35e9, rel=0.02)


def test_less_time_means_fewer_tiles_and_the_same_context(full: Path) -> None:
    found = handlens.plan(full, ET, device=PHONE, first_token=2.0)
    assert first_token(found) <= 2.0
    assert found.context == 2048
    assert 1 < found.tiles < 9


def test_the_tightest_grid_bounds_pictures_of_any_shape(full: Path) -> None:
    grid = handlens.plan(full, ET, device=PHONE, first_token=2.0).max_grid
    tall = handlens.plan(full, ET, device=PHONE, first_token=2.0, picture=(500, 4000))
    assert grid is not None
    assert grid[0] * grid[1] <= 4
    assert first_token(tall) <= 2.0


def test_less_memory_means_a_coarser_cache_then_a_shorter_context(full: Path) -> None:
    floats = Recipe(backends=("executorch",), kv="float")
    ample = handlens.plan(full, floats, device=PHONE, memory=4_000_000_000)
    assert (ample.recipe.kv, ample.context) == ("float", 2048)
    peak = handlens.plan(full, ET, device=PHONE).memory.peak
    coarser = handlens.plan(full, floats, device=PHONE, memory=peak)
    assert (coarser.recipe.kv, coarser.context, coarser.tiles) == ("int8", 2048, 9)
    shorter = handlens.plan(full, ET, device=PHONE, memory=peak - 1, picture=(300, 300))
    assert shorter.context == 1024
    assert shorter.recipe.context == 1024
    assert shorter.memory.peak <= peak - 1


@pytest.mark.parametrize(("memory", "seconds"), [(1_000_000_000, None), (1_000_000_000, 0.1), (None, 0.1)])
def test_a_refusal_names_limits_that_fit(full: Path, memory: int | None, seconds: float | None) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        handlens.plan(full, ET, device=PHONE, memory=memory, first_token=seconds)
    _, would = str(refusal.value).split("would fit")
    ram, ttft = re.search(r"--ram ([\d.]+)GB", would), re.search(r"--ttft ([\d.]+\d)", would)
    assert (ram is None, ttft is None) == (memory is None, seconds is None)
    handlens.plan(
        full,
        ET,
        device=PHONE,
        memory=round(float(ram[1]) * 1e9) if ram else None,
        first_token=float(ttft[1]) if ttft else None,
    )


def test_limits_that_cannot_be_judged_are_refused(full: Path) -> None:
    with pytest.raises(UnsupportedError, match="--ttft needs a device"):
        handlens.plan(full, first_token=1.0)
    with pytest.raises(UnsupportedError, match="--ram is 0"):
        handlens.plan(full, memory=0)
    with pytest.raises(UnsupportedError, match=r"1828 tokens.* context of 1024"):
        handlens.plan(full, Recipe(context=1024))


def test_a_missing_tensor_is_named(full: Path, tmp_path: Path) -> None:
    for file in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((full / file).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(CheckpointError, match=r"lacks the tensor language_model\.model\.embed_tokens\.weight"):
        handlens.plan(tmp_path)


def test_a_device_with_too_little_memory_is_said_to_be_one(full: Path) -> None:
    small = Device("small", 5e10, 1e12, 1_000_000_000, 0.5)
    assert handlens.plan(full, ET, device=small).fits is False
    assert handlens.plan(full, ET).fits is None


def test_devices_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    assert [find(device.name) for device in SHIPPED] == list(SHIPPED)
    with pytest.raises(UnsupportedError, match="no device abacus; choose one of dimensity-9300"):
        find("abacus")
    with pytest.raises(UnsupportedError, match="plan --calibrate"):
        find("this-desktop")
    measured = Device("this-desktop", 3e10, 4e11, 8_000_000_000, 0.85, "measured")
    file = keep(measured)
    assert find("this-desktop") == measured
    for damage in ("", "[]", '{"bandwidth": 1}', file.read_text().replace("8000000000", "-1")):
        file.write_text(damage)
        with pytest.raises(UnsupportedError, match="is no calibration"):
            find("this-desktop")


def test_this_machine_is_measured() -> None:
    from handlens_export.forecast.calibrate import calibrate

    measured = calibrate(read_bytes=1_000_000, product=(4, 64, 64), seconds=0.001)
    assert measured.name == "this-desktop"
    assert min(measured.bandwidth, measured.int8, measured.memory) > 1e6
