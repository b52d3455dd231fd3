"""Ten thousand lines are encoded alike by transformers and by llama.cpp with our vocabulary.

    QUANTKIT_TORCH_PYTHON=…/python pytest -m slow tests/models/families/test_round_trip.py

The Python needs transformers, tokenizers and sentencepiece. Every kind of tokenizer is trained on a
text of many scripts; then its files go the way of a checkpoint's: quantkit's metadata, a GGUF
without tensors, llama.cpp. Where llama.cpp itself is known to encode otherwise, `DEVIATIONS` says
why, and how many lines differ; each of them must be as the tokenizer would encode it with
llama.cpp's expression in place of its own, so nothing else hides among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import LLAMA, write_llama
from lines import lines
from oracle import TORCH_PYTHON, run_torch
from vocabularies import Encoder

from quantkit.models.checkpoint import open_checkpoint

EVERY = 10  # Which lines the oracle encodes with special tokens around, too.

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not TORCH_PYTHON,
        reason="set QUANTKIT_TORCH_PYTHON to a Python with transformers and sentencepiece",
    ),
]

NAMES = {
    "llama-3": "llama-bpe",
    "granite-4": "dbrx",
    "tekken": "tekken",
    "tekken-merging": "tekken",
    "qwen2": "qwen2",
    "qwen35": "qwen35",
    "seed-coder": "seed-coder",
    "minicpm5": "minicpm5",
    "gpt-4o": "gpt-4o",
    "gpt-2": "gpt-2",
    "smollm": "smollm",
    "sentencepiece": "default",
    "byte-fallback": "default",
    "byte-fallback-trained": "default",
}

LONG_S = "(?i:'s) matches the long s too, '[sS] does not"
LETTERS = "one class of letters for all cases, marks are none, and only a-z and A-Z have a case"
NO_NFC = "llama.cpp does not normalize; NFC changes these lines"
DEVIATIONS: dict[str, tuple[int, str]] = {
    "llama-3": (1, LONG_S),
    "tekken": (2076, LETTERS),
    "tekken-merging": (1995, LETTERS),
    "qwen2": (585, f"{NO_NFC}; {LONG_S}"),
    "gpt-4o": (2030, LETTERS),
}
# Lines with letters or marks of Unicode 16, which llama.cpp's tables lack: split otherwise.
NEWER_LINES = {
    "llama-3": 9,
    "granite-4": 9,
    "tekken": 10,
    "tekken-merging": 11,
    "qwen2": 11,
    "qwen35": 11,
    "seed-coder": 11,
    "minicpm5": 10,
    "gpt-4o": 9,
    "gpt-2": 11,
    "smollm": 11,
}
UNICODE_16 = re.compile(
    "[\u1c89\u1c8a\ua7cb-\ua7cd\ua7da-\ua7dc\U000105c0-\U000105f3\U00010d40-\U00010d8f"
    "\U00010ec2-\U00010efc\U00011380-\U000113e2\U000116d0-\U000116e3\U00011bc0-\U00011bf9"
    "\U00011f5a\U00013460-\U000143fa\U00016100-\U00016139\U00016d40-\U00016d79"
    "\U0001ccf0-\U0001ccf9\U0001e5d0-\U0001e5ff]"
)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return lines()


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "lines.json").write_text(json.dumps(texts), encoding="utf-8")
    run_torch("oracle_tokenizers.py", folder / "kinds", folder / "lines.json")
    return folder / "kinds"


@pytest.mark.parametrize("kind", NAMES)
def test_every_line_is_encoded_as_transformers_does(
    oracle: Path, texts: list[str], tmp_path: Path, kind: str
) -> None:
    wanted = json.loads((oracle / f"{kind}.json").read_text(encoding="utf-8"))
    encoder = _encoder(oracle / kind, tmp_path, kind)
    plain = [encoder.encode(text, False) for text in texts]
    added = [encoder.encode(text, True) for text in texts[::EVERY]]
    encoder.close()

    there = _differing(plain, wanted.get("there", wanted["plain"]))
    assert [ascii(texts[i]) for i in there if not UNICODE_16.search(texts[i])] == []
    differing = _differing(plain, wanted["plain"])
    by_definition, _why = DEVIATIONS.get(kind, (0, ""))
    found = len(there), len(set(differing) - set(there))
    assert found == (NEWER_LINES.get(kind, 0), by_definition)
    with_special = [i * EVERY for i in _differing(added, wanted["added"])]
    assert set(with_special) <= set(differing)


def _differing(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


def _encoder(tokenizer: Path, folder: Path, kind: str) -> Encoder:
    """A checkpoint with that tokenizer, and what quantkit makes of it, without the tensors."""
    stored: dict[str, Any] = {}
    if (tokenizer / "tokenizer.json").is_file():
        stored = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [*stored.get("model", {}).get("vocab", {}).values()]
    ids += [token["id"] for token in stored.get("added_tokens", [])]
    # Three rows more than tokens: embeddings are often padded.
    size = max(ids, default=5010) + 4
    checkpoint = write_llama(folder / "checkpoint", **LLAMA | {"vocab_size": size})
    (checkpoint / "tokenizer.json").unlink()
    for path in tokenizer.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    metadata = open_checkpoint(checkpoint).metadata
    assert metadata["tokenizer.ggml.pre"].value == NAMES[kind]
    return Encoder(metadata, folder)
