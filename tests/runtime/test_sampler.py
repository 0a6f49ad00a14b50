"""Against transformers' own processors: same tokens kept, same probabilities."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from handlens_runtime.errors import BackendError, OptionError
from handlens_runtime.manifest import SamplingDefaults
from handlens_runtime.options import Options
from handlens_runtime.sampler import Sampler, log_softmax

PROMPT = [3, 17, 17, 40, 999]  # 999 lies outside the logits, as an image token's id may


def logits_of(seed, size=300):
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


def transformers_scores(logits, settings):
    ids, scores = torch.tensor([PROMPT]), torch.from_numpy(logits)[None].double()
    processors = [RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)]
    processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(MinPLogitsWarper(settings.min_p))
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.0},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.5},
        {"repetition_penalty": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_same_tokens_and_probabilities_as_transformers(temperature, chosen):
    settings = SamplingDefaults(temperature=temperature, **chosen)
    for seed in range(5):
        logits = logits_of(seed)
        expected = transformers_scores(logits, settings)
        scores = torch.from_numpy(Sampler(settings, PROMPT).scores(logits))
        assert torch.equal(torch.isinf(scores), torch.isinf(expected))
        torch.testing.assert_close(scores.softmax(0), expected.softmax(0))


def test_ties_at_the_edge_are_kept_as_transformers_keeps_them():
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    settings = SamplingDefaults(temperature=1.0, top_k=2)
    expected = torch.isinf(transformers_scores(logits, settings)).tolist()
    assert np.isinf(Sampler(settings, PROMPT).scores(logits)).tolist() == expected == [True, False, False, False, True]


def test_temperature_zero_is_greedy_and_still_penalises_repetition():
    logits = np.array([1.0, 5.0, 4.0, -1.0], np.float32)
    assert Sampler(SamplingDefaults()).sample(logits) == 1
    sampler = Sampler(SamplingDefaults(repetition_penalty=2.0))
    assert [sampler.sample(logits) for _ in range(3)] == [1, 2, 1]  # then 5/2 beats 4/2


def test_tiny_temperature_is_greedy_without_overflow():
    sampler = Sampler(SamplingDefaults(temperature=1e-310), seed=0)
    assert sampler.sample(logits_of(1)) == int(np.argmax(logits_of(1)))


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    sampler = Sampler(SamplingDefaults(temperature=1.0), seed=5)
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.6, 0.3], atol=0.03)


def test_a_ruled_out_token_is_never_drawn():
    logits = np.array([0.0, -np.inf, 0.0, -np.inf], np.float32)
    sampler = Sampler(SamplingDefaults(temperature=5.0), seed=1)
    assert {sampler.sample(logits) for _ in range(300)} == {0, 2}


def test_seed_repeats_a_draw_and_no_seed_does_not():
    settings = SamplingDefaults(temperature=1.5)

    def draws(seed):
        sampler = Sampler(settings, seed=seed)
        return [sampler.sample(logits_of(i)) for i in range(30)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_the_backends_fault(bad, temperature):
    with pytest.raises(BackendError, match="not finite numbers"):
        Sampler(SamplingDefaults(temperature=temperature)).sample(np.array(bad, np.float32))


def test_log_softmax_is_torchs():
    logits = logits_of(2) * 100
    np.testing.assert_allclose(log_softmax(logits), torch.from_numpy(logits).double().log_softmax(0).numpy())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [0, -1, 1.5, True, "3"]),
        ("temperature", [-0.1, math.nan, math.inf, "hot", True]),
        ("top_k", [-1, 2.0, True]),
        ("top_p", [-0.1, 1.01, math.nan]),
        ("min_p", [-0.1, 1.01, math.nan]),
        ("repetition_penalty", [0, 0.0, -1, math.inf]),
        ("seed", [-1, 0.5]),
        ("stop", ["text", ("",), (1,)]),
    ],
)
def test_option_out_of_range_is_refused_by_its_name(name, values):
    for value in values:
        with pytest.raises(OptionError, match=name):
            Options(**{name: value})


def test_options_fall_back_to_the_bundles_defaults():
    defaults = SamplingDefaults(temperature=0.7, top_k=50)
    assert Options().sampling(defaults) == defaults
    assert Options(temperature=0.0, top_p=0.5).sampling(defaults) == SamplingDefaults(top_k=50, top_p=0.5)
