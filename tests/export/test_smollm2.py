"""Real weights in every test run: the first four layers of SmolLM2-135M-Instruct, exported and measured on real text.

The whole model, 20,000 tokens and both group sizes are for `make verify`. Four layers of thirty speak no English, but
their programs compute the same as their reference, which is what is asked here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.materials import path_of
from handlens_export.network.network import Network
from handlens_export.pipeline import export
from handlens_export.recipe import Recipe
from handlens_export.reference import recipe_of, reference
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.chat import Message, render
from handlens_runtime.engine import Engine
from handlens_runtime.manifest import BackendName
from handlens_runtime.options import Options

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 4
TOKENS, WINDOW, CHUNK = 1000, 500, 128
MOST = 0.01
NOISE_FACTOR = 1.5
ANSWER = 16


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A checkpoint folder with the model's first layers."""
    whole = path_of("smollm2")
    if not whole.exists():
        pytest.fail(f"{whole} is missing; fetch it with: python -m handlens_export.materials smollm2")
    checkpoint, folder = read(whole), tmp_path / "cut"
    folder.mkdir()
    beyond = tuple(f"model.layers.{index}." for index in range(LAYERS, checkpoint.config["num_hidden_layers"]))
    names = [name for name in checkpoint.tensors.names() if not name.startswith(beyond)]
    save_file({name: checkpoint.tensors.read(name).contiguous() for name in names}, folder / "model.safetensors")
    for name, content in {
        "config.json": {**checkpoint.config, "num_hidden_layers": LAYERS},
        "tokenizer_config.json": checkpoint.tokenizer_config,
        "generation_config.json": checkpoint.generation_config,
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json)
    assert checkpoint.chat_template
    (folder / "chat_template.jinja").write_text(checkpoint.chat_template)
    return folder


def test_executorch_is_as_good_as_its_reference_and_answers_like_executorchs_own_runner(
    cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = exported(cut, tmp_path, "executorch")
    assert_same_perplexity(engine, cut, "executorch")
    messages = [Message("user", "What is the capital of France?")]
    ids = [token.id for token in engine.generate(messages, Options(max_tokens=ANSWER, temperature=0.0))]
    ours = [engine.tokenizer.decode([one], skip_special_tokens=False) for one in ids]
    prompt = render(engine.bundle.manifest.chat, messages, parts=False, answer=True)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    from executorch_judge import text_answer

    program = engine.bundle.path / "executorch/model.pte"
    theirs, count = text_answer(program, engine.bundle.file(TOKENIZER), prompt, ANSWER, tmp_path)
    assert theirs == ours
    assert len(set(ours)) > 3, "an answer that repeats itself shows little"
    assert count == engine.stats.prompt_tokens


def test_onnx_is_as_good_as_its_reference(cut: Path, tmp_path: Path) -> None:
    assert_same_perplexity(exported(cut, tmp_path, "onnx"), cut, "onnx")


def exported(cut: Path, folder: Path, backend: BackendName) -> Engine:
    export(cut, folder / "bundle", Recipe(backends=(backend,), group=32, context=512))
    return Engine(folder / "bundle", backend)


def assert_same_perplexity(engine: Engine, cut: Path, backend: BackendName) -> None:
    ids = engine.tokenizer.encode((ROOT / "LICENSE").read_text())[:TOKENS]
    assert len(ids) == TOKENS
    windows = [ids[begin : begin + WINDOW] for begin in range(0, TOKENS, WINDOW)]
    network = reference(engine.bundle, plan(read(cut), recipe_of(engine.bundle.manifest)), backend)
    found = np.concatenate([engine.score_ids(window) for window in windows])
    expected = np.concatenate([eager_scores(network, window) for window in windows])
    nudged = np.concatenate([eager_scores(network, window, nudge=1e-6) for window in windows])
    apart = found - expected
    # Int8 activations amplify the last bit of a sum to some tenths of a nat a token, which kernels of another processor
    # draw anew: the mean may be off by its own error, and a token by no more than the reference's are from its own.
    error = apart.std() / len(apart) ** 0.5
    assert abs(np.expm1(-apart.mean())) <= max(MOST, 3 * error)
    assert apart.std() <= NOISE_FACTOR * (nudged - expected).std()


@torch.no_grad()
def eager_scores(network: Network, ids: Sequence[int], nudge: float = 0.0) -> NDArray[np.float64]:
    """Log-probability of each of `ids` but the first, in the engine's chunks; `nudge` moves its input by that share."""
    every = torch.tensor(ids)
    rows = network.decoder.embedding(every[None])
    rows = rows * (1 + nudge * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    scores = []
    for begin in range(0, len(ids) - 1, CHUNK):
        following = every[begin + 1 : begin + 1 + CHUNK]
        logits = network.logits(rows[:, begin : begin + len(following)], begin)[0].double()
        scores.append(logits.log_softmax(-1).gather(1, following[:, None])[:, 0])
    found: NDArray[np.float64] = torch.cat(scores).numpy()
    return found
