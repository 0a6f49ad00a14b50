"""The float network gives transformers' logits: every family, three tiny random checkpoints each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from handlens_export.checkpoint.read import read
from handlens_export.network.families import find
from handlens_export.network.load import load
from handlens_export.network.network import Network

TEXT = ("llama", "qwen2", "gemma")
IDEFICS = ("smolvlm", "idefics3")
TOLERANCE = 1e-4
VARIANTS = (0, 1, 2)
MakeCheckpoint = Callable[..., Path]


def open_network(folder: Path) -> Network:
    checkpoint = read(folder)
    family = find(checkpoint.config["model_type"])
    network = Network(family.config(checkpoint.config))
    load(network, checkpoint, family)
    return network


def random_ids(network: Network, count: int) -> Tensor:
    """Ids of ordinary tokens: the specials, images' among them, come first in the tiny vocabularies."""
    return torch.randint(60, network.config.decoder.vocab_size, (1, count))


def random_tiles(network: Network, count: int) -> Tensor:
    assert network.config.vision is not None
    side = network.config.vision.image_size
    return torch.rand(count, 3, side, side) * 2 - 1


def prompt_with_images(network: Network, image_token: int, tiles: int) -> Tensor:
    """Text, a run of image tokens per tile with a token between, text."""
    pieces = [random_ids(network, 3)]
    for _ in range(tiles):
        pieces += [torch.full((1, network.config.tokens_per_tile), image_token), random_ids(network, 2)]
    return torch.cat(pieces, dim=1)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "logits too small for the tolerance to mean anything"
    assert (ours - theirs).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", TEXT)
def test_text_family(family: str, variant: int, tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint(family, tmp_path, variant)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    network = open_network(folder)
    torch.manual_seed(variant)
    # Longer than llama3 scaling's original 64 positions.
    ids = random_ids(network, 90)
    theirs = oracle(ids).logits
    assert_equal(network(ids), theirs)
    assert_equal(step_by_step(network, network.decoder.embedding(ids), prompt=70), theirs)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", IDEFICS)
def test_idefics_family(family: str, variant: int, tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint(family, tmp_path, variant)
    oracle = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    network = open_network(folder)
    torch.manual_seed(variant)
    tiles, image_token = random_tiles(network, 3), oracle.config.image_token_id
    ids = prompt_with_images(network, image_token, 3)
    theirs = oracle(input_ids=ids, pixel_values=tiles[None]).logits
    assert_equal(network(ids, tiles, image_token), theirs)
    rows, features = network.encode(tiles)
    assert_equal(rows.flatten(0, 1), torch.cat(oracle.get_image_features(tiles[None]).pooler_output))
    assert_equal(features, oracle.model.vision_model(tiles).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_paligemma(variant: int, tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("paligemma", tmp_path, variant)
    oracle = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    network = open_network(folder)
    torch.manual_seed(variant)
    tiles, image_token = random_tiles(network, 1), oracle.config.image_token_id
    prompt = torch.full((1, network.config.tokens_per_tile), image_token)
    ids = torch.cat((prompt, random_ids(network, 6)), dim=1)
    answer = random_ids(network, 3)
    first = oracle(
        input_ids=ids, pixel_values=tiles, token_type_ids=torch.zeros_like(ids), use_cache=True
    )  # what PaliGemmaProcessor gives for a prompt without a suffix
    assert_equal(network(ids, tiles, image_token), first.logits)
    cache = first.past_key_values
    for i in range(3):
        token = answer[:, i : i + 1]
        theirs = oracle(input_ids=token, past_key_values=cache, use_cache=True).logits
        assert_equal(network.logits(network.decoder.embedding(token), ids.shape[1] + i), theirs)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_bluelm_v(variant: int, tmp_path: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("bluelm_v", tmp_path, variant)
    network = open_network(folder)
    torch.manual_seed(variant)
    tiles, image_token = random_tiles(network, 2), read(folder).config["image_token_id"]
    ids = prompt_with_images(network, image_token, 2)
    assert_equal(network(ids, tiles, image_token), reference_bluelm_v(folder, ids, tiles))


def reference_bluelm_v(folder: Path, ids: Tensor, tiles: Tensor) -> Tensor:
    """BlueLM-V in 20 lines: transformers' SigLIP and Llama, joined by a loop over windows of patches."""
    config: dict[str, Any] = read(folder).config
    weights = load_file(folder / "model.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    encoder = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**config["vision_config"], vision_use_head=False)
    ).eval()
    encoder.load_state_dict(part("vision_tower."), strict=False)
    decoder = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config["text_config"])).eval()
    decoder.load_state_dict(part("language_model."), strict=False)  # a tied head is not stored
    features = encoder(tiles).last_hidden_state
    n, patches, width = features.shape
    grid, factor = round(patches**0.5), config["downsample_factor"]
    side = -(-grid // factor)
    padded = torch.zeros(n, side * factor, side * factor, width)
    padded[:, :grid, :grid] = features.view(n, grid, grid, width)
    windows = [(y * factor, x * factor) for y in range(side) for x in range(side)]
    merged = [
        torch.cat([padded[:, y + i, x + j] for i in range(factor) for j in range(factor)], dim=-1) for y, x in windows
    ]
    hidden = linear("projector.fc1", linear("downsampler", torch.stack(merged, dim=1)))
    images = linear("projector.fc2", torch.nn.functional.gelu(hidden)).flatten(0, 1)
    rows = decoder.get_input_embeddings()(ids)
    rows[ids == config["image_token_id"]] = images
    logits: Tensor = decoder(inputs_embeds=rows).logits
    return logits


def step_by_step(network: Network, rows: Tensor, prompt: int) -> Tensor:
    """Logits of all rows, the prompt in two chunks and then a row at a time, over the cache."""
    ends = [prompt // 2, *range(prompt, rows.shape[1] + 1)]
    starts = [0, *ends[:-1]]
    return torch.cat([network.logits(rows[:, a:b], a) for a, b in zip(starts, ends, strict=True)], dim=1)
