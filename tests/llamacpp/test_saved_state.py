"""A saved prefix: exact when it comes back, and refused for anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from demo_artifacts import write_demo
from models import CPU

from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.saved_state import SavedState
from quantkit.llamacpp.settings import ContextSettings

TOKENS = np.random.default_rng(4).integers(5, 2048, 400, dtype=np.int32)
TAIL = TOKENS[:11]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    path = write_demo(tmp_path_factory.mktemp("state") / "demo.gguf", "Q8_0")
    model = Model(path, CPU)
    settings = ContextSettings(1024, batch_tokens=256, ubatch_tokens=256, sequences=3)
    context = Context(model, settings)
    yield context
    context.close()
    model.close()


def saved(folder: Path, purpose: str = "this", seconds: float = 0) -> SavedState:
    return SavedState(folder, purpose, seconds, pytest.fail)


def behind(context: Context, position: int) -> np.ndarray:
    context.fork(0, 1)
    logits = context.decode(TAIL, position, sequence=1)
    context.drop(1)
    return logits


def filled(context: Context, size: int) -> None:
    context.clear()
    context.prefill(TOKENS[:size], 0)


def test_it_comes_back_to_the_bit_and_goes_on(context: Context, tmp_path: Path) -> None:
    filled(context, 300)
    here = behind(context, 300)
    saved(tmp_path).save(context, TOKENS[:300], {"seconds": 1.5})
    context.prefill(TOKENS[300:], 300)
    there = behind(context, 400)
    context.clear()
    assert saved(tmp_path).load(context, TOKENS) == (300, {"seconds": 1.5})
    assert np.array_equal(behind(context, 300), here)
    context.prefill(TOKENS[300:], 300)
    assert np.array_equal(behind(context, 400), there)


def test_what_is_of_something_else_is_not_taken(context: Context, tmp_path: Path) -> None:
    filled(context, 300)
    saved(tmp_path).save(context, TOKENS[:300], {})
    context.clear()
    other = TOKENS.copy()
    other[17] += 1
    assert saved(tmp_path, "another model").load(context, TOKENS) == (0, {})
    assert saved(tmp_path).load(context, other) == (0, {})
    assert saved(tmp_path).load(context, TOKENS[:299]) == (0, {})
    # and the context is empty afterwards, as if nothing had been read
    fresh = context.decode(TAIL, 0)
    context.clear()
    assert saved(tmp_path).load(context, other) == (0, {})
    assert np.array_equal(context.decode(TAIL, 0), fresh)
    context.clear()
    state = tmp_path / "state.bin"
    whole = state.read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], b"", b"\0" * len(whole)):
        state.write_bytes(broken)
        assert saved(tmp_path).load(context, TOKENS) == (0, {})
    state.write_bytes(whole)
    about = json.loads((tmp_path / "state.json").read_text())
    damaged = [
        {"facts": []}, {"tokens": "300"}, {"tokens": -1}, {"tokens": 3e2}, {"bytes": None},
        {"key": 1}, {"more": 1},
    ]  # fmt: skip
    for text in ("{", "[]", *(json.dumps(about | change) for change in damaged)):
        (tmp_path / "state.json").write_text(text)
        assert saved(tmp_path).load(context, TOKENS) == (0, {})
        assert saved(tmp_path).position(400) == 0
    (tmp_path / "state.json").write_text(json.dumps(about))
    assert saved(tmp_path).load(context, TOKENS)[0] == 300
    context.clear()
    assert SavedState(tmp_path / "none", "this", 0, pytest.fail).load(context, TOKENS) == (0, {})


def test_it_is_saved_when_it_is_time_and_replaces_the_last(
    context: Context, tmp_path: Path
) -> None:
    filled(context, 200)
    rarely = saved(tmp_path, seconds=3600)
    rarely.save(context, TOKENS[:200], {})
    assert list(tmp_path.iterdir()) == []
    often = saved(tmp_path)
    often.save(context, TOKENS[:200], {})
    context.prefill(TOKENS[200:300], 200)
    often.save(context, TOKENS[:300], {})
    context.clear()
    assert saved(tmp_path).load(context, TOKENS)[0] == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.bin", "state.json"]


def test_no_room_costs_the_resumption_and_not_the_run(context: Context, tmp_path: Path) -> None:
    filled(context, 100)
    notes: list[str] = []
    state = SavedState(tmp_path / "missing folder", "this", 0, notes.append)
    state.save(context, TOKENS[:100], {})
    state.save(context, TOKENS[:100], {})
    assert len(notes) == 1
