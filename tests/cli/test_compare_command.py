"""`quantkit compare` on real files: the tables, the files, what is kept, and wrong input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from demo_artifacts import write_demo
from forked import printed, quantkit
from models import write_llama
from small_haystack import small_haystack

from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.tensors import MetaValue

FEW = ("--chunks", 4, "--chunk-tokens", 128)
QUESTIONS = (
    "--context", 512, "--needles", 6, "--seed", 1, "--seed", 2, "--haystack", small_haystack(),
)  # fmt: skip


def compare(*arguments: object, cwd: Path) -> str:
    return printed("compare", *arguments, cwd=cwd)


def facts_of(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return facts


def without_attention(path: Path, out: Path) -> Path:
    """A copy whose attention sees all tokens alike: its keys are zero."""
    shutil.copyfile(path, out)
    with out.open("r+b") as file:
        for name, stored in GGUFFile(path).stored.items():
            if name.endswith("attn_k.weight"):
                file.seek(stored.offset)
                file.write(bytes(stored.size_bytes))
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some models")
    for name, kind in (("demo", "BF16"), ("demo-Q8", "Q8_0"), ("demo-Q4", "Q4_0")):
        write_demo(folder / f"{name}.gguf", kind)
    return folder


@pytest.fixture(scope="module")
def compared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison, in `r`, of an artifact, its copy, and a broken one."""
    folder = tmp_path_factory.mktemp("compared")
    large = models / "demo-Q8.gguf"
    (folder / "other").mkdir()
    shutil.copy(large, folder / "other" / large.name)  # the same name, and another file
    without_attention(large, folder / "broken.gguf")
    shown = compare(
        large, "other/demo-Q8.gguf", "broken.gguf", "--base", models / "demo.gguf",
        *FEW, *QUESTIONS, "--out", "r", cwd=folder,
    )  # fmt: skip
    (folder / "printed.txt").write_text(shown)
    return folder


def test_a_broken_artifact_is_found(compared: Path, models: Path) -> None:
    facts = facts_of(compared / "r")
    assert (facts["base"], facts["chunks"], facts["tokens"]) == ("demo.gguf", 4, 4 * 63)
    names = [entry["name"] for entry in facts["artifacts"]]
    assert sorted(names) == ["broken", "other/demo-Q8", f"{models.name}/demo-Q8"]
    entries = {entry["name"]: entry for entry in facts["artifacts"]}
    broken, twin = entries["broken"], entries["other/demo-Q8"]
    assert twin["kld"]["mean"] < 0.01 < broken["kld"]["mean"]
    assert 8.5 < twin["bits_per_weight"] < 9  # 8.5 and the vocabulary
    assert (twin["retrieval"]["hits"], twin["retrieval"]["trials"]) == (12, 12)
    assert broken["retrieval"]["hits"] <= 6
    (score,) = broken["retrieval"]["scores"]
    assert (score["context_tokens"], score["trials"]) == (512, 12)
    assert 0 <= score["lower_bound"] <= score["hits"] / 12 < score["upper_bound"] < 1
    assert all(s["decode_tokens_per_second"] > 0 for s in twin["retrieval"]["speeds"])
    # all three have one size; the broken one is the furthest from the base
    assert facts["reference"] == names[0] != "broken"
    for pair in facts["pairs"]:
        found = pair["evidence"]["log-probability"]
        if "broken" in (pair["first"], pair["second"]):
            assert found["corrected_p"] < 0.05
            assert abs(found["difference"]) > 1
            assert found["units"] == pair["evidence"]["hits"]["units"] == 12
        else:
            assert all(one["p"] == 1 for one in pair["evidence"].values())
    line = facts["ordering"]
    assert line["names"][-1] == "broken"
    assert [one["sign"] for one in line["neighbours"]] == ["≈", ">"]
    assert broken["verdict"]["outcome"] == "worse"
    assert f"worse than {names[0]}: " in broken["verdict"]["sentence"]
    printed = (compared / "printed.txt").read_text()
    assert f"Order: {line['text']}" in printed
    assert f"{twin['kld']['same_top']:.2%}" in printed


def test_each_file_has_the_figures(compared: Path) -> None:
    folder = compared / "r"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        ".lock", "compare.csv", "compare.html", "compare.json", "compare.md", "pareto.png",
    }  # fmt: skip
    facts = facts_of(folder)
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [entry["name"] for entry in facts["artifacts"]]
    for row, entry in zip(rows, facts["artifacts"], strict=True):
        assert int(row["hits_512"]) == entry["retrieval"]["hits"]
    page = (folder / "compare.html").read_text()
    assert page.count('class="heat"') == 3
    assert facts["ordering"]["text"].replace(">", "&gt;") in page
    assert f"**{facts['ordering']['text']}**" in (folder / "compare.md").read_text()
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_kept(compared: Path, models: Path) -> None:
    """A further artifact costs its own run; the others give the same figures again."""
    before = facts_of(compared / "r")
    kept = {
        path: path.stat().st_mtime_ns
        for path in (compared / "r" / "kept").rglob("*")
        if path.suffix in (".logits", ".json", ".jsonl")
    }
    assert len(kept) == 1 + 3 + 2 * 3  # logits; of each artifact positions, result, answers
    again = compare(
        models / "demo-Q8.gguf", "other/demo-Q8.gguf", "broken.gguf", models / "demo-Q4.gguf",
        "--base", models / "demo.gguf", *FEW, *QUESTIONS, "--out", "r", "--json", cwd=compared,
    )  # fmt: skip
    after = json.loads(again)
    assert after == facts_of(compared / "r")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not any((compared / "r" / "kept").rglob(".work"))
    figures = {entry["name"]: (entry["kld"], entry["retrieval"]) for entry in after["artifacts"]}
    for entry in before["artifacts"]:
        assert figures[entry["name"]] == (entry["kld"], entry["retrieval"])
    assert figures["demo-Q4"][1]["trials"] == 12
    # a file that was changed is measured again
    without_attention(models / "demo-Q4.gguf", compared / "broken.gguf")
    changed = compare(
        "broken.gguf", models / "demo-Q4.gguf", "--base", models / "demo.gguf",
        *FEW, "--no-retrieval", "--out", "r", "--quiet", cwd=compared,
    )  # fmt: skip
    assert changed == ""
    new = {entry["name"]: entry["kld"] for entry in facts_of(compared / "r")["artifacts"]}
    assert new["demo-Q4"] == figures["demo-Q4"][0]
    assert new["broken"] != figures["broken"][0]


