"""Training rests on labels that are true, runs that go on where they stopped, and a checkpoint that is the network."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import ImageFont

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.load import load as load_weights
from handlens_export.network.network import Network
from handlens_export.reader import examples
from handlens_export.reader.batch import Batch
from handlens_export.reader.batches import RULE, Batches, Mix
from handlens_export.reader.camera import SAME, _turned
from handlens_export.reader.examples import TILE
from handlens_export.reader.fonts import Family
from handlens_export.reader.labels import CHARACTERS, COLOURS, SHAPES, UNREADABLE, Canvas, labels
from handlens_export.reader.losses import losses_of
from handlens_export.reader.model import Networks, Reader, Sizes
from handlens_export.reader.page import Page
from handlens_export.reader.save import load, save
from handlens_export.reader.save import main as save_main
from handlens_export.reader.stages import Stage
from handlens_export.reader.tokenizer import build
from handlens_export.reader.train import Run, fast_bfloat16, main
from handlens_export.recipe import Recipe
from handlens_runtime.bundle import TOKENIZER
from handlens_runtime.images.preprocess import lay_out

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
    return Mix("test", ("receipt", "strings", "shapes"), (family,), ((1, 1), (2, 1)), tiles=3, questions=3)


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


def test_a_steps_batch_is_the_same_whenever_it_is_drawn(mix: Mix) -> None:
    one, other = (Batches(mix, SMALL)[7] for _ in range(2))
    assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("tiles", "characters", "ids"))
    assert not torch.equal(Batches(mix, SMALL)[8].ids, one.ids)


def test_a_step_that_draws_only_chat_is_learned_from(mix: Mix) -> None:
    """Steps of one large page draw one example: now and then that one has no picture."""
    batch = Batches(replace(mix, chat=1.0), SMALL)[0]
    assert len(batch.tiles) == 0
    networks = Networks(SMALL)
    losses, _ = losses_of({"dense", "rows", "answers", "language"}, networks, batch)
    assert set(losses) == {"answers", "language"}
    losses["answers"].backward()
    assert networks.reader.language_model.model.embed_tokens.weight.grad is not None


def test_a_batch_asks_as_the_chat_template_does(mix: Mix) -> None:
    batch = Batches(replace(mix, conversations=1.0), SMALL)[1]
    text = build().decode(batch.ids[0].tolist(), skip_special_tokens=False)
    image = "<image>" * int(batch.places[0].sum())
    assert text.startswith(f"<|user|>{image}")
    assert int(batch.places.sum()) == len(batch.tiles) * SMALL.tokens_per_tile
    answers = build().decode(batch.targets[0][batch.targets[0] >= 0].tolist(), skip_special_tokens=False)
    assert answers.count("<|end|>") == len(batch.kinds[0])
    for answer in answers.split("<|end|>")[:-1]:
        assert f"<|assistant|>{answer}<|end|>" in text


def test_questions_that_stand_alone_see_the_picture_and_not_each_other(mix: Mix) -> None:
    """Each is answered as if it were the only one: same logits as its own batch of one turn."""
    torch.manual_seed(0)
    reader = Reader(SMALL).eval()
    batch = Batches(replace(mix, conversations=0.0), SMALL)[1]
    rows = torch.randn(int(batch.places.sum()), SMALL.width)
    with torch.no_grad():
        together = reader.logits(rows, batch, batch.segments > 0)
        each = []
        begin = 0
        for row, kinds in enumerate(batch.kinds):
            image = int(batch.places[row].sum())
            for number in range(1, len(kinds) + 1):
                kept = torch.cat((torch.arange(image + 1), torch.where(batch.segments[row] == number)[0]))
                alone = replace(
                    batch,
                    ids=batch.ids[row, kept][None],
                    places=batch.places[row, kept][None],
                    positions=torch.arange(len(kept))[None],
                    segments=torch.zeros(1, len(kept), dtype=torch.long),
                )
                wanted = torch.arange(len(kept))[None] > image
                each.append(reader.logits(rows[begin : begin + image], alone, wanted))
            begin += image
    assert sum(map(len, batch.kinds)) > len(batch.kinds)
    torch.testing.assert_close(together, torch.cat(each), rtol=0, atol=1e-5)


def test_frozen_weights_stay_as_they_are(mix: Mix, tmp_path: Path) -> None:
    stage = Stage(mix, {"answers": 1.0}, steps=2, learning_rate=1e-2, frozen=("reader.vision_tower",))
    made = Run("test", stage, Networks(SMALL), tmp_path)
    before = {name: weight.clone() for name, weight in made.networks.reader.state_dict().items()}
    made.go(float("inf"), workers=0)
    changed = {name for name, w in made.networks.reader.state_dict().items() if not torch.equal(w, before[name])}
    assert {name.split(".")[0] for name in changed} == {"downsampler", "projector", "language_model"}


def test_a_stage_begins_from_a_saved_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = Networks(Sizes()).reader
    save(reader, tmp_path)
    other = Networks(Sizes()).reader
    load(other, tmp_path)
    for name, weight in reader.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight.bfloat16().float(), rtol=0, atol=0, msg=name)
    for wrong in (b"", b"no weights"):
        (tmp_path / "model.safetensors").write_bytes(wrong)
        assert main(["joint", "-o", str(tmp_path / "out"), "--from", str(tmp_path), "--workers", "0"]) == 2
        assert "give a folder that save wrote" in capsys.readouterr().err


def run(mix: Mix, folder: Path, until: float) -> Run:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    stage = Stage(mix, {"dense": 1.0, "rows": 1.0, "answers": 1.0, "language": 1.0}, steps=3, learning_rate=1e-3)
    made = Run("test", stage, Networks(SMALL), folder)
    made.start()
    made.go(until, workers=0)
    return made


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(mix: Mix, tmp_path: Path) -> None:
    through = run(mix, tmp_path / "through", until=float("inf")).networks.state_dict()
    assert run(mix, tmp_path / "stopped", until=0.0).step == 1
    resumed = run(mix, tmp_path / "stopped", until=float("inf"))
    assert resumed.step == 3
    for name, weight in resumed.networks.state_dict().items():
        torch.testing.assert_close(weight, through[name], rtol=0, atol=0, msg=name)


def test_a_stage_without_the_ones_before_it_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "-o", str(tmp_path), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert "language.pt" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"root:x:0:0", b"PK\x03\x04 half a file"])
def test_a_file_that_is_no_state_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dense.pt"
    path.write_bytes(content)
    assert save_main([str(path), "-o", str(tmp_path / "out")]) == 2
    assert main(["dense", "-o", str(tmp_path), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count(f"{path} is no state of training") == said.count("\n") == 2
    assert not (tmp_path / "out").exists()
    assert path.read_bytes() == content


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--threads", "-1"], ["--workers", "-1"], ["--minutes", "0"]])
def test_numbers_that_train_nothing_are_refused(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dense", "-o", str(tmp_path / "out"), *wrong])
    assert ended.value.code == 2
    assert f"argument {wrong[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_exact_is_the_share_of_whole_answers(mix: Mix) -> None:
    batch = Batches(mix, SMALL)[0]
    networks = Networks(SMALL)

    class Knowing(Reader):
        """Says what was asked for, but for one token of the first answer."""

        def logits(self, image_rows, batch, wanted):
            targets = batch.targets[wanted].clone()
            targets[0] = (targets[0] + 1) % 512
            return torch.nn.functional.one_hot(targets, 512).float() * 50

    networks.reader = Knowing(SMALL)
    _, told = losses_of({"answers"}, networks, batch)
    answers = sum(len(kinds) for kinds in batch.kinds)
    assert told["exact"] == pytest.approx((answers - 1) / answers)


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
    batch = Batch(
        **dict.fromkeys(("tiles", "characters", "shapes", "colours", "targets"), torch.zeros(0)),
        ids=ids,
        places=ids == image,
        positions=torch.arange(ids.shape[1])[None],
        segments=torch.zeros_like(ids),
        kinds=(),
    )
    with torch.no_grad():
        rows = reader.rows(reader.features(tiles)).flatten(0, 1)
        expected = reader.logits(rows, batch, torch.ones_like(ids, dtype=torch.bool))
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
