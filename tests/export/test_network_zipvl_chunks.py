"""A choice of tokens made chunk by chunk: what it shares with that of the whole prompt, and how it departs."""

from __future__ import annotations

import pytest
import torch
from sharp_networks import rows_of, sharp_network
from torch import Tensor

from handlens_export.network.network import Network
from handlens_export.network.zipvl import ZipVL, swap
from handlens_export.network.zipvl_chunks import ChunkedSparseAttention

PROMPT, CHUNK = 300, 100


def in_chunks(network: Network, tau: float, chunk: int) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last row and of one behind it; what each layer kept."""
    rows, leaves = rows_of(PROMPT + 1), []
    for layer in network.decoder.layers:
        layer.attention.cached = ChunkedSparseAttention(network.config.decoder, ZipVL(tau))
        leaves.append(layer.attention.cached)
    for begin in range(0, PROMPT, chunk):
        last = network.logits(rows[:, begin : begin + chunk], begin, prompt=True)[0, -1:]
    kept = [leaf.kept for leaf in leaves]
    assert [leaf.keys.shape[1] for leaf in leaves] == [len(places) for places in kept]
    return torch.cat((last, network.logits(rows[:, PROMPT:], PROMPT)[0])), kept


def test_one_chunk_chooses_as_the_whole_prompt() -> None:
    network = sharp_network()
    found, kept = in_chunks(network, 0.8, PROMPT)
    leaves = swap(network.decoder.layers, network.config.decoder, ZipVL(0.8))
    rows = rows_of(PROMPT + 1)
    expected = [network.logits(rows[:, :PROMPT], prompt=True)[0, -1:]]
    assert all(torch.equal(a, b.kept) for a, b in zip(kept, leaves, strict=True))
    expected.append(network.logits(rows[:, PROMPT:], PROMPT)[0])
    torch.testing.assert_close(found, torch.cat(expected))


def test_where_all_is_kept_it_is_dense() -> None:
    network = sharp_network()
    expected = network.logits(rows_of(PROMPT + 1))[0, -2:]
    found, kept = in_chunks(network, 1.0, CHUNK)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(places.tolist() == list(range(PROMPT)) for places in kept)


def test_importance_adds_up_over_chunks_and_what_was_dropped_stays_away() -> None:
    """Two chunks of one layer, by hand: all queries of a chunk look at one key, if it is there, else at all alike."""
    network = sharp_network(layers=1)
    config = network.config.decoder
    leaf = ChunkedSparseAttention(config, ZipVL(0.85))
    k = torch.zeros(1, 20, config.kv_heads, config.head_dim)
    k[0, 2, :, 0] = k[0, 4, :, 1] = 1.0
    q = torch.zeros(1, 20, config.heads, config.head_dim)
    q[0, :10, :, 0] = 60.0  # the first chunk looks at place 2, the second at place 4
    q[0, 10:, :, 1] = 60.0
    for begin in (0, 10):
        part = slice(begin, begin + 10)
        step = network.decoder.eager_step(10, begin, prompt=True)
        step = type(step)(begin, torch.ones_like(step.cos), torch.zeros_like(step.sin), True)  # not turned
        leaf(q[:, part], k[:, part], k[:, part], step)
        kept = leaf.kept.tolist()
        if begin == 0:
            assert 2 in kept and 9 in kept and 4 not in kept
    assert 2 in kept, "what mattered to the first chunk counts on"
    assert 19 in kept and 4 not in kept, "the second chunk's own favourite was gone"


@pytest.mark.parametrize("chunk", [100, 150])
def test_chunks_choose_much_of_what_the_whole_prompt_does(chunk: int) -> None:
    network = sharp_network()
    _, whole = in_chunks(network, 0.8, PROMPT)
    _, found = in_chunks(network, 0.8, chunk)
    for places, expected in zip(found, whole, strict=True):
        assert PROMPT - 1 in places.tolist() and places.tolist() == sorted(set(places.tolist()))
        common = set(places.tolist()) & set(expected.tolist())
        assert len(common) / len(set(places.tolist()) | set(expected.tolist())) > 0.5


def test_chunks_that_would_keep_the_rest_are_refused() -> None:
    with pytest.raises(ValueError, match="drop what they do not choose"):
        ChunkedSparseAttention(sharp_network().config.decoder, ZipVL(0.8, rest="low bits"))
