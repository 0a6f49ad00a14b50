"""What generation_config.json asks of decoding that the engine does not have: named, never dropped in silence."""

from __future__ import annotations

from typing import Any

from handlens_export.checkpoint.checkpoint import Checkpoint

NEUTRAL: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "watermarking_config": None,
}
"""transformers' fields that change which tokens come out, with the value at which each changes nothing."""
NEUTRAL_SAMPLING = {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None, "typical_p": 1.0}
"""The same, of fields that count only with `do_sample`."""
NEUTRAL_BEAMS = {"early_stopping": False, "length_penalty": 1.0}
"""The same, of fields that count only with `num_beams` above 1."""


def warnings(checkpoint: Checkpoint) -> tuple[str, ...]:
    """One sentence that names all such fields with their values; empty where the engine decodes as the file asks."""
    given = checkpoint.generation_config
    neutral = dict(NEUTRAL)
    if given.get("do_sample"):
        neutral |= NEUTRAL_SAMPLING
    if _changes(given.get("num_beams"), 1):
        neutral |= NEUTRAL_BEAMS
    named = [_named(name, given[name]) for name in sorted(neutral) if _changes(given.get(name), neutral[name])]
    if not named:
        return ()
    return (
        f"generation_config.json of {checkpoint.path} sets {', '.join(named)}, which HandLens cannot decode with; "
        "its answers are those without, so compare them with the checkpoint's in the same way.",
    )


def _changes(value: Any, neutral: Any) -> bool:
    return value is not None and value != neutral and value not in ([], {})


def _named(name: str, value: Any) -> str:
    """A list of token ids may have hundreds: its name is enough."""
    return name if isinstance(value, list | dict) else f"{name} {value}"
