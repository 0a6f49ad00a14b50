"""A vision-language .pte in ExecuTorch's own MultimodalRunner, unmodified: the same greedy tokens as our engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlens_export.photographs import photographs
from handlens_export.prompt_rows import prepare_prompt
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.options import Options

TESTS = Path(__file__).resolve().parents[1]
TOKENS = 16


@pytest.mark.parametrize("family", ["bluelm_v", pytest.param("smolvlm", marks=pytest.mark.long)])
def test_executorchs_own_runner_gives_the_engines_tokens(exported, family, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    from executorch_judge import in_pieces, multimodal_answer

    engine = Engine(exported(family).bundle, "executorch")
    manifest = engine.bundle.manifest
    messages = [Message("user", "What is this?", images=(photographs()[2],))]
    options = Options(max_tokens=TOKENS, temperature=0.0, repetition_penalty=1.0)
    ours = [token.id for token in engine.generate(messages, options)]

    prepared = prepare_prompt(manifest, engine.tokenizer, messages)
    tiles = {key: cut.pixels for key, cut in prepared.tiles.items()}
    pieces = in_pieces(prepared.prompt.keys, tiles, manifest.image.tokens_per_tile)
    assert sum(not isinstance(piece, list) for piece in pieces) == engine.stats.tiles > 1
    program = engine.bundle.path / "executorch/model.pte"
    theirs, count = multimodal_answer(program, manifest.sizes.vocab_size, pieces, TOKENS, tmp_path)
    assert theirs == ours
    assert count == engine.stats.prompt_tokens
