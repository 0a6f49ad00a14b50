"""`handlens run`: one question, or a chat where none is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.choices import BackendChoice
from handlens.cli.interrupt import interruptible, stops
from handlens.cli.outcome import STOPPED, answered, complain
from handlens.cli.quiet import hushed_loading
from handlens.cli.tiles import check_kept, write_kept, write_tiles
from handlens.cli.units import size
from handlens_runtime.errors import OptionError

if TYPE_CHECKING:
    from handlens_runtime.engine import Engine
    from handlens_runtime.options import Options
    from handlens_runtime.stats import Stats

BUNDLES = "the bundle's"


@answered
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="The question; without it, a chat. Put -- before one that starts with a minus.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeatable.", show_default=False)
    ] = None,
    backend: Annotated[
        BackendChoice | None, typer.Option(help="What runs it.", show_default="fastest installed")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=BUNDLES)] = None,
    top_k: Annotated[int | None, typer.Option(help="0 keeps all tokens.", show_default=BUNDLES)] = None,
    top_p: Annotated[float | None, typer.Option(help="From 0 to 1.", show_default=BUNDLES)] = None,
    min_p: Annotated[float | None, typer.Option(help="From 0 to 1.", show_default=BUNDLES)] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 changes nothing.", show_default=BUNDLES)] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ends the answer; repeatable.", show_default=False)
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.", show_default=False)] = None,
    show_tiles: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Write the picture as the model sees it, in tiles.", show_default=False),
    ] = None,
    show_kept: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw which parts of the picture each layer kept.", show_default=False),
    ] = None,
    sparse: Annotated[
        bool | None,
        typer.Option(
            "--sparse/--dense",
            help="Keep only what matters of a prompt, as the bundle was exported to do, or all of it.",
            show_default="sparse where the prompt is long",
        ),
    ] = None,
    release_encoder: Annotated[
        bool, typer.Option("--release-encoder", help="Free the vision encoder's memory once pictures are encoded.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object.")] = False,
) -> None:
    """Ask a bundle a question, or chat with it."""
    if as_json and prompt is None:
        raise typer.BadParameter("--json answers one question; give it as PROMPT.", param_hint="--json")
    if show_kept is not None and prompt is None:
        raise typer.BadParameter(
            "--show-kept draws one question's picture; give it as PROMPT.", param_hint="--show-kept"
        )
    if show_kept is not None and sparse is False:
        raise typer.BadParameter("draws what is left out, and --dense leaves nothing out.", param_hint="--show-kept")
    if max_tokens < 1:
        raise OptionError(f"--max-tokens is {max_tokens}; choose a whole number of at least 1.")
    with interruptible():
        from handlens_runtime.options import Options

    options = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    pictures = tuple(image or ())
    with interruptible():
        engine = _loaded(bundle, backend, pictures, show_tiles, release_encoder, show_kept, sparse)
    if prompt is None:
        from handlens.cli.chat import Chat

        Chat(engine, options, system, pictures).loop()
    else:
        _answer(engine, options, prompt, system, pictures, as_json)
        drawn = show_kept is None or write_kept(engine, pictures, show_kept)
        if not drawn or (sparse and not engine.stats.sparse_tokens):
            _kept_whole(engine, None if drawn else show_kept)


def _loaded(
    bundle: Path,
    backend: BackendChoice | None,
    images: tuple[Path, ...],
    show_tiles: Path | None,
    release_encoder: bool,
    show_kept: Path | None,
    sparse: bool | None,
) -> Engine:
    from handlens_runtime.bundle import Bundle
    from handlens_runtime.engine import Engine

    loaded = Bundle.load(bundle)
    if sparse and loaded.manifest.sparsity is None:
        raise OptionError(f"{bundle} keeps all of a prompt; export it with --sparsity zipvl, or leave out --sparse.")
    for warning in loaded.warnings:
        complain(warning)
    if show_tiles is not None:
        write_tiles(loaded.manifest, images, show_tiles)
    if show_kept is not None:
        check_kept(loaded.manifest, images, show_kept)
    with hushed_loading(), interruptible():
        engine = Engine(loaded, backend=backend, release_encoder=release_encoder, sparse=sparse)
    for warning in engine.warnings:
        complain(warning)
    return engine


def _kept_whole(engine: Engine, unwritten: Path | None) -> None:
    """Say why nothing was left out of the prompt, and what is not written for it."""
    from handlens_runtime.engine import LEAST_SPARSE

    sparsity, count = engine.bundle.manifest.sparsity, engine.stats.prompt_tokens
    assert sparsity is not None
    if not sparsity.leaves_out:
        why = f"for the bundle's tau of {sparsity.tau:g} keeps all"
    elif count < LEAST_SPARSE:
        why = f"for fewer than {LEAST_SPARSE} are too few to choose from"
    else:
        why = f"as one below {sparsity.least_tokens} is without --sparse"
    missing = "" if unwritten is None else f"; {unwritten} is not written"
    complain(f"The prompt of {count} tokens was kept whole, {why}{missing}.")


def _answer(
    engine: Engine, options: Options, prompt: str, system: str | None, images: tuple[Path, ...], as_json: bool
) -> None:
    from handlens_runtime.chat import Message

    messages = [Message("user", prompt, images)]
    if system is not None:
        messages.insert(0, Message("system", system))
    pieces: list[str] = []
    with stops(engine) as stopped:
        for token in engine.generate(messages, options):
            pieces.append(token.text)
            if not as_json:
                sys.stdout.write(token.text)
                sys.stdout.flush()
    if as_json:
        typer.echo(json.dumps({"text": "".join(pieces), "stats": engine.stats.as_dict()}))
    else:
        typer.echo()
        typer.echo(statistics(engine.stats), err=True)
    if stopped:
        raise typer.Exit(STOPPED)


def statistics(stats: Stats) -> str:
    """One line: where the time went, how fast it was, and the memory it took."""
    parts = []
    if stats.image_tokens:
        parts += [f"image decode {_seconds(stats.image_decode_s)}", f"encode {_seconds(stats.encode_s)}"]
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    parts.append(f"prefill {stats.prompt_tokens} tokens{reused} in {_seconds(stats.prefill_s)}")
    if stats.sparse_tokens:
        share = sum(stats.kept_tokens) / len(stats.kept_tokens) / stats.sparse_tokens
        parts.append(f"{share:.0%} of {stats.sparse_tokens} kept")
    if stats.time_to_first_token_s is not None:
        parts.append(f"first token {_seconds(stats.time_to_first_token_s)}")
    rate = stats.tokens_per_second
    parts.append(f"{stats.generated_tokens} tokens" + (f" at {rate:.1f} tokens/s" if rate is not None else ""))
    parts.append(f"peak memory {size(stats.peak_memory_bytes)}")
    ended = {"length": "cut at --max-tokens", "context": "the context is full", "cancelled": "stopped"}
    if stats.finish in ended:
        parts.append(ended[stats.finish])
    return f"[{', '.join(parts)}]"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
