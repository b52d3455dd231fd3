"""The model's files change while a build reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_sharing import FIRST, Build, imatrix_file

from quantkit.build import quantize as alone
from quantkit.build.context import Done, Stage
from quantkit.cli.quantize import convert
from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.progress import Progress
from quantkit.core.receipts import read_receipt
from quantkit.quantize import quantize as conversion


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    return tmp_path / "model"


def weights_of(model: Path) -> Path:
    return next(model.glob("*.safetensors"))


def edited(model: Path) -> None:
    with weights_of(model).open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))


def longer(model: Path) -> None:
    with weights_of(model).open("ab") as file:
        file.write(bytes(8))


def removed(model: Path) -> None:
    weights_of(model).unlink()


@pytest.mark.parametrize("change", [edited, longer, removed])
def test_weights_changed_before_quantizing(
    model: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    build = Build(tmp_path / "out", imatrix_file(tmp_path / "one.gguf", seed=1), str(model))
    name = weights_of(model).name
    change(model)
    with pytest.raises(InputError, match=name):
        build.artifact("A", FIRST)
    assert read_receipt(tmp_path / "out", "quantize:A") is None
    assert not list((tmp_path / "out").rglob("*-A.gguf"))


def test_weights_changed_in_a_stage_leave_neither_receipt_nor_units(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build = Build(out, imatrix_file(tmp_path / "one.gguf", seed=1), str(model))
    before = weights_of(model).read_bytes()

    def run(work: Path, progress: Progress) -> Done:
        (work / "unit").touch()
        edited(model)
        return Done((), "", {})

    stage = Stage("measure", 1, ("checkpoint",), {}, False, run)
    with pytest.raises(InputError, match=weights_of(model).name):
        build.context.pipeline.run(stage)
    assert read_receipt(out, "measure") is None
    assert not (out / ".work" / "measure").exists()
    # files as they were, if at another time, are the model that was hashed
    weights_of(model).write_bytes(before)
    assert build.artifact("A", FIRST).is_file()


@pytest.mark.parametrize("change", [edited, lambda model: weights_of(model).unlink()])
@pytest.mark.parametrize("step", ["choose_types", "write_artifact"])
def test_one_artifact_of_weights_that_change(
    step: str,
    change: Callable[[Path], object],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = getattr(alone, step)

    def slowly(*arguments: object, **named: object) -> object:
        change(model)
        return original(*arguments, **named)

    kept = weights_of(model).read_bytes()
    monkeypatch.setattr(alone, step, slowly)
    with pytest.raises(InputError, match=weights_of(model).name):
        alone.quantize(model, "Q8_0", tmp_path / "q.gguf", workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    monkeypatch.undo()
    (model / "model.safetensors").write_bytes(kept)
    found = alone.quantize(model, "Q8_0", tmp_path / "q.gguf", workers=2)
    assert file_sha256(found.files[0])


@pytest.mark.parametrize("change", [edited, lambda model: weights_of(model).unlink()])
def test_one_conversion_of_weights_that_change(
    change: Callable[[Path], object], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = conversion.convert

    def slowly(*arguments: Any) -> object:  # noqa: ANN401
        made = original(*arguments)
        change(model)
        return made

    monkeypatch.setattr(conversion, "convert", slowly)
    with pytest.raises(InputError, match=weights_of(model).name):
        convert(str(model), tmp_path / "c.gguf", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
