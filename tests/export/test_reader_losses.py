"""What training minimizes is what it says it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reader_pages import PATCH, SMALL, batch_of, drawn

from handlens_export.reader.camera import SAME
from handlens_export.reader.draw import Mix
from handlens_export.reader.examples import TILE
from handlens_export.reader.labels import CHARACTERS, SLOTS, UNREADABLE, Canvas
from handlens_export.reader.losses import losses_of, under
from handlens_export.reader.model import Networks, Reader
from handlens_export.reader.page import Page
from handlens_export.reader.pointers import NOWHERE, Pointers
from handlens_export.reader.scene import Turn
from handlens_export.reader.tokenizer import build
from handlens_export.reader.turns import TOLD


@pytest.mark.parametrize("grid", [(1, 1), (2, 1)])
def test_pointers_lead_to_image_tokens_that_show_the_letter(mix: Mix, grid: tuple[int, int]) -> None:
    """Several pages in a batch, of one tile or of two with a thumbnail: the dense labels, made another way, agree."""
    batch = batch_of(drawn(replace(mix, layouts=("receipt", "strings")), grid, tiles=9))
    per, side = SMALL.tokens_per_tile, TILE // PATCH
    ordinals = {flat: number for number, flat in enumerate(batch.images.tolist())}
    said = dict(zip(batch.wanted.tolist(), batch.targets.tolist(), strict=True))
    for pairs, letters in ((batch.naming, batch.ids.flatten().tolist()), (batch.saying, said)):
        assert len(pairs) > 20
        shown = 0
        for query, place in pairs.tolist():
            assert query // batch.ids.shape[1] == place // batch.ids.shape[1]
            letter = build().decode([letters[query]])[-1]
            tile, at = divmod(ordinals[place], per)
            assert grid == (1, 1) or tile % 3, "a thumbnail is not where text is read"
            rows, columns = (slice(2 * part, 2 * part + 2) for part in divmod(at, side // 2))
            patches = batch.labels[tile].view(side, side, -1)[rows, columns, :SLOTS].flatten().tolist()
            shown += letter in {CHARACTERS[c - 2] for c in patches if c > UNREADABLE}
        assert shown >= 0.95 * len(pairs)  # a fifth letter in one patch has no label, a denied one is not there


def test_pointers_find_what_a_question_names_and_nothing_else(font: Path) -> None:
    page = Page.blank(TILE, TILE, (255, 255, 255))
    page.write((8, 20), "Gate:", font, 16, (0, 0, 0), "black")
    page.write((120, 20), "B 17", font, 16, (0, 0, 0), "black")
    page.write((8, 60), "twice", font, 16, (0, 0, 0), "black")
    page.write((8, 100), "twice", font, 16, (0, 0, 0), "black")
    for top, text in ((130, "written"), (150, "2"), (170, "Vai"), (190, "Shi")):
        page.write((8, top), text, font, 14, (0, 0, 0), "black")
    pointers = Pointers.of(page, SAME, Canvas((TILE, TILE), 1, 1, TILE, PATCH, thumbnail=False), 2)
    for question in ("Is the text B 17 there?", "Is the text B 18 there?"):
        places = pointers.question(Turn("yes-no", question, "yes"))
        assert places == (NOWHERE,) * 12 + pointers.texts["B 17"] + (NOWHERE,) * 7
    gate = Turn("field", "What is the Gate?", "B 17")
    assert pointers.question(gate) == (NOWHERE,) * 12 + pointers.texts["Gate:"][:4] + (NOWHERE,)
    assert pointers.answer(gate) == pointers.texts["B 17"]
    assert pointers.answer(Turn("transcribe", "Read line 1.", "Gate: B 17")).count(NOWHERE) == 1
    assert set(pointers.answer(Turn("transcribe", "Read line 2.", "twice"))) == {NOWHERE}
    for question in ("Read line 2.", "What is written at the top?", "Is the text Sai there?", "What is below twice?"):
        assert set(pointers.question(Turn("yes-no", question, "no"))) == {NOWHERE}, question
    begun = pointers.question(Turn("transcribe", "Read the line that starts with Gat.", "Gate: B 17"))
    assert begun == (NOWHERE,) * 31 + pointers.texts["Gate"][:3] + (NOWHERE,)


def test_attention_is_told_as_the_decoder_pays_it(mix: Mix) -> None:
    """Against the weights that transformers' own module returns."""
    torch.manual_seed(0)
    sizes = replace(SMALL, layers=2, heads=4, kv_heads=2)
    reader = Reader(sizes).eval()
    batch = batch_of(drawn(mix, tiles=2))
    paid: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(reader.language_model.model.layers):
        layer.self_attn.register_forward_hook(lambda _, __, out, number=number: paid.update({number: out[1]}))
    with torch.no_grad():
        _, taken = reader.logits(torch.randn(len(batch.images), sizes.width), batch)
        for number in range(sizes.layers):
            for head in range(sizes.heads):
                found = reader.attention(taken, batch, number, head).exp()
                torch.testing.assert_close(found, paid[number][:, head], rtol=0, atol=1e-5)


