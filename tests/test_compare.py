"""`quantkit compare`: the table, its JSON, what is kept, and wrong input."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from demo_artifacts import write_demo
from forked import quantkit
from models import write_llama

from quantkit.values import MetaValue


def compare(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return quantkit("compare", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some models")
    for name, kind in (("demo", "BF16"), ("demo-Q8", "Q8_0"), ("demo-Q4", "Q4_0")):
        write_demo(folder / f"{name}.gguf", kind)
    return folder


def test_artifacts_side_by_side(models: Path, tmp_path: Path) -> None:
    base, large, small = (models / f"{n}.gguf" for n in ("demo", "demo-Q8", "demo-Q4"))
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    shutil.copy(small, elsewhere / large.name)  # the same name, and another file
    arguments = (
        small, large, elsewhere / large.name, "--base", base, "--chunks", 2, "--chunk-tokens", 128,
    )  # fmt: skip
    first = compare(*arguments, "--out", "r/facts.json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    facts = json.loads((tmp_path / "r" / "facts.json").read_text())
    assert (facts["chunks"], facts["chunk_tokens"], facts["tokens"]) == (2, 128, 2 * 63)
    found = facts["artifacts"]
    assert [entry["file"] for entry in found] == [
        str(large), str(small), str(elsewhere / large.name),
    ]  # fmt: skip
    assert [entry["size_bytes"] for entry in found[:2]] == [
        large.stat().st_size, small.stat().st_size,
    ]  # fmt: skip
    assert 8.5 < found[0]["bits_per_weight"] < 9  # 8.5 and the vocabulary
    assert 0 < found[0]["kld"]["mean"] < found[1]["kld"]["mean"] == found[2]["kld"]["mean"]
    ratio = found[1]["kld"]["perplexity"] / facts["base_perplexity"]
    assert found[1]["kld"]["perplexity_ratio"] == pytest.approx(ratio)
    table = first.stdout.splitlines()
    shown = [line.split()[0] for line in table if line.startswith((" demo", " some", " other"))]
    assert shown == ["some", "demo-Q4", "other/demo-Q8"]  # "some models…/demo-Q8", folded
    assert f"{found[0]['kld']['same_top']:.2%}" in first.stdout

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.logits")}
    assert len(kept) == 1
    again = compare(*arguments, "--out", "r/facts.json", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == facts
    quiet = compare(*arguments, "--out", "r/facts.json", "--quiet", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*.logits")}


def test_a_text_of_ones_own(models: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The committee of ways and means met again in the spring. " * 30)
    finished = compare(
        models / "demo-Q4.gguf", "--base", models / "demo.gguf", "--text", text,
        "--chunk-tokens", 64, "--chunks", 400, cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "of the 400 chunks asked for" in finished.stdout
    assert "mine.txt" in finished.stdout
    for path in (tmp_path / "demo-compare").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()


def test_wrong_input_is_told_before_any_work(models: Path, tmp_path: Path) -> None:
    base, artifact = models / "demo.gguf", models / "demo-Q4.gguf"
    pre = {"tokenizer.ggml.pre": MetaValue("str", "gpt-2")}
    other = write_demo(tmp_path / "other.gguf", "Q8_0", pre)
    llama = write_llama(tmp_path / "llama.gguf")
    short = tmp_path / "short.txt"
    short.write_text("Few words.")
    cases: dict[str, tuple[str | Path, ...]] = {
        "none.gguf: No such file": (artifact, "--base", tmp_path / "none.gguf"),
        "gone.gguf": (tmp_path / "gone.gguf", "--base", base),
        "other.gguf has another tokenizer than demo.gguf": (other, "--base", base),
        "llama.gguf has another tokenizer": (artifact, llama, "--base", base),
        "cannot read the text": (artifact, "--base", base, "--text", tmp_path / "no.txt"),
        "is an input of this command": (artifact, "--base", base, "--out", artifact),
    }
    for words, arguments in cases.items():
        refused = compare(*arguments, cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith("error: ")
        assert words in refused.stderr
        assert refused.stdout == ""
    assert not (tmp_path / "demo-compare").exists()
    refused = compare(artifact, "--base", base, "--text", short, cwd=tmp_path)
    assert refused.returncode == 2
    assert "fewer than one chunk of 512" in refused.stderr
    # what was refused leaves nothing that a right run would take for finished
    short.write_text("The committee of ways and means met again in the spring. " * 300)
    finished = compare(artifact, "--base", base, "--text", short, "--chunks", 1, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
