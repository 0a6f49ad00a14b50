"""The ExecuTorch backend over a small program made by hand: no exporter."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers update_cache
from torch import nn
from torch.export import Dim, export

from handlens_runtime.backends import executorch
from handlens_runtime.backends.executorch import load
from handlens_runtime.bundle import Bundle
from handlens_runtime.errors import BackendError
from handlens_runtime.manifest import BackendGraphs, Graph, Manifest, PartQuantization, Quantization, Sizes

WIDTH, VOCAB, CONTEXT, MAX_CHUNK, TILE = 8, 5, 12, 4, 4
TABLE = np.random.default_rng(0).normal(size=(VOCAB, WIDTH)).astype(np.float32)
LARGE_TILE = 64
"""Side of a tile whose encoding needs more memory than the cache takes."""


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(TABLE))

    def forward(self, ids):
        return self.table[ids]


class Encoder(nn.Module):
    """Means of each row of pixels: two of them are the rows, all of them the features."""

    def forward(self, tiles):
        features = (tiles * 2 + 1).sin().mean(dim=-1)  # (1, 3, side)
        return features[:, :2, :WIDTH], features


class Decoder(nn.Module):
    """Logits are the sum of all cached rows times the table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(TABLE))
        self.register_buffer("cache", torch.zeros(1, CONTEXT, 1, WIDTH))

    def forward(self, rows, start):
        position = start[0].item()
        torch._check(position >= 0)
        torch._check(position + rows.shape[1] <= CONTEXT)
        torch._check(position < CONTEXT)
        torch.ops.llama.update_cache(rows[:, :, None], self.cache, position)
        seen = torch.arange(CONTEXT) < position + rows.shape[1]
        return (self.cache[:, :, 0] * seen[:, None]).sum(dim=1) @ self.table.T


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    tokens = Dim("tokens", min=1, max=MAX_CHUNK)
    ids, rows, start = (
        torch.zeros((1, 2), dtype=torch.int64),
        torch.zeros(1, 2, WIDTH),
        torch.zeros(1, dtype=torch.int64),
    )
    methods = {
        "vision_encoder": export(Encoder(), (torch.zeros(1, 3, LARGE_TILE, LARGE_TILE),), strict=False),
        "token_embedding": export(Embedding(), (ids,), dynamic_shapes=({1: tokens},), strict=False),
        "text_decoder": export(Decoder(), (rows, start), dynamic_shapes=({1: tokens}, None), strict=False),
    }
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=True)
    lowered = to_edge_transform_and_lower(methods).to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    path = tmp_path_factory.mktemp("executorch") / "model.pte"
    path.write_bytes(lowered.buffer)
    return path


def bundle_of(path, decoder="text_decoder", embedding="token_embedding", vision="vision_encoder", kv="float"):
    def graph(method):
        return method and Graph(file=path.name, method=method, inputs=(), outputs=(), nodes=1, delegated=0)

    graphs = BackendGraphs(vision=graph(vision), embedding=graph(embedding), decoder=graph(decoder), files=(path.name,))
    sizes = Sizes.model_construct(
        vocab_size=VOCAB, context=CONTEXT, max_chunk=MAX_CHUNK, layers=3, kv_heads=2, head_dim=8
    )
    table = PartQuantization(bits=32, group=None, parameters=TABLE.size, bytes=TABLE.nbytes)
    quantization = Quantization.model_construct(kv=kv, parts={"embedding": table})
    manifest = Manifest.model_construct(
        sizes=sizes, quantization=quantization, backends={"executorch": graphs}, files={}
    )
    return Bundle(path.parent, manifest)


def test_rows_decode_in_chunks_over_one_cache(program):
    backend = load(bundle_of(program))
    rows = backend.embed(np.array([0, 3, 1, 4, 2, 2]))
    np.testing.assert_array_equal(rows, TABLE[[0, 3, 1, 4, 2, 2]])
    for begin, end in ((0, 4), (4, 5), (5, 6)):
        found = backend.decode(rows[begin:end], begin)
        np.testing.assert_allclose(found, rows[:end].sum(axis=0) @ TABLE.T, rtol=1e-4, atol=1e-5)


def test_more_ids_than_a_chunk_are_embedded_in_parts(program):
    ids = np.arange(4 * MAX_CHUNK - 1) % VOCAB
    np.testing.assert_array_equal(load(bundle_of(program)).embed(ids), TABLE[ids])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_large_tables_pages_do_not_gather_in_memory(program, resident, monkeypatch):
    ids = np.arange(5 * executorch.ROWS_HELD) % VOCAB
    held = {}
    for least in (executorch.LARGE_TABLE, TABLE.nbytes):
        monkeypatch.setattr(executorch, "LARGE_TABLE", least)
        backend = load(bundle_of(program))
        if any(backend.warnings):
            pytest.skip("without the native code, nothing is given back")
        rows = backend.embed(ids)
        held[least] = resident(program)
        np.testing.assert_array_equal(rows, TABLE[ids])
        expected = rows[:MAX_CHUNK].sum(axis=0) @ TABLE.T
        np.testing.assert_allclose(backend.decode(rows[:MAX_CHUNK], 0), expected, rtol=1e-4, atol=1e-5)
    small, large = held.values()
    assert large == 0 < small


