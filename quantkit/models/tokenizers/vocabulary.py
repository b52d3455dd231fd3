"""A checkpoint's tokenizer as GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.core.parsing import MOST_JSON_BYTES, check_size
from quantkit.formats.stand_ins import STAND_IN_BYTES, refuse_stand_in
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, config_int, meta
from quantkit.models.tokenizers.byte_fallback_bpe import byte_fallback_metadata
from quantkit.models.tokenizers.pre_tokenizers import pre_tokenizer_name
from quantkit.models.tokenizers.sentencepiece import sentencepiece_metadata
from quantkit.models.tokenizers.special_tokens import harmless_eos, special_token_metadata
from quantkit.models.tokenizers.token_types import (
    TokenType,
    converted,
    refuse_unreadable,
    texts_by_id,
)
from quantkit.models.transformers_reader import LoadedTokenizer, load_tokenizer

_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
"""Read by transformers, whatever their sizes, which says of none what is wrong with it."""
# llama.cpp's converter writes two more keys for Llama and Mistral than for any other family.
_LLAMAS = ("llama", "mistral")


def tokenizer_metadata(
    folder: Path, config: Config, note: Callable[[str], object] = lambda _: None
) -> Metadata:
    """All `tokenizer.*` metadata of the checkpoint in `folder`.

    A SentencePiece `tokenizer.model` goes first where there is one, as in llama.cpp's converter,
    but not for Nemotron-H, whose tokenizer is always a byte-level BPE in tokenizer.json.

    Args:
        note: gets a sentence on what llama.cpp does otherwise.

    Raises:
        InputError: there is no tokenizer that is understood, or it does not fit the vocabulary.
    """
    rows = config_int(config, "vocab_size")
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")):
        if (path.name in _FILES or path.suffix == ".jinja") and path.is_file():
            check_size(path, MOST_JSON_BYTES)
            with path.open("rb") as file:
                refuse_stand_in(file.read(STAND_IN_BYTES), str(path))
    if (folder / "tokenizer.model").is_file() and config.get("model_type") != "nemotron_h":
        result, tokenizer = sentencepiece_metadata(folder, config, rows)
        result |= special_token_metadata(folder, config, tokenizer, rows)
    else:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise InputError(
                f"{folder} has no tokenizer.json, vocab.json or tokenizer.model; download it again"
            )
        tokenizer = load_tokenizer(folder, config)
        result = _bpe(tokenizer, rows)
        result |= special_token_metadata(folder, config, tokenizer, rows)
        # The one key that llama.cpp's converter lacks: a tokenizer that says nothing of BOS adds
        # none, but llama.cpp would for tekken, llama-bpe and "llama" where the key is absent.
        result.setdefault("tokenizer.ggml.add_bos_token", meta("bool", False))
    result |= harmless_eos(result)
    taking = [token.text for i, token in tokenizer.added.items() if token.takes_space and i < rows]
    if taking:
        note(
            f"the tokenizer has added tokens that take the white space beside them, or count as "
            f"whole words only (lstrip, rstrip, single_word): {', '.join(map(repr, taking[:5]))}"
            f"{' and more' if taking[5:] else ''}; llama.cpp cannot, and reads that space as text"
        )
    if config.get("model_type") in _LLAMAS:
        adds_space = tokenizer.options.get("add_prefix_space")
        if isinstance(adds_space, bool):
            # A tokenizer.json that says so itself has the last word.
            result.setdefault("tokenizer.ggml.add_space_prefix", meta("bool", adds_space))
        if rows == 49152:
            # SmolLM and Granite declare a BOS that they were not trained with; llama.cpp too.
            result["tokenizer.ggml.add_bos_token"] = meta("bool", False)
    return result


def _bpe(tokenizer: LoadedTokenizer, rows: int) -> Metadata:
    """A BPE, which works on bytes or on characters."""
    model = tokenizer.definition["model"]
    if model["type"] != "BPE":
        raise InputError(
            f"tokenizer.json holds a model of type {model['type']!r}, only BPE is converted; "
            "convert the model with llama.cpp and give the GGUF to --model"
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise InputError(
                f"tokenizer.json has {key} {model[key]!r}, which llama.cpp does not know; only "
                "plain BPE is converted"
            )
    if model.get("byte_fallback"):
        return byte_fallback_metadata(tokenizer, rows)
    return _byte_level(tokenizer, rows)


def _byte_level(tokenizer: LoadedTokenizer, rows: int) -> Metadata:
    """Tokens, types and merges of llama.cpp's model "gpt2", and the name of the pre-tokenizer.

    Ids without a token become `[PADi]` of type UNUSED, so there is a token for every row of the
    embedding. NFC, the normalizer of Qwen, is left out: llama.cpp has none, so text must come to
    it normalized, as nearly all text is.
    """
    match tokenizer.definition.get("normalizer"):
        case None | {"type": "NFC"} | {"type": "Sequence", "normalizers": [] | [{"type": "NFC"}]}:
            pass
        case normalizer:
            raise InputError(
                f"tokenizer.json changes text by {str(normalizer)[:300]} before it is encoded, "
                "and llama.cpp cannot; only tokenizers without a normalizer or with NFC are "
                "converted"
            )
    texts = texts_by_id(tokenizer, rows)
    tokens = [texts.get(token_id, f"[PAD{token_id}]") for token_id in range(rows)]
    types = [TokenType.NORMAL if i in texts else TokenType.UNUSED for i in range(rows)]
    for token_id, token in tokenizer.added.items():
        if token_id < rows:
            tokens[token_id], types[token_id] = converted(token)
    refuse_unreadable(tokens)
    merges = [_joined(pair) for pair in tokenizer.definition["model"]["merges"]]
    return {
        "tokenizer.ggml.model": meta("str", "gpt2"),
        "tokenizer.ggml.pre": meta("str", pre_tokenizer_name(tokenizer.definition)),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.token_type": meta("i32", types),
        "tokenizer.ggml.merges": meta("str", merges),
    }


def _joined(pair: Sequence[str]) -> str:
    joined = " ".join(pair)
    if joined.count(" ") == 1:
        return joined
    # A space inside a part would be taken for the separator: llama.cpp reads U+0120 for it.
    return " ".join(part.replace(" ", "\u0120") for part in pair)