def test_pointers_move_attention_to_where_they_point(mix: Mix) -> None:
    torch.manual_seed(0)
    networks = Networks(Reader(replace(SMALL, width=128, layers=2, heads=4)))
    batch = batch_of(drawn(mix, tiles=4))
    optimizer = torch.optim.AdamW(networks.parameters(), 3e-3)
    shares = []
    for _ in range(60):
        losses, told = losses_of({"language", "pointers"}, networks, batch)
        losses["pointers"].backward()
        optimizer.step()
        optimizer.zero_grad()
        shares.append([float(told[name][0] / told[name][1]) for name in ("named", "said")])
    assert max(shares[0]) < 0.1 and min(shares[-1]) > 0.5


def test_heads_that_learn_first_leave_the_reader_as_it_is(mix: Mix) -> None:
    networks = Networks(Reader(SMALL))
    losses, _ = losses_of({"heads"}, networks, batch_of(drawn(mix)))
    losses["heads"].backward()
    assert all(parameter.grad is None for parameter in networks.reader.parameters())
    assert networks.head.linear.weight.grad is not None and networks.row_head.linear.weight.grad is not None


def test_slots_are_those_of_the_patches_that_a_row_is_of() -> None:
    """Against labels that say where they are: a row's four patches are neighbours, as the downsampler merges them."""
    side = TILE // PATCH
    labels = torch.arange(side**2)[None, :, None].expand(1, -1, SLOTS + 2)
    characters, shapes, colours = under(labels, 2)
    assert characters.shape == (1, SMALL.tokens_per_tile, 4, SLOTS)
    assert torch.equal(shapes, colours) and torch.equal(shapes, characters[..., 0])
    assert shapes[0, 0].tolist() == [0, 1, side, side + 1]
    assert shapes[0, side // 2 + 1].tolist() == [2 * side + 2, 2 * side + 3, 3 * side + 2, 3 * side + 3]


def test_slots_teach_the_projector_and_a_frozen_encoder_nothing(mix: Mix) -> None:
    torch.manual_seed(0)
    networks = Networks(Reader(SMALL))
    batch = batch_of(drawn(mix))
    optimizer = torch.optim.AdamW(networks.parameters(), 1e-2)
    before = {name: weight.clone() for name, weight in networks.reader.named_parameters()}
    found = []
    for _ in range(30):
        losses, told = losses_of({"slots"}, networks, batch, frozen=True)
        losses["slots"].backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(losses["slots"].detach()))
    assert found[-1] < 0.7 * found[0]
    assert int(told["row characters"][1]) == int((batch.labels[..., :SLOTS] > 0).sum())
    moved = {name for name, weight in networks.reader.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"downsampler", "projector"}


def test_exact_is_the_share_of_whole_answers(mix: Mix) -> None:
    batch = batch_of(drawn(mix))
    networks = Networks(Reader(SMALL))

    class Knowing(Reader):
        """Says what was asked for, but for one token of the first answer."""

        def logits(self, image_rows, batch):
            targets = batch.targets.clone()
            targets[0] = (targets[0] + 1) % 512
            return torch.nn.functional.one_hot(targets, 512).float() * 50, ()

    networks.reader = Knowing(SMALL)
    _, told = losses_of({"answers"}, networks, batch)
    right, asked = told["exact"]
    assert int(asked.sum()) == len(batch.kinds)
    wrong = (asked - right).tolist()
    assert [TOLD[k] for k, missing in enumerate(wrong) if missing] == [TOLD[int(batch.kinds[0])]]
    assert sum(wrong) == 1
