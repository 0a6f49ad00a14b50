"""What is known of a bundle before any weight is read: the plan, and the manifest that says it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_export.errors import UnsupportedError
from handlens_export.memory import estimate
from handlens_export.network.chat import sampling
from handlens_export.network.config import NetworkConfig
from handlens_export.network.families import Family, find
from handlens_export.quantize.formats import Part
from handlens_export.recipe import Method, Recipe
from handlens_runtime.manifest import (
    Chat,
    ImageRule,
    Manifest,
    PartQuantization,
    Quantization,
    SavedRecipe,
    Sizes,
    Sparsity,
)

DEFAULT_CONTEXT = 2048
METHODS: dict[Method, str] = {"round": "rounding-1", "clip": "clip-1", "gptq": "gptq-2", "rsq": "rsq-2"}
ROTATE, SMOOTH = "rotate-1", "smooth-2"
"""What a manifest calls each; to be counted up whenever it gives other integers or scales."""
KV_SCALES = "kv_scales.npz"
RUNNER_CHUNK = 128
"""Tokens that a program takes at least, whatever the engine's chunk: what ExecuTorch's runners prefill at a time."""
LEAST_TOKENS = 256
"""Of a prompt whose tokens are chosen: where prompts begin to gain, on ONNX Runtime with 44 % kept (lower/LOG.md)."""
TOOLS = ("handlens", "torch", "torchao", "executorch", "onnx", "onnxscript", "onnxruntime", "transformers")
"""Packages whose versions a manifest records."""


@dataclass(frozen=True)
class Plan:
    """A checkpoint with everything its headers say."""

    checkpoint: Checkpoint
    family: Family
    config: NetworkConfig
    chat: Chat
    image: ImageRule | None
    context: int
    max_chunk: int
    bos_id: int | None


def plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Settle family, sizes, prompt and image rule. Raises UnsupportedError, CheckpointError."""
    family = find(checkpoint.config.get("model_type"))
    config = family.config(checkpoint.config)
    chat = family.chat(checkpoint)
    image = family.image_rule(checkpoint, config) if config.vision else None
    _refuse_other_layers(checkpoint, config, recipe)
    trained = config.decoder.max_positions
    if recipe.context is not None and recipe.context > trained:
        raise UnsupportedError(
            f"--context {recipe.context} is more than the {trained} positions that {checkpoint.path} was trained for; "
            f"choose at most {trained}."
        )
    context = recipe.context or min(DEFAULT_CONTEXT, trained)
    if config.tokens_per_tile >= context:
        raise UnsupportedError(
            f"One tile of {checkpoint.path} takes {config.tokens_per_tile} tokens, which a --context of {context} does "
            "not hold beside a question; choose a larger one."
        )
    if recipe.tau is not None and context < LEAST_TOKENS:
        raise UnsupportedError(
            f"--sparsity chooses among the tokens of prompts of {LEAST_TOKENS} and more, which a --context of "
            f"{context} does not hold; choose a larger one, or leave it out."
        )
    bos = chat.bos_token
    bos_id = checkpoint.tokenizer.token_to_id(bos) if bos else None
    return Plan(checkpoint, family, config, chat, image, context, longest_pass(config, recipe, context), bos_id)


def _refuse_other_layers(checkpoint: Checkpoint, config: NetworkConfig, recipe: Recipe) -> None:
    layers = config.decoder.layers
    for place, _ in recipe.layer_bits:
        if int(place.split(".")[2]) >= layers:
            raise UnsupportedError(
                f"--layer-bits names {place}, but the decoder of {checkpoint.path} has layers 0 to {layers - 1}; "
                "choose among these."
            )


def longest_pass(config: NetworkConfig, recipe: Recipe, context: int) -> int:
    """Most tokens in one decoder pass."""
    # A prompt that sees all of itself comes in one call, and so does one whose tokens are chosen, by all of them;
    # ExecuTorch's own runner feeds a whole tile in one call.
    longest = max(recipe.chunk, RUNNER_CHUNK, config.tokens_per_tile)
    return min(longest, context) if config.decoder.causal and recipe.tau is None else context


def method_of(recipe: Recipe) -> str:
    """What a manifest calls all that becomes of the weights: `rotate-1, smooth-2, gptq-2`."""
    transforms = [name for name, wanted in ((ROTATE, recipe.rotate), (SMOOTH, recipe.smooth)) if wanted]
    return ", ".join((*transforms, METHODS[recipe.method]))


def describe(
    planned: Plan, recipe: Recipe, parts: dict[Part, PartQuantization], calibration: str | None = None
) -> Manifest:
    """The manifest of a bundle to be, without programs and files yet; `calibration` is its set's digest."""
    config, decoder = planned.config, planned.config.decoder
    parameters = sum(part.parameters for part in parts.values())
    if decoder.tied_head and "head" in parts and not recipe.rotate:
        parameters -= parts["head"].parameters  # two copies of one matrix, where no norm is folded into the head
    vision = config.vision
    return Manifest(
        # Not the checkpoint's folder name: the same checkpoint gives the same bytes wherever it lies.
        name=f"{config.family}-{_short(parameters)}",
        family=config.family,
        sizes=Sizes(
            vocab_size=decoder.vocab_size,
            width=decoder.width,
            layers=decoder.layers,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            context=planned.context,
            chunk=min(recipe.chunk, planned.context),
            max_chunk=planned.max_chunk,
            parameters=parameters,
            vision_features=(vision.grid**2, vision.width) if vision else None,
        ),
        image=planned.image,
        chat=planned.chat,
        sampling=sampling(planned.checkpoint),
        causal=decoder.causal,
        quantization=Quantization(
            method=method_of(recipe),
            recipe=SavedRecipe(
                backends=recipe.backends,
                method=recipe.method,
                smooth=recipe.smooth,
                rotate=recipe.rotate,
                calibration=calibration,
                bits=recipe.bits,
                layer_bits=recipe.layer_bits,
                group=recipe.group,
                head_bits=recipe.head_bits,
                vision_bits=recipe.vision_bits,
                embedding_bits=recipe.embedding_bits,
                context=planned.context,
                chunk=recipe.chunk,
                max_portable=recipe.max_portable,
                tau=recipe.tau,
            ),
            kv=recipe.kv,
            kv_scales=KV_SCALES if "onnx" in recipe.backends and recipe.kv == "int8" else None,
            parts=parts,
        ),
        sparsity=None if recipe.tau is None else Sparsity(tau=recipe.tau, least_tokens=LEAST_TOKENS),
        backends={},
        memory=estimate(config, recipe, planned.context, planned.max_chunk, parts),
        versions={tool: version for tool in TOOLS if (version := _version(tool)) is not None},
        files={},
    )


def _version(tool: str) -> str | None:
    """Of an installed package; None in a checkout that is run without being installed."""
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return None


def _short(count: int) -> str:
    """1234567 -> 1.2M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
