"""What a person gets who installs, clones or reads: the wheel, the repository's files, the README's commands."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
from hatchling.builders.wheel import WheelBuilder

import handlens
from handlens.cli import app

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"sdk": "handlens", "export": "handlens_export", "runtime": "handlens_runtime"}
HEAVY = {"torch", "transformers", "executorch", "onnx", "onnxruntime", "numpy", "PIL", "tokenizers", "jinja2", "rich"}
"""Typer itself imports pydantic for a verb's options, so that one is only forbidden where no verb is named."""
DOCUMENTS = ["README.md", "sdk/android/README.md"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as wheel:
        return wheel.namelist()


def test_wheel_holds_the_three_packages_and_the_photographs_alone(wheel_names: list[str]) -> None:
    # Hatchling obeys .gitignore: a line that matches a source root drops a package without a word.
    expected = {
        str(path.relative_to(ROOT / root))
        for root, package in PACKAGES.items()
        for path in (ROOT / root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    photographs = (ROOT / "assets/photographs").iterdir()
    expected |= {f"handlens_export/photographs/{path.name}" for path in photographs}
    found = {name for name in wheel_names if ".dist-info/" not in name}
    assert found == expected
    assert {f"{package}/py.typed" for package in PACKAGES.values()} <= found


def test_wheel_carries_the_licence(wheel_names: list[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_base_install_names_no_workstation_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    assert names == {"jinja2", "numpy", "onnxruntime", "pillow", "pydantic", "rich", "tokenizers", "typer"}


def test_version_is_the_changelogs_latest() -> None:
    latest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest and latest[1] == handlens.__version__


@pytest.mark.parametrize("root", PACKAGES)
def test_a_source_root_holds_one_package_and_no_loose_module(root: str) -> None:
    assert not list((ROOT / root).glob("*.py"))
    assert [path.parent.name for path in (ROOT / root).glob("*/__init__.py")] == [PACKAGES[root]]


def imported_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    paths = [str(ROOT / root) for root in PACKAGES]
    program = f"import sys; sys.path[:0] = {paths!r}\ntry:\n    {statement}\nexcept SystemExit:\n    pass\n"
    program += "print('\\nmodules:', *{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return set(out.rsplit("modules:", 1)[1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import handlens",
        "import handlens_export.materials",
        "sys.argv = ['handlens', '--help']; from handlens.cli import main; main()",
        "sys.argv = ['handlens', 'export', '--help']; from handlens.cli import main; main()",
        "sys.argv = ['handlens', '--version']; from handlens.cli import main; main()",
    ],
)
def test_importing_and_help_load_nothing_heavy(statement: str) -> None:
    forbidden = HEAVY if "'export'" in statement else HEAVY | {"pydantic"}
    assert not imported_by(statement) & forbidden


def test_the_engine_runs_without_torch() -> None:
    assert not imported_by("import handlens_runtime.engine, handlens_runtime.backends.onnx") & {
        "torch",
        "executorch",
        "transformers",
        "handlens_export",
    }


def file_size() -> ModuleType:
    spec = importlib.util.spec_from_file_location("file_size", ROOT / "tests/file_size.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_tracked_file_is_over_a_megabyte() -> None:
    assert not file_size().oversized(file_size().tracked(ROOT))


def test_an_oversized_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(1_000_001))
    done = subprocess.run(
        [sys.executable, ROOT / "tests/file_size.py", tmp_path / "weights.bin"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "weights.bin has 1,000,001 bytes" in done.stderr


def test_no_tracked_file_names_this_machine_or_a_package_host() -> None:
    places = {str(path) for path in (ROOT, Path.home(), Path(sys.prefix)) if len(path.parts) > 1}
    hosts = [".".join(words) for words in (("pypi", "org"), ("npmjs", "org"), ("npmjs", "com"), ("pytorch", "org/whl"))]
    pattern = re.compile("|".join([*(rf"{re.escape(place)}(?![\w-])" for place in places), *map(re.escape, hosts)]))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in file_size().tracked(ROOT)
        if path.stat().st_size <= file_size().LIMIT
        for match in pattern.finditer(path.read_bytes().decode("utf-8", "ignore"))
    ]
    assert not found


def fenced(language: str) -> list[tuple[str, str]]:
    """(document, block) of the documents' code blocks in a language."""
    return [
        (document, block)
        for document in DOCUMENTS
        for block in re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    ]


def commands(program: str) -> list[str]:
    lines = [line for _, block in fenced("sh") for line in block.splitlines()]
    return [line for line in lines if line.split(" ")[0] == program]


@pytest.mark.parametrize("line", commands("handlens"))
def test_a_handlens_command_of_the_documents_parses(line: str) -> None:
    group = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    context = group.make_context("handlens", words[:1])
    verb = group.get_command(context, words[0])
    assert verb is not None, f"there is no verb {words[0]}"
    verb.make_context(words[0], words[1:], parent=context)


def test_the_documents_show_every_verb() -> None:
    assert {line.split()[1] for line in commands("handlens")} == set(typer.main.get_command(app).commands)


def test_make_commands_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for line in commands("make") for word in shlex.split(line, comments=True)[1:] if "=" not in word}
    assert {"demo", "test"} <= asked
    assert asked <= targets


def test_python_examples_of_the_documents_use_the_public_interface() -> None:
    blocks = fenced("python")
    assert blocks
    for document, block in blocks:
        compile(block, document, "exec")
        assert set(re.findall(r"\bhandlens\.(\w+)", block)) <= set(handlens.__all__)


def test_the_repository_map_of_the_readme_exists() -> None:
    block = next(block for _, block in fenced("text") if "sdk/handlens" in block)
    paths = [line.split()[0] for line in block.splitlines() if line.strip()]
    assert [path for path in paths if not (ROOT / path).exists()] == []
