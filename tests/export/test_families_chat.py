"""A checkpoint's text files become the manifest's chat, sampling defaults and image rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.checkpoint.read import read
from handlens_export.errors import CheckpointError, UnsupportedError
from handlens_export.network.chat import chat, sampling
from handlens_export.network.families import find
from handlens_runtime.chat import Message, render
from handlens_runtime.errors import PromptError
from handlens_runtime.images.expand import expand
from handlens_runtime.images.preprocess import prepare
from handlens_runtime.manifest import Chat, ImageRule, SamplingDefaults

MakeCheckpoint = Callable[..., Path]
QUESTION = "What is this?"


def rule_and_chat(checkpoint: Checkpoint) -> tuple[ImageRule, Chat]:
    family = find(checkpoint.config["model_type"])
    return family.image_rule(checkpoint, family.config(checkpoint.config)), family.chat(checkpoint)


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def our_prompt(checkpoint: Checkpoint, image: Image.Image) -> tuple[list[int], np.ndarray]:
    """Ids and tiles of one question about one picture."""
    rule, chat = rule_and_chat(checkpoint)
    tiles = prepare(image, rule)
    text = render(chat, [Message("user", QUESTION, (image,))], parts=True, answer=True)
    text = text.replace(rule.placeholder, expand(rule, tiles.columns, tiles.rows))
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    ids = tokenizer.encode(text, add_special_tokens=chat.add_special_tokens).ids
    return ids, tiles.pixels


@pytest.mark.parametrize("size", [(100, 70), (30, 90)])
def test_idefics3_prompt_is_its_processor_s(
    size: tuple[int, int], tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    folder, image = tiny_checkpoint("idefics3", tmp_path), picture(*size)
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    theirs = processor(images=[image], text=text, return_tensors="np")
    ids, pixels = our_prompt(read(folder), image)
    assert ids == theirs["input_ids"][0].tolist()
    assert np.abs(pixels - theirs["pixel_values"][0]).max() <= 2.001 / 255  # one grey level


def test_paligemma_prompt_is_its_processor_s(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder, image = tiny_checkpoint("paligemma", tmp_path), picture(100, 70)
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    theirs = processor(images=image, text="<image>" + QUESTION, return_tensors="np")
    ids, pixels = our_prompt(read(folder), image)
    assert ids == theirs["input_ids"][0].tolist()
    assert np.abs(pixels - theirs["pixel_values"]).max() <= 2.001 / 255


def test_paligemma_takes_one_question_and_no_system_message(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    chat = find("paligemma").chat(read(tiny_checkpoint("paligemma", tmp_path)))
    assert not chat.multi_turn
    with pytest.raises(PromptError, match="no system message"):
        render(chat, [Message("system", "Be brief."), Message("user", QUESTION)], parts=True, answer=True)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "paligemma", "bluelm_v"])
def test_rule_of_every_tiny_checkpoint(
    family: str, variant: int, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = read(tiny_checkpoint(family, tmp_path, variant))
    rule, _ = rule_and_chat(checkpoint)
    assert rule.tile_size == checkpoint.config["vision_config"]["image_size"]
    assert rule.image_token == rule.placeholder == "<image>"
    assert rule.max_tiles == {"smolvlm": 4, "idefics3": 4, "paligemma": 1, "bluelm_v": 9}[family]
    assert rule.resampling == ("lanczos" if family in ("smolvlm", "idefics3") else "bicubic")


def test_idefics3_rule_without_a_processor_file_has_transformers_defaults(
    tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    folder = tiny_checkpoint("idefics3", tmp_path, 1)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"image_size": 364, "patch_size": 14}
    config["scale_factor"] = 2
    rule, _ = rule_and_chat(replace(read(folder), config=config, processor={}))
    assert (rule.tile_size, rule.longest_edge, rule.max_tiles, rule.tokens_per_tile) == (364, 1456, 16, 169)


def test_bluelm_v_rule_says_what_its_file_says(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = read(tiny_checkpoint("bluelm_v", tmp_path))
    stated = {"tiling": "closest-ratio", "max_grid": [4, 2], "thumbnail": "last", "image_mean": [0.1, 0.2, 0.3]}
    assert rule_and_chat(checkpoint)[0].row_end == ""
    stated["row_end"] = "\n"
    rule, _ = rule_and_chat(replace(checkpoint, processor={**checkpoint.processor, **stated, "alpha": 0.2}))
    assert (rule.tiling, rule.max_tiles, rule.thumbnail, rule.alpha) == ("closest-ratio", 8, "last", 0.2)
    assert rule.mean == (0.1, 0.2, 0.3) and rule.row_end == "\n"
    assert {(1, 1), (4, 1), (1, 2), (4, 2)} <= set(rule.grids) and (2, 4) not in rule.grids
    assert rule.tokens_per_tile == 25  # 9 x 9 patches, padded to 10 x 10


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("smolvlm", {"do_image_splitting": False}, "do_image_splitting"),
        ("smolvlm", {"max_image_size": {"longest_edge": 48}}, "max_image_size"),
        ("smolvlm", {"size": {"height": 64, "width": 64}}, "size"),
        ("smolvlm", {"image_seq_len": 64}, "image_seq_len"),
        ("smolvlm", {"resample": 4}, "resample"),
        ("paligemma", {"size": {"height": 48, "width": 48}}, "size"),
        ("paligemma", {"image_seq_length": 256}, "image_seq_length"),
        ("paligemma", {"image_mean": [0.5, 0.5]}, "image_mean"),
        ("bluelm_v", {"tiling": "round"}, "tiling"),
        ("bluelm_v", {"max_grid": 4}, "max_grid"),
        ("bluelm_v", {"row_end": 3}, "row_end"),
        ("bluelm_v", {"tile_size": 40}, "tile_size"),
        ("bluelm_v", {"sharpen": 2}, "sharpen"),
    ],
)
def test_processor_that_the_rule_cannot_follow_is_refused_by_name(
    family: str, changes: dict[str, Any], named: str, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = read(tiny_checkpoint(family, tmp_path))
    with pytest.raises((UnsupportedError, CheckpointError), match=named):
        rule_and_chat(replace(checkpoint, processor={**checkpoint.processor, **changes}))


@pytest.mark.parametrize("token_id", [4000, 319, -1, None, "<image>"])
def test_image_token_that_the_tokenizer_lacks_is_refused(
    token_id: Any, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = read(tiny_checkpoint("bluelm_v", tmp_path))
    vocabulary = json.loads(checkpoint.tokenizer_json)
    vocabulary["model"]["vocab"] = {t: i for t, i in vocabulary["model"]["vocab"].items() if i < 300}
    vocabulary["model"]["merges"] = []
    broken = replace(
        checkpoint, config={**checkpoint.config, "image_token_id": token_id}, tokenizer_json=json.dumps(vocabulary)
    )
    with pytest.raises(CheckpointError, match="stands for images"):
        rule_and_chat(broken)


def test_chat_of_a_text_checkpoint(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    made = chat(read(tiny_checkpoint("llama", tmp_path, 1)))
    text = render(made, [Message("user", QUESTION)], parts=False, answer=True)
    assert text == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert (made.bos_token, made.eos_token) == ("<|im_start|>", "<|endoftext|>")
    assert set(made.stop_ids) == {0, 2}
    assert made.multi_turn and not made.add_special_tokens


def test_turn_end_that_only_the_template_knows_ends_an_answer(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = read(tiny_checkpoint("llama", tmp_path))
    assert chat(replace(checkpoint, generation_config={"eos_token_id": [0]})).stop_ids == (0, 2)
    assert set(chat(replace(checkpoint, generation_config={})).stop_ids) == {0, 2}


def test_checkpoint_without_template_completes_the_text(tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = replace(read(tiny_checkpoint("gemma", tmp_path)), chat_template=None)
    made = chat(checkpoint)
    assert render(made, [Message("user", QUESTION)], parts=False, answer=True) == QUESTION
    assert made.add_special_tokens and not made.multi_turn
    seeing = chat(replace(read(tiny_checkpoint("smolvlm", tmp_path / "seeing")), chat_template=None))
    asked = Message("user", QUESTION, (picture(4, 4),))
    assert render(seeing, [asked], parts=True, answer=True) == "<image>" + QUESTION


def test_vision_template_that_leaves_the_begin_token_out_lets_the_tokenizer_add_it(
    tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    """As transformers' processors do: they look whether the rendered prompt begins with it."""
    checkpoint = read(tiny_checkpoint("smolvlm", tmp_path))
    assert not chat(checkpoint).add_special_tokens
    assert checkpoint.chat_template is not None
    bare = checkpoint.chat_template.removeprefix("<|im_start|>")
    assert chat(replace(checkpoint, chat_template=bare)).add_special_tokens


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}, SamplingDefaults(repetition_penalty=1.1)),
        ({"do_sample": True}, SamplingDefaults(temperature=1.0, top_k=50)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "min_p": 0.05},
            SamplingDefaults(temperature=0.6, top_p=0.9, top_k=50, min_p=0.05),
        ),
    ],
)
def test_sampling_defaults_are_generation_config_s(
    given: dict[str, Any], expected: SamplingDefaults, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    checkpoint = read(tiny_checkpoint("llama", tmp_path))
    assert sampling(replace(checkpoint, generation_config=given)) == expected
