"""Programs that ONNX Runtime runs, against the eager network that rounds as its kernels do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import BASE, CONTEXT, MAX_CHUNK
from torch import nn

from handlens_export.errors import UnsupportedError
from handlens_export.lower import lowering, onnx
from handlens_export.lower.lowering import LoweringSpec
from handlens_export.network.config import DecoderConfig, NetworkConfig, ProjectorConfig, VisionConfig
from handlens_export.network.network import Network
from handlens_export.quantize.formats import choose_format
from handlens_export.quantize.kv_scales import calibrate
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear
from handlens_runtime.backends.onnx import OnnxBackend
from handlens_runtime.bundle import Bundle
from handlens_runtime.manifest import BackendGraphs, Manifest, Sizes

VISION = VisionConfig(image_size=42, patch_size=14, width=32, layers=2, heads=4, mlp_width=48, norm_eps=1e-6)


def network_of(vision: bool = False, **changes) -> Network:
    torch.manual_seed(0)
    decoder = DecoderConfig(**(BASE | changes))
    projector = ProjectorConfig("downsample_mlp", VISION.width, decoder.width, 2)
    network = Network(NetworkConfig("test", decoder, *((VISION, projector) if vision else ())))
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return network.requires_grad_(False)


def quantize_all(module: nn.Module, bits: int, group: int, prefix: str = "") -> None:
    """Linears to `bits`, those of the encoder to 8 with a scale a row; tables to 8. 32 leaves all in float."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, nn.Linear):
            of_image = path.startswith(("vision", "projector"))
            chosen = choose_format(child.in_features, 8 if of_image else bits, group)
            setattr(module, name, QuantizedLinear(quantize(child.weight, *chosen), child.bias))
        elif isinstance(child, nn.Embedding):
            setattr(module, name, QuantizedEmbedding(quantize(child.weight, 8, child.embedding_dim)))
        else:
            quantize_all(child, bits, group, f"{path}.")


@dataclass
class Lowered:
    """A program, loaded, and its reference."""

    backend: OnnxBackend
    reference: Network
    graphs: BackendGraphs
    folder: Path


def lowered(folder: Path, network: Network, bits: int = 4, group: int = 32, kv: str = "int8") -> Lowered:
    prompts = [network.decoder.embedding(torch.randint(0, 200, (1, 40)))]
    scales = calibrate(network, prompts) if kv == "int8" else None
    spec = LoweringSpec(CONTEXT, MAX_CHUNK, kv, None, (), kv_scales=scales)
    if bits < 32:
        quantize_all(network, bits, group)
    reference = onnx.reference(copy.deepcopy(network), spec)
    graphs = lowering.lower("onnx", network, spec, folder, lambda done: None)
    sizes = Sizes.model_construct(vocab_size=200, context=CONTEXT, max_chunk=MAX_CHUNK)
    manifest = Manifest.model_construct(sizes=sizes, backends={"onnx": graphs})
    return Lowered(OnnxBackend(Bundle(folder, manifest)), reference, graphs, folder)


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def last_logits(pair: Lowered, ids: torch.Tensor, chunks: tuple[int, ...]):
    """(program's, reference's) logits after each chunk."""
    rows = pair.backend.embed(ids.numpy())
    position = 0
    for t in chunks:
        expected = pair.reference.logits(torch.from_numpy(rows[None, position : position + t]), position)[0, -1]
        yield pair.backend.decode(rows[position : position + t], position), expected
        position += t


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Lowered:
    network = network_of(vision=True, qkv_bias=True, mlp_bias=True, output_bias=True, embedding_scale=3.0)
    return lowered(tmp_path_factory.mktemp("lowered"), network)


CHUNKS = (7, 1, 16, 1, 1, 16, 5, 1)


def test_decoder_answers_as_the_reference_at_every_step(pair):
    ids = torch.randint(0, 200, (sum(CHUNKS),), generator=torch.Generator().manual_seed(1))
    for program, expected in last_logits(pair, ids, CHUNKS):
        assert cosine(program, expected) > 0.9999


