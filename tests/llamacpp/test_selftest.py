"""The self-test chooses what works: a machine whose fast kernels crash is a probe that crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.child import NativeCrash
from quantkit.llamacpp.selftest import SelfTest, run_selftest, working_settings

Answer = NDArray[np.float32] | Exception
LOGITS = np.linspace(-1, 1, 16, dtype=np.float32)


def probe_of(plain: Answer, fast: Answer) -> Callable[[Path, bool], NDArray[np.float32]]:
    def probe(model: Path, use_extra_buffers: bool) -> NDArray[np.float32]:
        assert model.stat().st_size > 100_000
        answer = fast if use_extra_buffers else plain
        if isinstance(answer, Exception):
            raise answer
        return answer

    return probe


CRASH = NativeCrash("ended by SIGILL")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [(CRASH, "SIGILL"), (LOGITS * 2, "differ"), (LOGITS * np.float32("nan"), "differ")],
)
def test_a_crash_or_wrong_numbers_choose_the_plain_kernels(wrong: Answer, word: str) -> None:
    found = run_selftest(probe_of(LOGITS, wrong))
    assert not found.use_extra_buffers
    assert word in found.finding
    assert run_selftest(probe_of(LOGITS, LOGITS)).use_extra_buffers


def test_a_machine_that_runs_nothing_is_named() -> None:
    with pytest.raises(EnvironmentFault, match="SIGILL"):
        run_selftest(probe_of(CRASH, CRASH))


def test_this_machine_and_its_cache(tmp_path: Path) -> None:
    first = working_settings(tmp_path)
    (cached,) = tmp_path.glob("selftest-*.json")
    cached.write_text('{"use_extra_buffers": false, "finding": "kept"}')
    assert working_settings(tmp_path) == SelfTest(False, "kept")
    for damaged in ("{broken", "[]", '{"use_extra_buffers": "no", "finding": "kept"}'):
        cached.write_text(damaged)
        assert working_settings(tmp_path) == first
