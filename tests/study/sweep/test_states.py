"""Hidden states in files: exact, or as differences in F16."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.study.sweep.states import HiddenStates

TEXTS, ROWS, WIDTH = 3, 10, 24


def drawn(seed: int, rows: int = ROWS) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH), np.float32)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path, "text", TEXTS, ROWS, WIDTH, differences=False)
    whole = {text: drawn(text) for text in range(TEXTS)}
    for text in (2, 0, 1):
        states.write(5, text, 0, whole[text][:4])
        states.write(5, text, 4, whole[text][4:])
    for text, expected in whole.items():
        assert np.array_equal(states.read(5, text, 0, ROWS), expected)
        assert np.array_equal(states.read(5, text, 3, 7), expected[3:7])
    # texts lie one after the other
    assert np.array_equal(states.read(5, 0, ROWS - 1, ROWS + 2)[1:], whole[1][:2])
    states.close()


@pytest.mark.parametrize("differences", [False, True])
def test_files_take_turns_and_have_the_announced_size(tmp_path: Path, differences: bool) -> None:
    states = HiddenStates(tmp_path, "text", TEXTS, ROWS, WIDTH, differences=differences)
    other = np.zeros((ROWS, WIDTH), np.float32)
    first, second, third = drawn(1), drawn(2), drawn(3)
    for text in range(TEXTS):
        states.write(1, text, 0, first, other)
        states.write(2, text, 0, second, other)
    before = states.read(1, 0, 0, ROWS, other)
    states.write(3, 0, 0, third, other)  # in the place of those before window 1
    assert not np.array_equal(states.read(3, 0, 0, ROWS, other), before)
    assert np.array_equal(states.read(1, 0, 0, ROWS, other), states.read(3, 0, 0, ROWS, other))
    assert np.allclose(states.read(2, 0, 0, ROWS, other), second, atol=1e-2)
    for window in (2, 3):
        states.sync(window)
    assert [path.name for path in states.paths] == ["text.0", "text.1"]
    assert sum(path.stat().st_size for path in states.paths) == states.size_bytes
    states.close()


def test_they_are_found_again(tmp_path: Path) -> None:
    first = HiddenStates(tmp_path, "text", TEXTS, ROWS, WIDTH, differences=False)
    first.write(4, 2, 0, drawn(4))
    first.sync(4)
    first.close()
    again = HiddenStates(tmp_path, "text", TEXTS, ROWS, WIDTH, differences=False)
    assert np.array_equal(again.read(4, 2, 0, ROWS), drawn(4))
    again.close()


def test_a_difference_is_off_by_at_most_half_a_step_of_f16(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path, "branch", 1, ROWS, WIDTH, differences=True)
    other = drawn(1) * np.float32(100)
    # of rows from far below what F16 alone could hold to far above
    change = drawn(2) * np.logspace(-9, 6, ROWS, dtype=np.float32)[:, None]
    change[3] = 0
    base = np.zeros_like(other)
    states.write(0, 0, 0, change, base)
    found = states.read(0, 0, 0, ROWS, base)
    largest = np.abs(change).max(axis=1, keepdims=True)
    assert (np.abs(found - change) <= largest * 2.0**-11 * 1.01).all()
    assert not found[3].any()
    assert np.abs(found - change).any()  # it is F16
    # without a change the others come back to the bit
    states.write(1, 0, 0, other, other)
    assert np.array_equal(states.read(1, 0, 0, ROWS, other), other)
    states.close()


def test_what_was_never_written_is_no_state(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path, "text", TEXTS, ROWS, WIDTH, differences=False)
    states.write(0, 0, 0, drawn(1))
    with pytest.raises(OSError, match=r"text\.0"):
        states.read(0, 1, 0, ROWS)
    with pytest.raises(OSError, match=r"text\.1"):
        states.read(1, 0, 0, 1)
    states.close()


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    os.symlink(tmp_path / "elsewhere", tmp_path / "text.0")
    states = HiddenStates(tmp_path, "text", TEXTS, ROWS, WIDTH, differences=False)
    with pytest.raises(OSError, match=r"text\.0"):
        states.write(0, 0, 0, drawn(1))
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"
