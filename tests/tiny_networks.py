"""Networks of a few narrow layers with random weights, on grids: what lowerings are tested on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from handlens_export.network.config import DecoderConfig, NetworkConfig, ProjectorConfig, VisionConfig
from handlens_export.network.network import Network
from handlens_export.quantize.formats import choose_format
from handlens_export.quantize.rounding import quantize
from handlens_export.quantize.weight import QuantizedEmbedding, QuantizedLinear

CONTEXT, MAX_CHUNK, VOCAB = 64, 16, 200
VISION = VisionConfig(image_size=42, patch_size=14, width=32, layers=1, heads=4, mlp_width=48, norm_eps=1e-6)
BASE = {
    "vocab_size": VOCAB,
    "width": 128,
    "layers": 2,
    "heads": 6,
    "kv_heads": 2,
    "head_dim": 16,
    "mlp_width": 192,
    "max_positions": 128,
    "norm_eps": 1e-5,
    "rope_theta": 1e4,
}


def network_of(vision: bool = False, vision_layers: int = VISION.layers, **changes) -> Network:
    torch.manual_seed(0)
    decoder = DecoderConfig(**(BASE | changes))
    encoder = replace(VISION, layers=vision_layers)
    projector = ProjectorConfig("downsample_mlp", VISION.width, decoder.width, 2)
    network = Network(NetworkConfig("test", decoder, *((encoder, projector) if vision else ())), CONTEXT)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
        else:  # of a trained matrix's size, so that attention looks somewhere
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    return network.requires_grad_(False)


def quantize_all(module: nn.Module, bits: int, group: int, embedding_bits: int, prefix: str = "") -> None:
    """Linears to `bits`, those of the encoder to 8 with a scale a row; tables to `embedding_bits`. 32 is float."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, nn.Linear) and bits < 32:
            of_image = path.startswith(("vision", "projector"))
            chosen = choose_format(child.in_features, 8 if of_image else bits, group)
            setattr(module, name, QuantizedLinear(quantize(child.weight, *chosen), child.bias))
        elif isinstance(child, nn.Embedding) and embedding_bits < 32:
            setattr(module, name, QuantizedEmbedding(quantize(child.weight, 8, child.embedding_dim)))
        else:
            quantize_all(child, bits, group, embedding_bits, f"{path}.")
