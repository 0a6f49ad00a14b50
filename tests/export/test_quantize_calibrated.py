"""Quantizers that look at inputs: against naive references, and against plain rounding where they must win."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from handlens_export.network.config import DecoderConfig
from handlens_export.network.decoder import Decoder
from handlens_export.quantize.clip import SHRINKS, clip
from handlens_export.quantize.formats import Matrix
from handlens_export.quantize.gptq import BLOCK, DAMP, gptq
from handlens_export.quantize.importance import LEAST, STRATEGIES, importance
from handlens_export.quantize.layers import hessian, quantize_layer, squares
from handlens_export.quantize.rounding import grid, quantize, snap

ROWS, COLUMNS, GROUP = 12, 64, 32


def weight_of(seed: int = 0, columns: int = COLUMNS) -> Tensor:
    torch.manual_seed(seed)
    weight = torch.randn(ROWS, columns) * torch.linspace(0.1, 2.0, ROWS)[:, None]
    weight[:, 3] *= 5
    return weight


def inputs_of(seed: int = 1, count: int = 400, columns: int = COLUMNS) -> Tensor:
    """Channels of different sizes that depend on each other, as a network's do."""
    torch.manual_seed(seed)
    return torch.randn(count, columns // 4) @ torch.randn(columns // 4, columns) * torch.logspace(-1, 1, columns)


def error(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    return float(((weight - rounded) @ inputs.T).square().sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_clipped_grids_have_the_least_error_of_those_tried(bits: int) -> None:
    weight, group = weight_of(), COLUMNS if bits == 8 else GROUP
    importance = torch.rand(COLUMNS) + 0.1
    found = clip(weight, bits, group, importance)
    for row in range(ROWS):
        for begin in range(0, COLUMNS, group):
            part, weights = weight[row, begin : begin + group], importance[begin : begin + group]
            errors = []
            for shrink in SHRINKS:
                scale, zero = grid(part, bits, shrink)
                near = snap(part.clone(), scale, zero, bits) - (0 if zero is None else zero)
                errors.append(float(((near * scale - part).square() * weights).sum()))
            got = (found.dequantize()[row, begin : begin + group] - part).square() * weights
            assert float(got.sum()) == pytest.approx(min(errors), rel=1e-4)


def naive_gptq(weight: np.ndarray, hessian_: np.ndarray, scales: np.ndarray, group: int, bits: int = 4) -> np.ndarray:
    """Section 3.1 of the paper, one column at a time with the inverse itself, its removed columns eliminated."""
    w, h = weight.copy(), hessian_ + DAMP * hessian_.diagonal().mean() * np.eye(len(hessian_))
    inverse = np.linalg.inv(h)
    out = np.zeros_like(w)
    for j in range(w.shape[1]):
        scale = scales[:, j // group]
        least = -127 if bits == 8 else -(2 ** (bits - 1))
        out[:, j] = np.clip(np.round(w[:, j] / scale), least, 2 ** (bits - 1) - 1) * scale
        change = (w[:, j] - out[:, j]) / inverse[j, j]
        w[:, j:] -= change[:, None] * inverse[j, j:][None]
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("columns", "bits", "group"),
    [(COLUMNS, 4, GROUP), (2 * BLOCK + 64, 4, GROUP), (2 * BLOCK + 64, 8, 2 * BLOCK + 64)],
)
def test_gptq_is_the_papers_column_by_column(columns: int, bits: int, group: int, act_order: bool) -> None:
    """Within a block of columns, and over several, a group wider than a block among them."""
    weight, inputs = weight_of(columns=columns), inputs_of(columns=columns)
    gram = inputs.T @ inputs
    order = gram.diagonal().argsort(descending=True).numpy() if act_order else np.arange(columns)
    found = gptq(weight, gram, bits, group, act_order)
    h = gram.double().numpy()[order][:, order]
    scales = found.scales.double().numpy().reshape(ROWS, -1)
    # One scale for each column, so that groups may lie anywhere in the order.
    expected = naive_gptq(weight.double().numpy()[:, order], h, np.repeat(scales, group, 1)[:, order], 1, bits)
    got = found.dequantize().numpy()[:, order]
    assert np.isclose(got, expected, rtol=1e-3, atol=1e-5).mean() > 0.98  # float32 rounds another way near ties


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 32), (4, 64), (8, 64)])
def test_each_method_is_better_than_the_one_before_it(bits: int, group: int) -> None:
    weight, inputs = weight_of(), inputs_of()
    gram = inputs.T @ inputs
    plain = error(weight, quantize(weight, bits, group).dequantize(), inputs)
    clipped = error(weight, clip(weight, bits, group, gram.diagonal()).dequantize(), inputs)
    made_up = error(weight, gptq(weight, gram, bits, group).dequantize(), inputs)
    assert made_up < 0.75 * plain
    assert made_up < clipped
    if bits < 8:
        assert clipped < plain


def test_inputs_that_never_come_do_not_stop_gptq() -> None:
    weight, inputs = weight_of(), inputs_of()
    inputs[:, 10:20] = 0
    found = gptq(weight, inputs.T @ inputs, 4, GROUP)
    assert found.dequantize().isfinite().all()
    assert (found.dequantize()[:, 10:20] == 0).all()
    few = inputs_of(count=3)  # of a rank far below the columns
    assert gptq(weight, few.T @ few, 4, GROUP).dequantize().isfinite().all()


