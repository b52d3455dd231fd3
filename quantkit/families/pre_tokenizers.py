"""From a tokenizer.json's pre-tokenizer to llama.cpp's name for the same splitting.

llama.cpp has the splitting of each known tokenizer in code and finds it by a name in
`tokenizer.ggml.pre`. Its converter gets the name from a hash of the tokens of a test text, so it
knows only vocabularies that it has seen. The splitting does not depend on the vocabulary: here the
definition itself is looked up. The expressions are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import InputError


@dataclass(frozen=True)
class Split:
    """Matches of `regex` become words of their own."""

    regex: str


@dataclass(frozen=True)
class Digits:
    """Every digit is a word."""


@dataclass(frozen=True)
class ByteLevel:
    """Bytes become printable characters; `splits` with GPT-2's own expression before."""

    splits: bool


Step = Split | Digits | ByteLevel

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"

LLAMA3 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}|{_TAIL}"
TEKKEN = (
    rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_NAMES: dict[tuple[Step, ...], str] = {
    (Split(LLAMA3), ByteLevel(splits=False)): "llama-bpe",
    (Split(QWEN2), ByteLevel(splits=False)): "qwen2",
    (Split(TEKKEN), ByteLevel(splits=False)): "tekken",
    (Split(GPT4O), ByteLevel(splits=False)): "gpt-4o",
    (ByteLevel(splits=True),): "gpt-2",
    (Digits(), ByteLevel(splits=True)): "smollm",
}


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` of a parsed tokenizer.json of a byte-level BPE.

    Mistral's tokenizers in Hugging Face's conversion, and NVIDIA's from them, split as Llama 3
    does, but merge within every word; llama.cpp calls them "pixtral" and treats both names alike.

    Raises:
        InputError: the splitting has no name in the table; the message shows its definition.
    """
    definition = tokenizer.get("pre_tokenizer")
    steps = _steps(definition)
    name = _NAMES.get(tuple(steps)) if steps is not None else None
    if name is None:
        raise InputError(
            f"tokenizer.json splits text by {_shortened(definition)}, which has no known name in "
            f"llama.cpp; known are {', '.join(sorted(_NAMES.values()))}. Convert the model with "
            "llama.cpp's own converter and give the GGUF to --model"
        )
    model = tokenizer.get("model")
    if name == "llama-bpe" and isinstance(model, Mapping) and not model.get("ignore_merges"):
        return "pixtral"
    return name


def _steps(definition: object) -> list[Step] | None:
    """The steps of a pre-tokenizer, None where one is not understood."""
    match definition:
        case {"type": "Sequence", "pretokenizers": list(members)}:
            parts = [_steps(member) for member in members]
            return [s for part in parts for s in part or ()] if None not in parts else None
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": behavior, **rest}:
            # Isolating the matches, or removing what is none, is the same where all text matches.
            if (behavior, rest.get("invert", False)) in (("Isolated", False), ("Removed", True)):
                return [Split(regex)]
            return None
        case {"type": "Digits", "individual_digits": True}:
            return [Digits()]
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return [ByteLevel(splits=bool(rest.get("use_regex", True)))]
        case _:
            return None


def _shortened(definition: object) -> str:
    text = str(definition)
    return text if len(text) <= 300 else f"{text[:300]}…"
