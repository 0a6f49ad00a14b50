"""What a checkpoint asks of decoding and does not get is said, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from handlens_export import pipeline
from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.read import read
from handlens_export.network.decoding import NEUTRAL, NEUTRAL_BEAMS, NEUTRAL_SAMPLING, warnings
from handlens_export.recipe import Recipe


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(tiny_checkpoint("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size 3,"),
        ({"suppress_tokens": [1, 2], "forced_bos_token_id": 0}, "forced_bos_token_id 0, suppress_tokens,"),
        ({"num_beams": 4, "length_penalty": 0.5}, "length_penalty 0.5, num_beams 4,"),
        ({"bad_words_ids": [[7]], "begin_suppress_tokens": [5], "forced_eos_token_id": 2}, "bad_words_ids, begin_"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p 0.9,"),
        ({"stop_strings": "END"}, "stop_strings END,"),
    ],
)
def test_what_the_engine_lacks_is_named_in_one_sentence(
    checkpoint: Checkpoint, given: dict[str, Any], named: str
) -> None:
    (said,) = warnings(replace(checkpoint, generation_config=given))
    assert f"sets {named}" in said and str(checkpoint.path) in said and "\n" not in said


@pytest.mark.parametrize(
    "given",
    [
        {},
        NEUTRAL | NEUTRAL_BEAMS | NEUTRAL_SAMPLING | {"do_sample": True},
        {"suppress_tokens": [], "bad_words_ids": None},
        {"length_penalty": 2.0, "typical_p": 0.5},  # of beams and of sampling, neither of which is on
        {"do_sample": True, "temperature": 0.7, "top_k": 9, "repetition_penalty": 1.2, "max_new_tokens": 5},
        GenerationConfig().to_dict(),
    ],
    ids=["empty", "neutral", "empty lists", "unused", "honoured", "transformers'"],
)
def test_what_changes_nothing_or_is_honoured_is_not_named(checkpoint: Checkpoint, given: dict[str, Any]) -> None:
    assert warnings(replace(checkpoint, generation_config=given)) == ()


def test_every_field_that_may_be_named_is_one_of_transformers() -> None:
    assert set(NEUTRAL | NEUTRAL_SAMPLING | NEUTRAL_BEAMS) <= set(vars(GenerationConfig()))


def test_export_says_it_before_any_weight_is_read(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint("llama", tmp_path / "checkpoint")
    (source / "generation_config.json").write_text(json.dumps({"num_beams": 2}))

    def stop(*_: object) -> None:
        raise RuntimeError("enough")

    monkeypatch.setattr(pipeline, "quantize_network", stop)
    said: list[str] = []
    with pytest.raises(RuntimeError, match="enough"):
        pipeline.export(source, tmp_path / "bundle", Recipe(), warn=said.append)
    assert len(said) == 1 and "num_beams 2" in said[0]
    # Without a listener it is a warning of Python's, so that no caller misses it.
    with pytest.warns(UserWarning, match="num_beams 2"), pytest.raises(RuntimeError, match="enough"):
        pipeline.export(source, tmp_path / "bundle", Recipe())
