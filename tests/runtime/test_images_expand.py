"""A picture's text in the prompt, against transformers' processors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from handlens_runtime.images.expand import expand, tile_count
from handlens_runtime.images.preprocess import prepare
from handlens_runtime.manifest import ImageRule

FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"

IDEFICS3 = ImageRule(
    tiling="idefics3",
    tile_size=32,
    longest_edge=128,
    max_tiles=16,
    thumbnail="last",
    tokens_per_tile=5,
    image_token=IMAGE,
    placeholder=IMAGE,
    tile_before=FAKE + "<row_{row}_col_{col}>",
    row_end="\n",
    thumbnail_before="\n" + FAKE + GLOBAL,
    single_before=FAKE + GLOBAL,
    after=FAKE,
)
PALIGEMMA = ImageRule(
    tiling="single", tile_size=32, max_tiles=1, tokens_per_tile=256, image_token=IMAGE, placeholder=IMAGE
)


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_idefics3_and_smolvlm(columns: int, rows: int) -> None:
    # transformers calls an undivided picture 0 x 0
    split = (0, 0) if (columns, rows) == (1, 1) else (rows, columns)
    smolvlm = get_image_prompt_string(*split, 5, FAKE, IMAGE, GLOBAL)
    processor = SimpleNamespace(fake_image_token=FAKE, image_token=IMAGE, global_image_tag=GLOBAL, image_seq_len=5)
    sizes = {"rows": [[split[0]]], "cols": [[split[1]]]}
    idefics3 = Idefics3Processor.replace_image_token(processor, sizes, 0)
    assert expand(IDEFICS3, columns, rows) == smolvlm == idefics3


def test_paligemma() -> None:
    processor = SimpleNamespace(image_token=IMAGE, image_seq_length=256)
    assert expand(PALIGEMMA, 1, 1) == PaliGemmaProcessor.replace_image_token(processor, {}, 0)


@pytest.mark.parametrize(
    ("thumbnail", "expected"), [("none", "[ii|ii|]"), ("first", "(ii[ii|ii|]"), ("last", "[ii|ii|(ii]")]
)
def test_thumbnail_stands_where_its_tile_does(thumbnail: str, expected: str) -> None:
    rule = IDEFICS3.model_copy(
        update={
            "thumbnail": thumbnail,
            "tokens_per_tile": 2,
            "image_token": "i",
            "tile_before": "",
            "row_end": "|",
            "thumbnail_before": "(",
            "after": "]",
        }
    )
    assert expand(rule, 1, 2) == expected.replace("[", "")


def test_braces_in_a_familys_tokens_stay() -> None:
    rule = PALIGEMMA.model_copy(update={"tile_before": "{x}{row}{", "tokens_per_tile": 1, "tiling": "relaxed"})
    assert expand(rule, 2, 1) == "{x}1{<image>{x}1{<image>"


@pytest.mark.parametrize("thumbnail", ["none", "first", "last"])
@pytest.mark.parametrize("size", [(128, 40), (128, 128), (20, 128)])
def test_counts_agree_with_the_text_and_the_tiles(size: tuple[int, int], thumbnail: str) -> None:
    rule = IDEFICS3.model_copy(update={"thumbnail": thumbnail})
    tiles = prepare(Image.new("RGB", size), rule)
    assert tile_count(rule, tiles.columns, tiles.rows) == len(tiles.pixels)
    assert expand(rule, tiles.columns, tiles.rows).count(IMAGE) == 5 * len(tiles.pixels)


def test_an_undivided_picture_is_one_tile() -> None:
    assert tile_count(IDEFICS3, 1, 1) == 1


def test_phone_screen_of_the_paper_has_1764_tokens() -> None:
    # BlueLM-V-3B, section 3.3: 2:4 with a thumbnail is 9 tiles of 196 tokens.
    rule = PALIGEMMA.model_copy(update={"tiling": "relaxed", "thumbnail": "first", "tokens_per_tile": 196})
    assert tile_count(rule, 2, 4) == 9
    assert expand(rule, 2, 4).count(IMAGE) == 1764
