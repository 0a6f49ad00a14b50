"""A sweep as a picture: how far each variant's answers are from the float network's, a bar each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from handlens.cli.bars import COLOURS, FAINT, INK

if TYPE_CHECKING:
    from handlens_export.sweep.table import Row, Table

WIDTH, MARGIN, LINE, THICK = 1400, 40, 34, 22
LABELS, VALUES = 430, 420
"""Width of what stands left of the bars, and right of them."""


def draw(table: Table) -> Image.Image:
    """One bar a variant, coloured by its method; what it takes and gives stands behind it."""
    font, bold = ImageFont.load_default(22), ImageFont.load_default(26)
    rows = [row for row in table.rows if row.bits < 32]
    methods = list(dict.fromkeys(row.method for row in rows))
    top = MARGIN + 84
    sheet = Image.new("RGB", (WIDTH, top + LINE * len(rows) + LINE + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), "Divergence of the next token from the float network's, in nats", INK, bold)
    pen.text((MARGIN, MARGIN + 40), _float(table), INK, font)
    longest = max((row.kl for row in rows if row.kl is not None), default=0.0) or 1.0
    bottom = top + LINE * len(rows)
    for quarter in range(5):
        x = _x(quarter / 4)
        pen.line((x, top - 6, x, bottom), FAINT, 2)
        pen.text((x, bottom + 8), f"{longest * quarter / 4:.2g}", INK, font, anchor="ma")
    for index, row in enumerate(rows):
        place = top + LINE * index
        middle = place + THICK // 2
        pen.text((LABELS - 16, middle), row.name, INK, font, anchor="rm")
        colour = COLOURS[methods.index(row.method) % len(COLOURS)]
        pen.rectangle((_x(0), place, _x(1.0 if row.kl is None else row.kl / longest), place + THICK), fill=colour)
        pen.text((WIDTH - VALUES + 16, middle), _values(row), INK, font, anchor="lm")
    return sheet


def _values(row: Row) -> str:
    parts = ["no numbers" if row.kl is None else f"{row.kl:.3g}", f"{row.bits_per_weight:.2f} bits a weight"]
    if row.perplexity is not None:
        parts.append(f"ppl {row.perplexity:.2f}")
    if row.exact_match is not None:
        parts.append(f"{row.exact_match:.0%} right")
    return ", ".join(parts)


def _float(table: Table) -> str:
    exact = table.exact
    if exact is None:
        return ""
    parts = [] if exact.perplexity is None else [f"perplexity {exact.perplexity:.2f}"]
    if exact.exact_match is not None:
        parts.append(f"{exact.exact_match:.1%} right")
    return f"Float: {', '.join(parts)}"


def _x(share: float) -> int:
    return round(LABELS + share * (WIDTH - LABELS - VALUES))
