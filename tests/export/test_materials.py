from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from handlens_export import materials
from handlens_export.errors import ExportError
from handlens_export.materials import Material, fetch, main

TEXT = b"Call me Ishmael."


def material(client: str, sha256: str | None = None) -> Material:
    digest = hashlib.sha256(TEXT).hexdigest() if sha256 is None else sha256
    return Material(client, "whale==1", "package/data/whale.txt", len(TEXT), digest, "CC0-1.0")  # type: ignore[arg-type]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of package clients, which leave an archive with the text where they are run."""
    commands: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, **rest: object) -> None:
        commands.append(command)
        if "pip" in command:
            with zipfile.ZipFile(cwd / "whale-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr("package/data/whale.txt", TEXT)
        elif "apt-get" in command:
            (cwd / "whale_1_all.deb").write_bytes(TEXT)
        else:
            entry = tarfile.TarInfo("package/data/whale.txt")
            entry.size = len(TEXT)
            with tarfile.open(cwd / "whale-1.tgz", "w:gz") as tarball:
                tarball.addfile(entry, io.BytesIO(TEXT))

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize("client", ["pip", "npm"])
def test_fetched_once_and_nothing_else_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloads: list[list[str]], client: str
) -> None:
    monkeypatch.setattr(materials, "MATERIALS", {"whale": material(client)})
    first, second = fetch("whale", tmp_path), fetch("whale", tmp_path)
    assert first == second == tmp_path / "materials/whale/whale.txt"
    assert first.read_bytes() == TEXT
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [first]
    assert len(downloads) == 1
    assert downloads[0][-1] == "whale==1"


def test_a_debian_package_is_kept_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloads: list[list[str]]
) -> None:
    whole = replace(material("apt-get"), package="whale=1", member=None)
    monkeypatch.setattr(materials, "MATERIALS", {"whale": whole})
    assert fetch("whale", tmp_path) == tmp_path / "materials/whale/whale.deb"
    assert fetch("whale", tmp_path).read_bytes() == TEXT
    assert [command[:2] for command in downloads] == [["apt-get", "download"]]


def test_a_truncated_file_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloads: list[list[str]]
) -> None:
    monkeypatch.setattr(materials, "MATERIALS", {"whale": material("pip")})
    fetch("whale", tmp_path).write_bytes(TEXT[:-1])
    assert fetch("whale", tmp_path).read_bytes() == TEXT
    assert len(downloads) == 2


def test_other_bytes_are_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloads: list[list[str]]
) -> None:
    monkeypatch.setattr(materials, "MATERIALS", {"whale": material("pip", sha256="0" * 64)})
    with pytest.raises(ExportError, match="expected 0000"):
        fetch("whale", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_archive_can_be_wanted_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("package/data/whale.txt", TEXT)

    def run(command: list[str], *, cwd: Path, **rest: object) -> None:
        (cwd / "whale-1-py3-none-any.whl").write_bytes(content.getvalue())

    monkeypatch.setattr(subprocess, "run", run)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    whole = Material("pip", "whale==1", None, len(content.getvalue()), digest, "CC0-1.0")
    monkeypatch.setattr(materials, "MATERIALS", {"whale": whole})
    assert fetch("whale", tmp_path) == tmp_path / "materials/whale/whale.whl"
    assert (tmp_path / "materials/whale/whale.whl").read_bytes() == content.getvalue()


def test_a_missing_client_and_its_complaint_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    errors = iter([FileNotFoundError(), subprocess.CalledProcessError(1, "npm", "", "trying\nno network\n")])

    def run(*command: object, **rest: object) -> None:
        raise next(errors)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["moby-dick"]) == 2
    assert "downloaded with npm, which is not on this machine" in capsys.readouterr().err
    assert main(["moby-dick"]) == 2
    assert "said: no network;" in capsys.readouterr().err


def test_fetching_says_the_licence_and_stdout_is_the_path_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, downloads: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(materials, "MATERIALS", {"whale": material("pip")})
    assert main(["whale"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'materials/whale/whale.txt'}\n"
    assert said.err == "whale: fetching whale==1, licence CC0-1.0\n"
    main(["whale"])
    assert capsys.readouterr().err == ""


def test_an_unknown_name_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpt"]) == 2
    assert (
        capsys.readouterr().err
        == "There is no material 'gpt'; choose one of smollm2, moby-dick, easy-vqa, debian-handbook.\n"
    )