CONFIG = DecoderConfig(
    vocab_size=64,
    width=32,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=64,
    max_positions=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    made = Decoder(CONFIG).eval()
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


def prompts(count: int = 6, t: int = 40) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(1, t, CONFIG.width) for _ in range(count)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_importances_have_a_mean_of_one_and_the_papers_range(decoder: Decoder, strategy) -> None:
    (rows,) = prompts(1)
    found = importance(strategy, decoder.layers[0], rows, decoder.eager_step(40, 0))
    assert found.shape == (40,)
    assert float(found.mean()) == pytest.approx(1, abs=1e-5)
    if strategy != "uniform":
        assert float(found.min() / found.max()) == pytest.approx(LEAST, rel=1e-3)


def test_attention_concentration_is_the_attention_that_a_token_gets(decoder: Decoder) -> None:
    """Against the whole matrix of probabilities, written out."""
    (rows,), layer = prompts(1, 12), decoder.layers[0]
    step = decoder.eager_step(12, 0)
    x = layer.attention_norm(rows)
    q, k = (
        getattr(layer.attention, f"{name}_proj")(x).view(12, heads, 8).double() for name, heads in (("q", 4), ("k", 2))
    )
    total = torch.zeros(12).double()
    for head in range(4):
        for i in range(12):
            scores = []
            for j in range(i + 1):
                a, b = _rotated(q[i, head], i), _rotated(k[j, head // 2], j)
                scores.append(float(a @ b) * 8**-0.5)
            total[: i + 1] += torch.tensor(scores).double().softmax(0)
    expected = (total - total.min()) / (total.max() - total.min()) * (1 - LEAST) + LEAST
    found = importance("attention", layer, rows, step)
    torch.testing.assert_close(found.double(), expected / expected.mean(), rtol=1e-4, atol=1e-4)


def test_the_other_strategies_are_the_papers(decoder: Decoder) -> None:
    (rows,), layer = prompts(1, 64), decoder.layers[0]
    step, places = decoder.eager_step(64, 0), torch.arange(64)
    raw = {
        "norm": rows[0].square().sum(1).sqrt(),
        "change": -(layer(rows, step) - rows)[0].square().sum(1).sqrt(),
        "apart": torch.stack([(rows[0] - row).square().sum(1).sqrt().mean() for row in rows[0]]),
        "first": (places < 8).float(),
        "ends": ((places < 2) | (places >= 62)).float(),
    }
    for strategy, found in raw.items():
        expected = (found - found.min()) / (found.max() - found.min()) * (1 - LEAST) + LEAST
        got = importance(strategy, layer, rows, step)
        torch.testing.assert_close(got, expected / expected.mean(), rtol=1e-3, atol=1e-4, msg=strategy)


def _rotated(x: Tensor, position: int) -> Tensor:
    angles = position / 1e4 ** (torch.arange(4).double() / 4)
    first, second = x[:4], x[4:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))


def test_a_layer_is_rounded_to_what_its_linears_really_get(decoder: Decoder) -> None:
    """Nothing but the linears' weights changes, and the outputs are those of the layer as it is left."""
    layer, hidden = decoder.layers[0], prompts()
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    grids = {name: Matrix(*module.weight.shape, 4, 32) for name, module in linears.items()}
    found, after = quantize_layer(layer, hidden, lambda t: decoder.eager_step(t, 0), grids, "gptq")
    assert set(found) == set(linears) and len(found) == 7
    for name, module in linears.items():
        assert torch.equal(module.weight, found[name].dequantize()), name
    for rows, out in zip(hidden, after, strict=True):
        torch.testing.assert_close(layer(rows, decoder.eager_step(rows.shape[1], 0)), out)


def test_methods_come_in_the_papers_order(decoder: Decoder) -> None:
    """The layer's outputs, weighted as the method weighs tokens: GPTQ before rounding, and RSQ where it counts."""
    hidden, step = prompts(), decoder.eager_step(40, 0)
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    layer = decoder.layers[0]
    exact = [layer(rows, step) for rows in hidden]
    weights = [importance("attention", layer, rows, step) for rows in hidden]
    grids = {n: Matrix(*m.weight.shape, 4, 32) for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
    errors = {}
    for method in ("round", "clip", "gptq", "rsq"):
        decoder.load_state_dict(state, strict=False)
        _, after = quantize_layer(layer, hidden, lambda t: step, grids, method)
        apart = [(a - b)[0].square().sum(-1) for a, b in zip(after, exact, strict=True)]
        errors[method] = (
            float(sum(each.sum() for each in apart)),
            float(sum((each * weight).sum() for each, weight in zip(apart, weights, strict=True))),
        )
    assert errors["gptq"][0] < errors["clip"][0] < errors["round"][0]
    assert errors["rsq"][1] < errors["gptq"][1]


def test_a_weighted_hessian_counts_tokens_by_their_weight() -> None:
    (rows,) = prompts(1, 5)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.5])
    expected = sum(float(w) * torch.outer(x, x) for w, x in zip(weights, rows[0], strict=True))
    torch.testing.assert_close(hessian([rows], [weights]), expected)
    torch.testing.assert_close(squares([rows], [weights]), expected.diagonal())
    with pytest.raises(ValueError, match="at least one prompt"):
        hessian([], [])
