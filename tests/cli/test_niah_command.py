"""`quantkit niah`: what it prints and writes, its exit codes, and wrong input."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from broken_artifacts import swapped, with_context_length
from demo_artifacts import write_demo
from forked import facts, printed, quantkit
from small_haystack import small_haystack

from quantkit.build.validate import validate
from quantkit.cli.niah import probes_of
from quantkit.core.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("a folder") / "demo.gguf", "Q4_0")


def niah(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return quantkit("niah", *arguments, cwd=cwd)


SMALL = (
    "--context", 1024, "--needles", 6, "--kv", "f16", "--minimum", 0.5,
    "--haystack", small_haystack(),
)  # fmt: skip


def test_a_check_that_passes(model: Path, tmp_path: Path) -> None:
    chosen = ("--probe", "near-miss=2", "--source", "demo")
    shown = printed("niah", model, *SMALL, *chosen, cwd=tmp_path)
    out = tmp_path / "demo-niah"
    assert sorted(path.name for path in out.iterdir()) == [
        "heatmap.png", "niah.jsonl", "validation.json",
    ]  # fmt: skip
    validation = json.loads((out / "validation.json").read_text())
    section = validation["niah"]
    assert validation["passed"] is True
    main, probe = section["scores"]
    assert (main["task"], main["keys"]) == ("multikey", section["rungs"][0]["keys"])
    assert (main["hits"], main["trials"]) == (6, 6)
    assert main["lower_bound"] == pytest.approx(0.05 ** (1 / 6))
    assert probe["task"] == "near-miss"
    assert validation["integrity"]["matrices"] > 58
    assert len((out / "niah.jsonl").read_text().splitlines()) == 8
    assert "6 of 6 multikey" in shown
    assert "6/6" in shown
    # the same in JSON, and nothing beside it
    again = facts("niah", model, *SMALL, "--out", "b", cwd=tmp_path)
    assert again["niah"]["scores"][0]["hits"] == 6


def test_a_missed_gate_is_told_with_what_was_found(model: Path, tmp_path: Path) -> None:
    probe = ("--probe", "two-hop=6", "--gate", "two-hop")
    failed = niah(model, *SMALL, *probe, "--json", cwd=tmp_path)
    assert failed.returncode == 1
    assert "two-hop found 0/6" in failed.stderr
    told = json.loads(failed.stdout)
    assert (told["passed"], told["niah"]["recipe"]["gate"]) == (False, ["two-hop"])
    assert (tmp_path / "demo-niah" / "heatmap.png").exists()


def test_broken_files_fail_the_gate(model: Path, tmp_path: Path) -> None:
    broken = swapped(model, tmp_path / "swapped.gguf", "blk.3.ffn_down_exps.weight", 0, 1)
    short = with_context_length(model, tmp_path / "short.gguf", 512)
    for arguments, words in (
        ((broken, "--source", "demo"), "experts 0, 1 of blk.3.ffn_down_exps.weight"),
        ((short, "--source", "demo"), "context_length is 512"),
    ):
        failed = niah(*arguments, *SMALL, cwd=tmp_path)
        assert failed.returncode == 1, failed.stderr
        assert words in failed.stderr
        assert not (tmp_path / f"{arguments[0].stem}-niah" / "validation.json").exists()


def test_a_context_beyond_training_is_asked_for(model: Path, tmp_path: Path) -> None:
    short = with_context_length(model, tmp_path / "short.gguf", 512)
    with pytest.raises(InputError, match="512"):
        validate(short, tmp_path / "r", context_tokens=(1024,))
    assert niah(short, *SMALL, cwd=tmp_path).returncode == 2
    assert not (tmp_path / "short-niah").exists()
    done = niah(short, *SMALL, "--beyond-training", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "short-niah" / "validation.json").read_text())
    assert found["niah"]["scores"][0]["context_tokens"] == 1024


def test_wrong_input_is_told_before_any_work(model: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("--endpoint", ()),
        ("--endpoint", (model, "--endpoint", "http://127.0.0.1:1")),
        ("--fresh", ("--endpoint", "http://127.0.0.1:1", "--fresh")),
        ("near-miss=many", (model, "--probe", "near-miss=many")),
        ("--probe: ", (model, "--probe", "nearly")),
        ("two-hop", (model, "--gate", "two-hop")),
        ("3 seeds", (model, "--clustered")),
        ("seeds", (model, "--seed", 4, "--seed", 4)),
        ("one-pass", (model, "--classic", "--probe", "all")),
        ("3 questions of single", (model, "--classic")),
        ("59", (model, "--minimum", 0.95, "--needles", 58)),
        ("--kv: ", (model, "--kv", "q9_0")),
        ("quantkit download some/model", (model, "--source", "some/model")),
        ("no-such.gguf", (tmp_path / "no-such.gguf",)),
    ]
    for words, arguments in cases:
        refused = niah(*arguments, cwd=tmp_path)
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
        assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_probes() -> None:
    assert probes_of(["near-miss", "two-hop=16"]) == {"near-miss": 8, "two-hop": 16}
    everything = probes_of(["all=4", "absent=2"])
    assert len(everything) == 6
    assert (everything["updated"], everything["absent"]) == (4, 2)
    with pytest.raises(InputError, match="NAME=NUMBER"):
        probes_of(["two-hop="])
