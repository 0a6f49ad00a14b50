"""The ONNX Runtime backend over small programs made by hand: no exporter, no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from handlens_runtime.backends import onnx as backend_module
from handlens_runtime.backends.onnx import OnnxBackend, load, physical_cores, thread_count
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import BackendError, OptionError
from handlens_runtime.manifest import BackendGraphs, Graph, Manifest, Sizes, Tensor

WIDTH, VOCAB, CONTEXT, MAX_CHUNK = 8, 5, 12, 4
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
TABLE = np.random.default_rng(0).normal(size=(VOCAB, WIDTH)).astype(np.float32)
CACHE = (1, 1, CONTEXT, WIDTH)


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def write(path: Path, nodes, inputs, outputs, constants) -> None:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    save(
        helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=OPSETS, ir_version=10),
        path,
    )


def write_decoder(path: Path) -> None:
    """One attention with one head over the rows themselves; logits are its last row times the table."""
    attributes = {"num_heads": 1, "kv_num_heads": 1, "scale": 1.0, "domain": "com.microsoft"}
    nodes = [
        helper.make_node("Shape", ["rows"], ["t"], start=1, end=2),
        helper.make_node("Cast", ["t"], ["t32"], to=TensorProto.INT32),
        helper.make_node("Add", ["position", "t32"], ["total1"]),
        helper.make_node("Sub", ["total1", "one"], ["last"]),
        helper.make_node("Squeeze", ["total1"], ["total"]),
        helper.make_node(
            "GroupQueryAttention",
            ["rows", "rows", "rows", "past_key_0", "past_value_0", "last", "total"],
            ["out", "present_key_0", "present_value_0"],
            **attributes,
        ),
        helper.make_node("Gather", ["out", "minus"], ["row"], axis=1),
        helper.make_node("MatMul", ["row", "head"], ["logits"]),
    ]
    caches = [f"{part}_0" for part in ("key", "value")]
    inputs = [value("rows", [1, "t", WIDTH]), value("position", [1], TensorProto.INT32)]
    inputs += [value(f"past_{name}", CACHE) for name in caches]
    outputs = [value("logits", [1, VOCAB]), *(value(f"present_{name}", CACHE) for name in caches)]
    one, minus = np.array([1], np.int32), np.array(-1, np.int64)
    write(path, nodes, inputs, outputs, {"one": one, "minus": minus, "head": TABLE.T.copy()})


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    ids, rows = value("ids", [1, "t"], TensorProto.INT64), value("rows", [1, "t", WIDTH])
    write(
        tmp_path / "embedding.onnx",
        [helper.make_node("Gather", ["table", "ids"], ["rows"])],
        [ids],
        [rows],
        {"table": TABLE},
    )
    write_decoder(tmp_path / "decoder.onnx")
    past = tuple(Tensor(name=f"past_{n}_0", dtype="float32", shape=CACHE) for n in ("key", "value"))
    decoder = Graph(file="decoder.onnx", inputs=past, outputs=(), nodes=8, delegated=1)
    embedding = Graph(file="embedding.onnx", inputs=(), outputs=(), nodes=1, delegated=0)
    graphs = BackendGraphs(decoder=decoder, embedding=embedding, files=("embedding.onnx", "decoder.onnx"))
    sizes = Sizes.model_construct(vocab_size=VOCAB, context=CONTEXT, max_chunk=MAX_CHUNK)
    return Bundle(tmp_path, Manifest.model_construct(sizes=sizes, backends={"onnx": graphs}))


def expected_logits(rows: np.ndarray) -> np.ndarray:
    """Of the last row, attending to all."""
    scores = rows @ rows[-1]
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()) @ rows @ TABLE.T


def test_rows_decode_in_chunks_over_one_cache(bundle):
    backend = load(bundle)
    rows = backend.embed(np.array([0, 3, 1, 4, 2, 2]))
    np.testing.assert_array_equal(rows, TABLE[[0, 3, 1, 4, 2, 2]])
    np.testing.assert_allclose(backend.decode(rows[:4], 0), expected_logits(rows[:4]), rtol=1e-4)
    np.testing.assert_allclose(backend.decode(rows[4:5], 4), expected_logits(rows[:5]), rtol=1e-4)
    np.testing.assert_allclose(backend.decode(rows[5:], 5), expected_logits(rows), rtol=1e-4)


def test_an_earlier_position_overwrites_what_was_there(bundle):
    backend = load(bundle)
    rows = backend.embed(np.array([0, 3, 1, 4]))
    backend.decode(rows, 0)
    other = np.concatenate((rows[:1], rows[3:]))
    np.testing.assert_allclose(backend.decode(rows[3:], 1), expected_logits(other), rtol=1e-4)


def test_logits_are_the_callers_own(bundle):
    backend = load(bundle)
    rows = backend.embed(np.array([0, 1]))
    first = backend.decode(rows[:1], 0)
    kept = first.copy()
    backend.decode(rows[1:], 1)
    np.testing.assert_array_equal(first, kept)


def test_cache_is_counted_as_allocated(bundle):
    assert OnnxBackend(bundle).kv_bytes == 2 * CONTEXT * WIDTH * 4


@pytest.mark.parametrize(("count", "position"), [(0, 0), (5, 0), (1, 12), (4, 9), (1, -1)])
def test_rows_that_do_not_fit_are_refused(bundle, count, position):
    with pytest.raises(BackendError, match=rf"given {count} rows at position {position}, but it takes 1 to 4"):
        load(bundle).decode(np.zeros((count, WIDTH), np.float32), position)


def test_text_only_bundle_has_no_encoder(bundle):
    with pytest.raises(BackendError, match="text-only"):
        load(bundle).encode(np.zeros((1, 3, 4, 4), np.float32))


def test_damaged_program_is_named(bundle):
    (bundle.path / "decoder.onnx").write_bytes(b"\x08\x0a not a graph")
    with pytest.raises(BackendError, match=r"decoder\.onnx cannot be loaded by onnxruntime") as error:
        load(bundle)
    assert "\n" not in str(error.value)


def test_missing_programs_are_said_with_what_there_is(bundle):
    graphs = bundle.manifest.backends["onnx"]
    other = Bundle(bundle.path, Manifest.model_construct(sizes=bundle.manifest.sizes, backends={"executorch": graphs}))
    with pytest.raises(BackendError, match="has no onnx programs; use --backend executorch"):
        load(other)


def test_a_wrong_row_is_one_sentence(bundle):
    with pytest.raises(BackendError, match="The text decoder failed in onnxruntime") as error:
        load(bundle).decode(np.zeros((1, WIDTH + 1), np.float32), 0)
    assert "\n" not in str(error.value)


def test_threads_are_physical_cores_unless_asked_otherwise(monkeypatch):
    monkeypatch.delenv("HANDLENS_THREADS", raising=False)
    assert thread_count() == physical_cores() >= 1
    monkeypatch.setenv("HANDLENS_THREADS", "3")
    assert thread_count() == 3


def test_hyper_threads_count_once(monkeypatch):
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    monkeypatch.setattr(backend_module.os, "sched_getaffinity", lambda pid: set(siblings), raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: siblings[int(path.parts[5].removeprefix("cpu"))])
    assert physical_cores() == 2


@pytest.mark.parametrize("asked", ["0", "two", "-1", ""])
def test_threads_that_are_no_number_are_refused(monkeypatch, asked):
    monkeypatch.setenv("HANDLENS_THREADS", asked)
    with pytest.raises(OptionError, match="HANDLENS_THREADS is"):
        thread_count()


def test_importing_the_backend_brings_no_torch():
    code = "import sys, handlens_runtime.backends.onnx; sys.exit('torch' in sys.modules)"
    runtime = Path(backend_module.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=runtime, check=False).returncode == 0
