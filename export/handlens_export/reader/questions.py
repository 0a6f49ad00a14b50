"""Questions about a drawn page, with answers that follow from its record alone.

A question that could be answered in two ways is not asked: no kind guesses what a reader would take it to mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits

from handlens_export.reader.facts import Facts, with_article
from handlens_export.reader.layouts.shapes import FIGURES
from handlens_export.reader.layouts.style import COLOURS
from handlens_export.reader.page import Line, Shape
from handlens_export.reader.scene import Field, Kind, Scene, Turn
from handlens_export.reader.words import label

_FIELD = ("What is the {}?", "{}?", "Tell me the {}.")
_BAR = ("What is the value of {}?", "{}?")
_TOP = ("What is written at the top?", "Read the first line.")
_BOTTOM = ("What is written at the bottom?", "Read the last line.")
_BELOW, _RIGHT = "What is written below {}?", "What is to the right of {}?"
_FIELDS = ("Which fields are there?", "List the fields.")
_COUNT = ("How many {} are there?", "Count the {}.")
_COLOUR, _TEXT_COLOUR = "What colour is the {}?", "What colour is the text {}?"
_IS_THERE, _IS_FIELD, _IS, _WRITTEN = (
    *("Is there {}?", "Is there a field {}?", "Is the {} {}?", "Is the text {} there?"),
)
_NUMBERED, STARTING = "Read line {}.", "Read the line that starts with {}."
PARTED = ", "
"""Between the names of a list."""
_ALL = ("Read the text.", "What is written here?")
_EVERYTHING = "Read everything."
_HIGHEST, _LOWEST = ("Which bar is the highest?", "Which bar is the lowest?")
_LONGEST, _SHORTEST = ("Which bar is the longest?", "Which bar is the shortest?")

_ASKED = (
    *(*_FIELD, *_BAR, *_TOP, *_BOTTOM, _BELOW, _RIGHT, *_FIELDS, *_COUNT, _COLOUR, _TEXT_COLOUR),
    *(_IS_THERE, _IS_FIELD, _IS, _WRITTEN, *_ALL, _NUMBERED, STARTING, _HIGHEST, _LOWEST, _LONGEST, _SHORTEST),
)
PHRASES: tuple[str, ...] = (
    *_ASKED,
    *(f" {colour}" for colour in COLOURS),
    *(f" {kind}" for kind in (*FIGURES, "bar")),
    *("circles", "squares", "triangles", "stars", "crosses", "rings", "bars", "shapes", "fields", "rows of text"),
    *(_EVERYTHING, "the text", "a red circle", "an orange star", "yes", "no", PARTED, " of ", " bar"),
)
"""Every fixed piece of the questions' and answers' language, none of a page's content."""

_NAMING = (
    *(*_FIELD, *_BAR, _BELOW, _RIGHT, _COLOUR, _TEXT_COLOUR),
    *(_IS_THERE, _IS_FIELD, _IS, _WRITTEN, STARTING),
)
"""Those that name something of the page."""

_MOST_LETTERS: dict[Kind, int] = {"fields": 80, "page": 120}
_LONGEST_ANSWER, _LONGEST_NAME, _MOST, _LAST_NUMBER = 40, 28, 12, 10
_WEIGHTS: dict[Kind, float] = {
    **{"field": 0.3, "transcribe": 0.2, "place": 0.16, "yes-no": 0.12, "colour": 0.08, "count": 0.08, "fields": 0.06}
}
KINDS: tuple[Kind, ...] = tuple(_WEIGHTS)
"""Those whose accuracy is reported for pages; `chat` has none, and `page` is for training."""


def turns(scene: Scene, random: Random, count: int, kinds: Sequence[Kind] = KINDS) -> tuple[Turn, ...]:
    """Up to `count` different questions of the kinds that the scene allows: fewer where it says too little."""
    facts, asked = Facts.of(scene), dict[str, Turn]()
    weights = [_WEIGHTS.get(kind, 0.2) for kind in kinds]
    for _ in range(count * 6):
        if len(asked) == count:
            break
        kind = random.choices(kinds, weights)[0]
        drawn = _MAKERS[kind](facts, random)
        if not drawn or len(drawn[1]) > _MOST_LETTERS.get(kind, _LONGEST_ANSWER):
            continue
        if kind != "yes-no" or _keeps_balance(drawn[1], [turn.answer for turn in asked.values() if turn.kind == kind]):
            asked.setdefault(drawn[0], Turn(kind, *drawn))
    return tuple(asked.values())