def test_tiles_are_encoded_one_by_one(program):
    tiles = np.random.default_rng(1).normal(size=(3, 3, LARGE_TILE, LARGE_TILE)).astype(np.float32)
    rows, features = load(bundle_of(program)).encode(tiles)
    expected = np.sin(tiles * 2 + 1).mean(axis=-1)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(rows, expected[:, :2, :WIDTH], atol=1e-5)


def test_encoding_and_embedding_leave_the_cache_alone(program):
    """Methods of one loaded program share planned memory in the Python binding: an encoder pass would overwrite it."""
    backend = load(bundle_of(program))
    rows = backend.embed(np.array([0, 3, 1, 4]))
    backend.decode(rows[:3], 0)
    backend.encode(np.full((2, 3, LARGE_TILE, LARGE_TILE), 7.0, np.float32))
    backend.embed(np.array([2, 2, 2, 2]))
    np.testing.assert_allclose(backend.decode(rows[3:], 3), rows.sum(axis=0) @ TABLE.T, rtol=1e-4, atol=1e-5)


def test_two_backends_of_one_bundle_have_caches_of_their_own(program):
    one, other = load(bundle_of(program)), load(bundle_of(program))
    rows = one.embed(np.array([0, 3]))
    one.decode(rows[:1], 0)
    other.decode(rows[1:], 0)
    np.testing.assert_allclose(one.decode(rows[1:], 1), rows.sum(axis=0) @ TABLE.T, rtol=1e-4, atol=1e-5)


def test_logits_are_the_callers_own(program):
    backend = load(bundle_of(program))
    rows = backend.embed(np.array([0, 1]))
    first = backend.decode(rows[:1], 0)
    kept = first.copy()
    backend.decode(rows[1:], 1)
    np.testing.assert_array_equal(first, kept)


def test_rows_that_cannot_be_written_to_are_taken(program):
    backend = load(bundle_of(program))
    rows = backend.embed(np.array([0, 1]))
    rows.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, about an array that is not writable, would reach the user
        taken = backend.decode(rows, 0)
    np.testing.assert_array_equal(taken, backend.decode(rows.copy(), 0))


@pytest.mark.parametrize(
    ("kv", "expected"), [("float", 2 * 3 * CONTEXT * 2 * 8 * 4), ("int8", 2 * 3 * CONTEXT * 2 * 12)]
)
def test_cache_is_counted_as_allocated(program, kv, expected):
    assert load(bundle_of(program, kv=kv)).kv_bytes == expected


@pytest.mark.parametrize(("count", "position"), [(0, 0), (5, 0), (1, 12), (4, 9), (1, -1)])
def test_rows_that_do_not_fit_are_refused(program, count, position):
    with pytest.raises(BackendError, match=rf"given {count} rows at position {position}, but it takes 1 to 4"):
        load(bundle_of(program)).decode(np.zeros((count, WIDTH), np.float32), position)


def test_a_program_that_embeds_inside_is_given_the_ids(program):
    backend = load(bundle_of(program, embedding=None, vision=None))
    ids = backend.embed(np.array([1, 2], np.int32))
    assert ids.dtype == np.int64 and ids.shape == (2,)
    with pytest.raises(BackendError, match="text-only"):
        backend.encode(np.zeros((1, 3, TILE, TILE), np.float32))


def test_a_missing_method_is_named(program):
    with pytest.raises(BackendError, match=r"model\.pte lacks the method forward") as error:
        load(bundle_of(program, decoder="forward"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_program_is_named(program, tmp_path, damage):
    content = program.read_bytes()
    path = tmp_path / "model.pte"
    path.write_bytes({"empty": b"", "text": b"no program at all", "half": content[: len(content) // 2]}[damage])
    with pytest.raises(BackendError, match=r"model\.pte") as error:
        load(bundle_of(path))
    assert "\n" not in str(error.value)


def test_a_missing_program_is_said_with_what_there_is(program):
    bundle = bundle_of(program)
    graphs = bundle.manifest.backends["executorch"]
    manifest = Manifest.model_construct(
        sizes=bundle.manifest.sizes, quantization=bundle.manifest.quantization, backends={"onnx": graphs}
    )
    with pytest.raises(BackendError, match="has no executorch program; use --backend onnx"):
        load(Bundle(program.parent, manifest))


def test_a_wrong_tile_is_one_sentence(program):
    with pytest.raises(BackendError, match="The vision encoder failed") as error:
        load(bundle_of(program)).encode(np.zeros((1, 3, TILE, TILE), np.float32))
    assert "\n" not in str(error.value)
