"""The Python API: what `import quantkit` loads and gives, plain values, and the example."""

from __future__ import annotations

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from places import ROOT

import quantkit
from quantkit.plan import placement

CALLS = ("build", "compare", "plan", "quantize", "read_results", "study", "validate")
RECIPE = {"name": "tiny", "levels": [{"name": "Q4", "bits_per_weight": 4.6}]}


def test_importing_it_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import quantkit\n"
        "assert set(dir(quantkit)) >= set(quantkit.__all__)\n"
        "ours = {name for name in sys.modules if name.startswith('quantkit')}\n"
        "heavy = {'numpy', 'pydantic', 'transformers', 'llama_cpp', 'scipy', 'rich', 'typer'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules) | ours - {'quantkit'})) or None)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_names_are_the_calls_although_packages_are_called_so_too() -> None:
    assert placement.__name__ == "quantkit.plan.placement"
    for name in CALLS:
        call = getattr(quantkit, name)
        assert isinstance(call, FunctionType), name
        assert call.__doc__
    assert all(hasattr(quantkit, name) for name in quantkit.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = quantkit.nothing  # type: ignore[attr-defined]


def test_plain_values_and_typed_results(tmp_path: Path) -> None:
    recipe = quantkit.Recipe.model_validate(RECIPE)
    plan = quantkit.plan("demo", "1x3090", recipe=recipe, context_tokens=4096)
    (entry,) = plan.entries
    assert (entry.name, entry.placement.run.context_tokens) == ("Q4", 4096)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "other"  # type: ignore[misc]
    several = quantkit.plan("demo", "1x3090", recipe=recipe, levels=["Q4", "6.5"])
    assert [one.name for one in several.entries] == ["Q4", "6.5bpw"]

    out = tmp_path / "demo.gguf"
    types = {name: "Q8_0" if kind == "BF16" else kind for name, kind in stored_types().items()}
    made = quantkit.quantize("demo", types, out)
    assert made.files == (out,)
    assert (made.size_bytes, made.preset) == (out.stat().st_size, None)
    assert made.type_counts["Q8_0"] == sum(kind == "Q8_0" for kind in types.values())
    whole = quantkit.plan(out, "1x3090")
    assert whole.file == out
    assert whole.entries[0].total_bytes == made.size_bytes
    again = quantkit.quantize(out, types, tmp_path / "again.gguf")
    assert again.bits_per_weight == made.bits_per_weight


def stored_types() -> dict[str, str]:
    from quantkit.models.choose import choose_model, open_source

    return {info.name: info.type_name for info in open_source(choose_model("demo")).tensors}


def test_wrong_values_are_input_errors(tmp_path: Path) -> None:
    target = quantkit.Target.model_validate(
        {"name": "none", "gpus": [{"name": "g", "memory_gib": 0.01}], "context_tokens": 4096}
    )
    with pytest.raises(quantkit.DoesNotFitError):
        quantkit.plan("demo", target)
    with pytest.raises(quantkit.InputError, match="kv_type"):
        quantkit.plan("demo", "1x3090", kv_type="q9_0")
    with pytest.raises(quantkit.InputError, match="levels"):
        quantkit.plan("demo", "1x3090", types="Q4_K_M", levels="Q4")
    with pytest.raises(quantkit.InputError, match="no type for"):
        quantkit.quantize("demo", {}, tmp_path / "o.gguf")
    with pytest.raises(quantkit.InputError, match="neddles"):
        quantkit.validate("m.gguf", neddles=3)
    with pytest.raises(quantkit.InputError, match="source"):
        quantkit.validate("http://127.0.0.1:1", source="demo")
    with pytest.raises(quantkit.InputError, match="chunks"):
        quantkit.compare(["a.gguf", "b.gguf"], chunks=-1)
    with pytest.raises(quantkit.InputError, match="receipts"):
        quantkit.read_results(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "fit_a_model.py"))
    example["main"](tmp_path / "out")
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in printed[-2:]]
    assert [row[0] for row in rows] == ["Q8", "Q4"]
    assert [float(row[2]) for row in rows] == pytest.approx([8.42, 4.6], abs=0.1)
    assert [row[-1] for row in rows] == ["4/4", "4/4"]
    results = quantkit.read_results(tmp_path / "out" / "build")
    assert [result.name for result in results] == ["Q8", "Q4"]
    # the plan by measured costs chose what the build chose
    built = tmp_path / "out" / "build" / results[1].files[0]
    assert built.stat().st_size == pytest.approx(
        (tmp_path / "out" / "demo-Q4.gguf").stat().st_size, rel=0.02
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