def naming(question: str) -> slice:
    """The part of a question that names something of the page, empty where nothing does."""
    fitting = {}
    for phrase in (*_ASKED, _EVERYTHING):
        before, *_, after = phrase.split("{}") if "{}" in phrase else (phrase, "")
        free = len(question) - len(before) - len(after)
        if question.startswith(before) and question.endswith(after) and free >= 0 and ("{}" in phrase or not free):
            fitting[phrase] = slice(len(before), len(before) + free)
    phrase = max(fitting, key=lambda each: len(each.replace("{}", "")), default="")  # `{}?` fits them all
    return fitting[phrase] if phrase in _NAMING else slice(0, 0)


Drawn = tuple[str, str] | None
"""A question and its answer, or None where the scene does not allow what was drawn."""


def _keeps_balance(answer: str, given: list[str]) -> bool:
    """Whether `yes` and `no` stay within one of each other: there is always one more thing to deny."""
    return given.count(answer) * 2 <= len(given)


def _field(facts: Facts, random: Random) -> Drawn:
    fields = facts.askable()
    if not fields:
        return None
    field = random.choice(fields)
    return random.choice(_BAR if facts.bars else _FIELD).format(field.name), field.value


def _fields(facts: Facts, random: Random) -> Drawn:
    names = facts.names
    return (random.choice(_FIELDS), PARTED.join(names)) if 0 < len(names) <= 8 else None


def _place(facts: Facts, random: Random) -> Drawn:
    return random.choice((_end, _beside, _beside, _captioned, _extreme_bar))(facts, random)


def _end(facts: Facts, random: Random) -> Drawn:
    if len(facts.rows) < 2:
        return None
    first = random.random() < 0.5
    return random.choice(_TOP if first else _BOTTOM), facts.rows[0 if first else -1].text


def _beside(facts: Facts, random: Random) -> Drawn:
    run = _nameable(facts, random)
    if run is None:
        return None
    under = random.random() < 0.5
    found = facts.below(run) if under else facts.right_of(run)
    return ((_BELOW if under else _RIGHT).format(_bare(run)), found.text) if found else None


def _captioned(facts: Facts, random: Random) -> Drawn:
    shape = _any_shape(facts, random)
    if shape is None:
        return None
    name, caption = facts.name_of(shape, random), facts.caption(shape)
    return (_BELOW.format(f"the {name}"), caption.text) if name and caption else None


def _extreme_bar(facts: Facts, random: Random) -> Drawn:
    if len(facts.bars) < 2:
        return None
    most = random.random() < 0.5
    pair = (_HIGHEST, _LOWEST) if facts.bars_stand else (_LONGEST, _SHORTEST)
    name = facts.extreme_bar(most)
    return (pair[0 if most else 1], name) if name else None


def _count(facts: Facts, random: Random) -> Drawn:
    groups = facts.countable(random)
    if not groups:
        return None
    name, number = random.choice(groups)
    return (random.choice(_COUNT).format(name), str(number)) if number <= _MOST else None


def _colour(facts: Facts, random: Random) -> Drawn:
    draw = random.random()
    if facts.scene.page.shapes and draw < 0.7:
        return _shape_colour(facts, random)
    if facts.scene.fields and draw < 0.5:
        field = random.choice(facts.scene.fields)
        return (_COLOUR.format(field.name), field.colour) if facts.one_colour(field) else None
    wanted = random.choice(sorted({run.colour for run in facts.scene.page.lines}) or [None])
    runs = [run for run in facts.scene.page.lines if run.colour == wanted and facts.is_unique(run)]
    run = random.choice(runs) if runs else None
    return (_TEXT_COLOUR.format(run.text), run.colour) if run and len(run.text) <= _LONGEST_NAME else None


def _shape_colour(facts: Facts, random: Random) -> Drawn:
    if facts.bars:
        label = random.choice(sorted(facts.bars))
        return _COLOUR.format(f"{label} bar"), facts.bars[label].colour
    figure = _any_shape(facts, random)
    if figure is None or sum(each.kind == figure.kind for each in facts.figures) > 1:
        return None
    return _COLOUR.format(figure.kind), figure.colour


