"""Tables of plain text: no lines, no markup, readable in a terminal and in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(*columns: str) -> Table:
    """An empty table with these headings."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """A row of plain text: a name in brackets is not rich's markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))
