"""From the options that `export` and `plan` share to a recipe: what was not given is the recipe's own default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from handlens.cli.choices import BackendChoice, KVChoice, MethodChoice

if TYPE_CHECKING:
    from handlens_export.recipe import Recipe

BackendOption = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Programs to make.", show_default="executorch,onnx")
]
MethodOption = Annotated[
    MethodChoice | None,
    typer.Option(help="How the decoder's weights are rounded: gptq and rsq take longest.", show_default="round"),
]
SmoothOption = Annotated[bool, typer.Option("--smooth", help="Move outliers of activations into the weights first.")]
RotateOption = Annotated[
    bool, typer.Option("--rotate", help="Spread outliers of single channels over all of them first.")
]
BitsOption = Annotated[int | None, typer.Option(help="Bits of the decoder's linears.", show_default="4")]
AutoBitsOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Bits of the decoder's linears; auto: as few as the --gate lets pass.",
        show_default="4",
    ),
]
TargetBitsOption = Annotated[
    float | None,
    typer.Option(
        metavar="BITS",
        help="Most bits a weight on average, scales apart, in place of --bits: layers that need more get more.",
        show_default=False,
    ),
]
LayerBitsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLACE=BITS",
        help="Other bits of a layer, its attention or mlp, or a linear: decoder.layers.0.mlp=8; repeatable.",
        show_default=False,
    ),
]
GroupOption = Annotated[int | None, typer.Option(help="Weights that share a scale.", show_default="32")]
HeadBitsOption = Annotated[int | None, typer.Option(help="Bits of the output head.", show_default="8")]
VisionBitsOption = Annotated[int | None, typer.Option(help="Bits of vision encoder and projector.", show_default="8")]
EmbeddingBitsOption = Annotated[
    int | None, typer.Option(help="Bits of the token embedding table, 8 or 32.", show_default="8")
]
KVOption = Annotated[KVChoice | None, typer.Option(help="Format of the key-value cache.", show_default="int8")]
SparsityOption = Annotated[
    str | None,
    typer.Option(
        metavar="zipvl[:tau=0.975]",
        help="Let each layer keep only the tokens of a prompt that hold tau of its attention.",
        show_default="all are kept",
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(help="Tokens of prompt and answer together.", show_default="2048, or less if trained for less"),
]
ChunkOption = Annotated[int | None, typer.Option(help="Prompt tokens per decoder pass.", show_default="128")]


def recipe_of(
    *,
    backend: str | None,
    method: MethodChoice | None = None,
    smooth: bool = False,
    rotate: bool = False,
    bits: int | None,
    layer_bits: Sequence[str] = (),
    group: int | None,
    head_bits: int | None,
    vision_bits: int | None,
    embedding_bits: int | None,
    kv: KVChoice | None,
    sparsity: str | None = None,
    context: int | None,
    chunk: int | None,
    max_portable: float | None = None,
) -> Recipe:
    """Raises UnsupportedError for what no export can follow, typer.BadParameter for names that are no backend's."""
    from handlens_export.recipe import Recipe

    default = Recipe()
    return Recipe(
        backends=default.backends if backend is None else backends(backend),
        method=method or default.method,
        smooth=smooth,
        rotate=rotate,
        bits=default.bits if bits is None else bits,
        layer_bits=tuple(map(_place_and_bits, layer_bits)),
        group=default.group if group is None else group,
        head_bits=default.head_bits if head_bits is None else head_bits,
        vision_bits=default.vision_bits if vision_bits is None else vision_bits,
        embedding_bits=default.embedding_bits if embedding_bits is None else embedding_bits,
        kv=kv or default.kv,
        tau=None if sparsity is None else _tau(sparsity),
        context=default.context if context is None else context,
        chunk=default.chunk if chunk is None else chunk,
        max_portable=default.max_portable if max_portable is None else max_portable,
    )


def _tau(value: str) -> float:
    """Of `zipvl` or `zipvl:tau=0.96`."""
    from handlens_export.recipe import TAU

    method, _, option = value.partition(":")
    name, _, number = option.partition("=")
    if method == "zipvl" and not option:
        return TAU
    try:
        tau = float(number)
    except ValueError:
        tau = None
    if method != "zipvl" or name != "tau" or tau is None:
        raise typer.BadParameter(
            f"'{value}' is no sparsity that HandLens has; give zipvl, or zipvl:tau=0.96.", param_hint="'--sparsity'"
        )
    return tau


def _place_and_bits(value: str) -> tuple[str, int]:
    place, _, bits = value.rpartition("=")
    if not place or not bits.isdecimal():
        raise typer.BadParameter(
            f"'{value}' is no place and its bits, such as decoder.layers.0.mlp=8.", param_hint="'--layer-bits'"
        )
    return place, int(bits)


def backends(value: str) -> tuple[BackendChoice, ...]:
    """`executorch,onnx` as names, in order, each once. Raises typer.BadParameter for any other."""
    known: tuple[BackendChoice, ...] = get_args(BackendChoice)
    asked = dict.fromkeys(word.strip() for word in value.split(","))
    names = tuple(name for word in asked for name in known if name == word)
    if len(names) != len(asked):
        raise typer.BadParameter(
            f"'{value}' is not one of {', '.join(known)}, or both joined by a comma.", param_hint="'--backend'"
        )
    return names
