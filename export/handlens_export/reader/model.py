"""The network while it is trained: transformers' own modules, so that its state is the checkpoint's, and what only
training needs beside it.

Reading is learned in two halves that meet in the decoder's input rows. `Oracle` makes those rows from what is known
to stand under each patch, so the decoder can learn to answer before any picture is read; the encoder and projector
learn what stands under each patch, and to make the rows that the oracle would.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from handlens_export.network.projector import merge_patches
from handlens_export.reader.batch import Batch
from handlens_export.reader.labels import CHARACTER_CLASSES, COLOUR_CLASSES, SHAPE_CLASSES, SLOTS
from handlens_export.reader.sizes import Sizes
from handlens_export.reader.tokenizer import VOCABULARY


def attention() -> str:
    """A step takes a fifth less time on a CPU without torch's fused kernel, whose backward pass is slow there."""
    return "sdpa" if torch.cuda.is_available() else "eager"


class Projector(nn.Module):
    """Two linears, as the checkpoint names them."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., vision_width) -> (..., width)."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class Reader(nn.Module):
    """`bluelm_v`; its state_dict is the checkpoint's model.safetensors."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_tower = SiglipVisionModel(vision_config(sizes))
        self.downsampler = nn.Linear(sizes.downsample**2 * sizes.vision_width, sizes.vision_width)
        self.projector = Projector(sizes.vision_width, sizes.width)
        self.language_model = LlamaForCausalLM(text_config(sizes))

    def features(self, tiles: Tensor) -> Tensor:
        """Normalized tiles (n, 3, tile, tile) -> (n, patches, vision_width)."""
        out: Tensor = self.vision_tower(pixel_values=tiles).last_hidden_state
        return out

    def rows(self, features: Tensor) -> Tensor:
        """Features -> (n, tokens_per_tile, width)."""
        out: Tensor = self.projector(self.downsampler(merge_patches(features, self.sizes.downsample)))
        return out

    def logits(self, image_rows: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits behind a batch's `wanted` positions, (m, vocabulary), and the rows (b, t, width) of each layer.

        Its image tokens take the image rows. Sequences are padded at the right, where a causal decoder does not look.
        """
        embedded = self.language_model.model.embed_tokens(batch.ids)
        filled = embedded.flatten(0, 1).index_copy(0, batch.images, image_rows.to(embedded.dtype))
        decoder, hidden, mask = self.language_model.model, filled.view_as(embedded), _mask(batch.segments)
        turned = decoder.rotary_emb(hidden, position_ids=batch.positions)
        taken = []
        for layer in decoder.layers:  # `output_hidden_states` uses a ContextVar, which torch.compile cannot trace
            taken.append(hidden)
            hidden = layer(hidden, attention_mask=mask, position_ids=batch.positions, position_embeddings=turned)
        out: Tensor = self.language_model.lm_head(decoder.norm(hidden).flatten(0, 1)[batch.wanted])
        return out, tuple(taken)

    def attention(self, taken: tuple[Tensor, ...], batch: Batch, layer: int, head: int) -> Tensor:
        """Logarithms of one head's attention, (b, t, t), from the rows that each layer takes."""
        decoder, sizes = self.language_model.model, self.sizes
        block = decoder.layers[layer]
        rows = block.input_layernorm(taken[layer])
        wide = sizes.width // sizes.heads
        shared = head * sizes.kv_heads // sizes.heads
        queries = rows @ block.self_attn.q_proj.weight[head * wide : (head + 1) * wide].T
        keys = rows @ block.self_attn.k_proj.weight[shared * wide : (shared + 1) * wide].T
        turned = decoder.rotary_emb(rows, batch.positions)
        queries, keys = apply_rotary_pos_emb(queries[:, None], keys[:, None], *turned)
        scores = (queries @ keys.mT).squeeze(1).float() / wide**0.5
        out: Tensor = (scores + _mask(batch.segments).squeeze(1)).log_softmax(-1)
        return out


def _mask(segments: Tensor) -> Tensor:
    """Segments (b, t) -> what is added to scores (b, 1, t, t): nothing where a row sees a column, else minus infinity.

    It sees what is before it, of its own segment or of segment 0.
    """
    columns = segments[:, None, None, :]
    seen = (columns == 0) | (columns == segments[:, None, :, None])
    seen = seen & torch.ones_like(seen[:1, :1]).tril()
    kind = torch.get_autocast_dtype(segments.device.type) if torch.is_autocast_enabled(segments.device.type) else None
    return torch.zeros(seen.shape, device=seen.device, dtype=kind).masked_fill(~seen, float("-inf"))


class DenseHead(nn.Module):
    """Tells from a vector what stands under the patches that it was made of: training only."""

    def __init__(self, width: int, patches: int = 1) -> None:
        super().__init__()
        self.patches = patches
        self.linear = nn.Linear(width, patches * (SLOTS * CHARACTER_CLASSES + SHAPE_CLASSES + COLOUR_CLASSES))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, m, width) -> scores of characters (n, m, patches, SLOTS, classes), shapes and colours."""
        scores = self.linear(vectors).unflatten(-1, (self.patches, -1))
        characters, shapes, colours = scores.split((SLOTS * CHARACTER_CLASSES, SHAPE_CLASSES, COLOUR_CLASSES), dim=-1)
        return characters.unflatten(-1, (SLOTS, CHARACTER_CLASSES)), shapes, colours


class Oracle(nn.Module):
    """From what stands under the patches to the decoder's rows: training only."""

    def __init__(self, sizes: Sizes, narrow: int = 48) -> None:
        super().__init__()
        self.factor = sizes.downsample
        self.characters = nn.Embedding(CHARACTER_CLASSES, narrow)
        self.shapes = nn.Embedding(SHAPE_CLASSES, 16)
        self.colours = nn.Embedding(COLOUR_CLASSES, 16)
        self.linear = nn.Linear(sizes.downsample**2 * (SLOTS * narrow + 32), sizes.width)
        for table in (self.characters, self.shapes, self.colours):
            with torch.no_grad():
                table.weight[0].zero_()

    def forward(self, characters: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
        """Labels (n, patches, SLOTS), (n, patches), (n, patches) -> (n, tokens_per_tile, width)."""
        patches = torch.cat(
            (self.characters(characters).flatten(2), self.shapes(shapes), self.colours(colours)), dim=-1
        )
        out: Tensor = self.linear(merge_patches(patches, self.factor))
        return out


class Networks(nn.Module):
    """All that is trained; only `reader` is kept in the end."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self.head = DenseHead(reader.sizes.vision_width)
        self.row_head = DenseHead(reader.sizes.width, reader.sizes.downsample**2)
        self.oracle = Oracle(reader.sizes)


def vision_config(sizes: Sizes) -> SiglipVisionConfig:
    """SigLIP's without its pooling head."""
    return SiglipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.tile,
        patch_size=sizes.patch,
        vision_use_head=False,
        attn_implementation=attention(),
    )


def text_config(sizes: Sizes) -> LlamaConfig:
    """A llama's with tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.width // sizes.heads,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation=attention(),
    )
