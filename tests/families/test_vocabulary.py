"""Tokenizers as GGUF metadata; equality with llama.cpp's converter is tested beside this."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CHATML, LLAMA, NEMOTRON, byte_level_tokenizer, write_tokenizer

from quantkit.errors import InputError
from quantkit.families.pre_tokenizers import GPT4O, LLAMA3, QWEN2, TEKKEN, pre_tokenizer_name
from quantkit.families.vocabulary import TokenType, tokenizer_metadata


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
    found = tokenizer_metadata(folder, config)
    return {k.removeprefix("tokenizer."): v.value for k, v in found.items()}


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
    tokenizer["model"]["merges"] = ["t h", ["th", "e"], ["a b", "c"]]
    assert metadata_of(tmp_path, tokenizer=tokenizer)["ggml.merges"] == (
        "t h",
        "th e",
        "a\u0120b c",
    )


def test_added_tokens_become_what_they_stand_for(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    extra = (
        ("\u0120said", False, True),  # A byte-level spelling of " said".
        ("<|tool|>", False, True),  # Looks special, is not marked.
        ("a\u2581b", True, False),  # SentencePiece's space.
    )
    for i, (content, normalized, _) in enumerate(extra):
        token = {"id": 270 + i, "content": content, "normalized": normalized, "special": False}
        tokenizer["added_tokens"].append(token)
    found = metadata_of(tmp_path, tokenizer=tokenizer)
    assert found["ggml.tokens"][270:273] == (" said", "<|tool|>", "a b")
    kinds = (TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.USER_DEFINED)
    assert found["ggml.token_type"][270:273] == kinds


def test_ids_come_from_the_tokenizer_then_from_the_configuration(tmp_path: Path) -> None:
    options = {"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "add_bos_token": True}
    config = NEMOTRON | {"eos_token_id": 2, "pad_token_id": 0, "unk_token_id": None}
    found = metadata_of(tmp_path, config, options=options)
    assert found["ggml.bos_token_id"] == 1
    assert found["ggml.eos_token_id"] == 3
    assert found["ggml.padding_token_id"] == 0
    assert "ggml.unknown_token_id" not in found
    assert found["ggml.add_bos_token"] is True


def _template(*items: str) -> list[dict[str, Any]]:
    return [
        {"Sequence": {"id": i, "type_id": 0}} if i in "AB" else {"SpecialToken": {"id": i}}
        for i in items
    ]


def test_a_template_says_what_is_added(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": _template("<s>", "A"),
        "pair": _template("<s>", "A", "<s>", "B"),
    }
    options = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": False}
    found = metadata_of(tmp_path, tokenizer=tokenizer, options=options)
    assert found["ggml.add_bos_token"] is True  # The post-processor wins: it is what runs.
    assert found["ggml.add_sep_token"] is False


def test_several_chat_templates(tmp_path: Path) -> None:
    templates = [{"name": n, "template": f"{n}!"} for n in ("default", "tool use", "rag")]
    found = metadata_of(tmp_path, options={"chat_template": templates})
    assert found["chat_template"] == "default!"
    assert found["chat_template.tool_use"] == "tool use!"
    assert found["chat_templates"] == ("rag", "tool_use")


def test_the_chat_template_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from jinja", encoding="utf-8")
    assert metadata_of(tmp_path, options={})["chat_template"] == "from jinja"
    assert metadata_of(tmp_path, options={"chat_template": "own"})["chat_template"] == "own"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert metadata_of(tmp_path, options={})["chat_template"] == "from json"


def _pre(*steps: dict[str, Any], **model: object) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}, "model": model}


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (_pre(_split(TEKKEN), BYTES), "tekken"),
        (_pre(_split(LLAMA3), BYTES, ignore_merges=True), "llama-bpe"),
        (_pre(_split(LLAMA3, "Removed", True), BYTES), "pixtral"),
        (_pre(_split(QWEN2), BYTES), "qwen2"),
        (_pre(_split(GPT4O), BYTES), "gpt-4o"),
        (_pre(DIGITS, GPT2), "smollm"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "gpt-2"),
    ],
)
def test_splitting_is_found_by_its_definition(tokenizer: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(tokenizer) == name


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"pre_tokenizer": {"type": "Metaspace"}},
        _pre(_split(TEKKEN + "|x"), BYTES),
        _pre(_split(TEKKEN, "MergedWithNext"), BYTES),
        _pre(_split(TEKKEN), BYTES | {"add_prefix_space": True}),
        _pre(_split(TEKKEN)),
    ],
)
def test_unknown_splitting_is_refused_with_its_definition(tokenizer: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"splits text by .* known are .*tekken"):
        pre_tokenizer_name(tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "model of type 'Unigram'"),
        (
            {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"a": 0}, "merges": []}},
            "download tokenizer.model",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 320}, "merges": []}}, "up to 320"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}, "is no merge"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "is no number"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "do not belong together"),
        ({"added_tokens": [{"id": 3}]}, "is no token"),
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


def _sentencepiece(*pieces: tuple[str, float, int]) -> bytes:
    """A tokenizer.model with these (text, score, type), then a field that is not a piece."""
    model = b""
    for text, score, kind in pieces:
        raw = text.encode()
        piece = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", score)
        piece += b"\x18" + bytes([kind])
        model += b"\x0a" + bytes([len(piece)]) + piece
    return model + b"\x12\x02\x08\x05"


def test_sentencepiece(tmp_path: Path) -> None:
    pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("<0x41>", 0, 6), ("\u2581a", -1.5, 1), ("<x>", 0, 4)]
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece(*pieces))
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 6, "beyond": 99}')
    decoder = {"7": {"content": "<|im|>", "special": False}, "8": {"content": "\u2581x"}}
    options = {"added_tokens_decoder": decoder, "bos_token": "<s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(options | {"add_prefix_space": True})
    )
    found = tokenizer_metadata(tmp_path, LLAMA | {"vocab_size": 9, "bos_token_id": 1})
    values = {k.removeprefix("tokenizer.ggml."): v.value for k, v in found.items()}
    assert values["model"] == "llama"
    assert values["tokens"][2:] == ("<0x41>", "\u2581a", "<x>", "[PAD5]", "<extra>", "<|im|>", " x")
    assert values["token_type"] == (2, 3, 6, 1, 1, 5, 4, 3, 4)
    assert values["scores"] == (0, 0, 0, -1.5, 0, -10000, -1000, -1000, -1000)
    assert values["add_bos_token"] is True
    assert values["add_space_prefix"] is True
    assert values["bos_token_id"] == 1


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
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece(("<unk>", 0, 2)))
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        tokenizer_metadata(tmp_path, LLAMA)


def test_smollm_does_not_add_its_bos(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    options = {"bos_token": "<s>", "add_bos_token": True}
    found = metadata_of(tmp_path, LLAMA | {"vocab_size": 49152}, tokenizer, options)
    assert found["ggml.add_bos_token"] is False
