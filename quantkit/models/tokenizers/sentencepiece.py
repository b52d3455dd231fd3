"""A SentencePiece tokenizer.model as GGUF metadata: llama.cpp's model "llama"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, meta
from quantkit.models.json_files import read_json
from quantkit.models.tokenizers.sentencepiece_model import read_model
from quantkit.models.tokenizers.token_types import TokenType, converted, refuse_unreadable
from quantkit.models.transformers_reader import AddedToken, LoadedTokenizer, load_tokenizer


def sentencepiece_metadata(
    folder: Path, config: Config, rows: int
) -> tuple[Metadata, LoadedTokenizer]:
    """Pieces, scores and types of tokenizer.model, then the added tokens; and the tokenizer.

    Scores and types are those of llama.cpp's converter. What it does not know of, tokens that are
    special by other files than its own two, becomes a control token.

    Raises:
        InputError: a file cannot be read, or the model is no BPE.
    """
    tokens = [f"[PAD{i}]" for i in range(rows)]
    scores = [-10000.0] * rows
    types: list[int] = [TokenType.UNUSED] * rows
    model = read_model(folder / "tokenizer.model")
    for token_id, piece in enumerate(model.pieces[:rows]):
        tokens[token_id], scores[token_id] = piece.text, piece.score
        # SentencePiece numbers its types like llama.cpp; user-defined pieces are found as normal.
        is_user_defined = piece.kind == TokenType.USER_DEFINED
        types[token_id] = TokenType.NORMAL if is_user_defined else piece.kind
    ids = {piece.text: token_id for token_id, piece in enumerate(model.pieces)}
    listed = dict(_listed(folder))
    ids |= {token.text: token_id for token_id, token in listed.items()}
    tokenizer = load_tokenizer(folder, config, ids)
    special = {
        token_id: token
        for token_id, token in tokenizer.added.items()
        if token_id not in listed
        and token_id < rows
        and token.special
        and types[token_id] in (TokenType.NORMAL, TokenType.UNUSED)
    }
    for token_id, token in (listed | special).items():
        if 0 <= token_id < rows:  # llama.cpp's converter leaves the others out: they have no row
            plain = token.special is None
            text, kind = (token.text, TokenType.USER_DEFINED) if plain else converted(token)
            tokens[token_id], types[token_id], scores[token_id] = text, kind, -1000.0
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
    return result, tokenizer


def _listed(folder: Path) -> Iterator[tuple[int, AddedToken]]:
    """The added tokens of the two files that llama.cpp's converter reads; later entries win."""
    for text, token_id in read_json(folder / "added_tokens.json", optional=True).items():
        if type(token_id) is not int or not 0 <= token_id < 1 << 31:
            raise InputError(f"added_tokens.json: {text!r} has the id {token_id!r}")
        yield token_id, AddedToken(text, text, normalized=True)
    options = read_json(folder / "tokenizer_config.json", optional=True)
    for key, entry in (options.get("added_tokens_decoder") or {}).items():
        match entry:
            case {"content": str(text), **rest} if key.isdecimal() and len(key) < 10:
                yield int(key), AddedToken(text, text, bool(rest.get("special")), normalized=True)
            case _:
                raise InputError(f"tokenizer_config.json: {key!r}: {entry!r} is no added token")
