"""ZipVL's reference: against loops over the paper's formulas, and what must hold of any choice."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import BASE
from torch import Tensor

from handlens_export.network.attention import CachedAttention, Step
from handlens_export.network.config import DecoderConfig, NetworkConfig
from handlens_export.network.network import Network
from handlens_export.network.zipvl import INTERVAL, OTHERS, RECENT, ZipVL, attention_of, choose, probes, swap
from handlens_runtime.engine import LEAST_SPARSE

CONTEXT, PROMPT = 400, 200


def naive_choice(q: Tensor, k: Tensor, rows: list[int], causal: bool, scale: float, tau: float) -> set[int]:
    """The paper's section 4.2, number by number; q and k (t, heads, d)."""
    t, heads, _ = q.shape
    accumulated, seen = [0.0] * t, [0] * t
    for row in rows:
        visible = range(row + 1 if causal else t)
        for head in range(heads):
            scores = [float((q[row, head] * k[column, head]).sum()) * scale for column in visible]
            total = sum(math.exp(score) for score in scores)
            for column, score in zip(visible, scores, strict=True):
                accumulated[column] += math.exp(score) / total / heads
        for column in visible:
            seen[column] += 1
    need, count = tau * len(rows), 0
    for score in sorted(accumulated, reverse=True):
        need, count = need - score, count + 1
        if need <= 1e-9:
            break
    order = sorted(range(t - 1), key=lambda column: -accumulated[column] / seen[column])
    return {t - 1, *order[: count - 1]}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tau", [0.5, 0.9, 0.975])
def test_tokens_are_chosen_as_the_paper_says(causal: bool, tau: float) -> None:
    torch.manual_seed(0)
    t = RECENT + OTHERS + 12
    q, k = 3 * torch.randn(2, 1, t, 2, 8)
    rows = probes(t)
    found = choose(attention_of(q, k, rows, causal, 8**-0.5), rows, causal, tau)
    assert set(found.tolist()) == naive_choice(q[0], k[0], rows.tolist(), causal, 8**-0.5, tau)
    assert found.tolist() == sorted(found.tolist())


def test_probes_are_the_last_rows_and_others_of_all_stretches() -> None:
    assert probes(RECENT + OTHERS).tolist() == list(range(RECENT + OTHERS))
    for t in (RECENT + OTHERS + 1, 300, 5000):
        found = probes(t).tolist()
        assert found[-RECENT:] == list(range(t - RECENT, t))
        assert found == sorted(found) and found[0] >= 0 and found[OTHERS - 1] < t - RECENT
        stretch = (t - RECENT) / OTHERS
        assert all(int(i * stretch) <= row <= (i + 1) * stretch for i, row in enumerate(found[:OTHERS]))
        assert found == probes(t).tolist()


def test_a_larger_tau_keeps_more_and_one_keeps_all() -> None:
    torch.manual_seed(1)
    t, counts = 300, []
    q, k = 3 * torch.randn(2, 1, t, 2, 8)
    rows = probes(t)
    attention = attention_of(q, k, rows, True, 8**-0.5)
    for tau in (0.3, 0.6, 0.9, 0.99, 1.0):
        counts.append(len(choose(attention, rows, True, tau)))
    assert counts == sorted(counts) and len(set(counts)) == len(counts) and counts[-1] == t


def test_grouped_heads_share_keys() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 30, 4, 8), torch.randn(1, 30, 2, 8)
    rows = torch.arange(30)
    wide = attention_of(q, k.repeat_interleave(2, dim=2), rows, True, 0.3)
    torch.testing.assert_close(attention_of(q, k, rows, True, 0.3), wide)
    torch.testing.assert_close(wide.sum(1), torch.ones(30))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    made = Network(NetworkConfig("test", DecoderConfig(**BASE)), CONTEXT)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=2 * parameter.shape[1] ** -0.5)  # so that some tokens matter more than others
    return made.requires_grad_(False)


def rows_of(network: Network, count: int) -> Tensor:
    ids = torch.randint(0, network.config.decoder.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))
    return network.decoder.embedding(ids)


@pytest.mark.parametrize("rest", ["dropped", "low bits"])
def test_where_all_is_kept_it_is_dense(network: Network, rest: str) -> None:
    rows = rows_of(network, PROMPT + 3)
    exact = network.logits(rows)
    leaves = swap(network.decoder.layers, network.config.decoder, ZipVL(tau=1.0, rest=rest))
    found = [network.logits(rows[:, :PROMPT], prompt=True)]
    found += [network.logits(rows[:, place : place + 1], place) for place in range(PROMPT, PROMPT + 3)]
    apart = (torch.cat(found, 1) - exact).norm() / exact.norm()
    assert apart < (1e-5 if rest == "dropped" else 0.02)  # whose cache has eight bits
    assert [len(leaf.kept) for leaf in leaves] == [PROMPT] * len(leaves)


