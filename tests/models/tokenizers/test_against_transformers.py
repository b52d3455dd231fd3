"""State that is spread over several files: llama.cpp encodes as AutoTokenizer does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CHATML, LLAMA, added_token, byte_level_tokenizer, write_llama
from vocabularies import Encoder

from quantkit.models.checkpoint import open_checkpoint

TOOL = {"content": "<|tool|>", "special": True}
VOCAB = byte_level_tokenizer()["model"]["vocab"]
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "bos_token": "<s>"}

# Kind: the files beside config.json and tokenizer.json, which None leaves out.
SPREAD: dict[str, dict[str, Any]] = {
    "only tokenizer.json": {
        "tokenizer.json": byte_level_tokenizer(added_token(264, "<|tool|>")),
    },
    "added_tokens_decoder": {"tokenizer_config.json": {"added_tokens_decoder": {"264": TOOL}}},
    "added_tokens.json": {"added_tokens.json": {"<|tool|>": 264}},
    "special_tokens_map.json": {
        "special_tokens_map.json": {"additional_special_tokens": ["<|tool|>", "the"]},
    },
    "a named token that is not in added_tokens": {"tokenizer_config.json": {"pad_token": "the"}},
    "special tokens in the vocabulary alone": {
        "tokenizer.json": byte_level_tokenizer() | {"added_tokens": []},
        "tokenizer_config.json": {"bos_token": "<s>"},
    },
    "a file that renames a token of another": {
        "tokenizer.json": byte_level_tokenizer(added_token(264, "<|reserved|>")),
        "tokenizer_config.json": {"added_tokens_decoder": {"264": TOOL}},
    },
    "special tokens as objects": {
        "special_tokens_map.json": {"bos_token": TOOL | {"content": "<s>"}, "pad_token": "<new>"},
    },
    "a token without a row": {
        "tokenizer.json": byte_level_tokenizer(
            *(added_token(264 + i, f"<{i}>") for i in range(60))
        ),
        "tokenizer_config.json": {"bos_token": "<58>", "add_bos_token": True},
    },
    "extra tokens": {"tokenizer_config.json": {"extra_special_tokens": ["<|tool|>"]}},
    "a newer chat_template.jinja": {"chat_template.jinja": "{{ messages }}"},
    "vocab.json and merges.txt": {
        "tokenizer.json": None,
        "vocab.json": VOCAB,
        "merges.txt": "#version: 0.2\nt h\nth e\n\u0120 the\n",
        "tokenizer_config.json": GPT2 | {"added_tokens_decoder": {"263": TOOL}},
    },
}


@pytest.mark.parametrize("kind", SPREAD)
def test_tokens_and_template_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = write_llama(tmp_path / "m")
    options = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    files = {"tokenizer_config.json": {}} | SPREAD[kind]
    files["tokenizer_config.json"] = options | files["tokenizer_config.json"]
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8")
    theirs = _auto_tokenizer(folder)
    metadata = open_checkpoint(folder).metadata
    values = {key.removeprefix("tokenizer."): value.value for key, value in metadata.items()}
    tokens = values["ggml.tokens"]
    assert isinstance(tokens, tuple)
    with_row = {text: i for text, i in theirs["added"].items() if i < LLAMA["vocab_size"]}
    assert {text: tokens.index(text) for text in with_row} == with_row
    assert values["chat_template"] == theirs["template"]
    for name in ("bos", "eos", "padding"):
        if theirs[name] is not None and theirs[name] < LLAMA["vocab_size"]:
            assert values[f"ggml.{name}_token_id"] == theirs[name]
    encoder = Encoder(metadata, tmp_path)
    for add_special in (False, True):  # no tokenizer here puts anything before a text
        assert encoder.encode(theirs["text"], add_special) == theirs["ids"]
    encoder.close()


def _auto_tokenizer(folder: Path) -> dict[str, Any]:
    """What AutoTokenizer says, in a process of its own: it warns of a missing torch."""
    code = """if True:
        import json, sys
        from transformers import AutoTokenizer
        t = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
        added = t.get_added_vocab()
        text = "the ".join(["a", *(x for x, i in added.items() if i < 320), "b"])
        ids = t.encode(text, add_special_tokens=False)
        names = {"bos": t.bos_token_id, "eos": t.eos_token_id, "padding": t.pad_token_id}
        print(json.dumps(names | dict(added=added, text=text, ids=ids, template=t.chat_template)))
    """
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nothing_of_transformers_is_printed(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", pad_token_id=-1, rope_scaling={"type": "nonsense"})
    code = "import sys, pathlib; from quantkit.models.checkpoint import open_checkpoint; "
    code += "from quantkit.core.errors import InputError\n"
    code += "try: open_checkpoint(pathlib.Path(sys.argv[1]))\nexcept InputError: pass"
    for scaling in ({"type": "nonsense"}, None):
        config = LLAMA | {"pad_token_id": -1, "rope_scaling": scaling}
        (folder / "config.json").write_text(json.dumps(config))
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")
