"""Labels are true, and pages the same whenever they are drawn."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
from reader_pages import PATCH, drawn

from handlens_export.reader.camera import SAME, _turned
from handlens_export.reader.draw import Mix, seen
from handlens_export.reader.examples import TILE, example
from handlens_export.reader.labels import CHARACTERS, COLOURS, SHAPES, UNREADABLE, Canvas, labels
from handlens_export.reader.page import Page
from handlens_export.reader.pool import normalized
from handlens_export.reader.rule import RULE
from handlens_runtime.images.preprocess import lay_out, prepare


def read_back(page: Page, canvas: Canvas) -> list[str]:
    """Each row of patches of the first tile, as text."""
    found = labels(page, SAME, canvas).characters[0].reshape(canvas.grid, canvas.grid, -1)
    return ["".join(CHARACTERS[c - 2] for patch in row for c in patch if c > UNREADABLE) for row in found]


def test_labels_say_what_is_written_and_where(font: Path) -> None:
    page = Page.blank(TILE, TILE, (255, 255, 255))
    page.write((8, 20), "Total: 12.50", font, 16, (200, 0, 0), "red")
    page.shape("circle", (100, 100, 160, 160), (0, 0, 255), "blue")
    canvas = Canvas((TILE, TILE), 1, 1, TILE, PATCH, thumbnail=False)
    rows = read_back(page, canvas)
    assert rows.count("Total: 12.50") == 1
    assert rows.index("Total: 12.50") == int(page.lines[0].y / PATCH)
    found = labels(page, SAME, canvas)
    shapes, colours = (part[0].reshape(canvas.grid, -1) for part in (found.shapes, found.colours))
    at = 130 // PATCH
    assert SHAPES[shapes[at, at] - 1] == "circle"
    assert COLOURS[colours[at, at] - 1] == "blue"
    assert COLOURS[colours[int(page.lines[0].y / PATCH), 1] - 1] == "red"
    assert shapes[0, 0] == colours[0, 0] == 0


def test_labels_follow_the_page_through_the_camera_and_the_tiles() -> None:
    """A square drawn on the page and its label are at one place in the tiles, turned and resized as they are."""
    for seed in range(6):
        page = Page.blank(400, 210, (255, 255, 255))
        page.shape("square", (250, 60, 330, 140), (0, 0, 0), "black")
        picture, where = _turned(page.image, Random(seed))
        layout = lay_out(picture, RULE)
        assert (layout.columns, layout.rows) == (2, 1)
        found = labels(page, where, Canvas(picture.size, 2, 1, TILE, PATCH, thumbnail=True)).shapes
        levels = np.asarray(layout.canvas.convert("L")).reshape(TILE // PATCH, PATCH, 2 * TILE // PATCH, PATCH)
        dark = levels[:, PATCH // 2, :, PATCH // 2] < 128
        assert layout.thumbnail is not None
        small = np.asarray(layout.thumbnail.convert("L"))[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH] < 128
        canvas = np.concatenate((found[1].reshape(dark.shape[0], -1), found[2].reshape(dark.shape[0], -1)), axis=1) > 0
        # The square's edge may run through a patch's middle, and the canvas is black outside the picture.
        assert (canvas & ~dark).sum() <= 2 < canvas.sum(), seed
        assert (dark[2:-2, 8:-4] & ~canvas[2:-2, 8:-4]).sum() <= 2, seed
        assert ((found[0].reshape(small.shape) > 0) ^ small).sum() <= 2, seed


def test_text_too_small_for_the_thumbnail_is_not_guessed_at(font: Path) -> None:
    page = Page.blank(4 * TILE, TILE, (255, 255, 255))
    page.write((10, 100), "tiny", font, 16, (0, 0, 0), "black")
    found = labels(page, SAME, Canvas(page.image.size, 4, 1, TILE, PATCH, thumbnail=True)).characters
    assert set(np.unique(found[0])) == {0, UNREADABLE}
    assert (found[1] > UNREADABLE).sum() == 4


def test_an_order_draws_the_same_sheaf_whenever_it_is_drawn(mix: Mix) -> None:
    one, other = drawn(mix), drawn(mix)
    assert torch.equal(one.tiles, other.tiles) and torch.equal(one.labels, other.labels)
    assert all(np.array_equal(a[0].tokens, b[0].tokens) for a, b in zip(one.turns, other.turns, strict=True))
    assert not torch.equal(drawn(mix, number=1).tiles, one.tiles)


def test_training_sees_the_tiles_that_a_bundle_makes(mix: Mix) -> None:
    made = example(Random(3), mix.layouts, mix.typefaces, (2, 1), 4)
    tiles, *_ = seen(made)
    expected = prepare(made.picture, RULE).pixels
    torch.testing.assert_close(normalized(torch.from_numpy(tiles)), torch.from_numpy(expected), rtol=0, atol=1e-6)
