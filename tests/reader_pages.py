"""Small readers and pages to train them on."""

from __future__ import annotations

from handlens_export.reader.batch import Batch, assemble
from handlens_export.reader.draw import Drawer, Mix, Order, Sheaf
from handlens_export.reader.pool import normalized
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.tokenizer import IMAGE, build

SMALL = Sizes(vision_width=32, vision_layers=1, vision_heads=2, width=32, layers=1, heads=2, kv_heads=1, mlp=32)
PATCH = SMALL.patch


def drawn(mix: Mix, grid: tuple[int, int] = (1, 1), number: int = 0, tiles: int = 4) -> Sheaf:
    return Drawer().draw(Order(mix, number, grid, tiles))


def batch_of(sheaf: Sheaf) -> Batch:
    """Each page with its first set of questions."""
    turns = [sets[0] for sets in sheaf.turns]
    return assemble(turns, build().token_to_id(IMAGE), normalized(sheaf.tiles), sheaf.labels)
