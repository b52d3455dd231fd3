"""Tokenizers as GGUF metadata; equality with llama.cpp's converter is tested beside this."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    BYTE_LEVEL,
    CHATML,
    LLAMA,
    NEMOTRON,
    added_token,
    byte_level_tokenizer,
    write_tokenizer,
)

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.tokenizers.token_types import TokenType
from quantkit.models.tokenizers.vocabulary import tokenizer_metadata


def metadata_of(
    folder: Path,
    config: dict[str, Any] = NEMOTRON,
    tokenizer: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    write_tokenizer(folder)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    if options is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    return plain(tokenizer_metadata(folder, config))


def plain(metadata: Metadata) -> dict[str, Any]:
    return {k.removeprefix("tokenizer."): v.value for k, v in metadata.items()}


def test_byte_level_bpe(tmp_path: Path) -> None:
    found = metadata_of(tmp_path)
    assert found["ggml.model"] == "gpt2"
    assert found["ggml.pre"] == "tekken"
    tokens, types = found["ggml.tokens"], found["ggml.token_type"]
    assert len(tokens) == len(types) == 320
    assert tokens[:4] == ("<unk>", "<s>", "<|im_start|>", "<|im_end|>")
    assert types[:5] == (TokenType.CONTROL,) * 4 + (TokenType.NORMAL,)
    assert tokens[260:265] == ("th", "the", "\u0120the", "<think>", "[PAD264]")
    assert types[262:265] == (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    assert found["ggml.merges"] == ("t h", "th e", "\u0120 the")
    assert found["ggml.eos_token_id"] == 3
    assert "ggml.bos_token_id" not in found
    assert found["ggml.add_bos_token"] is False
    assert found["chat_template"] == CHATML


def test_merges_of_old_files_and_spaces_in_merges(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    # Of a repeated merge the last counts for the library, for llama.cpp the first.
    tokenizer["model"] |= {"merges": ["t h", "th e", "t h"], "ignore_merges": True}
    assert metadata_of(tmp_path, tokenizer=tokenizer)["ggml.merges"] == ("th e", "t h")
    tokenizer["model"]["vocab"] |= {"a b": 264, "a bc": 265}
    tokenizer["model"]["merges"] = [["t", "h"], ["a b", "c"]]
    assert metadata_of(tmp_path, tokenizer=tokenizer)["ggml.merges"] == ("t h", "a\u0120b c")


def test_added_tokens_become_what_they_stand_for(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(
        added_token(264, "\u0120said", special=False),  # A byte-level spelling of " said".
        added_token(265, "<|tool|>", special=False),  # Looks special, is not marked.
        added_token(266, "a\u2581b", special=False, normalized=True),  # SentencePiece's space.
        added_token(267, "\u00e9", special=False),  # No bytes of a text.
    )
    found = metadata_of(tmp_path, tokenizer=tokenizer)
    assert found["ggml.tokens"][264:267] == (" said", "<|tool|>", "a b")
    kinds = (TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.USER_DEFINED)
    assert found["ggml.token_type"][264:267] == kinds


def test_added_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    more = [added_token(264 + i, f"<|{i}|>") for i in range(60)]
    found = metadata_of(tmp_path, tokenizer=byte_level_tokenizer(*more))
    assert found["ggml.tokens"][-1] == "<|55|>"


def test_ids_come_from_the_tokenizer_then_from_the_configuration(tmp_path: Path) -> None:
    options = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": True}
    config = NEMOTRON | {"eos_token_id": 2, "pad_token_id": 0, "unk_token_id": None}
    found = metadata_of(tmp_path, config, options=options)
    assert found["ggml.bos_token_id"] == 1
    assert found["ggml.eos_token_id"] == 3
    assert found["ggml.padding_token_id"] == 0
    assert "ggml.unknown_token_id" not in found
    assert found["ggml.add_bos_token"] is True


def test_of_a_list_of_ids_the_first_counts_and_minus_one_is_none(tmp_path: Path) -> None:
    config = NEMOTRON | {"eos_token_id": [3, 2], "pad_token_id": -1}
    found = metadata_of(tmp_path, config, options={})
    assert found["ggml.eos_token_id"] == 3
    assert "ggml.padding_token_id" not in found


def _template(*items: str) -> list[dict[str, Any]]:
    return [{"Sequence" if i in "AB" else "SpecialToken": {"id": i, "type_id": 0}} for i in items]


def test_a_template_says_what_is_added(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": _template("<s>", "A"),
        "pair": _template("<s>", "A", "<s>", "B"),
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    options = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": False}
    found = metadata_of(tmp_path, tokenizer=tokenizer, options=options)
    assert found["ggml.add_bos_token"] is True  # The post-processor wins: it is what runs.
    assert found["ggml.add_sep_token"] is False


def test_what_a_template_puts_first_is_the_bos_though_no_file_names_one(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    template = {"type": "TemplateProcessing", "single": _template("<s>", "A")}
    template |= {"pair": _template("<s>", "A", "B")}
    template["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    for post in (template, {"type": "Sequence", "processors": [BYTE_LEVEL, template]}):
        tokenizer["post_processor"] = post
        found = metadata_of(tmp_path, tokenizer=tokenizer, options={"eos_token": "<|im_end|>"})
        assert (found["ggml.bos_token_id"], found["ggml.add_bos_token"]) == (1, True)


@pytest.mark.parametrize("way", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_take_space_are_told(tmp_path: Path, way: str) -> None:
    write_tokenizer(tmp_path)
    notes: list[str] = []
    for flag in (False, True):
        tokenizer = byte_level_tokenizer(added_token(264, "<|tool|>", **{way: flag}))
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        tokenizer_metadata(tmp_path, NEMOTRON, notes.append)
        assert len(notes) == flag
    assert "<|tool|>" in notes[0]


@pytest.mark.parametrize("content", ["", " \n", "Not found", "[1]"])
@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json", "special_tokens_map.json"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, name: str, content: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        tokenizer_metadata(tmp_path, NEMOTRON)


def test_several_chat_templates(tmp_path: Path) -> None:
    templates = [{"name": n, "template": f"{n}!"} for n in ("default", "tool use", "rag")]
    found = metadata_of(tmp_path, options={"chat_template": templates})
    assert found["chat_template"] == "default!"
    assert found["chat_template.tool_use"] == "tool use!"
    assert found["chat_templates"] == ("rag", "tool_use")


def test_the_chat_template_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from jinja", encoding="utf-8")
    assert metadata_of(tmp_path, options={})["chat_template"] == "from jinja"
    older = {"chat_template": "own"}  # The file wins, as in transformers.
    assert metadata_of(tmp_path, options=older)["chat_template"] == "from jinja"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert metadata_of(tmp_path, options={})["chat_template"] == "from json"


BPE_MODEL = byte_level_tokenizer()["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}}, "'Unigram'"),
        ({"normalizer": {"type": "Lowercase"}}, "changes text by .*Lowercase"),
        ({"model": BPE_MODEL | {"end_of_word_suffix": "</w>"}}, "suffix"),
        ({"model": BPE_MODEL | {"byte_fallback": True}}, "download tokenizer.model"),
        ({"added_tokens": [added_token(264, "[PAD264]"), added_token(263, "x")]}, "264 are both"),
        ({"added_tokens": [added_token(263, "a\0b")]}, "null character"),
        ({"model": {"type": "BPE", "vocab": {"a": 320}, "merges": []}}, "up to 320"),
        ({"model": BPE_MODEL | {"merges": [["a"]]}}, "transformers cannot read"),
        ({"model": BPE_MODEL | {"vocab": {"a": "0"}}}, "transformers cannot read"),
        ({"model": BPE_MODEL | {"vocab": {"a": -1}}}, "transformers cannot read"),
        ({"added_tokens": [{"id": 3}]}, "transformers cannot read"),
    ],
)
def test_a_tokenizer_that_is_not_understood_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        metadata_of(tmp_path, tokenizer=byte_level_tokenizer() | change)


def test_a_special_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bos token has id 320, but there are 320"):
        metadata_of(tmp_path, NEMOTRON | {"bos_token_id": 320})


BPE = b"\x12\x02\x18\x02"
UNIGRAM = b"\x12\x02\x18\x01"
NO_SPACE_BEFORE = b"\x1a\x02\x18\x00"


def of_pieces(
    folder: Path,
    *pieces: tuple[str, float, int],
    config: dict[str, Any] = LLAMA,
    options: bytes = BPE,
) -> dict[str, Any]:
    """Of a tokenizer.model with these (text, score, type), then how it was trained."""
    model = b""
    for text, score, kind in pieces or [("<unk>", 0, 2)]:
        raw = text.encode()
        piece = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", score)
        piece += b"\x18" + bytes([kind])
        model += b"\x0a" + bytes([len(piece)]) + piece
    (folder / "tokenizer.model").write_bytes(model + options)
    return plain(tokenizer_metadata(folder, config))


def test_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 6, "beyond": 99}')
    decoder = {"7": {"content": "<|im|>", "special": False}, "8": {"content": "\u2581x"}}
    options = {"added_tokens_decoder": decoder, "bos_token": "<s>", "add_bos_token": True}
    options["add_prefix_space"] = True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("<0x41>", 0, 6), ("\u2581a", -1.5, 1), ("<x>", 0, 4)]
    found = of_pieces(tmp_path, *pieces, config=LLAMA | {"vocab_size": 9, "bos_token_id": 1})
    assert found["ggml.model"] == "llama"
    tokens = ("<0x41>", "\u2581a", "<x>", "[PAD5]", "<extra>", "<|im|>", " x")
    assert found["ggml.tokens"][2:] == tokens
    assert found["ggml.token_type"] == (2, 3, 6, 1, 1, 5, 4, 3, 4)
    assert found["ggml.scores"] == (0, 0, 0, -1.5, 0, -10000, -1000, -1000, -1000)
    assert found["ggml.add_bos_token"] is True
    assert found["ggml.add_space_prefix"] is True
    assert "ggml.add_sep_token" not in found
    assert found["ggml.bos_token_id"] == 1


@pytest.mark.parametrize(
    ("options", "space"), [(BPE, None), (b"", None), (BPE + NO_SPACE_BEFORE, False)]
)
def test_a_sentencepiece_model_may_add_no_space(
    tmp_path: Path, options: bytes, space: bool | None
) -> None:
    assert of_pieces(tmp_path, options=options).get("ggml.add_space_prefix") == space


@pytest.mark.parametrize("options", [UNIGRAM, b"\x12\x02\x08\x05", b"\x12\x02\x18\x09"])
def test_a_sentencepiece_model_that_is_no_bpe_is_refused(tmp_path: Path, options: bytes) -> None:
    with pytest.raises(InputError, match="only BPE is converted"):
        of_pieces(tmp_path, options=options)


@pytest.mark.parametrize("content", [b"", b"\x0a", b"\x0a\x05abc", b"\xff" * 12, b"\x0b\x00"])
def test_a_broken_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        tokenizer_metadata(tmp_path, LLAMA)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", '{"<a>": "1"}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "a"}}'),
    ],
)
def test_broken_added_tokens_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        of_pieces(tmp_path)


def test_smollm_does_not_add_its_bos(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    options = {"bos_token": "<s>", "add_bos_token": True}
    found = metadata_of(tmp_path, LLAMA | {"vocab_size": 49152}, tokenizer, options)
    assert found["ggml.add_bos_token"] is False


LEGACY = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}
METASPACE = {
    "type": "Metaspace",
    "replacement": "\u2581",
    "prepend_scheme": "never",
    "split": False,
}


def _byte_fallback(
    *words: str, merges: tuple[tuple[str, str], ...] = (), **changes: object
) -> dict[str, Any]:
    """A tokenizer.json: unknown, BOS, the bytes, `words`, and one added token."""
    texts = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return {
        "added_tokens": [
            added_token(0, "<unk>"),
            added_token(1, "<s>"),
            added_token(len(texts), "<tool\u2581>", special=False),
        ],
        "normalizer": LEGACY,
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [list(pair) for pair in merges],
        },
    } | changes


ABC = ("a", "b", "c", "ab", "abc", "bc", "xyz")
"""`xyz` is never made: no merges lead to it, and no two neighbours spell it."""
ABC_MERGES = (("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"))


def test_byte_fallback_bpe(tmp_path: Path) -> None:
    tokenizer = _byte_fallback(*ABC, merges=ABC_MERGES)
    found = metadata_of(tmp_path, LLAMA, tokenizer, {"add_prefix_space": False})
    assert (found["ggml.model"], found["ggml.pre"]) == ("llama", "default")
    assert "ggml.merges" not in found
    assert found["ggml.tokens"][258:266] == (*ABC, "<tool\u2581>")
    # Of the two merges that make "abc" the one counts that "abc" alone comes to.
    assert found["ggml.scores"][258:265] == (-4, -4, -4, -1, -2, 0, -4)
    types = found["ggml.token_type"]
    assert types[:3] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
    assert types[264:267] == (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    assert found["ggml.add_space_prefix"] is True  # The definition wins over the option.
    assert found["ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": None, "pre_tokenizer": METASPACE},
        {"normalizer": LEGACY["normalizers"][1]},
        {"normalizer": {"type": "Sequence", "normalizers": LEGACY["normalizers"][1:]}},
    ],
)
def test_byte_fallback_bpe_without_a_space_before(tmp_path: Path, change: dict[str, Any]) -> None:
    tokenizer = _byte_fallback("a", **change)
    assert metadata_of(tmp_path, LLAMA, tokenizer)["ggml.add_space_prefix"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": METASPACE}, "prepares text by"),
        ({"normalizer": None}, "prepares text by None and None"),
        *(
            ({"normalizer": None, "pre_tokenizer": METASPACE | other}, "a space before every text")
            for other in (
                {"prepend_scheme": "first"},
                {"prepend_scheme": "always"},
                {"split": True},
            )
        ),
        ({"added_tokens": [added_token(259, "a b", normalized=True)]}, "normalized text"),
        ({"added_tokens": [added_token(259, "ab", rstrip=True)]}, "white space beside it"),
    ],
)
def test_byte_fallback_bpe_that_prepares_text_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        metadata_of(tmp_path, LLAMA, _byte_fallback("a") | change)


def test_byte_fallback_bpe_whose_merges_scores_cannot_say_is_refused(tmp_path: Path) -> None:
    tokenizer = _byte_fallback(*ABC, merges=ABC_MERGES[:2])
    with pytest.raises(InputError, match="'abc', but no merge of 'a' and 'bc'"):
        metadata_of(tmp_path, LLAMA, tokenizer)
    tokenizer = _byte_fallback("a", "b", "ab", "a<0x62>", "xyz")
    tokenizer["model"]["ignore_merges"] = True
    tokenizer["model"]["merges"] = [["a", "<0x62>"]]
    with pytest.raises(InputError, match="merges byte tokens"):
        metadata_of(tmp_path, LLAMA, tokenizer)
    tokenizer["model"]["merges"] = [["a", "b"]]
    with pytest.raises(InputError, match="no merges lead to"):
        metadata_of(tmp_path, LLAMA, tokenizer)
    del tokenizer["model"]["vocab"]["<0x7F>"]
    with pytest.raises(InputError, match="lacks the byte tokens <0x7F>"):
        metadata_of(tmp_path, LLAMA, tokenizer)
