"""A bundle on disk: found, verified and parsed. Knows files and hashes, nothing about what a program computes.

    manifest.sha256 ──covers──▶ manifest.json ──covers──▶ every other file, by size and sha256

What the manifest does not list is refused: nobody vouches for it, yet a program could pick it up. Hidden files
(`.DS_Store` and its like) are left alone, for operating systems put them there on their own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from handlens_runtime import verdicts
from handlens_runtime.errors import BundleError
from handlens_runtime.manifest import FORMAT_VERSION, FileEntry, Manifest

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
"""What tells a checkpoint's folder from a bundle that has lost its manifest."""
_AGAIN = "export or copy the bundle again"
_CHECKED_VERSIONS = ("executorch", "onnxruntime")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path
    """The folder, absolute."""
    manifest: Manifest
    warnings: tuple[str, ...] = ()
    """One sentence each: nothing that forbids running, such as another version of a backend than at export."""

    @classmethod
    def load(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Read and verify a bundle folder.

        Sizes and the manifest's own hash are always checked; `verify=False` skips the hashes of the other files.
        Raises BundleError, one sentence that names the file and what to do.
        """
        folder = Path(path)
        if not folder.exists():
            raise BundleError(f"{folder} does not exist; give the folder that `handlens export` wrote.")
        _refuse_checkpoint(folder)
        if not folder.is_dir():
            raise BundleError(f"{folder} is a file; give the bundle's folder, the one that holds {MANIFEST}.")
        folder = folder.resolve()
        manifest = _parse(_sealed_manifest(folder), folder / MANIFEST)
        _check_references(folder, manifest)
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry, verify)
        _check_unlisted(folder, manifest)
        return cls(folder, manifest, _version_warnings(manifest))

    def file(self, name: str) -> Path:
        """Absolute path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"{name} is not listed in {self.path / MANIFEST}; {_AGAIN}.")
        return self.path / name


def seal(manifest: bytes) -> bytes:
    """Content of `manifest.sha256` for the bytes of `manifest.json`: 64 hex digits and a newline."""
    return hashlib.sha256(manifest).hexdigest().encode() + b"\n"


def _refuse_checkpoint(path: Path) -> None:
    gguf = path.is_file() and path.suffix.lower() == ".gguf"
    if gguf or ((path / CONFIG).is_file() and not (path / MANIFEST).exists()):
        found = "a GGUF file" if gguf else CONFIG
        raise BundleError(f"{path} is a checkpoint ({found}); run `handlens export {path} -o BUNDLE` first.")


def _sealed_manifest(folder: Path) -> bytes:
    content: dict[str, bytes] = {}
    for name in (MANIFEST, SEAL):
        try:
            content[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{folder / name} is missing, so this is not a whole bundle; {_AGAIN}.") from None
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read ({error.strerror}); {_AGAIN}.") from error
    if content[SEAL] != seal(content[MANIFEST]):
        raise BundleError(f"{folder / MANIFEST} and {SEAL} do not belong together, one is damaged; {_AGAIN}.")
    return content[MANIFEST]


def _parse(content: bytes, where: Path) -> Manifest:
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}); {_AGAIN}.") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{where} has format_version {version!r}, this HandLens reads {FORMAT_VERSION}; "
            "export the bundle again or install the HandLens that made it."
        )
    try:
        # From JSON text, not from `raw`: JSON's lists are the schema's tuples.
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top level"
        raise BundleError(f"{where} does not follow the schema at {place} ({first['msg']}); {_AGAIN}.") from error


def _check_references(folder: Path, manifest: Manifest) -> None:
    needed = {TOKENIZER: "the tokenizer"}
    for backend, graphs in manifest.backends.items():
        programs = (graphs.vision, graphs.embedding, graphs.decoder)
        names = [*graphs.files, *(program.file for program in programs if program is not None)]
        needed.update(dict.fromkeys(names, f"the {backend} backend"))
    for name, user in needed.items():
        if name not in manifest.files:
            raise BundleError(f"{name}, which {user} needs, is not listed in {folder / MANIFEST}; {_AGAIN}.")


def _check_file(folder: Path, name: str, entry: FileEntry, verify: bool) -> None:
    path = folder / name
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not path.resolve().is_relative_to(folder):
        raise BundleError(f"{folder / MANIFEST} lists {name!r}, which is outside the bundle; {_AGAIN}.")
    if not path.is_file():
        raise BundleError(f"{path} is missing; {_AGAIN}.")
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(f"{path} has {size} bytes where the manifest says {entry.size}; {_AGAIN}.")
        if verify and not verdicts.matches(path, entry.sha256):
            raise BundleError(f"{path} is damaged, its sha256 is not the manifest's; {_AGAIN}.")
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); {_AGAIN}.") from error


def _check_unlisted(folder: Path, manifest: Manifest) -> None:
    known = {MANIFEST, SEAL, *manifest.files}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and not path.is_dir() and inside.as_posix() not in known:
            raise BundleError(f"{path} is in the bundle but not in its manifest; remove it or {_AGAIN}.")


def _version_warnings(manifest: Manifest) -> tuple[str, ...]:
    warnings = []
    for tool in _CHECKED_VERSIONS:
        made_with = manifest.versions.get(tool)
        try:
            installed = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
        if made_with is not None and made_with != installed:
            warnings.append(
                f"The bundle was made with {tool} {made_with}, {installed} is installed; "
                "if answers look wrong, install that version or export again."
            )
    return tuple(warnings)
