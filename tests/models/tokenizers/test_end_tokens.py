"""Generation ends in llama.cpp at every token at which it ends in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from checkpoints import CHATML, LLAMA, added_token, byte_level_tokenizer, write_tokenizer
from vocabularies import Encoder

from quantkit.formats.tensors import Metadata
from quantkit.models.end_tokens import (
    ENDS_BY_TEXT,
    end_ids,
    stop_texts,
    unread_stop_texts,
)
from quantkit.models.tokenizers.vocabulary import tokenizer_metadata

IM_START, IM_END, TOOL, LAST, FOURTH = 2, 3, 264, 265, 266
TOKENIZER = byte_level_tokenizer(*(added_token(i, f"<|t{i}|>") for i in (TOOL, LAST, FOURTH)))


def _metadata(
    folder: Path, config: object = None, generation: object = None, **options: object
) -> Metadata:
    write_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML} | options))
    if generation is not None:
        content = json.dumps({"eos_token_id": generation})
        (folder / "generation_config.json").write_text(content)
    return tokenizer_metadata(folder, LLAMA | {"eos_token_id": config})


def _ends(metadata: Metadata, folder: Path) -> set[int]:
    """The ids at which llama.cpp ends."""
    from quantkit.models.families.base import with_prefix

    encoder = Encoder(with_prefix("llama", {"vocab_size": 320}) | metadata, folder)
    vocab = encoder.vocab
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    found = {i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocab, i)}
    encoder.close()
    return found


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"config": [IM_END, IM_START]}, {IM_END, IM_START}),
        ({"config": [IM_START, IM_END]}, {IM_END, IM_START}),
        ({"config": [TOOL, IM_START, LAST]}, {TOOL, IM_START, LAST, IM_END}),
        ({"config": [IM_START], "eos_token": "<|im_end|>"}, {IM_START, IM_END}),
        ({"generation": [IM_END, TOOL]}, {IM_END, TOOL}),
        ({"config": IM_END, "generation": [IM_END, TOOL]}, {IM_END, TOOL}),
        ({"config": IM_START, "generation": TOOL, "eos_token": "<|im_end|>"}, {IM_END, TOOL}),
        ({"config": [IM_END, -1, 9999, None, True]}, {IM_END}),
        ({"config": [-1, TOOL]}, {IM_END, TOOL}),
        ({"config": [9999, TOOL]}, {IM_END, TOOL}),
        ({"config": 9999, "generation": LAST}, {IM_END, LAST}),
        ({"config": -1, "generation": LAST}, {IM_END, LAST}),
        ({"config": [], "eos_token": "<|im_end|>"}, {IM_END}),
    ],
)
def test_llama_cpp_ends_at_every_id(tmp_path: Path, given: dict[str, Any], ends: set[int]) -> None:
    metadata = _metadata(tmp_path, **given)
    assert _ends(metadata, tmp_path) == ends
    assert unread_stop_texts(metadata) == ()


def test_without_an_eos_no_ordinary_token_ends_a_text(tmp_path: Path) -> None:
    assert _ends(_metadata(tmp_path), tmp_path) == {IM_END}


def test_stops_are_those_of_a_model_with_several(tmp_path: Path) -> None:
    several = _metadata(tmp_path, [IM_END, IM_START, TOOL])
    assert end_ids(several) == (IM_END, IM_START, TOOL)
    assert stop_texts(several) == ("<|im_end|>", "<|im_start|>", "<|t264|>")
    assert stop_texts(_metadata(tmp_path, IM_END)) == ()


def test_llama_cpp_reads_three_and_the_rest_is_told(tmp_path: Path) -> None:
    metadata = _metadata(tmp_path, [TOOL, IM_START, IM_END, LAST, FOURTH])
    assert end_ids(metadata) == (TOOL, IM_START, LAST, IM_END, FOURTH)
    assert unread_stop_texts(metadata) == ("<|t266|>",)
    assert FOURTH not in _ends(metadata, tmp_path)


def test_a_file_with_one_eos_is_as_before(tmp_path: Path) -> None:
    keys = {key for key in _metadata(tmp_path, IM_END) if key.endswith(("_id", "_ids"))}
    assert keys == {"tokenizer.ggml.eos_token_id"}


def test_llama_cpp_ends_at_these_texts_by_itself(tmp_path: Path) -> None:
    """But some beside others; so each has a vocabulary of its own."""
    for text in sorted(ENDS_BY_TEXT - {"<|im_end|>"}):
        tokenizer = byte_level_tokenizer(added_token(TOOL, text))
        write_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        metadata = tokenizer_metadata(tmp_path, LLAMA)
        assert _ends(metadata, tmp_path) == {IM_END, TOOL}, text
