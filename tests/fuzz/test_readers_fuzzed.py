"""Each reader under some hundred inputs, the same each time; `make fuzz` gives them a million.

What was a fault once is in FOUND: a target; what of its first seed is replaced, the first of it
or its end, or None for all; and what by.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from fuzz_inputs import SPARSE, drawn, mutated
from fuzz_target import outcome
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, Phase, given, settings

HOLE = SPARSE + struct.pack("<Q", 1 << 41)
FOUND = [
    ("imatrix", struct.pack("<4f", 3, 0, 1, 9), struct.pack("<4f", 3, 0, 1e-40, 9)),
    ("legacy imatrix", struct.pack("<f", 10), struct.pack("<f", 1e38)),
    ("receipt: checkpoint", b'"parameters": 1000', b'"parameters": false'),
    ("published receipt: checkpoint", b'"parameters": 1000', b'"parameters": 0'),
    ("kept headers: record", b'"shards": {', b'"shards": {"a": "1", '),
    ("tokenizer.json", b'"vocab": {"<unk>": 0', b'"vocab": {"<unk>": 4000000000'),
    ("vocab.json", b"{", b'{"one more": 4000000000, '),
    ("rows of a dataset", None, b'{"messages": [{"role": "user", "tool_calls": 1}]}'),
    ("sensitivity.json", b'"tensors": [\n    "blk.0.attn_q.weight"\n   ]', b'"tensors": []'),
    ("recipe", None, b"name: a\nlevels: [{name: Q8, pin: {'[[a]': Q8_0}}]\n"),
    *((name, b"", HOLE) for name in (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "tokenizer.model", "niah.jsonl", "kept result of a check", "journal",
        "receipt: imatrix", "state of a work folder", "result of the self-test", "saved state",
        "kept headers: record", "record of compiled kernels", "listing of a dataset",
        "download record", "rows of a dataset",
    )),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: readers of unfinished work wait for the disk."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as place:
        yield Path(place)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_a_fault(name: str, folder: Path) -> None:
    target = TARGETS[name](folder)
    for data in target.seeds:
        assert outcome(target, data).kind == "read", outcome(target, data)

    def check(data: bytes) -> None:
        found = outcome(target, data)
        assert not found.is_fault, found.text

    rng = Random(1)
    for _ in range(15 if target.slow else 150):
        check(mutated(target.form, rng.choice(target.seeds), rng))
    some = settings(
        max_examples=5 if target.slow else 25, derandomize=True, database=None, deadline=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    some(given(drawn(target.form, target.seeds))(check))()


@pytest.mark.parametrize(
    ("name", "old", "new"), FOUND, ids=[f"{n}-{name}" for n, (name, *_) in enumerate(FOUND)]
)
def test_what_was_a_fault(name: str, old: bytes | None, new: bytes, folder: Path) -> None:
    target = TARGETS[name](folder)
    seed = target.seeds[0]
    assert not old or old in seed
    data = new if old is None else seed.replace(old, new, 1) if old else seed + new
    found = outcome(target, data)
    assert not found.is_fault, found.text
