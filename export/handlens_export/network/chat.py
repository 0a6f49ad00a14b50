"""From a checkpoint's text files to the manifest's chat and sampling defaults."""

from __future__ import annotations

from handlens_export.checkpoint.checkpoint import Checkpoint
from handlens_runtime.chat import Message, render
from handlens_runtime.errors import PromptError
from handlens_runtime.manifest import Chat, SamplingDefaults

COMPLETION = (
    "{%- for message in messages -%}{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
)
"""For a checkpoint without a template: what the person wrote, and nothing else."""
TURN_ENDS = ("<|im_end|>", "<end_of_utterance>", "<end_of_turn>", "<|eot_id|>", "<|end|>")
"""Tokens that end a turn in a template that writes them, whether or not generation_config.json lists them too."""


def chat(checkpoint: Checkpoint) -> Chat:
    """The checkpoint's own template; without one, the user's text is completed as it stands, one question a prompt."""
    if checkpoint.chat_template is None:
        return from_template(checkpoint, COMPLETION, multi_turn=False, add_special_tokens=True)
    return from_template(checkpoint, checkpoint.chat_template, add_special_tokens=_begins_bare(checkpoint))


def from_template(
    checkpoint: Checkpoint, template: str, *, multi_turn: bool = True, add_special_tokens: bool = False
) -> Chat:
    """A template with the checkpoint's begin and end tokens."""
    return Chat(
        template=template,
        bos_token=checkpoint.tokenizer_config.get("bos_token"),
        eos_token=checkpoint.tokenizer_config.get("eos_token"),
        add_special_tokens=add_special_tokens,
        stop_ids=_stop_ids(checkpoint, template),
        multi_turn=multi_turn,
    )


def _begins_bare(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer is to add its own tokens to a rendered prompt.

    A text model's template writes every token there is. A vision-language processor lets the tokenizer add its own
    where the rendered prompt does not begin with the begin token.
    """
    if "vision_config" not in checkpoint.config:
        return False
    made = from_template(checkpoint, checkpoint.chat_template or COMPLETION)
    try:
        text = render(made, [Message("user", "?")], parts=True, answer=True)
    except PromptError:
        return False  # a template this particular, such as one that insists on a picture, writes its own tokens
    return made.bos_token is None or not text.startswith(made.bos_token)


def _stop_ids(checkpoint: Checkpoint, template: str) -> tuple[int, ...]:
    """generation_config.json's end tokens, else the tokenizer's; and the template's turn end."""
    tokenizer = checkpoint.tokenizer
    ids: list[int] = checkpoint.generation_config.get("eos_token_id") or []
    tokens = [token for token in TURN_ENDS if token in template]
    if not ids and checkpoint.tokenizer_config.get("eos_token"):
        tokens.append(checkpoint.tokenizer_config["eos_token"])
    ends = (tokenizer.token_to_id(token) for token in tokens)
    return tuple(dict.fromkeys([*ids, *(value for value in ends if value is not None)]))


def sampling(checkpoint: Checkpoint) -> SamplingDefaults:
    """generation_config.json's defaults, with transformers' own for what it leaves out; greedy without `do_sample`."""
    given = {name: value for name, value in checkpoint.generation_config.items() if value is not None}
    penalty = float(given.get("repetition_penalty", 1.0))
    if not given.get("do_sample", False):
        return SamplingDefaults(repetition_penalty=penalty)
    return SamplingDefaults(
        temperature=float(given.get("temperature", 1.0)),
        top_k=int(given.get("top_k", 50)),
        top_p=float(given.get("top_p", 1.0)),
        min_p=float(given.get("min_p", 0.0)),
        repetition_penalty=penalty,
    )
