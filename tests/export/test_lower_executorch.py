"""Programs that ExecuTorch runs, against the eager network that rounds as its kernels do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.runtime import Runtime
from tiny_networks import BASE, CONTEXT, MAX_CHUNK, VOCAB, network_of, quantize_all

from handlens_export.errors import UnsupportedError
from handlens_export.lower import executorch, lowering
from handlens_export.lower.executorch_attention import Int8Cache, floats, lengths_delegated, scales_per_token, whole
from handlens_export.lower.executorch_leaves import ByteEmbedding, linear
from handlens_export.lower.executorch_memory import weights_shared
from handlens_export.lower.lowering import LoweringSpec, check_delegation
from handlens_export.network.attention import Step
from handlens_export.network.config import DecoderConfig
from handlens_export.network.network import Network
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear
from handlens_runtime.backends.executorch import ExecuTorchBackend
from handlens_runtime.bundle import Bundle
from handlens_runtime.manifest import BackendGraphs, Graph, Manifest, Quantization, Sizes

LAYERS = 4


@dataclass
class Lowered:
    """A program, loaded, and its reference."""

    backend: ExecuTorchBackend
    reference: Network
    graphs: BackendGraphs
    folder: Path
    manifest: Manifest


def lowered(
    folder: Path, network: Network, bits: int = 4, group: int = 32, kv: str = "int8", embedding_bits: int = 8
) -> Lowered:
    spec = LoweringSpec(CONTEXT, MAX_CHUNK, kv, bos_id=7, eos_ids=(3, 5))
    quantize_all(network, bits, group, embedding_bits)
    reference = executorch.reference(copy.deepcopy(network), spec)
    shares: list[float] = []
    graphs = lowering.lower("executorch", network, spec, folder, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0
    sizes = Sizes.model_construct(
        vocab_size=VOCAB,
        layers=network.config.decoder.layers,
        **{name: BASE[name] for name in ("kv_heads", "head_dim")},
        context=CONTEXT,
        max_chunk=MAX_CHUNK,
    )
    quantization = Quantization.model_construct(kv=kv, parts={})
    manifest = Manifest.model_construct(
        sizes=sizes, backends={"executorch": graphs}, quantization=quantization, files={}
    )
    return Lowered(ExecuTorchBackend(Bundle(folder, manifest)), reference, graphs, folder, manifest)


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@torch.no_grad()
def last_logits(pair: Lowered, ids: torch.Tensor, chunks: tuple[int, ...]):
    """(program's, reference's) logits after each chunk, both on the reference's rows."""
    inside = pair.backend.embed(ids.numpy()).ndim == 1  # a text program embeds inside
    rows, position = pair.reference.decoder.embedding(ids[None]), 0
    for t in chunks:
        now = slice(position, position + t)
        expected = pair.reference.logits(rows[:, now], position)[0, -1]
        yield pair.backend.decode((ids if inside else rows[0])[now].numpy(), position), expected
        position += t