def _yes_no(facts: Facts, random: Random) -> Drawn:
    """The answer is drawn first and kept, or those that are easier to ask for would be the more frequent."""
    yes = random.random() < 0.5
    allowed = ((_is_shape, facts.figures), (_is_value, facts.askable()), (_is_field, facts.names))
    options = [maker for maker, needed in allowed if needed]
    for _ in range(8):
        if question := random.choice([*options, _is_text])(facts, random, yes):
            return question, "yes" if yes else "no"
    return None


def _is_shape(facts: Facts, random: Random, yes: bool) -> str | None:
    shown = {(shape.colour, shape.kind) for shape in facts.figures}
    if random.random() < 0.5:
        kinds = sorted({kind for _, kind in shown}) if yes else [k for k in FIGURES if k not in {s[1] for s in shown}]
        return _IS_THERE.format(with_article(random.choice(kinds))) if kinds else None
    colours = sorted({colour for colour, _ in shown})
    near = [(c, k) for c in (*colours, random.choice(COLOURS)) for k in FIGURES if (c, k) not in shown]
    options = sorted(shown) if yes else near
    return _IS_THERE.format(with_article(" ".join(random.choice(options)))) if options else None


def _is_value(facts: Facts, random: Random, yes: bool) -> str | None:
    field = random.choice(facts.askable())
    value = field.value if yes else _other_value(facts.scene.fields, field, random)
    return _IS.format(field.name, value) if value else None


def _is_field(facts: Facts, random: Random, yes: bool) -> str | None:
    name = random.choice(facts.names)
    if not yes:
        other = label(random)
        name = other.upper() if name.isupper() else other.lower() if name.islower() else other
    shown = any(name.lower() in line.text.lower() for line in facts.scene.page.lines)
    return _IS_FIELD.format(name) if yes == shown and len(name) <= _LONGEST_NAME else None


def _other_value(fields: Sequence[Field], field: Field, random: Random) -> str:
    others = [each.value for each in fields if each.value != field.value]
    if others and random.random() < 0.4:
        return random.choice(others)
    return _altered(field.value, random)


def _is_text(facts: Facts, random: Random, yes: bool) -> str | None:
    run = _nameable(facts, random)
    if run is None:
        return None
    text = run.text if yes else _altered(run.text, random)
    inside = any(text in line.text for line in facts.scene.page.lines)
    return _WRITTEN.format(text) if text and yes == inside else None


def _altered(text: str, random: Random) -> str:
    """One digit changed, or one letter where there is no digit; empty where there is neither."""
    for alphabet in (digits, ascii_lowercase, ascii_uppercase):
        places = [index for index, character in enumerate(text) if character in alphabet]
        if places:
            at = random.choice(places)
            return text[:at] + random.choice(alphabet.replace(text[at], "")) + text[at + 1 :]
    return ""


def _transcribe(facts: Facts, random: Random) -> Drawn:
    if not facts.rows:
        return None
    if len(facts.rows) == 1 and random.random() < 0.6:
        return random.choice(_ALL), facts.rows[0].text
    if random.random() < 0.4:
        index = random.randrange(min(len(facts.rows), _LAST_NUMBER))
        return _NUMBERED.format(index + 1), facts.rows[index].text
    row = random.choice(facts.rows)
    start = random.choice((row.runs[0].text, row.text.split(" ", 1)[0], row.text[:3].strip()))
    start = start.removesuffix(":") or start
    alone = sum(each.text.startswith(start) for each in facts.rows) == 1
    return (STARTING.format(start), row.text) if alone and start != row.text and len(start) <= _LONGEST_NAME else None


def _page(facts: Facts, random: Random) -> Drawn:
    return (_EVERYTHING, "\n".join(row.text for row in facts.rows)) if facts.rows else None


def _nameable(facts: Facts, random: Random) -> Line | None:
    """A run of text that a question can call by its text."""
    runs = [run for run in facts.scene.page.lines if len(run.text) <= _LONGEST_NAME and facts.is_unique(run)]
    return random.choice(runs) if runs else None


def _any_shape(facts: Facts, random: Random) -> Shape | None:
    return random.choice(facts.figures) if facts.figures else None


def _bare(run: Line) -> str:
    """Its text without the colon that a label may end in."""
    return run.text.removesuffix(":") or run.text


_MAKERS: dict[Kind, Callable[[Facts, Random], Drawn]] = {
    "field": _field,
    "place": _place,
    "fields": _fields,
    "count": _count,
    "colour": _colour,
    "yes-no": _yes_no,
    "transcribe": _transcribe,
    "page": _page,
}
