"""The files of a comparison: what stands in them, and that each stands for itself."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from compared_artifacts import CONDITIONS, compared_ladder, ladder, measured

from quantkit.cli.tables import print_comparison
from quantkit.core.console import Console
from quantkit.report.comparison.comparison import compared
from quantkit.report.comparison.writers import comparison_csv, comparison_facts, write_comparison


def test_json_and_csv_agree() -> None:
    found = compared_ladder()
    facts = json.loads(json.dumps(comparison_facts(found), allow_nan=False))
    assert facts["reference"] == "Q8"
    assert facts["smallest_without_measurable_loss"] == "Q6"
    assert len(facts["pairs"]) == 6
    worst = facts["pairs"][2]
    assert (worst["first"], worst["second"]) == ("Q8", "IQ1")
    assert worst["evidence"]["hits"]["lost"] == worst["evidence"]["hits"]["units"] == 192
    assert worst["evidence"]["log-probability"]["high"] < 0
    rows = list(csv.DictReader(io.StringIO(comparison_csv(found))))
    assert [row["name"] for row in rows] == ["Q8", "Q6", "Q4", "IQ1"]
    for row, artifact in zip(rows, facts["artifacts"], strict=True):
        assert int(row["size_bytes"]) == artifact["size_bytes"]
        assert float(row["kld_mean_nats"]) == artifact["kld"]["mean"]
        assert row["outcome"] == artifact["verdict"]["outcome"]
        score = artifact["retrieval"]["scores"][1]
        assert score["context_tokens"] == 8192
        assert int(row["hits_8192"]) == score["hits"]
        assert float(row["hit_rate_lower_bound_8192"]) == score["lower_bound"]
        speed = artifact["retrieval"]["speeds"][0]["prefill_tokens_per_second"]
        assert float(row["prefill_tokens_per_second_2048"]) == pytest.approx(speed)
    assert float(rows[0]["decode_tokens_per_second_2048"]) == pytest.approx(
        70 * 12_000_000 / 6_700_000
    )


def words_of(page: str) -> str:
    """What a reader of a page sees."""
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_the_page_stands_for_itself(tmp_path: Path) -> None:
    artifacts = ladder()
    sly = "<script>alert(1)</script>"
    artifacts[3] = replace(artifacts[3], name=f"IQ1{sly}")
    found = compared(artifacts, CONDITIONS)
    written = write_comparison(found, tmp_path)
    names = ["compare.html", "compare.md", "compare.json", "compare.csv", "pareto.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [path.name for path in written] == names
    text = (tmp_path / "compare.html").read_text()
    assert sly not in text
    (loaded,) = re.findall(r'(?:src|href)="([^#"][^"]*)"', text)
    assert loaded.startswith("data:image/png;base64,")
    levels = {html.unescape(name) for name in re.findall(r'data-level="([^"]*)"', text)}
    assert levels == {"Q8", "Q6", "Q4", f"IQ1{sly}"}
    seen = words_of(text)
    for verdict in found.verdicts:
        assert verdict.sentence in seen
    assert found.ordering.text in seen
    assert text.count('class="heat"') == 4
    assert seen.count("better p") + seen.count("worse p") == 2 * 5  # of 6 pairs
    assert str(tmp_path) not in text
    for words in ("95 % each side", "taken as independent", "corrected", "measured once"):
        assert words in seen


def test_a_table_for_a_model_card(tmp_path: Path) -> None:
    found = compared_ladder()
    write_comparison(found, tmp_path)
    text = (tmp_path / "compare.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 2
    for table, rows in zip(tables, (4, 8), strict=True):
        lines = table.splitlines()
        assert len(lines) == 2 + rows
        assert len({line.count("|") for line in lines}) == 1
        assert text[text.index(table) - 2 :].startswith("\n\n")  # a table begins a paragraph
    assert "| Q4 | 3.81 MiB (4.00 MB) | 5.08 |" in text
    assert f"- **Q6**: {found.verdicts[1].sentence}." in text


def test_without_questions_nothing_speaks_of_them(tmp_path: Path) -> None:
    artifacts = [replace(artifact, retrieval=None) for artifact in ladder()]
    found = compared(artifacts, replace(CONDITIONS, context_tokens=()))
    write_comparison(found, tmp_path)
    page = words_of((tmp_path / "compare.html").read_text())
    card = (tmp_path / "compare.md").read_text()
    for words in ("needles", "Retrieval", "KV cache"):
        assert words not in page + card
    assert json.loads((tmp_path / "compare.json").read_text())["retrieval"] is None


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    write_comparison(compared_ladder(), tmp_path / "one")
    write_comparison(compared(ladder(), CONDITIONS), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_terminal_has_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = [
        *ladder(),
        measured("a-long-name-of-a-model-of-some-120B-parameters-Q4_K_M", 80 * 10**9, kld=0.4),
    ]
    artifacts = [replace(a, retrieval=artifacts[0].retrieval) for a in artifacts]
    print_comparison(Console(), compared(artifacts, CONDITIONS))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert any(line.startswith("Order: ") for line in lines)
    assert sum("192" in line or "96/96" in line for line in lines) >= 10


def test_a_broken_model_is_written_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = ladder()
    lost = replace(artifacts[3].divergence, ln_ratio=800.0, perplexity=math.inf)
    artifacts[3] = replace(artifacts[3], divergence=lost, name="a|b")
    found = compared(artifacts, replace(CONDITIONS, seeds=(1,)))
    write_comparison(found, tmp_path)
    facts = json.loads(json.dumps(comparison_facts(found), allow_nan=False))
    assert facts["artifacts"][3]["kld"]["perplexity_ratio"] is None
    assert facts["artifacts"][3]["kld"]["perplexity"] is None
    assert "∞" in words_of((tmp_path / "compare.html").read_text())
    card = (tmp_path / "compare.md").read_text()
    assert "| a\\|b |" in card
    assert "∞ |" in card
    print_comparison(Console(), found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "∞" in printed
    assert "1 haystack, KV cache" in printed
    assert "measured once" in printed
