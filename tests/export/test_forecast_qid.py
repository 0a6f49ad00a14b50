"""The law of what few bits cost, at the numbers that its paper gives."""

from __future__ import annotations

import pytest

from handlens_export.checkpoint.read import read
from handlens_export.errors import UnsupportedError
from handlens_export.forecast.qid import advise, degradation


def test_a_billion_parameters_at_four_bits_lose_a_fifth_of_a_nat_after_1_65_trillion_tokens():
    assert degradation(10**9, 1.65e12, 4).loss == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("more", "factor"),
    [({"tokens": 2e11}, 2**0.5251), ({"parameters": 2 * 10**9}, 2**-0.2261), ({"bits": 2}, 2**5.4967)],
)
def test_each_exponent_is_the_papers(more, factor):
    base = {"parameters": 10**9, "tokens": 1e11, "bits": 4}
    assert degradation(**{**base, **more}).loss / degradation(**base).loss == pytest.approx(factor, rel=1e-9)


def test_what_lies_outside_of_the_fit_is_said():
    assert degradation(10**9, 1e11, 4).extrapolated == ()
    assert degradation(10**8, 1e12, 8).extrapolated == ("parameters", "tokens", "bits")


def test_parameters_are_those_outside_of_embeddings_and_head(tiny_checkpoint, tmp_path):
    checkpoint = read(tiny_checkpoint("llama", tmp_path / "llama"))
    source = checkpoint.tensors
    expected = 0
    for name in source.names():
        if ".layers." in name:
            size = 1
            for length in source.shape(name):
                size *= length
            expected += size
    advice = advise(checkpoint, 1e11)
    assert advice.parameters == expected
    assert [one.bits for one in advice.predicted] == [2, 3, 4, 8]


def test_no_tokens_are_refused():
    with pytest.raises(UnsupportedError, match="more than 0 training tokens, and was given 0; give the real number"):
        degradation(10**9, 0, 4)
