"""What the parts of the network promise on their own: merging patches, the cache, rotary tables."""

from __future__ import annotations

import pytest
import torch

from handlens_export.network.config import DecoderConfig, NetworkConfig, RopeScaling
from handlens_export.network.network import Network
from handlens_export.network.projector import merge_patches
from handlens_export.network.rope import frequencies

DECODER = DecoderConfig(
    vocab_size=50,
    width=32,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=8,
    mlp_width=40,
    max_positions=64,
    norm_eps=1e-6,
    rope_theta=10000.0,
)


def test_merge_pads_right_and_bottom_with_zeros() -> None:
    patches = torch.arange(1.0, 10.0).view(1, 9, 1)  # 3 x 3, of one channel
    expected = [[[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]]
    assert torch.equal(merge_patches(patches, 2), torch.tensor(expected, dtype=torch.float32))


def test_merge_keeps_a_patch_s_channels_together() -> None:
    patches = torch.arange(8.0).view(1, 4, 2)
    assert torch.equal(merge_patches(patches, 2), patches.view(1, 1, 8))


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(20,), (1,) * 20, (7, 6, 7), (16, 1, 1, 1, 1)])
def test_chunks_over_the_cache_give_the_logits_of_one_pass(chunks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig("llama", DECODER))
    rows = torch.randn(1, 20, DECODER.width)
    whole = network.logits(rows)
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    parts = [network.logits(rows[:, a : a + n], a) for a, n in zip(starts, chunks, strict=True)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5


@torch.no_grad()
def test_a_step_back_forgets_what_came_after() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig("llama", DECODER))
    rows, other = torch.randn(1, 10, DECODER.width), torch.randn(1, 4, DECODER.width)
    network.logits(rows)
    again = network.logits(other, 6)
    fresh = network.logits(torch.cat((rows[:, :6], other), dim=1))[:, 6:]
    assert (again - fresh).abs().max() < 1e-5


def test_linear_scaling_slows_every_frequency_alike() -> None:
    plain = frequencies(DECODER)
    scaled = frequencies(DecoderConfig(**{**vars(DECODER), "rope_scaling": RopeScaling("linear", 4.0)}))
    assert torch.allclose(scaled * 4, plain)


def test_llama3_scaling_keeps_short_waves_and_slows_long_ones() -> None:
    scaling = RopeScaling("llama3", 8.0, original_context=64)
    plain = frequencies(DECODER)
    scaled = frequencies(DecoderConfig(**{**vars(DECODER), "rope_scaling": scaling}))
    assert scaled[0] == plain[0]  # 6 positions a turn, of 64
    assert torch.isclose(scaled[-1] * 8, plain[-1])  # 6,283 positions a turn
