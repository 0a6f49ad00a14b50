"""A file, bytes or a Pillow image to an upright RGB image; knows nothing about tiles or models.

Whatever is wrong with a picture ends as an ImageError of one sentence: Pillow's decoders raise OSError,
SyntaxError, ValueError, struct.error, zlib.error and more, and a phone's user can mend none of these.
"""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from handlens_runtime.errors import ImageError
from handlens_runtime.images.rgb import Colour, to_rgb

DEFAULT_MAX_PIXELS = 100_000_000
"""`ImageRule.max_pixels`'s default: 300 MB as RGB."""

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of pictures. Pillow's others are left out: its EPS reader runs Ghostscript on the file."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)

_QUIET = threading.Lock()
"""Python's warning filters are shared by all threads: two decodes that silence Pillow must not overlap."""


def open_image(
    source: str | Path | bytes | Image.Image,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    background: Colour = (0, 0, 0),
) -> Image.Image:
    """Decode a picture to 8-bit RGB, EXIF orientation applied, transparency composited on `background`.

    `source` is a path, the bytes of a file, or a Pillow image in any mode, which is left as it is. Of an animation the
    first frame counts. A picture of more than `max_pixels` is refused from its header, before it is decoded.
    Raises ImageError, a sentence that names the file, and nothing else.
    """
    name = _name(source)
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the picture is either decoded or refused: there is nothing else to say
        with _open(source, name, max_pixels) as image:
            _check_size(image, name, max_pixels)
            try:
                image.load()
            except MemoryError as error:
                raise ImageError(f"{name} needs more memory to decode than there is; resize it first.") from error
            except Exception as error:
                raise ImageError(f"{name} is damaged or cut short and cannot be decoded; copy it again.") from error
            return _upright(_to_rgb(image, name, background), _orientation(image))


def digest(image: Image.Image) -> str:
    """SHA-256 (hex) over mode, size and pixels: the key of the image-embedding cache."""
    sha = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    sha.update(image.tobytes())
    return sha.hexdigest()


def _name(source: object) -> str:
    if isinstance(source, bytes):
        return f"The picture given as {len(source):,} bytes"
    return "The given picture" if isinstance(source, Image.Image) else str(source)


def _open(source: str | Path | bytes | Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Read the header only. A Pillow image is copied, so that closing or loading never touches the caller's."""
    try:
        if isinstance(source, Image.Image):
            _check_size(source, name, max_pixels)
            return source.copy()
        file = BytesIO(source) if isinstance(source, bytes) else _existing(Path(source))
        _check_not_empty(file, name)
        Image.init()
        return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        most = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(f"{name} has more than the {most:,} pixels that are accepted; resize it first.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture that can be read; give a JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF file."
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # the system's refusal, not a decoder's
            raise ImageError(f"{name} cannot be read ({error.strerror}); check the file and its rights.") from error
        raise ImageError(f"{name} is damaged and cannot be opened as a picture; copy it again.") from error


def _existing(path: Path) -> Path:
    if path == Path():
        raise ImageError("The path of a picture is empty (or the folder '.'); give the path of a file.")
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give the path of a picture in it.")
    if not path.exists() and (scheme := _URL.match(str(path))):
        address = f"{scheme[0]}/{str(path)[scheme.end() :]}"  # Path has made one slash of two
        raise ImageError(
            f"{address} is an address, which is not fetched; download the picture first, then give its path."
        )
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the picture's path.")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file; give the path of a picture.")
    return path


def _check_not_empty(file: Path | BytesIO, name: str) -> None:
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    if size == 0:
        raise ImageError(f"{name} is empty; give a file that holds a picture.")


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name} has {image.width:,} x {image.height:,} pixels, more than the {max_pixels:,} that are accepted; "
            "resize it first."
        )
    if pixels == 0:
        raise ImageError(f"{name} has no pixels; give a picture of at least 1 x 1.")


def _to_rgb(image: Image.Image, name: str, background: Colour) -> Image.Image:
    try:
        return to_rgb(image, background)
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory to convert than there is; resize it first.") from error
    except Exception as error:
        raise ImageError(f"{name} has colours of mode {image.mode}, not convertible to RGB; save it as PNG.") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none. Pillow's TIFF reader has applied and removed it while loading."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the pixels are whole: like every viewer, show them as stored rather than refuse the picture
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
