"""A bundle whose layers keep what matters to them of a prompt: from the recipe to a chat with pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from handlens._api import steady_engine
from handlens.cli import app
from handlens_export.check import check
from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.errors import UnsupportedError
from handlens_export.photographs import photographs
from handlens_export.pipeline import export
from handlens_export.quantize.calibration import TEXTS
from handlens_export.recipe import Recipe
from handlens_runtime.backends.base import Rows
from handlens_runtime.backends.onnx import OnnxBackend
from handlens_runtime.bundle import Bundle
from handlens_runtime.chat import Message
from handlens_runtime.engine import Engine
from handlens_runtime.golden.asking import DAY
from handlens_runtime.options import Options
from handlens_runtime.sampler import log_softmax

LONG = "Read every line of it and say which of the words in it you can make out, one after another, please. " * 2
OPTIONS = Options(max_tokens=5, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zipvl")
    told: list[tuple[str, float]] = []
    manifest = export(
        tiny_checkpoint("bluelm_v", folder / "tiny"),
        folder / "bundle",
        Recipe(tau=0.9),
        progress=lambda stage, share: told.append((stage, share)),
    )
    shares = [share for _, share in told]
    *_, answered, half, whole = [share for stage, share in told if stage == "record"]
    assert shares == sorted(shares) and answered < half < whole, "what is left out is measured in a share of the time"
    assert manifest.sparsity is not None and manifest.sparsity.tau == 0.9 == manifest.quantization.recipe.tau
    assert manifest.sizes.max_chunk == manifest.sizes.context
    return folder / "bundle"


@pytest.fixture(params=["executorch", "onnx"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (36, 36, 3), dtype=np.uint8))


def answer(engine: Engine, messages: list[Message]) -> list[int]:
    return [token.id for token in engine.generate(messages, OPTIONS)]


def text(engine: Engine, ids: list[int]) -> str:
    return engine.tokenizer.decode(ids)


def test_turns_of_a_chat_equal_a_cold_run_of_the_same_history(bundle: Path, backend: str) -> None:
    warm, cold = Engine(bundle, backend, sparse=True), Engine(bundle, backend, sparse=True)
    messages: list[Message] = []
    for turn in range(3):
        # A long turn with a picture, whose tokens are chosen, and a short one, which is kept whole, by turns.
        asked = f"{LONG} {turn}" if turn % 2 == 0 else f"And {turn}?"
        messages.append(Message("user", asked, (picture(turn),) if turn % 2 == 0 else ()))
        cold.reset()
        found = answer(warm, messages)
        assert found == answer(cold, messages)
        assert warm.backend._kept.at(warm._decoder.position).tolist() == (
            cold.backend._kept.at(cold._decoder.position).tolist()
        )
        assert cold.stats.reused_tokens == 0 and (turn == 0 or warm.stats.reused_tokens > 0)
        assert (warm.stats.sparse_tokens > 0) == (turn % 2 == 0)
        assert cold.stats.sparse_tokens > 0
        messages.append(Message("assistant", text(warm, found) or "Yes."))


def test_what_is_kept_is_counted_and_a_switch_keeps_all(bundle: Path, backend: str) -> None:
    question = [Message("user", LONG, (picture(0),))]
    sparse, dense = Engine(bundle, backend, sparse=True), Engine(bundle, backend, sparse=False)
    answer(sparse, question)
    answer(dense, question)
    stats, layers = sparse.stats, sparse.bundle.manifest.sizes.layers
    assert stats.sparse_tokens == stats.prompt_tokens > 129 and len(stats.kept_tokens) == layers
    assert all(0 < kept < stats.sparse_tokens for kept in stats.kept_tokens)
    (kept,) = sparse.kept
    assert kept.rows.sum(1).tolist() == stats.kept_tokens and bool(kept.rows[:, -1].all())
    assert dense.stats.sparse_tokens == 0 and dense.kept == [] and dense.stats.kept_tokens == []


def test_the_manifest_tells_what_it_did_to_a_prompt(bundle: Path) -> None:
    effect = Bundle.load(bundle).manifest.sparsity.effect
    assert effect.image_tokens > 0 and effect.prompt_tokens >= 256
    question = [Message("user", TEXTS[0], images=(photographs()[0],))]
    logits = []
    for sparse in (None, False):
        engine = Engine(bundle, effect.backend, sparse=sparse, now=lambda: DAY)
        logits.append(log_softmax(engine.next_logits(question)))
        if sparse is None:
            assert engine.stats.kept_tokens == list(effect.kept) and engine.stats.prompt_tokens == effect.prompt_tokens
    chosen, every = logits
    assert effect.divergence == pytest.approx(float((np.exp(every) * (every - chosen)).sum()), abs=1e-3)
    assert effect.divergence > 0


def test_the_switch_may_be_turned_between_two_runs(bundle: Path, backend: str) -> None:
    engine, question = Engine(bundle, backend, sparse=True), [Message("user", LONG, (picture(0),))]
    first = answer(engine, question)
    engine.sparse = False
    whole = Engine(bundle, backend, sparse=False)
    assert answer(engine, question) == answer(whole, question) and engine.stats.sparse_tokens == 0
    engine.sparse = True
    assert answer(engine, question) == first and engine.stats.sparse_tokens > 0


def test_a_prompt_may_be_stopped_within_its_pass(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, question = Engine(bundle, "onnx", sparse=True), [Message("user", LONG)]
    expected = answer(engine, question)
    engine.reset()
    decode_prompt = engine.backend.decode_prompt

    def stopped_within(rows: Rows, position: int, stopped: Callable[[], bool]) -> object:
        engine.stop()
        return decode_prompt(rows, position, stopped)

    monkeypatch.setattr(engine.backend, "decode_prompt", stopped_within)
    assert answer(engine, question) == [] and engine.stats.finish == "cancelled"
    assert engine._decoder.position == 0 and engine.kept == []  # the pass did not come to its end
    monkeypatch.undo()
    assert answer(engine, question) == expected


def test_a_text_behind_a_prompt_is_scored_as_that_prompt_was_kept(bundle: Path, backend: str) -> None:
    sparse, dense = Engine(bundle, backend, sparse=True), steady_engine(bundle, backend, dense=True)
    ids = sparse.tokenizer.encode(LONG * 2)[:180]
    found, whole = sparse.score_ids(ids, 170), dense.score_ids(ids, 170)
    assert sparse.stats.sparse_tokens == 170 and dense.stats.sparse_tokens == 0
    assert found.shape == whole.shape == (10,) and np.abs(found - whole).max() > 1e-3
    np.testing.assert_allclose(whole, dense.score_ids(ids)[-10:], atol=0.05)  # int8 cache, other chunks


def test_what_was_kept_of_a_picture_is_drawn_or_it_is_said_why_not(bundle: Path, tmp_path: Path) -> None:
    photograph, drawn = tmp_path / "photo.png", tmp_path / "kept.png"
    picture(0).save(photograph)

    def run(question: str, *words: str) -> str:
        drawn.unlink(missing_ok=True)
        given = ["--image", str(photograph), "--show-kept", str(drawn), "--max-tokens", "1", *words]
        result = CliRunner().invoke(app, ["run", str(bundle), question, *given])
        assert result.exit_code == 0, result.stderr
        return result.stderr

    said = run(LONG, "--sparse")
    assert "not written" not in said and " kept, " in said
    with Image.open(drawn) as shown:
        layers = Bundle.load(bundle).manifest.sizes.layers
        assert shown.width > 36 * layers
    assert "was kept whole, as one below 256 is without --sparse" in run(LONG) and not drawn.exists()
    assert "was kept whole, for fewer than 129 are too few to choose from" in run("What?", "--sparse")


def test_a_short_prompt_is_kept_whole_by_itself(bundle: Path) -> None:
    engine = Engine(bundle, "onnx")
    answer(engine, [Message("user", "Hello!")])
    assert engine.stats.sparse_tokens == 0
    answer(engine, [Message("user", LONG * 2)])
    assert engine.stats.sparse_tokens == engine.stats.prompt_tokens >= engine.bundle.manifest.sparsity.least_tokens


def test_asking_the_same_again_gives_the_same(bundle: Path) -> None:
    """There is no way back into a prompt whose tokens were chosen: it runs again, whole."""
    engine = Engine(bundle, "onnx", sparse=True)
    question = [Message("user", LONG)]
    first = answer(engine, question)
    assert answer(engine, question) == first and engine.stats.reused_tokens == 0
    answer(engine, [Message("user", f"{LONG} More.")])
    assert answer(engine, question) == first


def test_check_judges_the_choice_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = Path(__file__).parents[2] / "assets" / "photographs" / "rocket.jpg"
    report = check(bundle, bundle.parent / "tiny", [photograph])
    assert report.passed
    decode = OnnxBackend._decode
    monkeypatch.setattr(
        OnnxBackend, "_decode", lambda self, rows, at, tau, run: decode(self, rows, at, 0.1 if tau < 1 else tau, run)
    )
    damaged = check(bundle, bundle.parent / "tiny", [photograph])
    failed = {(one.prompt, one.stage) for one in damaged.findings if not one.passed}
    assert ("the texts together", "prefill") in failed and {stage for _, stage in failed} <= {"prefill", "decode"}


def test_what_is_done_ahead_are_the_pictures(bundle: Path) -> None:
    """Rows of a prompt that is not whole yet would have to run again."""
    engine = Engine(bundle, "onnx", sparse=True)
    engine.prefill([Message("user", "", (picture(0),))])
    assert engine.stats.tiles > 0 and engine._decoder.position == 0
    answer(engine, [Message("user", LONG, (picture(0),))])
    assert engine.stats.tiles == 0 and engine.stats.sparse_tokens > 0


def test_a_context_too_short_to_choose_in_is_refused(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = read(tiny_checkpoint("llama", tmp_path / "tiny"))
    with pytest.raises(UnsupportedError, match="--context of 200 does not hold"):
        plan(checkpoint, Recipe(("onnx",), context=200, tau=0.9))


def test_a_tau_that_is_no_share_is_refused_before_any_work() -> None:
    for tau in (0, 1.5, True, "much"):
        with pytest.raises(UnsupportedError, match="tau"):
            Recipe(("onnx",), tau=tau)
