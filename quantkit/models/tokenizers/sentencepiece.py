"""A SentencePiece tokenizer.model as GGUF metadata: llama.cpp's model "llama"."""

from __future__ import annotations

from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import meta
from quantkit.models.tokenizers.sentencepiece_model import read_model
from quantkit.models.tokenizers.special_tokens import AddedToken, read_json
from quantkit.models.tokenizers.token_types import TokenType, converted, refuse_unreadable


def sentencepiece_metadata(folder: Path, vocabulary: int) -> Metadata:
    """Pieces, scores and types of tokenizer.model, then the added tokens.

    Raises:
        InputError: a file cannot be read, or the model is no BPE.
    """
    tokens = [f"[PAD{i}]" for i in range(vocabulary)]
    scores = [-10000.0] * vocabulary
    types: list[int] = [TokenType.UNUSED] * vocabulary
    model = read_model(folder / "tokenizer.model")
    for token_id, piece in enumerate(model.pieces[:vocabulary]):
        tokens[token_id], scores[token_id] = piece.text, piece.score
        # SentencePiece numbers its types like llama.cpp; user-defined pieces are found as normal.
        is_user_defined = piece.kind == TokenType.USER_DEFINED
        types[token_id] = TokenType.NORMAL if is_user_defined else piece.kind
    for token in _added_over_pieces(folder):
        token_id = token.token_id
        if not 0 <= token_id < vocabulary:
            continue  # llama.cpp's converter leaves these out too: no embedding row, no use.
        if token.special is None:
            tokens[token_id], types[token_id] = token.text, TokenType.USER_DEFINED
        else:
            tokens[token_id], types[token_id] = converted(token)
        scores[token_id] = -1000.0
    refuse_unreadable(tokens)
    result = {
        "tokenizer.ggml.model": meta("str", "llama"),
        "tokenizer.ggml.pre": meta("str", "default"),
        "tokenizer.ggml.tokens": meta("str", tokens),
        "tokenizer.ggml.scores": meta("f32", scores),
        "tokenizer.ggml.token_type": meta("i32", types),
    }
    if not model.adds_space:  # Absent, llama.cpp adds one.
        result["tokenizer.ggml.add_space_prefix"] = meta("bool", False)
    return result


def _added_over_pieces(folder: Path) -> list[AddedToken]:
    """Added tokens of both files that name them; the later entries win."""
    found = []
    for text, token_id in read_json(folder / "added_tokens.json", optional=True).items():
        if type(token_id) is not int:
            raise InputError(f"added_tokens.json: {text!r} has the id {token_id!r}")
        found.append(AddedToken(text, token_id, normalized=True))
    options = read_json(folder / "tokenizer_config.json", optional=True)
    for key, entry in (options.get("added_tokens_decoder") or {}).items():
        match entry:
            case {"content": str(text), **rest} if key.isdecimal():
                # Pieces are text already: there is nothing to decode.
                special = bool(rest.get("special"))
                found.append(AddedToken(text, int(key), special, normalized=True))
            case _:
                raise InputError(f"tokenizer_config.json: {key!r}: {entry!r} is no added token")
    return found
