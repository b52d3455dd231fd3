"""Levels share what they have in common, as long as receipts vouch for it: a model's, too."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from quantkit.build.context import IMATRIX, BuildContext, Done, Job, Stage
from quantkit.build.stages import checkpoint_stage, quantize_stage
from quantkit.config.recipe import LevelRecipe, Recipe
from quantkit.config.target import load_target
from quantkit.core.console import Console
from quantkit.core.files import file_sha256, write_json
from quantkit.core.progress import Progress
from quantkit.core.receipts import adopt_receipt
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, write_imatrix
from quantkit.models.choose import choose_model, open_source
from quantkit.plan.level_plans import LevelPlan
from quantkit.quantize.candidates import is_quantizable
from quantkit.study.imatrix import import_imatrix

SOURCE = open_source(choose_model("demo"))
WEIGHTS = [info for info in SOURCE.tensors if is_quantizable(info)]


def imatrix_file(path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    entries = {
        info.name: ImatrixEntry(
            random.uniform(0.1, 9.0, (info.matrices, info.row_elements)).astype(np.float32),
            np.ones(info.matrices, np.float32),
        )
        for info in WEIGHTS
    }
    write_imatrix(path, Imatrix(entries, 512, 7, ("some.txt",)))
    return path


def mixture(*kinds: str) -> dict[str, str]:
    """These types in turn, and what is no weight as it is."""
    types = {info.name: info.type_name for info in SOURCE.tensors}
    return types | {info.name: kinds[i % len(kinds)] for i, info in enumerate(WEIGHTS)}


class Build:
    """A build whose levels' types are given, up to their artifacts.

    Args:
        home: the model's folder, where that is another than `out`.
    """

    def __init__(
        self, out: Path, imatrix: Path, model: str = "demo", home: Path | None = None
    ) -> None:
        recipe = Recipe(name="r", levels=tuple(LevelRecipe(name=name) for name in ("A", "B", "C")))
        target = load_target("4x3090")
        job = Job(choose_model(model), recipe, home or out, 2, imatrix, out=out, target=target)
        self.context = BuildContext(job, Console())
        self.plans = {plan.recipe.name: plan for plan in self.context.levels[0]}
        self.context.studying.run(checkpoint_stage(self.context))
        adopt_receipt(job.study, job.out, "checkpoint")

        def take(work: Path, progress: Progress) -> Done:
            import_imatrix(imatrix, SOURCE.tensors, out / IMATRIX)
            return Done((out / IMATRIX,), "", {})

        settings = {"sha256": file_sha256(imatrix)}
        self.context.pipeline.run(Stage("imatrix", 1, ("checkpoint",), settings, False, take))

    def artifact(self, level: str, types: Mapping[str, str]) -> Path:
        """Quantize a level, unless it is there."""
        plan: LevelPlan = self.plans[level]
        out = self.context.folder(plan) / "allocation.json"

        def allocate(work: Path, progress: Progress) -> Done:
            write_json(out, {"tensors": {name: {"type": kind} for name, kind in types.items()}})
            return Done((out,), "", {})

        pipeline = self.context.pipeline
        pipeline.run(Stage(f"allocate:{level}", 1, (), dict(types), False, allocate))
        pipeline.run(quantize_stage(self.context, plan))
        return self.context.artifact_path(plan)


@pytest.fixture
def imatrix(tmp_path: Path) -> Path:
    return imatrix_file(tmp_path / "one.gguf", seed=1)


FIRST, SECOND = mixture("Q8_0", "Q5_0", "Q4_0"), mixture("Q8_0", "Q4_1", "Q4_0")
IN_BOTH = sum(FIRST[info.name] == SECOND[info.name] for info in WEIGHTS)


def copied(said: str) -> int:
    """How many tensors the last quantization copied."""
    found = re.findall(r"(\d+) of \d+ tensors to encode", said)
    return int(found[-1]) if found else 0


def test_a_level_copies_what_another_has_and_is_the_same(
    imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Build(tmp_path / "alone", imatrix).artifact("B", SECOND)
    assert copied(capsys.readouterr().out) == 0
    build = Build(tmp_path / "shared", imatrix)
    build.artifact("A", FIRST)
    assert copied(capsys.readouterr().out) == 0
    shared = build.artifact("B", SECOND)
    assert 0 < copied(capsys.readouterr().out) == IN_BOTH < len(WEIGHTS)
    assert file_sha256(shared) == file_sha256(alone)

    # with other types again it takes from both, from its own last file too
    third = mixture("Q8_0", "Q4_1", "Q5_0")
    again = build.artifact("B", third)
    both = sum(third[i.name] in (FIRST[i.name], SECOND[i.name]) for i in WEIGHTS)
    assert copied(capsys.readouterr().out) == both > IN_BOTH
    assert file_sha256(again) == file_sha256(Build(tmp_path / "new", imatrix).artifact("B", third))


def test_a_target_copies_what_another_target_of_the_model_has(
    imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Build(tmp_path / "alone", imatrix).artifact("A", SECOND)
    home = tmp_path / "model"
    first = Build(home / "small", imatrix, home=home).artifact("A", FIRST)
    capsys.readouterr()
    second = Build(home / "large", imatrix, home=home).artifact("A", SECOND)
    assert copied(capsys.readouterr().out) == IN_BOTH
    assert file_sha256(second) == file_sha256(alone)
    assert not second.samefile(first)
    # what is built elsewhere belongs to the model too, but not what another matrix gave
    elsewhere = Build(tmp_path / "other disk", imatrix, home=home).artifact("B", SECOND)
    assert copied(capsys.readouterr().out) == len(WEIGHTS)
    assert file_sha256(elsewhere) == file_sha256(
        Build(tmp_path / "b", imatrix).artifact("B", SECOND)
    )
    capsys.readouterr()
    Build(home / "third", imatrix_file(tmp_path / "two.gguf", 2), home=home).artifact("A", FIRST)
    assert copied(capsys.readouterr().out) == 0


def test_nothing_is_copied_from_what_another_importance_matrix_gave(
    imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Build(tmp_path / "out", imatrix).artifact("A", FIRST)
    other = imatrix_file(tmp_path / "two.gguf", seed=2)
    found = Build(tmp_path / "out", other).artifact("B", SECOND)
    assert copied(capsys.readouterr().out) == 0
    expected = Build(tmp_path / "alone", other).artifact("B", SECOND)
    assert file_sha256(found) == file_sha256(expected)


def test_nothing_is_copied_from_a_file_that_its_receipt_does_not_describe(
    imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = Build(tmp_path / "alone", imatrix).artifact("B", SECOND)
    build = Build(tmp_path / "out", imatrix)
    first = build.artifact("A", FIRST)
    raw = bytearray(first.read_bytes())
    raw[-100_000:] = os.urandom(100_000)
    first.write_bytes(raw)
    capsys.readouterr()
    assert file_sha256(build.artifact("B", SECOND)) == file_sha256(expected)
    assert copied(capsys.readouterr().out) == 0
    first.unlink()
    assert file_sha256(build.artifact("C", SECOND)) == file_sha256(expected)
    assert copied(capsys.readouterr().out) == len(WEIGHTS)  # all from B
