"""The small set that static scales come from: a few prompts of different kinds, and the shipped photographs.

Written for this purpose, so it needs no licence but ours. Short on purpose: a scale is a largest value with a margin,
and largest values are reached within a few hundred tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

from torch import Tensor

from handlens_export.network.network import Network
from handlens_export.photographs import photographs
from handlens_export.prompt_rows import embed, prepare_prompt
from handlens_runtime.chat import Message
from handlens_runtime.manifest import Manifest
from handlens_runtime.tokenizer import Tokenizer

PICTURES = 2
ROWS = 256
"""Of each prompt at most: with all tiles of two photographs, the full-size model's calibration took eight minutes."""
TEXTS = (
    "What is in this picture? Name every object you can see and say where it is.",
    "The harbour was quiet before dawn. Two men loaded crates of mackerel onto a cart while gulls walked the wall, and "
    "the first ferry, late again, sounded its horn beyond the breakwater. 'You said seven o'clock,' the older one "
    "muttered, 'and it is already twenty past eight.' Nobody answered him.",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n"
    "    if len(ordered) % 2:\n        return ordered[middle]\n"
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n\nprint(median([3, 1.5, 42, -7]))",
    "Invoice 20418\n2 x Espresso   4.60\n1 x Croissant   2.35\nVAT 19 %   1.11\nTotal   EUR 6.95\nThank you, table 12!",
    "Solve step by step: a train leaves at 09:40 and travels 312 km at 96 km/h. When does it arrive? 312 / 96 = 3.25, "
    "which is 3 hours and 15 minutes, so it arrives at 12:55.",
    "Größe, naïve, œuvre, año; 東京は日本の首都です。 Москва слезам не верит. 🙂🚲 https://example.org/?q=a+b&n=10",
)


def calibration_rows(network: Network, manifest: Manifest, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Embedded rows (1, t, width) of each prompt of the set, cut to the context and to ROWS."""
    questions = [Message("user", text) for text in TEXTS]
    if network.vision is not None:
        pictures = islice(cycle(photographs()), PICTURES)
        questions += [Message("user", TEXTS[0], images=(picture,)) for picture in pictures]
    for question in questions:
        prepared = prepare_prompt(manifest, tokenizer, [question])
        yield embed(network, prepared, min(ROWS, manifest.sizes.context))
