"""Steps that one run does together: those that are stale, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.build.context import Done, Pipeline, Step
from quantkit.core.console import Console
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import Progress
from quantkit.core.receipts import read_receipt

FIRST = Step("first", 1, (), {"value": 1}, False)
SECOND = Step("second", 1, ("first",), {"value": 2}, False)
THIRD = Step("third", 1, (), {"value": 3}, False)
STEPS = (FIRST, SECOND, THIRD)


def with_value(step: Step, value: int) -> Step:
    return replace(step, settings={"value": value})


class Folder:
    """A folder in which steps write their values; how often each run was told what to do.

    Attributes:
        during: called in a run, once its work folder has a finished unit.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.runs = path, list[list[str]]()
        self.during: Callable[[], None] = lambda: None
        self.resumed = list[bool]()
        self.pipeline = Pipeline(path, Console(quiet=True), self._check_source)
        self.source_is_whole = True

    def run(self, *steps: Step) -> None:
        values = {step.name: step.settings["value"] for step in steps}

        def work(folder: Path, progress: Progress, names: Sequence[str]) -> Mapping[str, Done]:
            self.runs.append(list(names))
            self.resumed.append((folder / "unit").exists())
            (folder / "unit").touch()
            self.during()
            return {name: self._done(name, values[name]) for name in names}

        self.pipeline.run_together("all", steps, work)

    @property
    def work(self) -> Path:
        return self.path / ".work" / "all"

    def _done(self, name: str, value: Any) -> Done:  # noqa: ANN401
        out = self.path / name
        out.write_text(str(value))
        return Done((out,), f"value {value}", {"value": value})

    def _check_source(self) -> None:
        if not self.source_is_whole:
            raise InputError("the source was changed")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.run(*STEPS)
    assert made.runs.pop() == ["first", "second", "third"]
    return made


def test_what_holds_is_not_done_again(folder: Folder) -> None:
    folder.run(*STEPS)
    assert folder.runs == []
    receipt = read_receipt(folder.path, "second")
    assert receipt is not None
    assert receipt.facts == {"value": 2, "detail": "value 2"}
    assert receipt.parts["first"] == folder.pipeline.receipt("first").output_hashes
    assert not folder.work.exists()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ((FIRST, SECOND, with_value(THIRD, 9)), ["third"]),
        ((FIRST, with_value(SECOND, 9), THIRD), ["second"]),
        ((with_value(FIRST, 9), SECOND, THIRD), ["first", "second"]),
        ((replace(FIRST, version=2), SECOND, with_value(THIRD, 9)), ["first", "second", "third"]),
        ((FIRST, SECOND), []),
        ((*STEPS, Step("fourth", 1, ("second",), {"value": 4}, False)), ["fourth"]),
    ],
)
def test_a_change_does_what_depends_on_it(
    folder: Folder, changed: tuple[Step, ...], expected: list[str]
) -> None:
    before = {step.name: (folder.path / step.name).stat() for step in STEPS}
    folder.run(*changed)
    assert folder.runs == ([expected] if expected else [])
    for name in before.keys() - set(expected):
        assert (folder.path / name).stat() == before[name]
    folder.run(*changed)
    assert len(folder.runs) == bool(expected)


def test_a_lost_output_is_made_again_with_what_was_made_from_it(folder: Folder) -> None:
    (folder.path / "second").unlink()
    folder.run(*STEPS)
    (folder.path / "first").write_text("x")
    folder.run(*STEPS)
    assert folder.runs == [["second"], ["first", "second"]]


def test_an_interrupted_run_is_resumed_if_it_is_for_the_same(folder: Folder) -> None:
    def fail() -> None:
        raise EnvironmentFault("no memory")

    folder.during = fail
    changed = (with_value(FIRST, 9), SECOND, THIRD)
    folder.resumed.clear()
    for steps in (changed, changed, (with_value(FIRST, 8), SECOND, THIRD)):
        with pytest.raises(EnvironmentFault, match="memory"):
            folder.run(*steps)
    folder.during = lambda: None
    folder.run(with_value(FIRST, 8), SECOND, with_value(THIRD, 9))  # third is stale, too
    assert folder.resumed == [False, True, False, False]
    assert folder.pipeline.receipt("third").facts["value"] == 9


@pytest.mark.parametrize("fails", [True, False])
def test_what_was_made_from_two_models_is_not_kept(folder: Folder, fails: bool) -> None:
    before = folder.pipeline.receipt("first")

    def change() -> None:
        folder.source_is_whole = False
        if fails:  # as what is read while it changes may be refused for other reasons
            raise EnvironmentFault("activations are NaN")

    folder.during = change
    with pytest.raises(InputError, match="source"):
        folder.run(with_value(FIRST, 9), SECOND, THIRD)
    assert folder.pipeline.receipt("first") == before
    assert not folder.work.exists()
    with pytest.raises(InputError, match="source"):  # before anything is done
        folder.run(with_value(FIRST, 9), SECOND, THIRD)
    assert len(folder.runs) == 1
