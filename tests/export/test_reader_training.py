"""Training rests on labels that are true, runs that go on where they stopped, and a checkpoint that is the network."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from io import BytesIO
from itertools import count, repeat
from pathlib import Path
from random import Random
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest
import torch
from PIL import ImageFont

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.load import load as load_weights
from handlens_export.network.network import Network
from handlens_export.reader import examples, train
from handlens_export.reader import pool as pool_module
from handlens_export.reader.batch import Batch, assemble
from handlens_export.reader.camera import SAME, _turned
from handlens_export.reader.draw import Drawer, Mix, Order, Sheaf, seen
from handlens_export.reader.examples import TILE, example
from handlens_export.reader.fonts import Family
from handlens_export.reader.labels import CHARACTERS, COLOURS, SHAPES, SLOTS, UNREADABLE, Canvas, labels
from handlens_export.reader.losses import Loss, losses_of
from handlens_export.reader.model import Networks, Reader
from handlens_export.reader.optimizer import Muon
from handlens_export.reader.page import Page
from handlens_export.reader.pointers import NOWHERE, Pointers
from handlens_export.reader.pool import Pool, normalized
from handlens_export.reader.rule import RULE
from handlens_export.reader.save import load, save
from handlens_export.reader.scene import Turn
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.stages import Stage
from handlens_export.reader.tokenizer import CHAT_TEMPLATE, IMAGE, build
from handlens_export.reader.train import Plan, Run, fast_bfloat16, main
from handlens_export.reader.turns import TOLD, Turns, encode
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.images.expand import expand
from handlens_runtime.images.preprocess import lay_out, prepare

SMALL = Sizes(vision_width=32, vision_layers=1, vision_heads=2, width=32, layers=1, heads=2, kv_heads=1, mlp=32)
PATCH = SMALL.patch


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """The font that Pillow carries, as a file."""
    face = ImageFont.load_default(12)
    assert isinstance(face, ImageFont.FreeTypeFont)
    assert isinstance(face.path, BytesIO)
    path = tmp_path / "default.ttf"
    path.write_bytes(face.path.getvalue())
    return path


@pytest.fixture
def mix(font: Path, monkeypatch: pytest.MonkeyPatch) -> Mix:
    """Pages of every trained layout in Pillow's font."""
    monkeypatch.setattr(examples, "font_files", lambda family: (font,))
    family = Family("Any", "sans", "fontpkg-any==1", "0" * 64, ("any.ttf",), "OFL-1.1", held_out=False)
    return Mix("test", ("receipt", "strings", "shapes"), (family,), chat=0.0, conversations=0.0)


def drawn(mix: Mix, grid: tuple[int, int] = (1, 1), number: int = 0, tiles: int = 4) -> Sheaf:
    return Drawer().draw(Order(mix, number, grid, tiles))


def batch_of(sheaf: Sheaf) -> Batch:
    """Each page with its first set of questions."""
    turns = [sets[0] for sets in sheaf.turns]
    return assemble(turns, build().token_to_id(IMAGE), normalized(sheaf.tiles), sheaf.labels)


def read_back(page: Page, canvas: Canvas) -> list[str]:
    """Each row of patches of the first tile, as text."""
    found = labels(page, SAME, canvas).characters[0].reshape(canvas.grid, canvas.grid, -1)
    return ["".join(CHARACTERS[c - 2] for patch in row for c in patch if c > UNREADABLE) for row in found]


def test_labels_say_what_is_written_and_where(font: Path) -> None:
    page = Page.blank(TILE, TILE, (255, 255, 255))
    page.write((8, 20), "Total: 12.50", font, 16, (200, 0, 0), "red")
    page.shape("circle", (100, 100, 160, 160), (0, 0, 255), "blue")
    canvas = Canvas((TILE, TILE), 1, 1, TILE, PATCH, thumbnail=False)
    rows = read_back(page, canvas)
    assert rows.count("Total: 12.50") == 1
    assert rows.index("Total: 12.50") == int(page.lines[0].y / PATCH)
    found = labels(page, SAME, canvas)
    shapes, colours = (part[0].reshape(canvas.grid, -1) for part in (found.shapes, found.colours))
    at = 130 // PATCH
    assert SHAPES[shapes[at, at] - 1] == "circle"
    assert COLOURS[colours[at, at] - 1] == "blue"
    assert COLOURS[colours[int(page.lines[0].y / PATCH), 1] - 1] == "red"
    assert shapes[0, 0] == colours[0, 0] == 0


