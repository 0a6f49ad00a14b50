"""Static scales of an int8 key-value cache, one per channel, from one pass over real prompts.

A backend whose cache has no scale of its own per token (ONNX Runtime) needs them before it runs. Too small a scale
clips and is far worse than too large a one. SmolLM2-135M's perplexity over 2,048 tokens, by the room left above the
largest value that the calibration prompts showed (float cache: 63.9):

    0.33    0.5    0.8     1     1.25    1.5     2      3
    454     136    68.8   64.6   64.0    64.1   64.1   64.2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handlens_export.network.attention import CachedAttention
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.network import Network
from handlens_export.quantize.weight import in_float
from handlens_export.stage_cache.tensor_file import let_go

Scales = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of keys and of values, each (kv_heads, head_dim)."""

LEVELS = 127
MARGIN = 1.5
"""Room above the largest value seen. In half of the channels other text went further than calibration did, in one of
ten by more than 1.41 times; room costs next to nothing (see above)."""
FLOOR = 0.01
"""Smallest scale of a channel, as a share of its head's largest: one that slept through calibration may wake."""


@torch.no_grad()
def calibrate(network: Network, prompts: Iterable[Tensor]) -> tuple[Scales, ...]:
    """Scales per layer: absmax of rotated keys, and of values, over all prompts, times MARGIN / 127.

    `prompts`: embedded rows, each (1, t, width), t no longer than the rotary tables. The network's attention leaves are
    still `CachedAttention` (its linears may be quantized already) and their caches are empty afterwards. Raises
    ValueError without any prompt.
    """
    hidden = list(prompts)
    if not hidden:
        raise ValueError("calibration needs at least one prompt")
    scales: list[Scales] = []
    for layer in network.decoder.layers:
        leaf = cast(CachedAttention, cast(DecoderLayer, layer).attention.cached)
        keys, values = torch.zeros(()), torch.zeros(())
        with in_float(layer):  # all prompts through one layer, then the next: weights are unpacked once
            for index, rows in enumerate(hidden):
                hidden[index] = layer(rows, network.decoder.eager_step(rows.shape[1], 0))
                keys, values = torch.maximum(keys, _absmax(leaf.keys)), torch.maximum(values, _absmax(leaf.values))
                leaf.keys = leaf.values = None
        scales.append((_scale(keys), _scale(values)))
        let_go()  # a layer's mapped pages go once it is done, so that never all weights are resident
    return tuple(scales)


def _absmax(cached: Tensor | None) -> Tensor:
    """(1, t, kv_heads, head_dim) -> (kv_heads, head_dim)."""
    assert cached is not None
    return cached.abs().amax(dim=(0, 1)).float()


def _scale(largest: Tensor) -> NDArray[np.float32]:
    floor = largest.amax(-1, keepdim=True).clamp(min=1e-6) * FLOOR
    scale: NDArray[np.float32] = (torch.maximum(largest, floor) * (MARGIN / LEVELS)).numpy()
    return scale


def save_scales(path: Path, scales: Sequence[Scales]) -> None:
    """Write scales as `key_0`, `value_0`, `key_1`, …; the same scales give the same bytes."""
    arrays = {
        f"{part}_{index}": a
        for index, pair in enumerate(scales)
        for part, a in zip(("key", "value"), pair, strict=True)
    }
    np.savez(path, allow_pickle=False, **arrays)


def load_scales(path: Path) -> tuple[Scales, ...]:
    """What `save_scales` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return tuple((stored[f"key_{index}"], stored[f"value_{index}"]) for index in range(len(stored.files) // 2))
