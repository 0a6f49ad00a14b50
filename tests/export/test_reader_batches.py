"""A batch asks and answers what the chat template would, about pages of which the pool has whole ones."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import jinja2
import numpy as np
import pytest
import torch
from reader_pages import SMALL, batch_of, drawn

from handlens_export.reader import pool as pool_module
from handlens_export.reader.batch import assemble
from handlens_export.reader.draw import Mix
from handlens_export.reader.model import Reader
from handlens_export.reader.pool import Pool
from handlens_export.reader.rule import RULE
from handlens_export.reader.scene import Turn
from handlens_export.reader.tokenizer import CHAT_TEMPLATE, IMAGE, build
from handlens_export.reader.turns import TOLD, Turns, encode
from handlens_runtime.images.expand import expand


def test_chat_is_learned_from_without_a_picture(mix: Mix) -> None:
    batch = batch_of(drawn(replace(mix, chat=1.0)))
    assert len(batch.tiles) == len(batch.images) == 0
    reader = Reader(SMALL)
    logits, _ = reader.logits(torch.zeros(0, SMALL.width), batch)
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    assert reader.language_model.model.embed_tokens.weight.grad is not None


def test_a_batch_asks_as_the_chat_template_does() -> None:
    """A conversation about a picture of two tiles and its thumbnail: as the bundle renders and expands it."""
    turns = (Turn("field", "What is the total?", "12.50"), Turn("yes-no", "Is there a star?", "no"))
    messages = []
    for turn in turns:
        asked = {"type": "text", "text": turn.question}
        picture = [] if messages else [{"type": "image"}]
        messages += [{"role": "user", "content": [*picture, asked]}, {"role": "assistant", "content": turn.answer}]
    rendered = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=False)
    expected = build().encode(rendered.replace(IMAGE, expand(RULE, 2, 1))).ids
    found = encode(build(), expand(RULE, 2, 1), turns, alone=False)
    assert found.tokens[0].tolist() == expected
    batch = assemble([found], build().token_to_id(IMAGE), torch.zeros(0), torch.zeros(0))
    said = [build().decode(batch.targets[batch.answers == k].tolist(), skip_special_tokens=False) for k in range(2)]
    assert said == ["12.50<|end|>", "no<|end|>"]
    assert len(batch.images) == 3 * SMALL.tokens_per_tile


def test_every_answer_is_of_its_own_kind(mix: Mix) -> None:
    sheaf = drawn(mix)
    batch = batch_of(sheaf)
    assert len(batch.kinds) == sum(len(sets[0].kinds) for sets in sheaf.turns) == int(batch.answers.max()) + 1
    for number, kind in enumerate(batch.kinds.tolist()):
        said = build().decode(batch.targets[batch.answers == number].tolist(), skip_special_tokens=True)
        assert TOLD[kind] != "yes-no" or said in ("yes", "no")
        assert TOLD[kind] != "count" or said.isdigit()
    assert "yes-no" in {TOLD[kind] for kind in batch.kinds.tolist()}


def test_questions_that_stand_alone_see_the_picture_and_not_each_other(mix: Mix) -> None:
    """Each is answered as if it were the only one: same logits as its own batch of one turn."""
    torch.manual_seed(0)
    reader = Reader(SMALL).eval()
    sheaf, image_id = drawn(mix, tiles=2), build().token_to_id(IMAGE)
    batch = batch_of(sheaf)
    rows = torch.randn(len(batch.images), SMALL.width)
    each, begin = [], 0
    with torch.no_grad():
        together, _ = reader.logits(rows, batch)
        for sets in sheaf.turns:
            tokens = sets[0].tokens
            image = int((tokens[0] == image_id).sum())
            for number in range(1, len(sets[0].kinds) + 1):
                kept = tokens[:, (tokens[2] == 0) | (tokens[2] == number)].copy()
                kept[1], kept[2] = np.arange(kept.shape[1]), 0
                kept[3] = np.minimum(kept[3], 1)
                alone = assemble([Turns(kept, sets[0].kinds[:1])], image_id, batch.tiles, batch.labels)
                each.append(reader.logits(rows[begin : begin + image], alone)[0])
            begin += image
    assert len(each) > len(sheaf.turns)
    torch.testing.assert_close(together, torch.cat(each), rtol=0, atol=1e-5)


def test_pages_of_a_step_come_once_where_there_are_enough(mix: Mix) -> None:
    pool = Pool(60, torch.device("cpu"))
    pool.add(drawn(mix, tiles=8))
    batch = pool.batch(Random(0), "test", 1, 16)
    assert len({tile.numpy().tobytes() for tile in batch.labels}) == 8


def test_the_pages_of_a_step_are_about_equally_long(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are padded to the longest: taken as they come, these fill less."""
    pool = Pool(60, torch.device("cpu"))
    for number in range(8):
        pool.add(drawn(mix, number=number, tiles=6))

    def filled() -> float:
        batches = [pool.batch(Random(number), "test", 1, 8) for number in range(10)]
        return sum(float((batch.ids != 0).float().mean()) for batch in batches) / len(batches)

    alike = filled()
    monkeypatch.setattr(pool_module, "CHOICE", 1)
    assert alike > filled() + 0.02


def test_a_full_pool_gives_only_pages_that_are_whole(mix: Mix) -> None:
    """The ring overwrites the oldest: what a batch gets is still the page that its questions are about."""
    pool = Pool(40, torch.device("cpu"))
    known: dict[bytes, bytes] = {}
    for number in range(12):
        sheaf = drawn(mix, (2, 1), number, tiles=9)
        for page, sets in enumerate(sheaf.turns):
            for turns in sets:
                known[turns.tokens.tobytes()] = sheaf.tiles[3 * page : 3 * page + 3].numpy().tobytes()
        pool.add(sheaf)
        for page in pool.pages:
            tiles = pool.tiles[page.start : page.start + page.count].numpy().tobytes()
            assert all(known[turns.tokens.tobytes()] == tiles for turns in page.turns)
    assert 1 <= len(pool.pages) <= 13 < pool.drawn
    batch = pool.batch(Random(0), "test", 3, 9)
    assert len(batch.tiles) == 9 and len(batch.images) == 9 * SMALL.tokens_per_tile