def ids_of(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Lowered:
    """A network that sees: three query heads a key head, every bias, a scaled embedding, int8 cache, groups of 32.

    Enough layers in each stack that one of them is a copy of a traced one.
    """
    network = network_of(
        vision=True,
        vision_layers=LAYERS,
        layers=LAYERS,
        qkv_bias=True,
        mlp_bias=True,
        output_bias=True,
        embedding_scale=3.0,
    )
    return lowered(tmp_path_factory.mktemp("sees"), network)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Lowered:
    """A text network: no bias, float cache, groups of 64."""
    return lowered(tmp_path_factory.mktemp("text"), network_of(layers=1, embedding_scale=11.3), 4, 64, "float")


CHUNKS = (7, 1, 16, 1, 1, 16, 5, 1)


@pytest.mark.parametrize("chunks", [(1,) * CONTEXT, CHUNKS], ids=["one-by-one", "chunks"])
def test_decoder_answers_as_the_reference_at_every_step(pair, chunks):
    for program, expected in last_logits(pair, ids_of(sum(chunks), 1), chunks):
        assert cosine(program, expected) > 0.999


@pytest.mark.parametrize("chunks", [(1,) * CONTEXT, CHUNKS], ids=["one-by-one", "chunks"])
def test_text_program_answers_as_the_reference_at_every_step(text, chunks):
    for program, expected in last_logits(text, ids_of(sum(chunks), 1), chunks):
        assert cosine(program, expected) > 0.999


@pytest.mark.parametrize(
    ("bits", "group", "kv", "embedding_bits", "chunks", "changes"),
    [
        (4, 128, "int8", 8, CHUNKS, {"mlp_width": 100}),  # rows of 128, 96 and 100: groups of 128, of 32, 8 bits
        (8, 32, "int8", 32, (16, 1, 1, 1), {"causal": False, "attention_scale": 0.4}),
        (32, 32, "float", 32, CHUNKS, {"qkv_bias": True}),
    ],
    ids=["odd-rows", "bidirectional-8-bit", "float"],
)
def test_awkward_decoders_answer_as_their_reference(tmp_path, bits, group, kv, embedding_bits, chunks, changes):
    pair = lowered(tmp_path, network_of(layers=1, **changes), bits, group, kv, embedding_bits)
    for program, expected in last_logits(pair, ids_of(sum(chunks), 2), chunks):
        assert cosine(program, expected) > (0.999 if bits < 32 else 0.999999)


def test_chunks_and_single_steps_fill_the_same_cache(pair):
    rows = pair.backend.embed(np.arange(33))
    for start in (0, 16):
        pair.backend.decode(rows[start : start + 16], start)
    in_chunks = pair.backend.decode(rows[32:], 32)
    for position in range(32):
        pair.backend.decode(rows[position : position + 1], position)
    assert cosine(in_chunks, pair.backend.decode(rows[32:], 32)) > 0.999


@torch.no_grad()
def test_a_fresh_programs_memory_grows_with_the_tokens_seen(pair):
    """From one token on, on a program of its own: whoever runs a long chunk first never sees XNNPACK's memory grow."""
    backend = ExecuTorchBackend(Bundle(pair.folder, pair.manifest))
    rows = pair.reference.decoder.embedding(ids_of(CONTEXT, 8)[None])
    for position in range(CONTEXT):
        now = slice(position, position + 1)
        expected = pair.reference.logits(rows[:, now], position)[0, -1]
        assert cosine(backend.decode(rows[0, now].numpy(), position), expected) > 0.999


def test_going_back_to_an_earlier_position_forgets_what_came_after(pair):
    rows = pair.backend.embed(np.arange(24))
    first = pair.backend.decode(rows[:8], 0)
    pair.backend.decode(rows[8:], 8)
    assert cosine(first, pair.backend.decode(rows[7:8], 7)) > 0.999


def test_encoder_and_projector_answer_as_the_reference(pair):
    images = torch.randn(3, 3, 42, 42, generator=torch.Generator().manual_seed(3))
    embeddings, features = pair.backend.encode(images.numpy())
    with torch.no_grad():
        expected_embeddings, expected_features = pair.reference.encode(images)
    assert embeddings.shape == (3, 4, 128) and features.shape == (3, 9, 32)
    for tile in range(3):
        assert cosine(embeddings[tile], expected_embeddings[tile]) > 0.999
        assert cosine(features[tile], expected_features[tile]) > 0.999


def test_embedding_rows_are_the_references(pair):
    ids = torch.tensor([[0, 199, 5]])
    np.testing.assert_allclose(pair.backend.embed(ids[0].numpy()), pair.reference.decoder.embedding(ids)[0], rtol=1e-6)


def test_nothing_between_two_passes_disturbs_the_cache(pair):
    rows = pair.backend.embed(np.arange(24))
    pair.backend.decode(rows[:16], 0)
    undisturbed = pair.backend.decode(rows[16:], 16)
    pair.backend.decode(rows[:16], 0)
    pair.backend.encode(np.random.default_rng(0).normal(size=(2, 3, 42, 42)).astype(np.float32))
    pair.backend.embed(np.arange(100, 116))
    np.testing.assert_array_equal(pair.backend.decode(rows[16:], 16), undisturbed)


def metadata_of(folder: Path) -> tuple[set[str], dict[str, object]]:
    """A program's methods, and the answers of those that take nothing."""
    program = Runtime.get().load_program(folder / executorch.FILE)
    names = set(program.method_names)
    constants = {n for n in names if n.startswith(("get_", "use_", "enable_"))}
    return names - constants, {name: program.load_method(name).execute([]) for name in constants}


METADATA = {
    "get_bos_id": [7],
    "get_eos_ids": [3, 5],
    "get_max_seq_len": [MAX_CHUNK],
    "get_max_context_len": [CONTEXT],
    "get_vocab_size": [VOCAB],
    "use_kv_cache": [True],
    "use_sdpa_with_kv_cache": [True],
    "enable_dynamic_shape": [True],
}


def test_a_program_that_sees_has_what_the_multimodal_runner_asks_for(pair):
    methods, metadata = metadata_of(pair.folder)
    assert methods == {"vision_encoder", "token_embedding", "text_decoder"}
    assert metadata == METADATA


def test_a_text_program_has_what_the_text_runner_asks_for(text):
    methods, metadata = metadata_of(text.folder)
    assert methods == {"forward"}
    assert metadata == METADATA


def test_manifest_entry_describes_the_methods(pair):
    graphs = pair.graphs
    assert graphs.files == ("executorch/model.pte",)
    assert (graphs.vision.method, graphs.embedding.method, graphs.decoder.method) == (
        "vision_encoder",
        "token_embedding",
        "text_decoder",
    )
    assert [(p.dtype, p.shape) for p in graphs.vision.inputs] == [("float32", (1, 3, 42, 42))]
    assert [p.shape for p in graphs.vision.outputs] == [(1, 4, 128), (1, 9, 32)]
    assert [(p.dtype, p.shape) for p in graphs.decoder.inputs] == [("float32", (1, "tokens", 128)), ("int64", (1,))]
    assert [p.shape for p in graphs.decoder.outputs] == [(1, VOCAB)]


def test_every_product_is_delegated(pair):
    for graph in (pair.graphs.vision, pair.graphs.decoder):
        assert graph.delegated + sum(graph.not_delegated.values()) == graph.nodes
        assert graph.delegated > 0
    # What keeps the cache stays outside XNNPACK: four parts written and two made float, a layer. Attention does not.
    left = pair.graphs.decoder.not_delegated
    assert sum(count for name, count in left.items() if "update_cache" in name) == 4 * LAYERS
    assert sum(count for name, count in left.items() if "dequantize" in name) == 2 * LAYERS
    assert not any(part in name for name in left for part in ("sdpa", "bmm", "softmax"))
    check_delegation("executorch", pair.graphs, 0.5)


def test_too_few_delegated_nodes_are_refused_in_one_sentence(text):
    with pytest.raises(
        UnsupportedError, match=r"program forward leaves \d+ of \d+ nodes.*more than the 1% allowed"
    ) as e:
        check_delegation("executorch", text.graphs, 0.01)
    assert "\n" not in str(e.value) and str(e.value).count("; ") == 1


def graphs_with(**not_delegated) -> BackendGraphs:
    """A decoder of 1,000 nodes, with these left over."""
    graph = {"file": "f", "method": "forward", "inputs": (), "outputs": (), "nodes": 1000, "delegated": 900}
    return BackendGraphs(decoder=Graph(**graph, not_delegated=not_delegated), files=("f",))


def test_a_product_left_portable_is_refused_whatever_the_share():
    with pytest.raises(
        UnsupportedError, match=r"program forward leaves products .*\(2 aten_addmm\); choose other --bits"
    ):
        check_delegation("executorch", graphs_with(aten_addmm=2, aten_add=90), 1.0)


def test_float_products_are_refused_only_where_they_were_not_asked_for():
    graphs = graphs_with(MatMul=7)
    check_delegation("onnx", graphs, 0.5, frozenset({"decoder"}))
    with pytest.raises(UnsupportedError, match="7 MatMul"):
        check_delegation("onnx", graphs, 0.5, frozenset({"vision"}))


def test_a_linear_rounds_its_input_per_token_as_the_kernel_does():
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(24, 64, generator=generator), torch.randn(24, generator=generator)
    x = torch.randn(1, 5, 64, generator=generator) * torch.tensor([0.01, 1, 3, 100, 1])[None, :, None] + 0.3
    grid = quantize(weight, 4, 32)
    rounded = torch.empty_like(x)
    for token in range(5):
        row = x[0, token]
        low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
        scale = (high - low) / 255
        zero = min(max(round(-128 - low / scale), -128), 127)
        rounded[0, token] = ((row / scale).round() + zero).clamp(-128, 127).sub(zero) * scale
    found = linear(QuantizedLinear(grid, bias))(x)
    torch.testing.assert_close(found, rounded @ grid.dequantize().T + bias, rtol=1e-3, atol=1e-3)
    # And not as a linear that leaves its input alone.
    assert float((found - (x @ grid.dequantize().T + bias)).abs().max()) > 0.05


def test_rounding_a_row_moves_it_half_a_step_at_most():
    x = torch.randn(1, 3, 2, 16, generator=torch.Generator().manual_seed(5)) + 0.5
    x[0, 1] = 0.0
    scales = scales_per_token(x)
    values = whole(x / scales)
    assert values.dtype == torch.int8 and scales.shape == (1, 3, 2, 1)
    assert int(values.abs().max()) == 127
    assert float(((floats(values) * scales - x) / scales).abs().max()) <= 0.5 + 1e-4
    assert not values[0, 1].any()


def test_byte_embedding_is_the_grids_rows():
    for group in (64, 32):
        grid = quantize(torch.randn(10, 64, generator=torch.Generator().manual_seed(6)), 8, group)
        ids = torch.tensor([[9, 0, 9]])
        torch.testing.assert_close(ByteEmbedding(grid)(ids), QuantizedEmbedding(grid)(ids))


def test_eager_int8_cache_forgets_what_it_overwrites():
    config = DecoderConfig(**BASE)
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, 6, heads, 16, generator=generator) for heads in (6, 2, 2))
    network = network_of()

    def run(cache, begin, end):
        step = network.decoder.eager_step(end - begin, begin)
        return cache(q[:, begin:end], k[:, begin:end], v[:, begin:end], Step(begin, step.cos, step.sin))

    whole, again = Int8Cache(config, CONTEXT), Int8Cache(config, CONTEXT)
    expected = run(whole, 0, 6)
    run(again, 0, 6)
    torch.testing.assert_close(run(again, 2, 6), expected[:, 2:])