def test_labels_follow_the_page_through_the_camera_and_the_tiles() -> None:
    """A square drawn on the page and its label are at one place in the tiles, turned and resized as they are."""
    for seed in range(6):
        page = Page.blank(400, 210, (255, 255, 255))
        page.shape("square", (250, 60, 330, 140), (0, 0, 0), "black")
        picture, where = _turned(page.image, Random(seed))
        layout = lay_out(picture, RULE)
        assert (layout.columns, layout.rows) == (2, 1)
        found = labels(page, where, Canvas(picture.size, 2, 1, TILE, PATCH, thumbnail=True)).shapes
        levels = np.asarray(layout.canvas.convert("L")).reshape(TILE // PATCH, PATCH, 2 * TILE // PATCH, PATCH)
        dark = levels[:, PATCH // 2, :, PATCH // 2] < 128
        assert layout.thumbnail is not None
        small = np.asarray(layout.thumbnail.convert("L"))[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH] < 128
        canvas = np.concatenate((found[1].reshape(dark.shape[0], -1), found[2].reshape(dark.shape[0], -1)), axis=1) > 0
        # The square's edge may run through a patch's middle, and the canvas is black outside the picture.
        assert (canvas & ~dark).sum() <= 2 < canvas.sum(), seed
        assert (dark[2:-2, 8:-4] & ~canvas[2:-2, 8:-4]).sum() <= 2, seed
        assert ((found[0].reshape(small.shape) > 0) ^ small).sum() <= 2, seed


def test_text_too_small_for_the_thumbnail_is_not_guessed_at(font: Path) -> None:
    page = Page.blank(4 * TILE, TILE, (255, 255, 255))
    page.write((10, 100), "tiny", font, 16, (0, 0, 0), "black")
    found = labels(page, SAME, Canvas(page.image.size, 4, 1, TILE, PATCH, thumbnail=True)).characters
    assert set(np.unique(found[0])) == {0, UNREADABLE}
    assert (found[1] > UNREADABLE).sum() == 4


def test_an_order_draws_the_same_sheaf_whenever_it_is_drawn(mix: Mix) -> None:
    one, other = drawn(mix), drawn(mix)
    assert torch.equal(one.tiles, other.tiles) and torch.equal(one.labels, other.labels)
    assert all(np.array_equal(a[0].tokens, b[0].tokens) for a, b in zip(one.turns, other.turns, strict=True))
    assert not torch.equal(drawn(mix, number=1).tiles, one.tiles)


def test_training_sees_the_tiles_that_a_bundle_makes(mix: Mix) -> None:
    made = example(Random(3), mix.layouts, mix.typefaces, (2, 1), 4)
    tiles, *_ = seen(made)
    expected = prepare(made.picture, RULE).pixels
    torch.testing.assert_close(normalized(torch.from_numpy(tiles)), torch.from_numpy(expected), rtol=0, atol=1e-6)


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


def test_muon_steps_as_torchs_does() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((32, 64), (32, 64), (64, 32))]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    muon = Muon(ours, weight_decay=0.02)
    muon.param_groups[0]["lr"] = 1e-2
    other = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before = [matrix.detach().clone() for matrix in ours]
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        muon.step()
        other.step()
    for one, two, old in zip(ours, theirs, before, strict=True):
        assert (one - two).abs().max() < 0.5 * (one - old).abs().mean()  # torch's is in bfloat16


def test_a_head_that_learns_first_leaves_the_reader_as_it_is(mix: Mix) -> None:
    networks = Networks(Reader(SMALL))
    losses, _ = losses_of({"head"}, networks, batch_of(drawn(mix)))
    losses["head"].backward()
    assert all(parameter.grad is None for parameter in networks.reader.parameters())
    assert networks.head.linear.weight.grad is not None


def test_a_rate_is_warmed_up_for_the_reader_and_not_for_its_head(mix: Mix, tmp_path: Path) -> None:
    run = Run(tmp_path, Plan(seconds=100.0, tiles=17, pool=200, workers=1, rate=1.0), curriculum(mix), Reader(SMALL))
    head, first, _ = run.curriculum
    rates = []
    for run.step, stage in ((0, head), (99, head), (100, first), (110, first)):
        rates.append(run._rate(stage))
    assert rates == [1.0, 1.0, 0.01, 0.11]


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


def curriculum(mix: Mix) -> tuple[Stage, ...]:
    first: dict[Loss, float] = {"dense": 1.0, "language": 1.0}
    last: dict[Loss, float] = {"dense": 0.5, "rows": 1.0, "language": 1.0, "answers": 1.0, "pointers": 0.3}
    grids = ((1, 1), (2, 1))
    head = Stage("head", 0.2, mix, grids, {"head": 1.0})
    return head, Stage("first", 0.4, mix, grids, first), Stage("last", 1.0, replace(mix, seed="other"), grids, last)


def test_a_run_goes_through_its_stages_and_goes_on_where_it_was_stopped(
    mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FIRST", 4)
    monkeypatch.setattr(train, "EVERY", 1)
    plan = Plan(seconds=3.0, tiles=17, pool=200, workers=1, validate=0)
    torch.manual_seed(0)
    # Not the machine's clock: how many steps a busy one takes in three seconds is not known.
    clock = (index / 10 for index in count())
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    run = Run(tmp_path, plan, curriculum(mix), Reader(SMALL))
    run.go(until=next(clock) + 1.5)
    assert run.step > 0 and run.progress < 1
    resumed = Run(tmp_path, plan, curriculum(mix))
    assert (resumed.step, resumed.networks.reader.sizes) == (run.step, SMALL)
    for name, weight in resumed.networks.state_dict().items():
        torch.testing.assert_close(weight, run.networks.state_dict()[name], rtol=0, atol=0, msg=name)
    resumed.go()
    assert resumed.progress == 1 and resumed.step > run.step
    log = (tmp_path / "log.jsonl").read_text()
    assert '"stage": "first"' in log and '"stage": "last"' in log
    trained = load(tmp_path).state_dict()
    for name, weight in resumed.networks.reader.state_dict().items():
        torch.testing.assert_close(trained[name], weight.bfloat16().float(), rtol=0, atol=0, msg=name)


def test_drawing_waits_for_learning(mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of few cores it would take half of them; but it does not wait before a step can be made."""
    monkeypatch.setattr(train, "FIRST", 30)
    sheaf = drawn(mix, tiles=10)
    monkeypatch.setattr(train, "sheaves", lambda following, workers: repeat(sheaf))
    alone = Stage("one", 1.0, mix, ((1, 1),), {"head": 1.0})
    run = Run(tmp_path, Plan(3600.0, 17, 200, 1, ahead=10), (alone,), Reader(SMALL))
    drawing = threading.Thread(target=run._fill)
    drawing.start()

    def comes_to(pages: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (run.pool and run.pool.drawn >= pages):
            time.sleep(0.01)
        return run.pool is not None and run.pool.drawn >= pages

    # The first sheaf is not counted: 20 of 30 tiles are ahead when there are enough to begin with.
    assert comes_to(30, 30) and not comes_to(40, 0.5)
    run.learned = 10
    assert comes_to(40, 30) and not comes_to(50, 0.5)
    run.stopped.set()
    drawing.join(30)
    assert not drawing.is_alive() and run.failure is None


def test_what_fails_in_the_drawing_ends_the_run(mix: Mix, tmp_path: Path) -> None:
    """The thread that draws dies alone otherwise, and the run waits for ever."""
    impossible = replace(mix, layouts=("no such layout",))
    run = Run(tmp_path, Plan(3.0, 17, 200, 1), curriculum(impossible), Reader(SMALL))
    with pytest.raises(KeyError, match="no such layout"):
        run.go()


@pytest.mark.parametrize("wrong", [b"", b"no weights"])
def test_a_folder_that_holds_no_reader_is_named(
    wrong: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FAMILIES", ())
    save(Reader(SMALL), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(wrong)
    assert main(["-o", str(tmp_path / "out"), "--minutes", "1", "--from", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path) in said and "give a folder that training wrote" in said


@pytest.mark.parametrize("content", [b"", b"root:x:0:0", b"PK\x03\x04 half a file"])
def test_a_file_that_is_no_state_is_named(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FAMILIES", ())
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    assert main(["-o", str(tmp_path), "--minutes", "1"]) == 2
    assert f"{path} is no state of training" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_bytes() == content


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main(["-o", str(tmp_path / "taken"), "--minutes", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "choose another with -o" in said
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("wrong", [["--tiles", "0"], ["--threads", "-1"], ["--workers", "0"], ["--minutes", "0"]])
def test_numbers_that_train_nothing_are_refused(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-o", str(tmp_path / "out"), "--minutes", "1", *wrong])
    assert ended.value.code == 2
    assert f"argument {wrong[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_the_saved_checkpoint_is_the_trained_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = Reader(Sizes(vision_layers=1, layers=1)).eval()
    for parameter in reader.parameters():
        parameter.data = parameter.data.bfloat16().float()
    save(reader, tmp_path / "checkpoint")
    planned = plan(read(tmp_path / "checkpoint"), Recipe())
    network = Network(planned.config, 256).eval()
    load_weights(network, planned.checkpoint, planned.family)
    tiles = torch.randn(2, 3, TILE, TILE)
    image = build().token_to_id("<image>")
    ids = torch.tensor([[1, *[image] * 2 * reader.sizes.tokens_per_tile, 20, 30, 40, 0, 2]])
    nothing = torch.zeros(0)
    batch = Batch(
        **dict.fromkeys(("tiles", "labels", "targets", "answers", "kinds", "naming", "saying"), nothing),
        ids=ids,
        positions=torch.arange(ids.shape[1])[None],
        segments=torch.zeros_like(ids),
        images=torch.where(ids[0] == image)[0],
        wanted=torch.arange(ids.shape[1]),
    )
    with torch.no_grad():
        rows = reader.rows(reader.features(tiles)).flatten(0, 1)
        expected, _ = reader.logits(rows, batch)
    torch.testing.assert_close(network(ids, tiles, image)[0], expected, rtol=0, atol=2e-5)
    assert planned.checkpoint.config["image_token_id"] == image
    assert TOKENIZER in {path.name for path in (tmp_path / "checkpoint").iterdir()}


def test_bfloat16_is_left_to_processors_that_multiply_it(monkeypatch):
    """Emulated, a step of training takes thirty times as long."""
    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not fast_bfloat16(cpu) and fast_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_bfloat16(cpu)
