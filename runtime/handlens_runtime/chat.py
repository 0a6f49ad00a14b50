"""Messages to prompt text, through the checkpoint's own Jinja2 chat template. Knows nothing about ids or pixels.

Templates come from strangers, so they run in Jinja2's immutable sandbox and see plain data only. The environment
(trimmed blocks, loop controls, `raise_exception`, `strftime_now`, `tojson` without HTML escapes, `generation` blocks)
is the one that transformers' `apply_chat_template` gives them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from handlens_runtime.errors import PromptError
from handlens_runtime.manifest import Chat

Role = Literal["system", "user", "assistant"]
ImageSource = Path | str | bytes | Image.Image
"""A picture: its file, its file's content, or already decoded."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str = ""
    images: tuple[ImageSource, ...] = ()
    """Pictures, shown to the model before the text."""


def render(
    chat: Chat,
    messages: Sequence[Message],
    *,
    parts: bool,
    answer: bool,
    now: Callable[[], datetime] = datetime.now,
) -> str:
    """Prompt text of a conversation.

    `parts`: each content is a list, `{"type": "image"}` for each picture and then `{"type": "text", "text": …}`, as
    vision-language templates expect; otherwise it is a plain string. `answer` adds the beginning of the assistant's
    turn. `now` is the clock of templates that write the date. Raises PromptError with the template's own words where it
    refuses the conversation.
    """
    names = {"bos_token": chat.bos_token, "eos_token": chat.eos_token}
    try:
        return _compile(chat.template).render(
            messages=[{"role": message.role, "content": _content(message, parts)} for message in messages],
            add_generation_prompt=answer,
            tools=None,
            documents=None,
            strftime_now=lambda pattern: now().strftime(pattern),
            **{name: token for name, token in names.items() if token is not None},
        )
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise PromptError(
            f"The bundle's chat template refuses these messages ({error}); check the order of roles and their contents."
        ) from error


def _content(message: Message, parts: bool) -> str | list[dict[str, str]]:
    if not parts:
        return message.text
    pictures = [{"type": "image"} for _ in message.images]
    text = [{"type": "text", "text": message.text}] if message.text or not pictures else []
    return [*pictures, *text]


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; for a prompt its body is plain template text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)
