"""From a tokenizer.json's pre-tokenizer to llama.cpp's name for the same splitting.

llama.cpp has the splitting of each known tokenizer in code and finds it by a name in
`tokenizer.ggml.pre`. Its converter gets the name from a hash of the tokens of a test text, so it
knows only vocabularies that it has seen. The splitting does not depend on the vocabulary: here the
definition itself is looked up. The expressions are those of the models' own tokenizer.json files.

A name also stands for whether a word that is a token is taken whole, whatever its merges give
(`ignore_merges`; `llama_vocab::impl::load` in llama-vocab.cpp). What else it stands for changes no
token, or is written as a key of its own. Names that differ in neither are one to llama.cpp, and the
first is written: "pixtral", "falcon3", "lfm2" are "llama-bpe"; "smaug-bpe" is "dbrx" (Granite 4);
"mpt", "olmo", "phi-2", "exaone4" are "gpt-2"; "starcoder", "refact" (Granite 3), "command-r",
"codeshell" are "smollm"; "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "grok-2" are
"qwen2"; "llama4", "minimax-m2" are "gpt-4o".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.core.errors import InputError
from quantkit.models.tokenizers.merges import merge_ranks, unreachable
from quantkit.models.transformers_reader import can_be_a_word

# The steps of a splitting: an expression whose matches are words, or one of these, which are no
# expressions: every digit alone, bytes as characters, the same after GPT-2's own expression.
DIGITS, BYTES, GPT2_BYTES = "(digits", "(bytes", "(gpt-2"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"

LLAMA3 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}|{_TAIL}"
QWEN35 = (
    rf"{_CONTRACTIONS}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_CODER = (
    rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1}}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MINICPM5 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}+|{_TAIL}"

_NAMES: dict[tuple[str, ...], dict[bool, str]] = {  # Then by `ignore_merges`.
    (LLAMA3, BYTES): {True: "llama-bpe", False: "dbrx"},
    (QWEN2, BYTES): {False: "qwen2"},
    (QWEN35, BYTES): {False: "qwen35"},
    (SEED_CODER, BYTES): {False: "seed-coder"},
    (r"\p{N}{1,3}", MINICPM5, BYTES): {True: "minicpm5"},
    (TEKKEN, BYTES): {True: "tekken"},
    (GPT4O, BYTES): {False: "gpt-4o"},
    (GPT2_BYTES,): {False: "gpt-2"},
    (DIGITS, GPT2_BYTES): {False: "smollm"},
}


def pre_tokenizer_name(definition: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` of a byte-level BPE, given in the form of a tokenizer.json."""
    steps = _steps(definition.get("pre_tokenizer"))
    names = _NAMES.get(tuple(steps)) if steps is not None else None
    if names is None:
        known = sorted(name for by_flag in _NAMES.values() for name in by_flag.values())
        raise InputError(
            f"tokenizer.json splits text by {str(definition.get('pre_tokenizer'))[:300]}, which "
            f"has no known name in llama.cpp; known are {', '.join(known)}. Convert the model with "
            "llama.cpp's own converter and give the GGUF to --model"
        )
    model = definition["model"]
    ignores_merges = bool(model.get("ignore_merges"))
    if ignores_merges in names:
        return names[ignores_merges]
    (name,) = names.values()
    # Added tokens are found before text is split into words, and the flag is about whole words.
    added = {token["content"] for token in definition.get("added_tokens") or ()}
    words = (text for text in model["vocab"] if text not in added)
    candidates = list(unreachable(words, merge_ranks(model["merges"])))
    lost = next(filter(can_be_a_word(definition), candidates), None) if candidates else None
    if lost is not None:
        raise InputError(
            f"tokenizer.json has ignore_merges {str(ignores_merges).lower()}, but llama.cpp's "
            f"{name!r} does the opposite, and would encode the token {lost!r} differently; to "
            f"accept that, set ignore_merges to {str(not ignores_merges).lower()} in it"
        )
    return name


def _steps(definition: object) -> list[str] | None:
    """The steps of a pre-tokenizer, None where one is not understood."""
    match definition:
        case {"type": "Sequence", "pretokenizers": list(members)}:
            parts = [_steps(member) for member in members]
            return [s for part in parts for s in part or ()] if None not in parts else None
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": behavior, **rest}:
            # Isolating the matches, or removing what is none, is the same where all text matches.
            if (behavior, rest.get("invert", False)) in (("Isolated", False), ("Removed", True)):
                # Files spell line ends in either way; the expressions here, as escapes.
                return [regex.replace("\r", r"\r").replace("\n", r"\n")]
            return None
        case {"type": "Digits", "individual_digits": True}:
            return [DIGITS]
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return [GPT2_BYTES if rest.get("use_regex", True) else BYTES]
        case _:
            return None