def test_without_a_base_the_largest_is_the_reference(models: Path, tmp_path: Path) -> None:
    shown = compare(
        models / "demo-Q4.gguf", models / "demo-Q8.gguf", models / "demo-Q8.gguf",
        "--no-retrieval", *FEW, cwd=tmp_path,
    )  # fmt: skip
    assert "no --base" in shown
    facts = facts_of(tmp_path / "demo-Q8-compare")
    expected = ("demo-Q8.gguf", "Q8", None)
    assert (facts["base"], facts["reference"], facts["retrieval"]) == expected
    large, small = facts["artifacts"]  # each file once
    assert (large["is_base"], large["kld"]["mean"], large["kld"]["same_top"]) == (True, 0, 1)
    assert large["kld"]["perplexity"] == pytest.approx(facts["base_perplexity"])
    assert small["kld"]["mean"] > 0
    ratio = small["kld"]["perplexity"] / facts["base_perplexity"]
    assert small["kld"]["perplexity_ratio"] == pytest.approx(ratio)
    (pair,) = facts["pairs"]
    assert list(pair["evidence"]) == ["KLD", "same top", "text"]
    assert {found["units"] for found in pair["evidence"].values()} == {4}
    # four chunks are few, and enough for what is clear
    assert pair["evidence"]["KLD"]["corrected_p"] < 0.05
    assert small["verdict"]["outcome"] == "worse"


def test_a_text_of_ones_own(models: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The committee of ways and means met again in the spring. " * 30)
    shown = compare(
        models / "demo-Q4.gguf", "--base", models / "demo.gguf", "--text", text, "--no-retrieval",
        "--chunk-tokens", 64, "--chunks", 400, cwd=tmp_path,
    )  # fmt: skip
    assert [w for w in ("400 chunks", "mine.txt", "Order: demo-Q4\n") if w not in shown] == []
    for path in (tmp_path / "demo-compare").rglob("*"):
        if path.is_file():
            for folder in (tmp_path, models):
                assert str(folder).encode() not in path.read_bytes(), path.name


def test_wrong_input_is_told_before_any_work(models: Path, tmp_path: Path) -> None:
    base, artifact = models / "demo.gguf", models / "demo-Q4.gguf"
    pre = {"tokenizer.ggml.pre": MetaValue("str", "gpt-2")}
    other = write_demo(tmp_path / "other.gguf", "Q8_0", pre)
    template = {"tokenizer.chat_template": MetaValue("str", "{{ messages[0]['content'] }}")}
    plain = write_demo(tmp_path / "plain.gguf", "Q8_0", template)
    llama = write_llama(tmp_path / "llama.gguf")
    short = tmp_path / "short.txt"
    short.write_text("Few words.")
    cases: list[tuple[str, tuple[str | Path, ...]]] = [
        ("none.gguf", (artifact, "--base", tmp_path / "none.gguf")),
        ("gone.gguf", (tmp_path / "gone.gguf", "--base", base)),
        ("--base", (artifact, artifact)),
        ("tokenizer.ggml.pre", (other, "--base", base)),
        ("tokenizer.ggml.", (artifact, llama, "--base", base)),
        ("tokenizer.chat_template", (artifact, plain)),
        ("no-text.txt", (artifact, "--base", base, "--text", tmp_path / "no-text.txt")),
        ("no.txt", (artifact, base, "--haystack", tmp_path / "no.txt")),
        (f"--context is {1 << 30}", (artifact, base, "--context", str(1 << 30))),
        ("--kv: ", (artifact, base, "--kv", "q2_0")),
        ("seeds", (artifact, base, "--seed", "1", "--seed", "1")),
        ("--out", (artifact, base, "--out", artifact)),
    ]
    for words, arguments in cases:
        refused = quantkit("compare", *arguments, cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith("error: ")
        assert words in refused.stderr
        assert "✓" not in refused.stdout
    assert not (tmp_path / "demo-compare" / "kept").exists()
    arguments = (artifact, "--base", base, "--text", short, "--no-retrieval")
    refused = quantkit("compare", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "one chunk of 512" in refused.stderr
    # what was refused leaves nothing that a right run would take for finished
    short.write_text("The committee of ways and means met again in the spring. " * 300)
    compare(*arguments, "--chunks", 1, cwd=tmp_path)