def test_methods_lowered_apart_are_the_program_lowered_whole(tmp_path):
    """Joined, they say what ExecuTorch's exporter makes of all methods together; only padding differs."""
    network, spec = network_of(vision=True), LoweringSpec(CONTEXT, MAX_CHUNK, "int8", bos_id=7, eos_ids=(3, 5))
    quantize_all(network, 4, 32, 8)
    lowering.lower("executorch", network, spec, tmp_path / "apart", lambda share: None)
    both = executorch.reference(copy.deepcopy(network), spec)
    programs = {name: p for part in executorch.parts(both) for name, p in executorch._trace(part, both, spec).items()}
    with weights_shared(tmp_path), lengths_delegated():
        edge = to_edge_transform_and_lower(
            programs,
            partitioner={name: [XnnpackPartitioner()] for name in programs},
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=executorch._metadata(both, spec),
        )
    whole = tmp_path / "whole.pte"
    whole.write_bytes(edge.to_executorch(executorch.CONFIG).buffer)
    apart = (tmp_path / "apart" / executorch.FILE).read_bytes()
    assert len(apart) == pytest.approx(whole.stat().st_size, rel=0.01)
    one, other = (Runtime.get().load_program(data) for data in (apart, whole.read_bytes()))
    assert one.method_names == other.method_names
    tiles = torch.randn(1, 3, network.vision.config.image_size, network.vision.config.image_size)
    ids, rows = torch.tensor([[1, 2, 3]]), torch.randn(1, 3, network.config.decoder.width)
    for name, inputs in {
        "vision_encoder": (tiles,),
        "token_embedding": (ids,),
        "text_decoder": (rows, torch.zeros(1, dtype=torch.int64)),
        "get_max_context_len": (),
    }.items():
        given, expected = (list(program.load_method(name).execute(inputs)) for program in (one, other))
        for a, b in zip(given, expected, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name
    assert not (tmp_path / "apart" / executorch.PACKED).exists()
