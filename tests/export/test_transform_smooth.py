"""A smoothed network is the same network; outliers in its activations cost less; and the factors are the paper's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.load import Parameters
from handlens_export.network.network import Network
from handlens_export.quantize.calibrated import Calibration
from handlens_export.quantize.network import quantize_network
from handlens_export.recipe import Recipe
from handlens_export.stage_cache.store import StageCache
from handlens_export.transform import smooth
from handlens_export.transform.smooth import Smoothed, factors_of, smoothed

pytestmark = pytest.mark.usefixtures("own_cache")


def parameters_of(folder) -> tuple[Parameters, object]:
    planned = plan(read(folder), Recipe())
    return Parameters(planned.checkpoint, planned.family, planned.config), planned.config


def prompts(network: Network) -> list[Tensor]:
    torch.manual_seed(0)
    return [network.decoder.embedding(torch.randint(network.config.decoder.vocab_size, (1, 16))) for _ in range(4)]


def network_of(read: Callable[[str], Tensor], config, kind: torch.dtype) -> Network:
    network = Network(config, 64).to(kind)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(read(name))
    return network.eval()


def out(network: Network, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return network.decoder(rows, network.decoder.eager_step(rows.shape[1], 0))


def test_factors_are_the_papers():
    activations, weights = torch.tensor([4.0, 0.25, 0.0]), [torch.tensor([[1.0, -2.0, 1.0], [0.5, 1.0, 0.0]])]
    found = factors_of(activations, weights, 0.5)
    expected = torch.tensor([(4.0 / 1.0) ** 0.5, (0.25 / 2.0) ** 0.5, smooth.LEAST])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(factors_of(activations, weights, 1.0)[:2], activations[:2])


@pytest.mark.parametrize(("kind", "most"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("family", ["bluelm_v", "llama", "qwen2", "gemma", "idefics3", "smolvlm", "paligemma"])
def test_the_smoothed_network_computes_the_same(family, variant, kind, most, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(smooth, "ALPHAS", (0.3, 0.6))
    plain, config = parameters_of(tiny_checkpoint(family, tmp_path, variant))
    with StageCache() as kept:
        made = smoothed(plain, config, Recipe(), kept, Calibration("set", "state", prompts))
        changed = [name for name in plain.shapes if not torch.equal(made.read(name), plain.read(name))]
        assert any("attention_norm" in name for name in changed) and any("down_proj" in name for name in changed)
        before = network_of(plain.read, config, kind)
        after = network_of(lambda name: made.scaled(name, kind), config, kind)
        rows = torch.randn(1, 20, config.decoder.width, dtype=kind)
        expected = out(before, rows)
    torch.testing.assert_close(out(after, rows), expected, rtol=0, atol=most * float(expected.abs().max()))


def test_outliers_planted_in_activations_cost_less(tiny_checkpoint, tmp_path, monkeypatch):
    """A channel whose activations are a hundred times the others' and whose weights are small, as large models have."""
    folder = tiny_checkpoint("llama", tmp_path)
    plain, config = parameters_of(folder)
    read_plain = Parameters.stored

    def planted(self, name):
        weight = read_plain(self, name)
        if name.endswith("_norm.weight"):
            weight = weight.clone()
            weight[3] *= 100
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            weight = weight.clone()
            weight[:, 3] /= 10
        return weight

    monkeypatch.setattr(Parameters, "stored", planted)
    exact = network_of(plain.read, config, torch.float32)
    apart = {}
    with StageCache() as kept:
        made = smoothed(plain, config, Recipe(), kept, Calibration("set", "state", prompts))
        for name, parameters in (("plain", plain), ("smoothed", made)):
            rounded, _ = quantize_network(parameters, config, Recipe(), 64, lambda share: None)
            apart[name] = sum(float((out(rounded, rows) - out(exact, rows)).square().sum()) for rows in prompts(exact))
    assert apart["smoothed"] < 0.2 * apart["plain"]


def test_weights_that_lie_on_the_grid_already_are_left_there(tiny_checkpoint, tmp_path, monkeypatch):
    plain, config = parameters_of(tiny_checkpoint("llama", tmp_path))
    read_plain = Parameters.stored

    def on_grid(self, name):
        weight = read_plain(self, name)
        if not name.endswith("_proj.weight"):
            return weight
        whole = torch.randint(-8, 8, weight.shape, generator=torch.Generator().manual_seed(len(name))).float()
        whole[:, ::32] = -8  # of each group, so that its scale is found again
        return whole / 256

    monkeypatch.setattr(Parameters, "stored", on_grid)
    with StageCache() as kept:
        made = smoothed(plain, config, Recipe(), kept, Calibration("set", "state", prompts))
        assert all(torch.equal(made.read(name), plain.read(name)) for name in plain.shapes)


def test_it_is_searched_once_and_a_bundles_reference_finds_it(tiny_checkpoint, tmp_path, monkeypatch):
    plain, config = parameters_of(tiny_checkpoint("llama", tmp_path))
    with StageCache() as kept:
        first = smoothed(plain, config, Recipe(), kept, Calibration("set", "state", prompts))
        monkeypatch.setattr(smooth, "_search", lambda *given: pytest.fail("searched again"))
        again = smoothed(plain, config, Recipe(), kept, Calibration("set", "state", prompts))
        assert first.settings == again.settings != plain.settings
        assert isinstance(again, Smoothed)
        for name in plain.shapes:
            assert torch.equal(first.read(name), again.read(name))
