"""`quantkit study`, builds for several targets on one study, and `quantize --study`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from forked import facts, printed, refused
from small_recipes import write_recipe

from quantkit.core.paths import DEMO_MODEL
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.sensitivity import Sensitivity

TINY: dict[str, Any] = {"levels": [{"name": "Q4", "bits_per_weight": 4.6}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's study in `demo`, and its recipe."""
    folder = tmp_path_factory.mktemp("home")
    recipe = write_recipe(folder / "tiny.yaml", **TINY)
    printed("study", "demo", "--recipe", recipe, "--out", folder / "demo", "--quiet")
    return folder


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def test_a_study_is_described(home: Path) -> None:
    before = stamps(home / "demo")
    told = facts("study", home / "demo", "--show")
    assert told == facts("study", home / "demo" / "study", "--show")
    found = Sensitivity.read(home / "demo" / "study" / "sensitivity.json")
    assert told["errors"]["tensors"] == len(found.errors)
    assert told["costs"]["units"] == len(found.costs) > 0
    assert (told["imatrix"]["tokens"], told["costs"]["tokens"]) == (256, 32)
    assert told["logits"]["positions"] == 63
    assert set(told["files"]) == {"imatrix.gguf", "sensitivity.json", "base.logits"}
    shown = printed("study", home / "demo", "--show")
    assert found.dearest()[0][0] in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[1:])
    assert stamps(home / "demo") == before


def test_running_again_changes_nothing(home: Path) -> None:
    before = stamps(home / "demo" / "study")
    printed("study", "demo", "--recipe", home / "tiny.yaml", "--out", home / "demo")
    assert stamps(home / "demo" / "study") == before


def test_there_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "empty" / "study").mkdir(parents=True)
    assert "no finished study" in refused("study", tmp_path / "empty", "--show")
    assert "no/such" in refused("study", "no/such/place", "--show")


def test_targets_share_a_study_and_finished_tensors(home: Path, tmp_path: Path) -> None:
    shared = tmp_path / "demo"
    shutil.copytree(home / "demo", shared)
    before = stamps(shared / "study")
    for target in ("1x3090", "2x3090"):
        words = ("build", "--model", "demo", "--target", target, "--recipe", home / "tiny.yaml")
        shown = printed(*words, "--study", shared)
        build = shared / target
        for name in ("imatrix.gguf", "sensitivity.json", "base.logits", "checkpoint.json"):
            assert (build / name).samefile(shared / "study" / name)
        made = [path.read_bytes() for path in sorted(build.glob("levels/*/*.gguf"))]
        assert len(made) == 1
    assert stamps(shared / "study") == before
    assert "copied from finished files" in shown  # of the other target
    files = [next(shared.glob(f"{t}/levels/Q4/*.gguf")) for t in ("1x3090", "2x3090")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_changed_part_alone_is_measured_again(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "demo"
    shutil.copytree(home / "demo", own)
    before = stamps(own / "study")
    recipe = write_recipe(
        tmp_path / "more.yaml", **TINY, divergence={"chunks": 2, "chunk_tokens": 128}
    )
    printed("study", "demo", "--recipe", recipe, "--out", own)
    after = stamps(own / "study")
    for name in ("imatrix.gguf", "sensitivity.json", "receipts/imatrix.json"):
        assert after[name] == before[name]
    assert after["base.logits"] != before["base.logits"]
    assert facts("study", own, "--show")["logits"]["positions"] == 126


@pytest.mark.parametrize(("amount", "bits"), [("4.5", 4.5), ("3MiB", None)])
def test_one_artifact_of_a_size(
    home: Path, tmp_path: Path, amount: str, bits: float | None
) -> None:
    out = tmp_path / "x.gguf"
    made = facts("quantize", "demo", amount, "--study", home / "demo", "--out", out)
    limit = 3 << 20 if bits is None else bits * 6.74e6 / 8
    assert 0.9 * limit < made["size_bytes"] <= limit
    assert made["predicted_kld"] > 0
    assert GGUFSource(out).metadata["quantize.imatrix.file"].value == "imatrix.gguf"


def test_a_study_brings_its_importance_to_a_preset(home: Path, tmp_path: Path) -> None:
    study = home / "demo" / "study"
    words = ("quantize", "--model", "demo", "--types", "Q4_K_M", "--out")
    printed(*words, tmp_path / "a" / "x.gguf", "--study", study)
    printed(*words, tmp_path / "b" / "x.gguf", "--imatrix", study / "imatrix.gguf")
    assert (tmp_path / "a" / "x.gguf").read_bytes() == (tmp_path / "b" / "x.gguf").read_bytes()


def test_what_is_refused(home: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.gguf")
    assert "--study" in refused("quantize", "demo", "4.5", *out)
    assert "TYPES" in refused("quantize", "demo", *out)
    assert "twice" in refused("quantize", "demo", "4.5", "--model", "demo", *out)
    other = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, other)
    with (other / "README.md").open("a") as file:
        file.write("more")
    told = refused("quantize", other, "4.5", "--study", home / "demo", *out)
    assert "README.md" in told
    assert not (tmp_path / "x.gguf").exists()


def test_a_study_on_another_disk_is_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.core.receipts import adopt_receipt, read_receipt

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    study, build = home / "demo" / "study", tmp_path / "build"
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refuse)
        adopted = adopt_receipt(study, build, "imatrix")
    assert adopted == read_receipt(build, "imatrix")
    copy = build / "imatrix.gguf"
    assert not copy.samefile(study / "imatrix.gguf")
    assert copy.read_bytes() == (study / "imatrix.gguf").read_bytes()
    again = copy.stat().st_mtime_ns
    adopt_receipt(study, build, "imatrix")
    assert copy.stat().st_mtime_ns == again
    copy.write_bytes(b"damaged")
    adopt_receipt(study, build, "imatrix")
    assert copy.read_bytes() == (study / "imatrix.gguf").read_bytes()
    assert adopt_receipt(study, build, "no such stage") is None
