"""Operations are counted as torch counts them, and constants and errors are those of the published figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import handlens_export.forecast
from handlens_export.describe import LEAST_TOKENS
from handlens_export.forecast import Device, evidence
from handlens_export.forecast.device import SHIPPED
from handlens_export.forecast.speed import PROBES, Passes, prefill_seconds, tokens_per_second, vision_seconds
from handlens_export.network import zipvl
from handlens_export.network.config import DecoderConfig, NetworkConfig, ProjectorConfig, VisionConfig
from handlens_export.network.network import Network

DECODER = DecoderConfig(96, 64, 3, 4, 2, 16, 128, 512, 1e-5, 1e4)
VISION = VisionConfig(56, 8, 32, 2, 4, 80, 1e-6)
FAST = Device("fast", bandwidth=1e12, int8=1e15, memory=1, efficiency=1)
SLOW_READS = Device("slow reads", bandwidth=1e3, int8=1e15, memory=1, efficiency=0.5)
WITHIN = 0.25


def passes(kind: str = "downsample_mlp", factor: int = 2) -> Passes:
    network = NetworkConfig("bluelm_v", DECODER, VISION, ProjectorConfig(kind, 32, 64, factor))  # type: ignore[arg-type]
    return Passes(network, step_bytes=5000, vision_bytes=3000, row_bytes=10, chunk=8)


@pytest.mark.parametrize(("kind", "factor"), [("downsample_mlp", 2), ("pixel_shuffle", 7), ("linear", 1)])
def test_an_encoders_operations_are_torchs(kind: str, factor: int) -> None:
    asked = passes(kind, factor)
    with torch.device("meta"):
        network = Network(asked.config)
        tiles = torch.zeros(1, 3, 56, 56)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.encode(tiles)
    assert asked.tile_operations() == counter.get_total_flops()


def test_a_prompts_operations_are_torchs() -> None:
    asked = passes()
    decoder = Network(asked.config, context=24).decoder
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder.head(decoder(torch.zeros(1, 24, 64), decoder.eager_step(24, 0))[:, -1])
    attention = 3 * 2 * (2 * 24 * 24 * 4 * 16)  # which torch does not count on a CPU
    assert asked.prefill_operations(0, 24) == counter.get_total_flops() + attention


def test_a_slow_memory_bounds_every_pass() -> None:
    asked = passes()
    assert tokens_per_second(asked, SLOW_READS, 100) == pytest.approx(500 / 6000)
    assert vision_seconds(asked, SLOW_READS, 3) == pytest.approx(3 * 3000 / 500)
    assert vision_seconds(replace(asked, tile_batch=2), SLOW_READS, 3) == pytest.approx(2 * 3000 / 500)
    assert prefill_seconds(asked, SLOW_READS, 10) == pytest.approx((5080 + 5100) / 500)


def test_a_network_that_sees_the_whole_prompt_prefills_in_one_pass() -> None:
    asked = passes()
    whole = replace(asked, config=replace(asked.config, decoder=replace(DECODER, causal=False)))
    assert prefill_seconds(whole, SLOW_READS, 10) == pytest.approx(5100 / 500)


def test_of_a_sparse_prompt_probes_attend_to_all_and_kept_rows_to_each_other() -> None:
    asked = replace(passes(), kept=0.25)
    width = 2 * DECODER.layers * DECODER.heads * DECODER.head_dim
    dense, sparse = asked.prefill_operations(0, 1_000), asked.sparse_prefill_operations(1_000)
    assert dense - sparse == width * (2 * 1_000 * 1_000 - PROBES * 1_000 - 2 * 250 * 250)
    assert prefill_seconds(asked, SLOW_READS, 1_000) == pytest.approx((5000 + 2500) / 500)
    assert tokens_per_second(asked, SLOW_READS, 1_000, 4) == pytest.approx(500 / (5000 + 2540))
    assert PROBES == zipvl.RECENT + zipvl.OTHERS


def test_a_short_prompt_is_kept_whole() -> None:
    dense, sparse = passes(), replace(passes(), kept=0.25)
    for seconds in (prefill_seconds, tokens_per_second):
        assert seconds(sparse, FAST, LEAST_TOKENS - 1) == seconds(dense, FAST, LEAST_TOKENS - 1)
        assert seconds(sparse, FAST, LEAST_TOKENS) != seconds(dense, FAST, LEAST_TOKENS)


def test_products_bound_where_memory_is_fast() -> None:
    asked = passes()
    assert vision_seconds(asked, replace(FAST, int8=1e6), 2) == pytest.approx(2 * asked.tile_operations() / 1e6)


def test_shipped_constants_are_those_that_the_fitted_rows_give() -> None:
    for name, constants in evidence.fit().items():
        (device,) = [device for device in SHIPPED if device.name == name]
        assert device.efficiency == pytest.approx(constants["efficiency"], rel=0.01)
        assert device.int8 == pytest.approx(constants["int8"], rel=0.01)


def test_each_device_is_fitted_on_two_rows_at_most() -> None:
    for device in SHIPPED:
        rows = [row for row in evidence.ROWS if row.device == device.name]
        assert len([row for row in rows if row.fitted]) <= 2
        assert [row for row in rows if not row.fitted], f"nothing tests {device.name}"


def test_the_papers_table_comes_out_within_a_quarter() -> None:
    rows = [row for row in evidence.ROWS if row.what.startswith("BlueLM-V-3B") and row.source != "figure 5"]
    assert {row.published for row in rows} == {2.06, 2.7, 24.4, 2.2, 4.76}
    assert all(abs(row.error) <= WITHIN for row in rows)


def test_what_is_further_off_says_why() -> None:
    assert all(abs(row.error) <= WITHIN or row.remark for row in evidence.ROWS)


def test_the_page_of_evidence_is_the_models() -> None:
    page = Path(handlens_export.forecast.__file__).with_name("EVIDENCE.md").read_text(encoding="utf-8")
    assert page == evidence.page(), "write it anew: python -m handlens_export.forecast.evidence"
