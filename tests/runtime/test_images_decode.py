"""Pictures of every kind become upright RGB; what cannot be read becomes one sentence."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens_runtime.errors import ImageError
from handlens_runtime.images import decode
from handlens_runtime.images.decode import digest, open_image

PHOTOGRAPHS = Path(__file__).parents[2] / "assets" / "photographs"


def _photo(size: tuple[int, int] = (40, 30)) -> Image.Image:
    with Image.open(PHOTOGRAPHS / "coffee.jpg") as image:
        return image.convert("RGB").resize(size)


def _file(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    stored = Image.new("RGB", (32, 48))
    stored.paste((255, 0, 0), (0, 0, 16, 16))  # a red top left corner, as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_image(_file(stored, format, exif=exif))
    assert upright.size == ((32, 48) if orientation < 5 else (48, 32))
    # EXIF 2.3: where the stored first row and first column are seen.
    right, bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    corner = (upright.width - 6 if right else 5, upright.height - 6 if bottom else 5)
    red, green, blue = upright.getpixel(corner)
    assert red > 200
    assert max(green, blue) < 60


def test_orientation_of_a_pillow_image_is_applied_and_the_image_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(BytesIO(_file(_photo(), "JPEG", exif=exif))) as given:
        assert open_image(given).size == (30, 40)
        assert given.size == (40, 30)
        assert given.getexif()[0x0112] == 6


def test_damaged_exif_does_not_cost_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(_file(_photo(), "JPEG", exif=exif))
    begin = data.index(b"Exif\0\0") + 6
    data[begin : begin + 8] = b"\xff" * 8
    assert open_image(bytes(data)).size == (40, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes_keep_the_picture(mode: str) -> None:
    photo = _photo()
    grey = mode in ("1", "L")
    result = open_image(photo.convert(mode))
    assert result.mode == "RGB"
    expected = photo.convert("L").convert("RGB") if grey else photo
    limit = {"1": 110, "P": 30, "HSV": 4}.get(mode, 2)
    assert _difference(result, expected) < limit


def test_cmyk_jpeg_is_not_inverted() -> None:
    photo = _photo()
    assert _difference(open_image(_file(photo.convert("CMYK"), "JPEG", quality=95)), photo) < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_shows_the_background(mode: str) -> None:
    straight = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    straight.paste((255, 255, 255, 255), (0, 0, 2, 2))
    image = straight.convert({"RGBa": "RGBA", "La": "LA"}.get(mode, mode)).convert(mode)
    result = open_image(image, background=(10, 20, 30))
    assert result.getpixel((0, 0)) == (255, 255, 255)
    assert result.getpixel((3, 1)) == (10, 20, 30)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry_shows_the_background(format: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((3, 1), 0)
    result = open_image(_file(image, format, transparency=0), background=(1, 2, 3))
    assert result.getpixel((0, 0)) == (200, 100, 50)
    assert result.getpixel((3, 1)) == (1, 2, 3)


def test_transparent_colour_of_an_rgb_png_shows_the_background() -> None:
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((0, 0), (200, 100, 50))
    result = open_image(_file(image, "PNG", transparency=(9, 9, 9)), background=(1, 2, 3))
    assert [result.getpixel((x, 0)) for x in range(2)] == [(200, 100, 50), (1, 2, 3)]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format: str) -> None:
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    result = open_image(_file(Image.fromarray(levels), format))
    assert [result.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_dark_16_bit_grey_stays_dark() -> None:
    result = open_image(Image.fromarray(np.full((2, 2), 200, np.uint16)))
    assert result.getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 32896.0, 65535.0]], np.float32), [0, 128, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 1.0, np.inf]], np.float32), [255, 255, 255]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
        (np.array([[-3e38, 0.0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-(2**31), 0, 2**31 - 1]], np.int32), [0, 128, 255]),
    ],
)
def test_float_and_32_bit_grey(levels: np.ndarray, expected: list[int]) -> None:
    result = open_image(Image.fromarray(levels))
    assert result.mode == "RGB"
    assert [result.getpixel((x, 0))[0] for x in range(result.width)] == expected


def test_float_tiff_file() -> None:
    levels = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    result = np.asarray(open_image(_file(Image.fromarray(levels), "TIFF")))[..., 0]
    np.testing.assert_array_equal(result, np.rint(levels * 255))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    result = open_image(_file(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert result.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (10, 10_000), (336, 225)])
def test_awkward_sizes(size: tuple[int, int]) -> None:
    assert open_image(_file(_photo(size), "PNG")).size == size


@pytest.mark.parametrize("kind", [str, Path, bytes, "pillow"])
def test_every_kind_of_source_gives_the_same_pixels(kind: object) -> None:
    path = PHOTOGRAPHS / "chelsea.jpg"
    reference = np.asarray(Image.open(path))
    if kind == "pillow":
        with Image.open(path) as image:
            result = open_image(image)
    else:
        result = open_image({str: str(path), Path: path, bytes: path.read_bytes()}[kind])
    np.testing.assert_array_equal(np.asarray(result), reference)


def test_result_is_a_copy() -> None:
    given = _photo()
    open_image(given).putpixel((0, 0), (1, 2, 3))
    assert given.getpixel((0, 0)) != (1, 2, 3)


def _png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and which holds next to no pixels: what a decompression bomb looks like."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 13_000, 100_000])  # under, at and beyond Pillow's own two limits
def test_decompression_bomb_is_refused_without_a_warning(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"pixels.*accepted; resize it first"):
            open_image(_png_header(side, side))


def test_max_pixels_counts_both_ways() -> None:
    photo = _photo((20, 10))
    assert open_image(photo, max_pixels=200).size == (20, 10)
    for source in (photo, _file(photo, "PNG")):
        with pytest.raises(ImageError, match="20 x 10 pixels, more than the 199"):
            open_image(source, max_pixels=199)


def test_a_picture_above_pillows_warning_but_within_max_pixels_opens_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _file(_photo((20, 10)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(data, max_pixels=200).size == (20, 10)


@pytest.mark.parametrize(
    "content", [b"hello, I am a text file", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 100]
)
def test_what_is_not_a_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.jpg is not a picture that can be read; give a JPEG"):
        open_image(path)


def test_missing_file_folder_empty_file_and_device(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    for source, sentence in [
        (tmp_path / "none.jpg", r"none\.jpg does not exist"),
        (tmp_path, "is a folder"),
        (empty, r"empty\.png is empty"),
        (b"", "is empty"),
        ("/dev/zero", "is not a regular file"),
        (str(tmp_path / ("x" * 5000)), "cannot be read"),
        (Image.new("RGB", (0, 3)), "has no pixels"),
    ]:
        with pytest.raises(ImageError, match=sentence) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)


def test_colours_that_pillow_cannot_convert_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
        raise ValueError("conversion from LAB to RGB not supported")  # Pillow 11 says so, 13 converts

    monkeypatch.setattr(decode, "to_rgb", refuse)
    with pytest.raises(ImageError, match="colours of mode LAB"):
        open_image(Image.new("LAB", (2, 2)))


def test_threads_do_not_disturb_the_warning_filters() -> None:
    before = list(warnings.filters)
    data = _file(_photo(), "PNG")
    threads = [threading.Thread(target=lambda: [open_image(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_digest_tells_pictures_apart_by_pixels_and_shape() -> None:
    photo = _photo()
    assert digest(photo) == digest(photo.copy())
    changed = photo.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    same_bytes = Image.frombytes("RGB", (30, 40), photo.tobytes())
    assert len({digest(photo), digest(changed), digest(same_bytes)}) == 3


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("https://a.org/b.jpg", r"https://a\.org/b\.jpg is an address, which is not fetched; download"),
        (Path("http://a.org/b.jpg"), r"http://a\.org/b\.jpg is an address"),
        ("", "path of a picture is empty"),
    ],
)
def test_what_is_no_path_says_what_to_do(source: str | Path, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        open_image(source)
