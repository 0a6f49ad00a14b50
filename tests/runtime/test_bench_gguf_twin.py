"""The GGUF file of a bundle's shape, read back with the reader of the format's own package."""

from __future__ import annotations

import pytest
from gguf import GGUFReader

from handlens_runtime.bench import gguf_twin, llama_cpp_runner
from handlens_runtime.bench.gguf_twin import Shape, row_bytes, shape_of, step_weights, write
from handlens_runtime.errors import BackendError, OptionError
from handlens_runtime.manifest import Manifest

SHAPE = Shape(
    vocab_size=40,
    width=64,
    mlp_width=96,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    bits=4,
    embedding_bits=8,
    head_bits=8,
)
LAYER = 2 * 64 * (2 + 1) * 32 + 3 * 64 * 96 + 2 * 64


def manifest_with(make_engine, **changes) -> Manifest:
    """A bundle's manifest with SHAPE's sizes; `decoder_bits`, `width`, … change one."""
    bits = changes.pop("decoder_bits", 4)
    parts = {
        "decoder": {"bits": bits, "group": 32, "parameters": 2 * LAYER + 64, "bytes": 1},
        "embedding": {"bits": 8, "group": None, "parameters": 40 * 64, "bytes": 1},
        "head": {"bits": 8, "group": None, "parameters": 40 * 64, "bytes": 1},
    }

    def change(manifest):
        manifest["quantization"]["parts"] = parts
        manifest["sizes"] |= {"vocab_size": 40, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32}
        manifest["sizes"] |= changes

    return make_engine(change=change).bundle.manifest


def test_the_shape_follows_from_the_manifest(make_engine):
    assert shape_of(manifest_with(make_engine)) == SHAPE


def test_the_file_has_the_shape_and_the_bits(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    path = write(SHAPE)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert len(tensors) == 3 + 2 * 9
    shapes = {name: (tuple(map(int, tensor.shape)), tensor.tensor_type.name) for name, tensor in tensors.items()}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == ((64, 40), "Q8_0")
    assert shapes["blk.1.attn_k.weight"] == ((64, 32), "Q4_0")
    assert shapes["blk.0.ffn_down.weight"] == ((96, 64), "Q4_0")
    assert shapes["output_norm.weight"] == ((64,), "F32")
    read = sum(int(tensor.n_bytes) for name, tensor in tensors.items() if name != "token_embd.weight")
    assert step_weights(SHAPE) == read
    assert row_bytes(SHAPE) == 2 * 2 * 1 * 32 * 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_is_written_once_and_another_shape_gets_another(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    path = write(SHAPE)
    before = path.stat().st_ino
    assert write(SHAPE) == path and path.stat().st_ino == before
    other = Shape(**{**SHAPE.__dict__, "bits": 8})
    assert write(other) != path


def test_a_failed_write_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf_twin, "_content", lambda entry, random: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(SHAPE)
    assert list((tmp_path / "bench").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_bits": 2}, "decoder has 2 bits"),
        ({"width": 65}, "width is 65"),
        ({"head_dim": 33}, "heads' width is 66"),
    ],
)
def test_what_llama_cpp_has_no_format_for_is_one_sentence(make_engine, changes, said):
    with pytest.raises(OptionError, match=said):
        shape_of(manifest_with(make_engine, **changes))


def test_without_the_extra_the_sentence_names_it(monkeypatch):
    monkeypatch.setattr(llama_cpp_runner, "PACKAGES", ("a_package_that_nobody_has",))
    with pytest.raises(BackendError, match=r"a_package_that_nobody_has.*pip install -e '\.\[bench\]'"):
        llama_cpp_runner.require()
