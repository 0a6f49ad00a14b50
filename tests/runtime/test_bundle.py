import importlib.metadata
import json
import os
import shutil

import pytest

from handlens_runtime import backends, verdicts
from handlens_runtime.bundle import Bundle, seal
from handlens_runtime.errors import BackendError, BundleError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def reseal(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_bytes(seal(content))


def test_whole_bundle_loads(make_folder):
    folder = make_folder()
    bundle = Bundle.load(folder)
    assert bundle.manifest.name == "fake" and bundle.file("tokenizer.json").is_file() and bundle.warnings == ()
    with pytest.raises(BundleError, match="nothing\\.bin"):
        bundle.file("nothing.bin")


def test_every_flipped_byte_is_refused_by_the_name_of_its_file(make_folder):
    folder = make_folder()
    for path in files_of(folder):
        whole = path.read_bytes()
        for position in {*range(0, len(whole), 97), len(whole) - 1}:
            for bit in (0, 5):
                damaged = bytearray(whole)
                damaged[position] ^= 1 << bit
                path.write_bytes(damaged)
                with pytest.raises(BundleError, match=path.name.replace(".", "\\.")):
                    Bundle.load(folder)
        path.write_bytes(whole)
    Bundle.load(folder)


def test_every_truncation_and_every_missing_file_is_refused(make_folder):
    folder = make_folder()
    for path in files_of(folder):
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            for verify in (True, False):
                with pytest.raises(BundleError, match=path.name.replace(".", "\\.")):
                    Bundle.load(folder, verify=verify)
        path.unlink()
        with pytest.raises(BundleError, match=path.name.replace(".", "\\.")):
            Bundle.load(folder)
        path.write_bytes(whole)


def test_without_verify_only_sizes_count(make_folder):
    folder = make_folder()
    (folder / "onnx/decoder.onnx").write_bytes(b"GRAPH")
    Bundle.load(folder, verify=False)
    with pytest.raises(BundleError, match=r"decoder\.onnx is damaged"):
        Bundle.load(folder)


def test_unlisted_file_is_refused_but_a_systems_hidden_one_is_not(make_folder):
    folder = make_folder()
    (folder / ".DS_Store").write_bytes(b"")
    Bundle.load(folder)
    (folder / "onnx/extra.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"extra\.data is in the bundle but not in its manifest"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "onnx/../../outside.bin", "..\\outside.bin"])
def test_path_outside_the_bundle_is_refused(make_folder, name):
    folder = make_folder()
    (folder.parent / "outside.bin").write_bytes(b"x")
    reseal(folder, lambda m: m["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.load(folder)


def test_link_out_of_the_bundle_is_refused(make_folder):
    folder = make_folder()
    shutil.move(folder / "onnx/decoder.onnx", folder.parent / "elsewhere.onnx")
    (folder / "onnx/decoder.onnx").symlink_to(folder.parent / "elsewhere.onnx")
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.load(folder)


def test_what_is_not_a_bundle_is_refused_with_what_to_do(make_folder, tmp_path):
    with pytest.raises(BundleError, match="does not exist; give the folder"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is a file; give the bundle's folder"):
        Bundle.load(make_folder() / "manifest.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        Bundle.load(tmp_path / "empty")


def test_checkpoint_is_told_from_a_bundle(make_folder, tmp_path):
    checkpoint, gguf = tmp_path / "ckpt", tmp_path / "model.Q4_1.gguf"
    checkpoint.mkdir()
    (checkpoint / "config.json").touch()
    gguf.touch()
    for path, found in ((checkpoint, "config.json"), (gguf, "a GGUF file")):
        with pytest.raises(BundleError, match=rf"is a checkpoint \({found}\); run `handlens export {path} -o BUNDLE`"):
            Bundle.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format_version=2), "format_version 2, this HandLens reads 1"),
        (lambda m: m.pop("format_version"), "format_version None"),
        (lambda m: m["sizes"].update(width=-1), "schema at sizes.width"),
        (lambda m: m.update(surprise=1), "schema at surprise"),
        (lambda m: m["files"].pop("tokenizer.json"), "tokenizer.json, which the tokenizer needs, is not listed"),
        (lambda m: m["files"].pop("onnx/decoder.onnx.data"), "which the onnx backend needs, is not listed"),
    ],
)
def test_manifest_that_says_nonsense_is_refused_where_it_does(make_folder, change, sentence):
    folder = make_folder()
    reseal(folder, change)
    with pytest.raises(BundleError, match=sentence):
        Bundle.load(folder)


def test_sealed_manifest_that_is_not_json_is_refused(make_folder):
    folder = make_folder()
    for content in (b"{", b"[]", b"\xff\xfe"):
        (folder / "manifest.json").write_bytes(content)
        (folder / "manifest.sha256").write_bytes(seal(content))
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.load(folder)


def test_another_version_of_a_backend_warns(make_folder):
    installed = importlib.metadata.version("onnxruntime")
    folder = make_folder(change=lambda m: m["versions"].update(onnxruntime="0.0.1", torch="0.0.1"))
    (warning,) = Bundle.load(folder).warnings
    assert "onnxruntime 0.0.1" in warning and installed in warning
    reseal(folder, lambda m: m["versions"].update(onnxruntime=installed))
    assert Bundle.load(folder).warnings == ()


@pytest.fixture
def hashed(monkeypatch):
    """Names of files in the order they were really hashed; every file counts as large."""
    names = []
    real = verdicts.sha256_of
    monkeypatch.setattr(verdicts, "LARGE", 0)
    monkeypatch.setattr(verdicts, "sha256_of", lambda path: names.append(path.name) or real(path))
    return names


def settle(monkeypatch):
    """Let every file count as older than two seconds (a file's ctime cannot be set)."""
    monkeypatch.setattr(verdicts, "SETTLED_SECONDS", -1.0)


def test_large_settled_file_is_hashed_once(make_folder, hashed, monkeypatch):
    folder = make_folder()
    settle(monkeypatch)
    Bundle.load(folder)
    assert len(hashed) == 3
    Bundle.load(folder)
    assert len(hashed) == 3


def test_young_file_gets_no_verdict(make_folder, hashed, monkeypatch):
    monkeypatch.setattr(verdicts, "SETTLED_SECONDS", 3600.0)
    folder = make_folder()
    Bundle.load(folder)
    Bundle.load(folder)
    assert len(hashed) == 6


def test_verdict_dies_with_the_files_identity_or_expected_hash(make_folder, hashed, monkeypatch):
    folder = make_folder()
    settle(monkeypatch)
    Bundle.load(folder)
    path = folder / "onnx/decoder.onnx"
    before = path.stat()
    path.write_bytes(b"GRAPH")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and mtime: ctime tells
    with pytest.raises(BundleError, match=r"decoder\.onnx is damaged"):
        Bundle.load(folder)
    path.write_bytes(b"graph")
    Bundle.load(folder)
    reseal(folder, lambda m: m["files"]["onnx/decoder.onnx"].update(sha256="0" * 64))
    with pytest.raises(BundleError, match=r"decoder\.onnx is damaged"):
        Bundle.load(folder)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"x": 1}', b"\xff"])
def test_damaged_store_of_verdicts_means_hashing_again(make_folder, hashed, monkeypatch, cache, damage):
    folder = make_folder()
    settle(monkeypatch)
    Bundle.load(folder)
    (store,) = cache.iterdir()
    store.write_bytes(damage)
    Bundle.load(folder)
    assert len(hashed) == 6
    Bundle.load(folder)
    assert len(hashed) == 6


def test_unwritable_cache_is_no_error(make_folder, hashed, monkeypatch, cache):
    settle(monkeypatch)
    cache.write_bytes(b"a file where the folder should be")
    folder = make_folder()
    Bundle.load(folder)
    Bundle.load(folder)
    assert len(hashed) == 6


def test_backend_that_is_not_in_the_bundle_names_those_that_are(make_folder):
    with pytest.raises(BackendError, match="no executorch program; choose one that it has: onnx"):
        backends.load(Bundle.load(make_folder()), "executorch")


def with_executorch(manifest):
    manifest["backends"]["executorch"] = manifest["backends"]["onnx"]


def test_fast_lane_is_chosen_where_installed(make_folder, monkeypatch):
    bundle = Bundle.load(make_folder(change=with_executorch))
    loaded = []

    class Module:
        @staticmethod
        def load(bundle):
            return bundle

    monkeypatch.setattr(backends.importlib, "import_module", lambda name: loaded.append(name) or Module)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)
    for installed in (True, False):
        monkeypatch.setattr(backends, "_installed", lambda package, installed=installed: installed)
        backends.load(bundle)
    assert loaded == ["handlens_runtime.backends.executorch", "handlens_runtime.backends.onnx"]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        (
            "executorch",
            ModuleNotFoundError("No module named 'torch'"),
            r"missing \(No.*install \"handlens\[export\]\"\.",
        ),
        ("onnx", ModuleNotFoundError("No module named 'onnxruntime'"), r"missing \(No.*run pip install handlens\."),
        ("onnx", ImportError("initialization failed"), r"installed but does not load \(init.*pip install handlens\."),
    ],
)
def test_package_that_cannot_be_imported_says_what_to_do(make_folder, monkeypatch, name, error, says):
    bundle = Bundle.load(make_folder(change=with_executorch))

    def fails(module):
        raise error

    monkeypatch.setattr(backends.importlib, "import_module", fails)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(BackendError, match=says):
        backends.load(bundle, name)
