"""Damaged files of every format give a picture or an ImageError, never anything else."""

from __future__ import annotations

import random
import warnings
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from handlens_runtime.errors import ImageError
from handlens_runtime.images.decode import open_image

CHELSEA = Path(__file__).parents[2] / "assets" / "photographs" / "chelsea.jpg"
MUTATIONS = 60

FILES: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "cmyk jpeg": ("JPEG", {"mode": "CMYK"}),
    "png": ("PNG", {}),
    "palette png": ("PNG", {"mode": "P"}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "jpeg tiff": ("TIFF", {"compression": "jpeg"}),
    "deflate tiff": ("TIFF", {"compression": "tiff_deflate"}),
}


def _encode(format: str, options: dict[str, object]) -> bytes:
    with Image.open(CHELSEA) as photo:
        image = photo.resize((64, 48)).convert(str(options.get("mode", "RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6
    if format in ("JPEG", "PNG", "WEBP", "TIFF"):
        options = {"exif": exif, **options}
    buffer = BytesIO()
    image.save(buffer, format, **{key: value for key, value in options.items() if key != "mode"})
    return buffer.getvalue()


def _mutate(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a few bytes, half of the time in the header, or cut the end off, or repeat a piece."""
    damaged = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(damaged[: rng.randrange(1, len(damaged))])
    if kind == 1:
        at = rng.randrange(len(damaged))
        return bytes(damaged[:at] + damaged[max(at - 20, 0) :])
    reach = min(200, len(damaged)) if kind == 2 else len(damaged)
    for _ in range(rng.choice((1, 2, 8))):
        damaged[rng.randrange(reach)] = rng.randrange(256)
    return bytes(damaged)


@pytest.mark.parametrize("name", FILES)
def test_mutated_file_is_a_picture_or_one_sentence(name: str) -> None:
    data = _encode(*FILES[name])
    assert open_image(data).size in ((64, 48), (48, 64))
    rng = random.Random(name)
    sentences = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(MUTATIONS):
            try:
                assert open_image(_mutate(data, rng)).mode == "RGB"
            except ImageError as error:
                sentences.append(str(error))
    assert len(sentences) > MUTATIONS // 10
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    data = _encode(*FILES[name])
    path = tmp_path / "holiday.img"
    for tenth in range(1, 10):
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(ImageError, match=r"holiday\.img is (damaged|not a picture)"):
            open_image(path)


def test_truncated_photograph_given_as_a_lazy_pillow_image() -> None:
    data = CHELSEA.read_bytes()
    with (
        Image.open(BytesIO(data[: len(data) // 2])) as lazy,
        pytest.raises(ImageError, match="given picture is damaged"),
    ):
        open_image(lazy)
