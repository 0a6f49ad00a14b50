"""The real texts that checks measure on."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from handlens_export import materials
from handlens_runtime.tokenizer import Tokenizer

BEGINNING = "Call me Ishmael"
"""Of the novel, after the licence, the etymology and the extracts."""


def novel() -> str:
    """Moby-Dick from its first chapter on."""
    text = materials.fetch("moby-dick").read_text(encoding="utf-8")
    return text[text.index(BEGINNING) :]


@cache
def handbook() -> str:
    """The Debian Administrator's Handbook, its chapters in English without their markup; dpkg-deb opens its package."""
    package = materials.fetch("debian-handbook")
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        named = {member.name: member for member in archive.getmembers()}
        pages = sorted(name for name in named if re.search(r"/html/en-US/[^/]+\.html$", name))
        texts = []
        for page in pages:
            file = archive.extractfile(named[page])
            assert file is not None
            texts.append(_text(file.read().decode()))
    return "\n\n".join(texts)


def _text(page: str) -> str:
    reader = _Paragraphs()
    reader.feed(page)
    return "\n".join(re.sub(r"\s+", " ", "".join(one)).strip() for one in reader.found if "".join(one).strip())


class _Paragraphs(HTMLParser):
    """The text of a page's paragraphs, which are divisions of class `para`, and of its headings."""

    HEADINGS = ("h1", "h2", "h3", "h4")
    EMPTY = ("br", "hr", "img", "link", "meta", "col")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self._open: list[bool] = []
        """Of each element around, whether it is a paragraph."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.EMPTY:
            return
        paragraph = tag in self.HEADINGS or (tag == "div" and dict(attrs).get("class") == "para")
        self._open.append(paragraph)
        if paragraph:
            self.found.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if any(self._open):
            self.found[-1].append(data)


def windows(tokenizer: Path, tokens: int, length: int, text: str | None = None) -> list[list[int]]:
    """The first `tokens` ids of a text, the novel where left out, in windows of `length`, none overlapping; the last
    may be shorter.
    """
    # A token is never shorter than a character here, and hardly longer than eight.
    ids = Tokenizer(tokenizer).encode((novel() if text is None else text)[: 8 * tokens])[:tokens]
    assert len(ids) == tokens
    return [ids[begin : begin + length] for begin in range(0, tokens, length)]
