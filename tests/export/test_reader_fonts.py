from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from handlens_export.errors import ExportError
from handlens_export.reader import fonts
from handlens_export.reader.fonts import FAMILIES, Family, families, font_files

MEMBERS = {
    "fontpkg_quill/files/Quill-Regular.ttf": b"regular",
    "fontpkg_quill/files/Quill-Bold.ttf": b"bold",
    "fontpkg_quill/LICENSE": b"free",
    "fontpkg_quill/files/Quill-Thin.ttf": b"not asked for",
}
QUILL = Family(
    name="Quill",
    kind="serif",
    package="fontpkg-quill==1.0",
    sha256="",
    files=tuple(MEMBERS)[:2],
    licence="OFL-1.1",
    held_out=False,
)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages that pip was asked for; each is answered with the wheel of `quill`."""
    packages: list[str] = []

    def run(command: list[str], *, cwd: Path, **rest: object) -> None:
        packages.append(command[-1])
        write_wheel(cwd)

    monkeypatch.setattr(subprocess, "run", run)
    return packages


@pytest.fixture
def quill(tmp_path: Path) -> Family:
    return dataclasses.replace(QUILL, sha256=hashlib.sha256(write_wheel(tmp_path).read_bytes()).hexdigest())


def write_wheel(folder: Path) -> Path:
    path = folder / "fontpkg_quill-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in MEMBERS.items():
            wheel.writestr(zipfile.ZipInfo(member), content)  # ZipInfo's fixed date: the same bytes each time
    return path


def test_every_family_is_pinned_and_licensed() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"[0-9a-f]{64}", family.sha256), family.name
        assert re.fullmatch(r"fontpkg-[a-z0-9-]+==[0-9.]+", family.package)
        assert family.licence
        assert "Italic" not in family.files[0]
        assert all(member.endswith(".ttf") for member in family.files)


def test_no_name_wheel_or_file_comes_twice() -> None:
    for column in ([f.name for f in FAMILIES], [f.package for f in FAMILIES], [f.sha256 for f in FAMILIES]):
        assert len(set(column)) == len(column)
    members = [member for family in FAMILIES for member in family.files]
    assert len(set(members)) == len(members)


def test_training_and_held_out_families_are_apart_and_complete() -> None:
    training, held_out = families(held_out=False), families(held_out=True)
    assert not set(training) & set(held_out)
    assert sorted(training + held_out, key=FAMILIES.index) == list(FAMILIES)
    assert list(training) == sorted(training, key=FAMILIES.index)


def test_each_kind_of_print_is_both_trained_and_held_out() -> None:
    legible = {"sans", "condensed", "serif", "slab", "mono"}
    assert {family.kind for family in families(held_out=True)} == legible
    assert {family.kind for family in families(held_out=False)} == legible


def test_no_training_family_is_kin_to_a_held_out_one() -> None:
    kin = {family.name.split()[0] for family in families(held_out=True)}
    assert not kin & {family.name.split()[0] for family in families(held_out=False)}


def test_fetched_once_with_its_licence_and_nothing_else(tmp_path: Path, quill: Family, downloads: list[str]) -> None:
    cache = tmp_path / "cache"
    first, second = font_files(quill, cache), font_files(quill, cache)
    assert first == second
    assert [path.name for path in first] == ["Quill-Regular.ttf", "Quill-Bold.ttf"]
    assert [path.read_bytes() for path in first] == [b"regular", b"bold"]
    kept = {path.name for path in cache.rglob("*") if path.is_file()}
    assert kept == {"LICENSE", "Quill-Regular.ttf", "Quill-Bold.ttf"}
    assert downloads == ["fontpkg-quill==1.0"]


def test_the_cache_is_the_materials_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quill: Family, downloads: list[str]
) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    assert font_files(quill)[0] == tmp_path / "cache/materials/fonts/fontpkg-quill-1.0/Quill-Regular.ttf"


def test_a_missing_file_is_fetched_again(tmp_path: Path, quill: Family, downloads: list[str]) -> None:
    font_files(quill, tmp_path)[1].unlink()
    assert font_files(quill, tmp_path)[1].read_bytes() == b"bold"
    assert len(downloads) == 2


def test_other_bytes_are_refused_and_not_kept(tmp_path: Path, downloads: list[str]) -> None:
    wrong = dataclasses.replace(QUILL, sha256="0" * 64)
    with pytest.raises(ExportError, match=r"The wheel of fontpkg-quill==1.0 has sha256 \w+, expected 0000"):
        font_files(wrong, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_offline_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*command: object, **rest: object) -> None:
        raise subprocess.CalledProcessError(1, "pip", "", "trying\nno network\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    assert fonts.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pip could not download {FAMILIES[0].package} and said: no network;")
    assert said.count("\n") == 1
