"""Answers with ExecuTorch's own runners, in a process of its own: they print as they go, on C's stdout.

    python tests/executorch_judge.py QUESTION.json ANSWER.json

Knows nothing of HandLens: a program's and a tokenizer's path, and text, ids and tiles, go in; pieces of text come out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TILE = ".npy"


def text_answer(program: Path, tokenizer: Path, prompt: str, tokens: int, folder: Path) -> tuple[list[str], int]:
    """Greedy pieces from TextLLMRunner, and how many prompt tokens it counted. `folder` is for what passes between."""
    return _ask({"program": str(program), "tokenizer": str(tokenizer), "prompt": prompt, "tokens": tokens}, folder)


def multimodal_answer(
    program: Path, vocab_size: int, pieces: Sequence[list[int] | NDArray[np.float32]], tokens: int, folder: Path
) -> tuple[list[int], int]:
    """Greedy ids from MultimodalRunner; `pieces`: token ids and tiles (3, s, s) in the prompt's order."""
    named: list[list[int] | str] = []
    for index, piece in enumerate(pieces):
        if isinstance(piece, np.ndarray):
            np.save(folder / f"{index}{TILE}", piece)
            named.append(str(folder / f"{index}{TILE}"))
        else:
            named.append(piece)
    # Ids go in, so a tokenizer is needed for the answer alone. One that spells ids: random weights choose bytes that
    # are no UTF-8, which the binding cannot give back.
    tokenizer = Tokenizer(models.BPE({f"<{token}>": token for token in range(vocab_size)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    question = {"program": str(program), "tokenizer": str(folder / "tokenizer.json"), "pieces": named, "tokens": tokens}
    texts, count = _ask(question, folder)
    return [int(text.strip("<>")) for text in texts], count


def in_pieces(
    keys: Sequence[int | tuple[str, int]], tiles: dict[str, NDArray[np.float32]], tokens_per_tile: int
) -> list[list[int] | NDArray[np.float32]]:
    """A prompt's rows as MultimodalRunner takes them: runs of ids, and a tile where its embeddings stand.

    A key is an id, or (a picture, which of its rows); `tiles` are each picture's, (n, 3, s, s).
    """
    pieces: list[list[int] | NDArray[np.float32]] = []
    for key in keys:
        if isinstance(key, tuple):
            picture, row = key
            if row % tokens_per_tile == 0:
                pieces.append(tiles[picture][row // tokens_per_tile])
        elif pieces and isinstance(pieces[-1], list):
            pieces[-1].append(key)
        else:
            pieces.append([key])
    return pieces


def _ask(question: dict[str, Any], folder: Path) -> tuple[list[str], int]:
    (folder / "question.json").write_text(json.dumps(question))
    command = [sys.executable, __file__, str(folder / "question.json"), str(folder / "answer.json")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"ExecuTorch's runner failed: {done.stderr[-2000:]}")
    answer = json.loads((folder / "answer.json").read_text())
    return answer["pieces"], answer["prompt_tokens"]


def _run(question: dict[str, Any]) -> dict[str, Any]:
    # Imported for what they register, before any program is loaded.
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    import torch
    from executorch.extension.llm import runner

    config = runner.GenerationConfig(echo=False, max_new_tokens=question["tokens"], temperature=0.0)
    pieces: list[str] = []
    counts: list[int] = []
    where = (question["program"], question["tokenizer"], None)
    if "prompt" in question:
        judge, prompt = runner.TextLLMRunner(*where), question["prompt"]
    else:
        judge = runner.MultimodalRunner(*where)
        prompt = [
            runner.make_image_input(torch.from_numpy(np.load(piece)))
            if isinstance(piece, str)
            else runner.make_token_input(piece)
            for piece in question["pieces"]
        ]
    judge.generate(prompt, config, pieces.append, lambda stats: counts.append(stats.num_prompt_tokens))
    return {"pieces": pieces, "prompt_tokens": counts[0]}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(_run(json.loads(Path(sys.argv[1]).read_text()))))