def test_what_is_not_chosen_is_neither_seen_nor_kept(network: Network) -> None:
    """A prompt's chosen rows alone, at their own positions, through dense attention give the same."""
    (leaf, *_) = swap(network.decoder.layers, network.config.decoder, ZipVL(tau=0.6))
    torch.manual_seed(2)
    heads, kv_heads, d = (
        network.config.decoder.heads,
        network.config.decoder.kv_heads,
        network.config.decoder.head_dim,
    )
    q, k, v = (
        2 * torch.randn(1, PROMPT, heads, d),
        2 * torch.randn(1, PROMPT, kv_heads, d),
        torch.randn(1, PROMPT, kv_heads, d),
    )
    step = network.decoder.eager_step(PROMPT, 0, prompt=True)
    out = leaf(q, k, v, step)
    kept = leaf.kept
    assert 2 <= len(kept) < PROMPT and int(kept[-1]) == PROMPT - 1
    others = torch.ones(PROMPT, dtype=torch.bool)
    others[kept] = False
    assert bool((out[:, others] == 0).all()) and leaf.keys.shape[1] == leaf.values.shape[1] == len(kept)
    dense = CachedAttention(network.config.decoder)
    alone = Step(0, step.cos[kept], step.sin[kept])
    torch.testing.assert_close(out[:, kept], dense(q[:, kept], k[:, kept], v[:, kept], alone))
    one = (torch.randn(1, 1, heads, d), torch.randn(1, 1, kv_heads, d), torch.randn(1, 1, kv_heads, d))
    after = network.decoder.eager_step(1, PROMPT)
    torch.testing.assert_close(leaf(*one, after), dense(*one, Step(len(kept), after.cos, after.sin)))


def test_a_later_prompt_leaves_what_was_kept_before_alone(network: Network) -> None:
    leaves = swap(network.decoder.layers, network.config.decoder, ZipVL(tau=0.6))
    rows = rows_of(network, 2 * PROMPT)
    network.logits(rows[:, :PROMPT], prompt=True)
    before = [leaf.keys.clone() for leaf in leaves]
    network.logits(rows[:, PROMPT:], PROMPT, prompt=True)
    for leaf, keys in zip(leaves, before, strict=True):
        assert torch.equal(leaf.keys[:, : keys.shape[1]], keys)
        assert leaf.keys.shape[1] == keys.shape[1] + len(leaf.kept) < 2 * PROMPT
    network.logits(rows[:, :PROMPT], prompt=True)  # from the beginning again
    assert all(torch.equal(leaf.keys, keys) for leaf, keys in zip(leaves, before, strict=True))


def test_low_bits_are_few_steps_and_generated_tokens_go_there_too(network: Network) -> None:
    (leaf, *_) = swap(network.decoder.layers, network.config.decoder, ZipVL(tau=0.6, rest="low bits"))
    rows = rows_of(network, PROMPT + INTERVAL)
    network.logits(rows[:, :PROMPT], prompt=True)

    def steps(cache: Tensor) -> Tensor:
        """Distinct values of each token's first head."""
        return torch.tensor([len(token.unique()) for token in cache[0, :, 0]])

    assert leaf.keys.shape[1] == PROMPT
    assert int((steps(leaf.values) <= 4).sum()) == PROMPT - len(leaf.kept) > 0
    for place in range(PROMPT, PROMPT + INTERVAL - 1):
        network.logits(rows[:, place : place + 1], place)
    assert int((steps(leaf.values[:, PROMPT:]) <= 4).sum()) == 0
    network.logits(rows[:, PROMPT + INTERVAL - 1 :], PROMPT + INTERVAL - 1)
    assert 0 < int((steps(leaf.values[:, PROMPT:]) <= 4).sum()) < INTERVAL
    assert leaf.keys.shape[1] == PROMPT + INTERVAL


def test_an_earlier_answers_queries_are_not_asked_about_a_later_prompt(network: Network) -> None:
    (leaf, *_) = swap(network.decoder.layers, network.config.decoder, ZipVL(tau=0.6, rest="low bits"))
    rows, answered = rows_of(network, CONTEXT), 30
    network.logits(rows[:, :100], prompt=True)
    for place in range(100, 100 + answered):
        network.logits(rows[:, place : place + 1], place)
    second = 100 + answered
    network.logits(rows[:, second : second + 100], second, prompt=True)
    before = leaf.values.clone()
    for place in range(second + 100, second + 100 + INTERVAL - answered):
        network.logits(rows[:, place : place + 1], place)
    assert torch.equal(leaf.values[:, : before.shape[1]], before)


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.1])
def test_no_share_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match="share of the attention"):
        ZipVL(tau)


def test_the_runtime_asks_to_choose_only_where_not_every_row_is_a_probe() -> None:
    assert len(probes(LEAST_SPARSE)) == LEAST_SPARSE - 1
    assert len(probes(LEAST_SPARSE - 1)) == LEAST_SPARSE - 1
