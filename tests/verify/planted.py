"""A checkpoint with random weights whose attention is as uneven as wanted: what sparse prompts are timed on.

Random weights look at all tokens alike, so there is nothing to choose. Here some channels of the residual stream hold
the same number everywhere; each query gets the same component from them, in the pair of a head's dimensions that turns
least with position; and there every key holds the same random product of its token. So some tokens are looked at more
by all queries, more so the larger that component, which is found layer by layer on a prompt, weights in float.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from handlens_export.checkpoint.read import read
from handlens_export.describe import plan
from handlens_export.network.decoder import DecoderLayer
from handlens_export.network.load import Parameters
from handlens_export.network.mapped import MappedLinear, float_network
from handlens_export.network.rope import rotate
from handlens_export.network.zipvl import SparseAttention, ZipVL, swap
from handlens_export.recipe import TAU, Recipe

CHANNELS, IN_STREAM, IN_QUERIES = 32, 0.1, -4.0
"""Of the residual stream, and what they hold there and behind the norm: as many as share a scale in a group, so that no
other weights of the linears are rounded coarser for them. Negative there, for then so are the weights, and of a grid
from -8 to 7 steps only the lowest is as far out as a group's largest weight: a positive one would lose an eighth."""
THETA, POSITIONS = 1e6, 32_768
"""Of the rotation: the slowest pair stays where it is over all of a long prompt."""
TEXT = "language_model.model"
SILENT = ("o_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight")
"""What neither writes into these channels nor reads them."""
MOST, STEPS = 200.0, 20
"""Of a query's component, and halvings until it is found."""


def plant(source: Path, target: Path, ids: Tensor, shares: Sequence[float]) -> None:
    """Write checkpoint `target`: of the prompt `ids` (t,), each of its layers chooses about these shares at TAU."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= {"rope_theta": THETA, "max_position_embeddings": POSITIONS}
    (target / "config.json").write_text(json.dumps(config))
    _rewrite(source, target, partial(_with_constants, config["text_config"]["head_dim"]))
    found = _components(target, ids, shares)
    _rewrite(target, target, lambda name, tensor: found.get(name, tensor))


def _rewrite(source: Path, target: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    for shard in sorted(source.glob("*.safetensors")):
        tensors = {name: change(name, tensor).to(tensor.dtype) for name, tensor in load_file(shard).items()}
        save_file(tensors, target / f"{shard.name}.new", metadata={"format": "pt"})
        (target / f"{shard.name}.new").rename(target / shard.name)


def _with_constants(head_dim: int, name: str, tensor: Tensor) -> Tensor:
    """Channels that hold one number from the embedding to the last layer, seen by queries alone; keys that agree."""
    if name in (f"{TEXT}.embed_tokens.weight", "projector.fc2.bias"):
        tensor[..., :CHANNELS] = IN_STREAM
    elif name in ("projector.fc2.weight", f"{TEXT}.norm.weight") or name.endswith(SILENT):
        tensor[:CHANNELS] = 0
    elif name.startswith(TEXT) and name.endswith(("k_proj.weight", "v_proj.weight")):
        tensor[:, :CHANNELS] = 0
        if "k_proj" in name:
            tensor[slowest(head_dim) :: head_dim] = tensor[slowest(head_dim)].clone()
    return tensor


def slowest(head_dim: int) -> int:
    """The dimension of a head that turns least with position; its partner is the head's last."""
    return head_dim // 2 - 1


@torch.no_grad()
def _components(folder: Path, ids: Tensor, shares: Sequence[float]) -> dict[str, Tensor]:
    """Norms and query projections, by the checkpoint's names, found while the prompt goes through."""
    planned = plan(read(folder), Recipe())
    network = float_network(Parameters(planned.checkpoint, planned.family, planned.config), planned.config, len(ids))
    found: dict[str, Tensor] = {}
    swap(
        network.decoder.layers, planned.config.decoder, ZipVL(TAU)
    )  # a layer's input depends on what is left out before
    step = network.decoder.eager_step(len(ids), 0, prompt=True)
    for number, (layer, share) in enumerate(zip(network.decoder.layers, shares, strict=True)):
        adapt = partial(_adapt, found, f"{TEXT}.layers.{number}", share)
        layer.register_forward_pre_hook(lambda layer, inputs, adapt=adapt: adapt(layer, *inputs))
    network.decoder(network.decoder.embedding(ids[None]), step)
    return found


def _adapt(found: dict[str, Tensor], name: str, share: float, layer: nn.Module, x: Tensor, step: Any) -> None:
    norm, attention = cast(DecoderLayer, layer).attention_norm, cast(DecoderLayer, layer).attention
    norm.weight[:CHANNELS] *= IN_QUERIES / norm(x)[..., :CHANNELS].mean()
    h, head_dim = norm(x), attention.head_dim
    q_proj = cast(Any, attention.q_proj)
    weight = (q_proj.read() if isinstance(q_proj, MappedLinear) else q_proj.weight).clone()
    weight[:, :CHANNELS] = 0
    q = nn.functional.linear(h, weight).view(1, -1, attention.heads, head_dim)
    k = rotate(attention.k_proj(h).view(1, -1, attention.kv_heads, head_dim), step.cos, step.sin)
    component = _component(cast(SparseAttention, attention.cached), q, k, step, share)
    weight[slowest(head_dim) :: head_dim, :CHANNELS] = component / (CHANNELS * IN_QUERIES)
    attention.q_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    attention.q_proj.weight = nn.Parameter(weight, requires_grad=False)
    found[f"{name}.input_layernorm.weight"] = norm.weight
    found[f"{name}.self_attn.q_proj.weight"] = weight


def _component(leaf: SparseAttention, q: Tensor, k: Tensor, step: Any, share: float) -> float:
    """What to add to every query so that as many of the tokens are chosen: the more, the fewer."""
    low, high = 0.0, MOST
    for _ in range(STEPS):
        middle, turned = (low + high) / 2, q.clone()
        turned[..., slowest(q.shape[3])] += middle
        if len(leaf.chosen(rotate(turned, step.cos, step.sin), k)) > ceil(share * q.shape[1]):
            low = middle
        else:
            high = middle
    return (low + high) / 2
