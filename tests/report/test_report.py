"""report.html and README.md of finished levels: every figure of validation.json and niah.jsonl."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from finished_levels import KEYS, PROBES, answer, answers_of, finish_level, report_facts

from quantkit.cli.build import _closing_table, _show
from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.units import tokens_text
from quantkit.report.report import MISSES_SHOWN, write_report
from quantkit.report.results import read_answers
from quantkit.retrieval.results import Answer


def rendered(folder: Path, answers: list[Answer], **changes: object) -> tuple[str, str]:
    """Page and model card of one level, Q4."""
    level = finish_level(folder, "Q4", answers, **changes)  # type: ignore[arg-type]
    page, gpu = write_report(report_facts([level]), folder)
    return page.read_text(encoding="utf-8"), gpu.read_text(encoding="utf-8")


def texts(row: str) -> list[str]:
    return [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]


def cells_of(gpu: str) -> list[list[str]]:
    """The rows of all tables of a Markdown page."""
    lines = [line for line in gpu.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_line_a_task_with_cut_off_apart_from_wrong(tmp_path: Path) -> None:
    answers = [answer("multikey", 516096, i, 10) for i in range(10)]
    answers[2] = replace(answers[2], hit=False, answer="99999", log_probability=-4.0)
    answers[3] = replace(answers[3], hit=False, truncated=True, answer="It", log_probability=-6.0)
    answers[4] = replace(answers[4], truncated=True)  # cut off, and right all the same
    answers += [answer("absent", 516096, i, 2) for i in range(2)]
    page, gpu = rendered(tmp_path, answers)
    bounds = json.loads((tmp_path / "levels/Q4/validation.json").read_text())["niah"]["scores"][0]
    low, high = (f"{100 * bounds[name]:.1f} %" for name in ("lower_bound", "upper_bound"))
    known = [a.log_probability or 0 for a in answers[:10]]
    mean = f"{sum(known) / 10:.2f}".replace("-", "−")
    main = ["multikey-64", "504K", "8/10", low, high, "1", "1", mean]
    assert main in [texts(row) for row in re.findall(r"<tr>.*?</tr>", page)]
    assert main in cells_of(gpu)
    assert ["absent", "504K", "2/2", "22.4 %", "100.0 %", "0", "0", "–"] in cells_of(gpu)
    assert "fell short" in page
    assert "fell short" in gpu


def test_every_length_and_probe_is_there(tmp_path: Path) -> None:
    page, gpu = rendered(tmp_path, answers_of(0.1))
    wanted = [
        [f"multikey-{KEYS[length]}" if task == "multikey" else task, tokens_text(length)]
        for task in ("multikey", *PROBES)
        for length in KEYS
    ]
    rows = [row[:2] for row in cells_of(gpu) if len(row) == 8]
    assert [row for row in rows if row in wanted] == wanted
    for number, task in enumerate(("multikey", *PROBES)):
        assert f'<div class="heatbox" data-task="{task}">' in page
        assert f'id="map-0-{number}"' in page
    assert page.count("<option") == 4


def test_a_check_without_probes_offers_no_choice_of_task(tmp_path: Path) -> None:
    answers = [a for a in answers_of(0.1) if a.task == "multikey"]
    assert "<select" not in rendered(tmp_path, answers)[0]


def test_rates_cost_and_forks(tmp_path: Path) -> None:
    page, gpu = rendered(tmp_path, answers_of(0.0))
    niah = json.loads((tmp_path / "levels/Q4/validation.json").read_text())["niah"]
    last = niah["rungs"][-1]
    prefill = last["prefill_tokens"] / last["prefill_seconds"]
    decode = last["decode_tokens"] / last["decode_seconds"]
    row = [
        "504K", f"{last['prefill_tokens']:,}", f"{prefill:,.0f}", f"{last['question_tokens']:,}",
        f"{decode:.1f}",
    ]  # fmt: skip
    assert row in cells_of(gpu)
    shown = [texts(row) for row in re.findall(r"<tr.*?</tr>", page)]
    assert ["Q4", "504K", "64", *row[1:]] in shown
    times = niah["classic_tokens"] / (niah["prefill_tokens"] + niah["question_tokens"])
    for text in (page, gpu):
        assert f"{niah['classic_tokens']:,}, {times:,.1f} times as many" in text
        assert "Forks are exact: " in text


def test_what_the_file_was_compared_with_and_what_the_check_took(tmp_path: Path) -> None:
    page, gpu = rendered(tmp_path, answers_of(0.0))
    for text in (page, gpu):
        assert "41,234 matrices of 433 tensors" in text
        assert "blk.3.ffn_up_exps.weight" in text
        assert "0.012" in text
    memory = ["CUDA0", "18.00 GiB", "17.00 GiB", "1.50 GiB", "1.50 GiB", "0.25 GiB", "0.50 GiB"]
    assert memory in [texts(row) for row in re.findall(r"<tr>.*?</tr>", page)]


def test_the_page_carries_every_answer(tmp_path: Path) -> None:
    answers = answers_of(0.2, seeds=(1, 2))
    page, _ = rendered(tmp_path, answers)
    assert list(read_answers(tmp_path / "levels/Q4/niah.jsonl")) == answers
    (data,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    maps = json.loads(data)["maps"]
    rows = [row for cells in maps.values() for cell in cells.values() for row in cell["rows"]]
    assert len(rows) == len(answers)
    assert sorted(row[3] for row in rows) == sorted(a.answer for a in answers)
    misses = [a for a in answers if not a.hit]
    assert len(misses) > MISSES_SHOWN
    assert f"{len(misses)} answers that missed" in page
    assert page.count('<td class="words answer">') == MISSES_SHOWN


@pytest.mark.parametrize("text", ["</script><img src=x onerror=alert(1)>", "a\u2028b\x85c\x0bd"])
def test_an_answer_is_no_markup(tmp_path: Path, text: str) -> None:
    odd = answer("multikey", 516096, 0, 1, hit=False, answer=text, key="<i>k</i>")
    page, gpu = rendered(tmp_path, [odd])
    assert read_answers(tmp_path / "levels/Q4/niah.jsonl") == (odd,)
    for part in ("<img src=x", "<i>k</i>"):
        assert part not in page
        assert part not in gpu
    assert page.count("</script>") == 2


def test_several_gates_and_seeds(tmp_path: Path) -> None:
    recipe = RetrievalRecipe(
        needles=32, context_tokens=tuple(KEYS), probes=dict.fromkeys(PROBES, 8), seeds=(1, 2, 3),
        clustered=True, gate=("multikey", "two-hop"), minimum_lower_bound=0.5,
    )  # fmt: skip
    page, gpu = rendered(tmp_path, answers_of(0.3, seeds=recipe.seeds), recipe=recipe)
    for text in (page, gpu):
        assert "spread between seeds" in text
        assert re.search(r"must reach 50.0 %\. multikey-64: \d+ of 96 .*; two-hop: \d+ of 24", text)


def test_a_classic_check(tmp_path: Path) -> None:
    answers = [
        answer("single", context, number, 3, depth=depth, hit=depth != 0.5)
        for context in KEYS
        for number, depth in enumerate((0.1, 0.5, 0.9))
    ]
    recipe = RetrievalRecipe(mode="classic", context_tokens=tuple(KEYS))
    page, gpu = rendered(tmp_path, answers, recipe=recipe)
    assert ["single", "504K", "2/3", "13.5 %", "98.3 %", "1", "0", "−0.040"] in cells_of(gpu)
    assert "single: 2 of 3 found" in page
    cells = re.findall(r'data-cell="516096/(\d)" style', page)
    assert cells == ["1", "5", "9"]


def test_the_headline_is_the_gates_first_task(tmp_path: Path) -> None:
    recipe = RetrievalRecipe(
        needles=32, context_tokens=tuple(KEYS), probes=dict.fromkeys(PROBES, 8), gate=("two-hop",)
    )
    page, gpu = rendered(tmp_path, answers_of(0.3), recipe=recipe)
    assert "two-hop at 504K" in page
    assert re.search(r"\| two-hop at 504K: \d/8 \|", gpu)


def test_a_level_without_kld_or_log_probabilities(tmp_path: Path) -> None:
    answers = [replace(a, log_probability=None, rank=None) for a in answers_of(0.1)]
    page, gpu = rendered(tmp_path, answers, kld=None)
    assert "None" not in page + gpu
    assert "llama-perplexity" not in page + gpu
    assert '<span class="mean">–</span>' in page


def test_what_is_predicted_and_what_errors_cost_have_standard_errors(tmp_path: Path) -> None:
    page, _ = rendered(tmp_path, answers_of(0.1), kld=0.01)
    assert "0.0100 ± 0.0010" in page
    cells = [texts(row) for row in re.findall(r"<tr>.*?</tr>", page)]
    assert ["token_embd.weight", "0.0200 ± 0.0020"] in [row[:2] for row in cells]
    assert ["blk.0.ssm_in.weight", "0.00100"] in [row[:2] for row in cells]  # of one chunk


def test_a_command_that_was_not_checked_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = finish_level(tmp_path, "Q4", answers_of(0.0))
    assert level.unchecked is None
    assert level.facts()["unchecked"] is None
    # checked as the demo is, with an F16 cache and not at all lengths
    answers = [a for a in answers_of(0.0) if a.context_tokens <= 32768]
    other = finish_level(tmp_path, "Q6", answers)
    niah = other.retrieval.model_copy(update={"kv_type": "f16"})
    other = replace(other, validation=other.validation.model_copy(update={"niah": niah}))
    assert other.unchecked is not None
    for words in ("f16", "q8_0", "32,768", "516,096"):
        assert words in other.unchecked
    for path in write_report(report_facts([other]), tmp_path):
        text = path.read_text(encoding="utf-8")
        assert text.count(other.unchecked) == 1
    _show(Console(), tmp_path, [other])
    assert other.unchecked in capsys.readouterr().out
    # the check at a longer context than the command's has seen what the command does
    run = level.placed.placement.run.model_copy(update={"context_tokens": 8192})
    placement = level.placed.placement.model_copy(update={"run": run})
    placed = level.placed.model_copy(update={"placement": placement})
    assert replace(level, placed=placed).unchecked is None


def test_the_closing_table_has_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = [
        finish_level(tmp_path, "UD-Q4_K_XL", answers_of(0.0), kld=None),
        finish_level(tmp_path, "IQ2_XXS", answers_of(0.5), bits=2.3, kld=0.3, baseline=True),
    ]
    _closing_table(Console(), levels)
    printed = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    for figure in (
        "UD-Q4_K_XL", "passed", "IQ2_XXS baseline", "32.13 GiB", "2.30", "19.0 GiB", "of 24",
        "0.3000", "6.0000", "70.0%", "× 1.062", "32/32 ≥ 91.1%", "516,096",
    ):  # fmt: skip
        assert figure in printed
