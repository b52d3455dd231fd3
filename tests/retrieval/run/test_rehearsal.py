"""The check on each kind of memory, and its rehearsal at full length, in which nothing is computed.

The models are random: their answers do not matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from memory_kinds import KINDS, WINDOWED, write_kind
from models import CPU
from small_haystack import small_haystack

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import SILENT
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.settings import ContextSettings
from quantkit.llamacpp.uncomputed import Uncomputed
from quantkit.retrieval.results import Retrieval
from quantkit.retrieval.run import check, check_child, check_memory, rehearsal
from quantkit.retrieval.run.check import CheckSettings, check_retrieval, rehearse_check

SETTINGS = CheckSettings(CPU, "f16", 256)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(task: str, arguments: dict[str, Any], on_message: Emit) -> Any:  # noqa: ANN401
        module, name = task.split(":")
        found = {one.__name__: one for one in (check_child, rehearsal)}[module]
        return getattr(found, name)(**arguments, emit=on_message)

    monkeypatch.setattr(check, "run_isolated", called)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write_kind(folder / f"{kind}.gguf", kind)
    return folder


def recipe(*lengths: int, **changes: Any) -> RetrievalRecipe:  # noqa: ANN401 - of every type
    content = {
        "context_tokens": lengths, "needles": 4, "answer_tokens": 8, "forks": 4,
        "probes": {"near-miss": 1, "absent": 1}, "minimum_lower_bound": None,
    }  # fmt: skip
    return RetrievalRecipe.model_validate(content | changes)


def checked(model: Path, folder: Path, asked: RetrievalRecipe) -> Retrieval:
    out = folder / "niah.jsonl"
    return check_retrieval(model, asked, SETTINGS, out, folder, small_haystack(), SILENT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_works_on_every_kind_of_memory(models: Path, kind: str, tmp_path: Path) -> None:
    found = checked(models / f"{kind}.gguf", tmp_path, recipe(512, 1024))
    assert found.forked
    assert found.fork_difference == 0.0
    assert [rung.fork_difference for rung in found.rungs] == [0.0, 0.0]
    for use in found.memory:
        assert use.context_bytes == use.planned_context_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_rehearsal_goes_to_the_full_length_of_a_check(
    models: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Uncomputed.prefill

    def prefill(self: Uncomputed, tokens: Any, start: int, sequence: int = 0) -> None:  # noqa: ANN401
        seen.append(start + len(tokens))
        real(self, tokens, start, sequence)

    monkeypatch.setattr(Uncomputed, "prefill", prefill)
    rehearse_check(models / f"{kind}.gguf", recipe(2048, 8192), SETTINGS, small_haystack())
    assert 8192 - 200 < max(seen) < 8192


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_cache_without_room_for_forks_is_found_by_the_rehearsal(
    models: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContextSettings, "forks", False)
    with pytest.raises(EnvironmentFault):
        rehearse_check(models / f"{kind}.gguf", recipe(2048), SETTINGS, small_haystack())


def test_too_little_memory_and_too_short_a_context_are_found_by_the_rehearsal(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models / "mixed.gguf"
    with pytest.raises(InputError):
        rehearse_check(model, recipe(384, needles=60), SETTINGS, small_haystack())
    monkeypatch.setattr(check_memory, "free_memory", lambda: {"CPU": 1 << 20})
    with pytest.raises(EnvironmentFault):
        rehearse_check(model, recipe(2048), SETTINGS, small_haystack())


def test_without_memory_for_forks_a_window_is_checked_without(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = models / "mixed.gguf", recipe(3072, needles=2, probes={})
    least = 0
    for whole in (True, False):  # with the window's own cache it takes less
        folder = tmp_path / str(whole)
        folder.mkdir()
        found = checked(model, folder, asked)
        assert found.forked is whole
        (use,) = found.memory
        taken = use.context_bytes + use.compute_bytes
        assert whole or (taken < least and found.fork_difference is None)
        least = taken
        monkeypatch.setattr(check_memory, "free_memory", lambda: {"CPU": 5 << 20})
