"""Builds of one model for several targets: they share its checkpoint and its study."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from finished_builds import copied
from forked import printed, quantkit, refused
from loopback_hub import hub
from small_recipes import write_recipe
from test_build import environment

from quantkit.core.files import file_sha256
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.work_folders import build_folder
from quantkit.study.sensitivity import Sensitivity

STUDY = ("checkpoint.json", "imatrix.gguf", "sensitivity.json", "base.logits")
STAGES = ("checkpoint", "imatrix", "measure", "logits")
MEASURE = {"candidates": ["Q8_0", "Q4_0", "Q2_K"], "sample_rows": 16, "cost_tokens": 0}
SMALL, LARGE = "1x3090", "4x3090"


def run(
    folder: Path, target: str, recipe: Path, *more: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A build of the repository in the current folder `folder`, on which the hub may be gone."""
    words = ("--model", "someone/small", "--target", target, "--recipe", recipe)
    done = quantkit("build", *words, *more, env=env, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one level, and without costs: what it measures takes seconds."""
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "tiny.yaml",
        measure=MEASURE,
        levels=[{"name": "Q4", "bits_per_weight": 4.6}],
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A current folder in which the model was built for two targets."""
    folder = tmp_path_factory.mktemp("two")
    with hub({"someone/small": DEMO_MODEL}) as served:
        env = environment(served, folder.parent, recipe.parent)
        run(folder, LARGE, recipe, env=env)
        home = folder / "build" / "small"
        before = {name: (home / "study" / name).stat() for name in STUDY}
        served.served.clear()
        second = run(folder, SMALL, recipe, env=env).stdout
        assert served.names() == []
    assert {name: (home / "study" / name).stat().st_mtime_ns for name in STUDY} == {
        name: stat.st_mtime_ns for name, stat in before.items()
    }
    for stage in STAGES:
        assert f"· {stage}" in second
    for stage in ("quantize:Q4", "validate:Q4"):
        assert f"✓ {stage}" in second
    ((taken, of),) = re.findall(r"(\d+) of (\d+) tensors to enc", second)
    assert 0 < int(taken) <= int(of)
    return folder


def test_what_two_targets_leave(built: Path) -> None:
    home = built / "build" / "small"
    assert sorted(path.name for path in home.iterdir()) == [SMALL, LARGE, "checkpoint", "study"]
    for target in (SMALL, LARGE):
        for name in STUDY:
            assert (home / target / name).samefile(home / "study" / name)
        printed("verify", home / target, "--source", home / "checkpoint")
    placed = [
        json.loads((home / t / "levels/Q4/placement.json").read_text()) for t in (SMALL, LARGE)
    ]
    assert [len(one["placement"]["gpus"]) for one in placed] == [1, 4]


def test_a_study_is_named_by_its_folder_or_the_models(built: Path, recipe: Path) -> None:
    home = built / "build" / "small"
    for study in (home, home / "study", Path("build/small/study")):
        told = run(built, SMALL, recipe, "--study", study, "--json")
        assert (built / json.loads(told.stdout)["folder"]).samefile(home / SMALL)
    assert sorted(path.name for path in home.iterdir()) == [SMALL, LARGE, "checkpoint", "study"]


def test_a_build_elsewhere_of_a_study(built: Path, recipe: Path, tmp_path: Path) -> None:
    home, out = built / "build" / "small", tmp_path / "study"  # a name like any other
    said = run(built, LARGE, recipe, "--study", home / "study", "--out", out).stdout
    for stage in STAGES:
        assert f"· {stage}" in said
    for name in STUDY:
        assert file_sha256(out / name) == file_sha256(home / "study" / name)
    assert not (out / "study").exists()
    assert not (out / "checkpoint").exists()
    artifact = "levels/Q4/small-Q4.gguf"
    assert file_sha256(out / artifact) == file_sha256(home / LARGE / artifact)


def test_another_study_leaves_the_other_target_as_it_is(
    built: Path, recipe: Path, tmp_path: Path
) -> None:
    copied(built, tmp_path / "own")
    home = tmp_path / "own" / "build" / "small"
    before = (home / LARGE / "sensitivity.json").read_bytes()
    other = write_recipe(
        tmp_path / "r.yaml",
        measure=MEASURE | {"candidates": ["Q8_0", "Q4_0"]},
        levels=[{"name": "Q4", "bits_per_weight": 4.8}],
    )
    said = run(tmp_path / "own", SMALL, other).stdout
    assert "measure runs again" in said
    for stage in ("checkpoint", "imatrix", "logits"):
        assert f"· {stage}" in said
    for folder in (home / "study", home / SMALL):
        errors = Sensitivity.read(folder / "sensitivity.json").errors
        assert {kind for kinds in errors.values() for kind in kinds} == {"Q8_0", "Q4_0"}
    assert (home / LARGE / "sensitivity.json").read_bytes() == before
    printed("verify", home / LARGE)
    # run again it is measured by its own recipe, and comes out the same
    said = run(tmp_path / "own", LARGE, recipe).stdout
    assert "measure runs again" in said
    for stage in ("allocate:Q4", "quantize:Q4", "validate:Q4", "report"):
        assert f"· {stage}" in said
    assert (home / LARGE / "sensitivity.json").read_bytes() == before


def test_a_study_is_made_by_one_run_at_a_time(built: Path, recipe: Path) -> None:
    study = built / "build" / "small" / "study"
    with build_folder(study):
        said = refused(
            "build", "--model", "someone/small", "--target", SMALL, "--recipe", recipe, "--quiet",
            cwd=built,
        )  # fmt: skip
        assert "build/small/study" in said
        assert "--study" in said