@pytest.mark.parametrize(
    ("bits", "group", "kv", "chunks", "changes"),
    [
        (32, 32, "float", CHUNKS, {}),
        (2, 64, "int8", CHUNKS, {"layers": 1}),
        (4, 128, "float", CHUNKS, {"width": 72, "head_dim": 24, "mlp_width": 100}),  # rows that only 8 bits take
        (8, 32, "int8", (16, 1, 1), {"causal": False, "attention_scale": 0.4, "head_dim": 12, "heads": 4}),
    ],
    ids=["float", "2-bit", "odd-rows", "bidirectional-padded-heads"],
)
def test_awkward_decoders_answer_as_their_reference(tmp_path, bits, group, kv, chunks, changes):
    pair = lowered(tmp_path, network_of(**changes), bits, group, kv)
    ids = torch.randint(0, 200, (sum(chunks),), generator=torch.Generator().manual_seed(2))
    for program, expected in last_logits(pair, ids, chunks):
        assert cosine(program, expected) > 0.9999


def test_chunks_and_single_steps_fill_the_same_cache(pair):
    rows = pair.backend.embed(np.arange(33))
    for start in (0, 16):
        pair.backend.decode(rows[start : start + 16], start)
    in_chunks = pair.backend.decode(rows[32:], 32)
    for position in range(32):
        pair.backend.decode(rows[position : position + 1], position)
    assert cosine(in_chunks, pair.backend.decode(rows[32:], 32)) > 0.9999


def test_going_back_to_an_earlier_position_forgets_what_came_after(pair):
    rows = pair.backend.embed(np.arange(24))
    first = pair.backend.decode(rows[:8], 0)
    pair.backend.decode(rows[8:], 8)
    again = pair.backend.decode(rows[7:8], 7)
    assert cosine(first, again) > 0.9999


@pytest.mark.parametrize("tiles", [1, 3, 4])
def test_encoder_takes_any_number_of_tiles_of_a_batch(pair, tiles):
    images = torch.randn(tiles, 3, 42, 42, generator=torch.Generator().manual_seed(tiles))
    pair.backend.release_encoder()  # it comes back when it is needed
    assert pair.backend._vision is None
    embeddings, features = pair.backend.encode(images.numpy())
    expected_embeddings, expected_features = pair.reference.encode(images)
    assert embeddings.shape == (tiles, 4, 128)
    assert features.shape == (tiles, 9, 32)
    assert cosine(embeddings, expected_embeddings) > 0.9999
    assert cosine(features, expected_features) > 0.9999


def test_embedding_rows_are_the_references(pair):
    ids = torch.tensor([[0, 199, 5]])
    np.testing.assert_allclose(pair.backend.embed(ids[0].numpy()), pair.reference.decoder.embedding(ids)[0], rtol=1e-6)


def test_manifest_entry_describes_the_files(pair):
    graphs = pair.graphs
    assert sorted(graphs.files) == sorted(p.relative_to(pair.folder).as_posix() for p in pair.folder.rglob("*.onnx*"))
    ports = {port.name: (port.dtype, port.shape) for port in (*graphs.decoder.inputs, *graphs.decoder.outputs)}
    assert ports["rows"] == ("float32", (1, "tokens", 128))
    assert ports["position"] == ("int32", (1,))
    assert ports["past_key_1"] == ports["present_value_0"] == ("int8", (1, 2, CONTEXT, 16))
    assert ports["logits"] == ("float32", (1, 200))
    # 7 linears and an attention a layer, and the head: every one a contrib operator.
    assert graphs.decoder.delegated == 2 * 8 + 1
    assert graphs.decoder.not_delegated == {}
    assert graphs.embedding is not None and graphs.embedding.delegated == 1


def test_linears_left_in_float_are_counted(tmp_path):
    graphs = lowered(tmp_path, network_of(layers=1, qkv_bias=True), bits=32, kv="float").graphs
    assert sum(graphs.decoder.not_delegated.values()) == 8
    assert graphs.vision is None


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (LoweringSpec(64, 16, "int8", None, ()), "given 0; calibrate them"),
        (LoweringSpec(256, 16, "float", None, ()), "--context 256 is more than the 128 positions"),
    ],
)
def test_what_cannot_be_lowered_is_refused_in_one_sentence(spec, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        onnx.reference(network_of(), spec)
