"""What a drawn page says, in the terms that questions ask in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from handlens_export.reader.page import Colour, Page

Kind = Literal["field", "place", "fields", "count", "colour", "yes-no", "transcribe", "chat", "page"]
"""Of a question. `page`, all of a page's text, is for training: hundreds of characters to copy from one picture."""


@dataclass(frozen=True)
class Field:
    """A value with a name, both as they stand on the page."""

    name: str
    """As the page writes it, without a colon: `Total`, `Gate`."""
    value: str
    """As the page writes it: `12.50`, `B 17`."""
    colour: Colour
    """Of the value."""


@dataclass(frozen=True)
class Scene:
    """A page and its facts."""

    layout: str
    page: Page
    fields: tuple[Field, ...] = ()
    """In reading order; names are unique."""
    small: bool = False
    """Its text is unreadable once the page is resized to one tile."""


@dataclass(frozen=True)
class Turn:
    """A question and its exact answer."""

    kind: Kind
    question: str
    answer: str
