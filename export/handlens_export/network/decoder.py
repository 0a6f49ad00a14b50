"""The language model: a llama-type decoder over rows of embeddings. It knows nothing about images or tokens' text."""

from __future__ import annotations

from torch import Tensor, nn

from handlens_export.network.attention import CachedAttention, Step
from handlens_export.network.config import DecoderConfig
from handlens_export.network.layers import ACTIVATIONS, RMSNorm
from handlens_export.network.rope import tables


class TokenEmbedding(nn.Module):
    """Ids to rows: the embedding leaf."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.width)
        self.scale = config.embedding_scale

    def forward(self, ids: Tensor) -> Tensor:
        """(1, t) int64 -> (1, t, width)."""
        rows: Tensor = self.table(ids)
        return rows * self.scale if self.scale != 1.0 else rows


class Attention(nn.Module):
    """Projections around the cached attention leaf."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, inner, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(inner, config.width, bias=config.output_bias)
        self.cached: nn.Module = CachedAttention(config)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """(1, t, width) -> (1, t, width)."""
        out: Tensor = self.o_proj(self.mixed(x, step))
        return out

    def mixed(self, x: Tensor, step: Step) -> Tensor:
        """(1, t, width) -> (1, t, heads * head_dim): what the heads attend to, before the output projection."""
        t = x.shape[1]
        q = self.q_proj(x).view(1, t, self.heads, self.head_dim)
        k = self.k_proj(x).view(1, t, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(1, t, self.kv_heads, self.head_dim)
        out: Tensor = self.cached(q, k, v, step)
        return out


class MLP(nn.Module):
    """Gated feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(1, t, width) -> (1, t, width)."""
        out: Tensor = self.down_proj(self.gated(x))
        return out

    def gated(self, x: Tensor) -> Tensor:
        """(1, t, width) -> (1, t, mlp_width): before the down projection."""
        out: Tensor = self.activation(self.gate_proj(x)) * self.up_proj(x)
        return out


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """(1, t, width) -> (1, t, width)."""
        x = x + self.attention(self.attention_norm(x), step)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers, final norm and head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig, context: int | None = None) -> None:
        """`context`: positions the rotary tables hold; the checkpoint's maximum where left out."""
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = tables(config, context or config.max_positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, rows: Tensor, step: Step) -> Tensor:
        """Rows (1, t, width) -> normed hidden states (1, t, width); `head` makes logits of those wanted."""
        for layer in self.layers:
            rows = layer(rows, step)
        out: Tensor = self.norm(rows)
        return out

    def eager_step(self, t: int, position: int, prompt: bool = False) -> Step:
        """The step of t rows from `position`, outside any trace; `prompt` as in `Step`."""
        return Step(position, self.cos[position : position + t], self.sin[position : position + t], prompt)
