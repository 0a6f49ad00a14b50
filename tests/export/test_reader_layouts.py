"""Every layout draws at any size: what it records is what stands on the page."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from PIL import ImageFont

from handlens_export.reader.layouts import HELD_OUT, LAYOUTS, drawn_style
from handlens_export.reader.layouts.strings import draw_some
from handlens_export.reader.layouts.style import COLOURS, contrast, readable, shade
from handlens_export.reader.scene import Scene

SIZES = ((224, 224), (120, 90), (90, 120), (300, 150), (448, 640))


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The font that Pillow carries, as a file."""
    face = ImageFont.load_default(12)
    assert isinstance(face, ImageFont.FreeTypeFont)
    assert isinstance(face.path, BytesIO)
    path = tmp_path_factory.mktemp("fonts") / "default.ttf"
    path.write_bytes(face.path.getvalue())
    return (path,)


def _scene(name: str, seed: int, size: tuple[int, int], fonts: tuple[Path, ...]) -> Scene:
    random = Random(f"{name} {seed}")
    return LAYOUTS[name](random, drawn_style(random, fonts), *size)


@pytest.mark.parametrize("name", LAYOUTS)
def test_pages_hold_what_they_record(name: str, fonts: tuple[Path, ...]) -> None:
    texts = 0
    for seed in range(30):
        scene = _scene(name, seed, SIZES[seed % len(SIZES)], fonts)
        lines, names = scene.page.lines, [field.name.lower() for field in scene.fields]
        texts += bool(lines)
        assert scene.layout == name
        assert len(set(names)) == len(names)
        for one, other in combinations([line.box for line in lines], 2):
            assert not (one[0] < other[2] and one[2] > other[0] and one[1] < other[3] and one[3] > other[1])
        written = {(line.text, line.colour) for line in lines}
        for field in scene.fields:
            assert (field.value, field.colour) in written
            assert all(part in {text.removesuffix(":") for text, _ in written} for part in field.name.split(" of ", 1))
        assert all(" " <= character <= "~" for line in lines for character in line.text)
    assert texts >= (12 if name == "shapes" else 24)  # the smallest of these sizes have no room for some


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_seed_draws_the_same_page(name: str, fonts: tuple[Path, ...]) -> None:
    one, other = (_scene(name, 3, (224, 224), fonts) for _ in range(2))
    assert one.page.image.tobytes() == other.page.image.tobytes()
    assert (one.fields, one.page.lines, one.page.shapes) == (other.fields, other.page.lines, other.page.shapes)
    assert _scene(name, 4, (224, 224), fonts).page.image.tobytes() != one.page.image.tobytes()


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"shapes", "single", "strings"}))
def test_larger_pages_have_more_text_not_larger(name: str, fonts: tuple[Path, ...]) -> None:
    few = sum(len(_scene(name, seed, (224, 224), fonts).page.lines) for seed in range(8))
    many = sum(len(_scene(name, seed, (800, 800), fonts).page.lines) for seed in range(8))
    assert many > 3 * few


def test_strings_can_be_few(fonts: tuple[Path, ...]) -> None:
    for seed in range(20):
        for most in (1, 3):
            random = Random(seed)
            assert 1 <= len(draw_some(random, drawn_style(random, fonts), 112, 112, most).page.lines) <= most


def test_small_text_is_marked_small(fonts: tuple[Path, ...]) -> None:
    assert all(_scene("table", seed, (1200, 900), fonts).small for seed in range(4))
    assert not any(_scene("table", seed, (224, 224), fonts).small for seed in range(4))


def test_held_out_layouts_exist_and_leave_others_to_train_on() -> None:
    assert set(HELD_OUT) < set(LAYOUTS)


def test_shades_of_different_names_are_far_apart() -> None:
    random = Random(0)
    for one, other in combinations(COLOURS, 2):
        for _ in range(40):
            a, b = shade(random, one).rgb, shade(random, other).rgb
            assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) > 45**2, (one, a, other, b)


def test_ink_is_readable_on_any_background(fonts: tuple[Path, ...]) -> None:
    for seed in range(300):
        style = drawn_style(Random(seed), fonts)
        assert min(contrast(ink.rgb, style.background) for ink in (style.ink, style.accent)) > 3
        assert contrast(style.on_panel.rgb, style.panel.rgb) > 3
        assert readable(Random(seed), style.background, without="black").colour != "black"
