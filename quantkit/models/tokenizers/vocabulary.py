"""A checkpoint's tokenizer as GGUF metadata, read from its files without transformers or torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, config_int, meta
from quantkit.models.tokenizers.byte_fallback_bpe import byte_fallback_metadata
from quantkit.models.tokenizers.byte_level_bpe import byte_level_metadata
from quantkit.models.tokenizers.sentencepiece import sentencepiece_metadata
from quantkit.models.tokenizers.special_tokens import read_json, special_token_metadata

# llama.cpp's converter writes two more keys for Llama and Mistral than for any other family.
_LLAMAS = ("llama", "mistral")


def tokenizer_metadata(folder: Path, config: Config) -> Metadata:
    """All `tokenizer.*` metadata of the checkpoint in `folder`.

    A SentencePiece `tokenizer.model` goes first where there is one, as in llama.cpp's converter,
    but not for Nemotron-H, whose tokenizer is always a byte-level BPE in tokenizer.json.

    Raises:
        InputError: there is no tokenizer that is understood, or it does not fit the vocabulary.
    """
    vocabulary = config_int(config, "vocab_size")
    is_nemotron = config.get("model_type") == "nemotron_h"
    has_pieces = (folder / "tokenizer.model").is_file() and not is_nemotron
    tokenizer = read_json(folder / "tokenizer.json", optional=has_pieces)
    if has_pieces:
        result = sentencepiece_metadata(folder, vocabulary)
        result |= special_token_metadata(folder, config, tokenizer, vocabulary)
    else:
        result = _bpe(tokenizer, vocabulary)
        result |= special_token_metadata(folder, config, tokenizer, vocabulary)
        # The one key that llama.cpp's converter lacks: a tokenizer that says nothing of BOS adds
        # none, but llama.cpp would for tekken, llama-bpe and "llama" where the key is absent.
        result.setdefault("tokenizer.ggml.add_bos_token", meta("bool", False))
    if config.get("model_type") in _LLAMAS:
        options = read_json(folder / "tokenizer_config.json", optional=True)
        if isinstance(options.get("add_prefix_space"), bool):
            # A tokenizer.json that says so itself has the last word.
            result.setdefault(
                "tokenizer.ggml.add_space_prefix", meta("bool", options["add_prefix_space"])
            )
        if vocabulary == 49152:
            # SmolLM and Granite declare a BOS that they were not trained with; llama.cpp too.
            result["tokenizer.ggml.add_bos_token"] = meta("bool", False)
    return result


def _bpe(tokenizer: Mapping[str, Any], vocabulary: int) -> Metadata:
    """The BPE in a tokenizer.json, which works on bytes or on characters."""
    match tokenizer.get("model"):
        case {"type": "BPE", "vocab": dict(), "merges": list(), **model}:
            if model.get("byte_fallback"):
                return byte_fallback_metadata(tokenizer, vocabulary)
            return byte_level_metadata(tokenizer, vocabulary)
        case other:
            kind = other.get("type") if isinstance(other, dict) else None
            raise InputError(
                f"tokenizer.json holds a model of type {kind!r}, only BPE is converted; "
                "convert the model with llama.cpp and give the GGUF to --model"
            )
