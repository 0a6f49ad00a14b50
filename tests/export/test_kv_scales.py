"""Static scales of an int8 cache: what they cover, and what they do where nothing was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handlens_export.network.config import DecoderConfig, NetworkConfig
from handlens_export.network.network import Network
from handlens_export.network.rope import rotate
from handlens_export.quantize.kv_scales import FLOOR, LEVELS, MARGIN, calibrate

CONFIG = DecoderConfig(
    vocab_size=50,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    max_positions=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(NetworkConfig("llama", CONFIG))


@torch.no_grad()
def first_layer(network, rows):
    """Rotated keys and values of layer 0, each (t, kv_heads, head_dim)."""
    layer = network.decoder.layers[0]
    x = layer.attention_norm(rows)
    step = network.decoder.eager_step(rows.shape[1], 0)
    keys = rotate(layer.attention.k_proj(x).view(1, -1, 2, 8), step.cos, step.sin)
    return keys[0], layer.attention.v_proj(x).view(-1, 2, 8)


def test_scales_cover_rotated_keys_and_values_of_all_prompts_with_a_margin(network):
    prompts = [torch.randn(1, 9, 32), 3 * torch.randn(1, 30, 32), torch.randn(1, 4, 32)]
    scales = calibrate(network, prompts)
    assert len(scales) == CONFIG.layers
    for part in (0, 1):
        seen = torch.cat([first_layer(network, rows)[part] for rows in prompts]).abs().amax(0)
        np.testing.assert_allclose(scales[0][part], seen * MARGIN / LEVELS, rtol=1e-5)


def test_a_channel_never_seen_active_gets_a_floor_and_not_zero(network):
    with torch.no_grad():
        network.decoder.layers[0].attention.v_proj.weight[3] = 0
    (_, values), _ = calibrate(network, [torch.randn(1, 12, 32)])
    np.testing.assert_allclose(values[0, 3], values[0].max() * FLOOR, rtol=1e-5)


def test_caches_are_empty_afterwards(network):
    calibrate(network, [torch.randn(1, 5, 32)])
    assert all(layer.attention.cached.keys is None for layer in network.decoder.layers)


def test_no_prompt_is_an_error(network):
    with pytest.raises(ValueError, match="at least one prompt"):
        calibrate(network, [])
