"""What can be said of a scene without a doubt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from handlens_export.reader import rows as text_rows
from handlens_export.reader.layouts.shapes import FIGURES
from handlens_export.reader.page import Box, Line, Shape
from handlens_export.reader.rows import Row
from handlens_export.reader.scene import Field, Scene


@dataclass(frozen=True)
class Facts:
    """A scene, and what follows from it."""

    scene: Scene
    rows: tuple[Row, ...]
    bars: dict[str, Shape]
    """The bar of each field, for a chart."""
    figures: tuple[Shape, ...]
    """Shapes other than bars."""
    texts: Counter[str]
    """How often each run stands on the page, colons at the end and case aside."""

    @classmethod
    def of(cls, scene: Scene) -> Facts:
        """Those of a scene."""
        shapes = scene.page.shapes
        texts = Counter(_plain(run.text) for run in scene.page.lines)
        figures = tuple(shape for shape in shapes if shape.kind != "bar")
        return cls(scene, text_rows.rows(scene.page), _bars(scene), figures, texts)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the fields, where each stands on the page as a run of its own; else none."""
        names = tuple(field.name for field in self.scene.fields)
        return names if all(self.texts[_plain(name)] for name in names) else ()

    @property
    def bars_stand(self) -> bool:
        """Whether the bars grow upwards: then they share the foot."""
        return len({shape.box[3] for shape in self.bars.values()}) == 1

    def is_unique(self, run: Line) -> bool:
        """Whether no other run says the same."""
        return self.texts[_plain(run.text)] == 1

    def below(self, run: Line) -> Line | None:
        """The run under it."""
        return next((text_rows.below(self.rows, i, run) for i, row in enumerate(self.rows) if run in row.runs), None)

    def right_of(self, run: Line) -> Line | None:
        """The next run of its row."""
        for row in self.rows:
            if run in row.runs[:-1]:
                return row.runs[row.runs.index(run) + 1]
        return None

    def askable(self) -> list[Field]:
        """Fields whose name stands on the page once at most: as a title too, it could mean something else."""
        return [field for field in self.scene.fields if self.texts[_plain(field.name)] <= 1]

    def one_colour(self, field: Field) -> bool:
        """Whether the field's name and value are of one colour, so that it does not matter which is meant."""
        shown = [run.colour for run in self.scene.page.lines if _plain(run.text) == _plain(field.name)]
        return shown == [field.colour] and not self.bars

    def name_of(self, shape: Shape, random: Random) -> str | None:
        """`circle` or `red circle`, where only it is called so."""
        names = [shape.kind, f"{shape.colour} {shape.kind}"]
        calls = Counter(name for each in self.figures for name in (each.kind, f"{each.colour} {each.kind}"))
        free = [name for name in names if calls[name] == 1]
        return random.choice(free) if free else None

    def caption(self, shape: Shape) -> Line | None:
        """The text centred under a shape, nearer to it than its own height and with no shape between."""
        left, _, right, foot = shape.box
        tall = foot - shape.box[1]
        middle = (left + right) / 2
        near = [
            run
            for run in self.scene.page.lines
            if run.box[0] <= middle <= run.box[2] and 0 <= run.box[1] - foot <= max(tall, 20)
        ]
        between = any(
            other is not shape and near and foot - 1 <= other.box[1] < near[0].box[1] and _beside(other.box, shape.box)
            for other in self.figures
        )
        return near[0] if len(near) == 1 and not between else None

    def extreme_bar(self, most: bool) -> str | None:
        """The label of the longest or shortest bar, where it is so by two pixels."""
        lengths = sorted((self._length(shape), name) for name, shape in self.bars.items())
        first, second = (lengths[-1], lengths[-2]) if most else (lengths[0], lengths[1])
        return first[1] if abs(first[0] - second[0]) >= 2 else None

    def countable(self, random: Random) -> list[tuple[str, int]]:
        """Plurals with how many of each there are."""
        if self.figures:
            kinds, colours = Counter(s.kind for s in self.figures), Counter(s.colour for s in self.figures)
            other = random.choice(FIGURES)
            drawn = [(plural(kind), number) for kind, number in kinds.items()]
            drawn += [(f"{colour} shapes", number) for colour, number in colours.items()]
            return [*drawn, ("shapes", len(self.figures)), (plural(other), kinds[other])]
        groups = [("rows of text", len(self.rows))] if self.rows else []
        if self.bars:
            return [*groups, ("bars", len(self.scene.page.shapes))]
        return [*groups, ("fields", len(self.names))] if self.names else groups

    def _length(self, shape: Shape) -> float:
        left, top, right, bottom = shape.box
        return bottom - top if self.bars_stand else right - left


def plural(kind: str) -> str:
    """Of a shape's name."""
    return "crosses" if kind == "cross" else f"{kind}s"


def with_article(name: str) -> str:
    """`a circle`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _bars(scene: Scene) -> dict[str, Shape]:
    """Bars are drawn in the order of their fields; a chart that lost a field to a lack of room has no facts on bars."""
    bars = [shape for shape in scene.page.shapes if shape.kind == "bar"]
    names = [field.name for field in scene.fields]
    return dict(zip(names, bars, strict=True)) if len(bars) == len(names) else {}


def _plain(text: str) -> str:
    return text.removesuffix(":").lower()


def _beside(one: Box, other: Box) -> bool:
    return one[0] < other[2] and one[2] > other[0]
