"""Coverage of an imatrix: tokens by layer and expert, what the command says, the pictures."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from finished_levels import answers_of, finish_level, report_facts
from models import write_llama
from places import DATA

from quantkit.cli.tables import show_imatrix
from quantkit.core.errors import InputError
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, write_imatrix
from quantkit.report.pictures import draw_coverage
from quantkit.report.report import write_report
from quantkit.study.imatrix import Calibration, SourceRead
from quantkit.study.imatrix_coverage import (
    coverage_of,
    percent_text,
    top_share,
    top_weights,
    unseen_text,
    weight_statistics,
)

DATA = DATA / "imatrix"
REFERENCE, LEGACY = DATA / "demo-4x512.imatrix.gguf", DATA / "demo-4x512.imatrix.dat"


def entry(sums: object, *counts: float) -> ImatrixEntry:
    return ImatrixEntry(np.array(sums, np.float32), np.array(counts, np.float32))


def imatrix(**entries: ImatrixEntry) -> Imatrix:
    named = {name.replace("__", "."): found for name, found in entries.items()}
    return Imatrix(named, 512, 2, ("a.txt",))


EXPERTS = imatrix(
    blk__10__attn_q__weight=entry([[1, 1]], 300),
    blk__2__ffn_gate_inp__weight=entry([[1, 1]], 300),
    blk__2__ffn_up_exps__weight=entry([[9, 9], [9, 9], [0, 0], [9, 9]], 250, 99, 0, 100),
    blk__2__ffn_down_exps__weight=entry([[9], [9], [0], [9]], 250, 99, 0, 100),
    output__weight=entry([[1, 1]], 300),
)


def test_layers_come_in_the_models_order() -> None:
    found = coverage_of(EXPERTS.entries)
    assert [(la.name, la.weights, la.tokens) for la in found.layers] == [
        ("2", 3, 300),
        ("10", 1, 300),
        ("output", 1, 300),
    ]
    assert found.layers[0].experts == (250, 99, 0, 100)
    assert found.layers[1].share(10**9) == 1.0  # a dense layer has no experts to miss
    assert (found.tokens, found.experts, len(found.expert_layers)) == (300, 4, 1)


def test_shares_count_experts_with_at_least_so_many_tokens() -> None:
    found = coverage_of(EXPERTS.entries)
    assert [found.share(n) for n in (1, 99, 100, 101, 251)] == [0.75, 0.75, 0.5, 0.25, 0]
    assert [found.missed(n) for n in (0, 1, 100)] == [0, 1, 2]  # a layer counts once
    assert found.layers[0].share(100) == 0.5
    assert found.unseen == (("2", 2),)
    assert found.rarest() == ("2", 1, 99)


@pytest.mark.parametrize("sums", [[[1, 1]], [[1, 1], [2, 2]]])  # a stack with one count, too
def test_a_dense_model_is_covered(sums: list[list[float]]) -> None:
    found = coverage_of({"blk.0.attn_k_b.weight": entry(sums, 7)})
    assert (found.share(), found.experts, found.unseen, found.rarest()) == (1.0, 0, (), None)
    assert found.missed(100) == 0
    assert (found.tokens, coverage_of({}).tokens) == (7, 0)


def test_unseen_experts_are_listed_up_to_a_number() -> None:
    pairs = [("1", 4), ("3", 0), ("3", 7), ("5", 1)]
    assert unseen_text(pairs) == "expert 4 of layer 1; experts 0, 7 of layer 3; expert 1 of layer 5"
    assert unseen_text(pairs, most=2) == "expert 4 of layer 1; expert 0 of layer 3; 2 more"
    assert unseen_text([("0", i) for i in range(30)]).endswith("18, 19 of layer 0; 10 more")


def test_only_all_is_100_percent() -> None:
    assert [percent_text(s) for s in (1, 0.99999, 0.9583, 0)] == [
        "100 %", "99.9 %", "95.8 %", "0.0 %",
    ]  # fmt: skip


def test_statistics_of_a_weight() -> None:
    flat = imatrix(
        blk__0__attn_q__weight=entry([[2, 2, 2, 2]], 2),
        blk__3__attn_q__weight=entry([[0, 0, 0, 8]], 4),
        blk__3__ffn_up_exps__weight=entry([[2, 2], [0, 0], [4, 0]], 2, 0, 4),
    )
    first, second, stack = weight_statistics(flat)
    assert (first.total, first.mean, first.deviation, first.active) == (4, 1, 0, 1)
    assert first.entropy == (1, 1)
    assert first.top_share == 0.25
    assert first.cosine is None
    assert second.entropy == (0, 0)
    assert second.top_share == 1
    assert second.cosine == 0.5  # with layer 0, the nearest before that has this tensor
    assert (stack.tokens, stack.unseen, stack.below_enough) == ((0, 2.0, 4), 1, 3)
    assert (stack.total, stack.most, stack.entropy) == (3, 1, (0.5, 0))
    assert top_weights(flat)["3"] == ("attn_q", 1.0)


def test_the_top_is_a_hundredth_of_the_columns() -> None:
    columns = np.ones((2, 300), np.float32)
    columns[0, [5, 80, 200]] = 100
    assert top_share(ImatrixEntry(columns, np.ones(2, np.float32))) == pytest.approx(303 / 897)
    assert top_share(entry([[0, 0]], 5)) == 0


def test_nothing_seen_at_all() -> None:
    (found,) = weight_statistics(imatrix(w=entry([[0, 0], [0, 0]], 0, 0)))
    assert (found.total, found.unseen, found.top_share) == (0, 2, 0)


def test_names_of_a_hostile_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = ("blk.1.[/].weight", f"blk.{'9' * 5000}.w", f"{'9' * 5000}", "blk.0.[bold]x")
    found = Imatrix(dict.fromkeys(names, entry([[1, 2]], 3)), 512, 1, ("[/]",))
    assert [la.name for la in coverage_of(found.entries).layers][:2] == ["0", "1"]
    write_imatrix(tmp_path / "i.gguf", found)
    assert "[/]" in shown(capsys, tmp_path / "i.gguf")


SOURCES = (
    SourceRead("code", "quantkit", "MIT", 9216),
    SourceRead("mine.txt", "disk"),
    SourceRead("hf://datasets/a/b", "hf://datasets/a/b@c0ffee", "cc-by-4.0"),
    SourceRead("hf://datasets/a/c", "hf://datasets/a/c@c0ffee"),
)


def report(folder: Path, found: Imatrix, unweighted: tuple[str, ...]) -> tuple[str, str]:
    """report.html and README.md of a build."""
    collected = Calibration(chunks=1, tokens=1, weights=1, unseen_experts=0, sources=SOURCES)
    facts = report_facts(
        [finish_level(folder, "Q4", answers_of(0.0))], imatrix=collected, unweighted=unweighted,
        coverage=coverage_of(found.entries), counts_are_exact=found.counts_are_exact,
    )  # fmt: skip
    page, readme = write_report(facts, folder)
    return page.read_text(), readme.read_text()


def test_report_shows_the_coverage(tmp_path: Path) -> None:
    (tmp_path / "coverage.png").write_bytes(b"a picture")
    without = ("token_embd.weight", "blk.7.attn_q.weight", "blk.7.attn_k.weight")
    for page in report(tmp_path, EXPERTS, without):
        assert "3 of 4 experts" in page or "3 of 4 reached" in page
        assert "75.0 %" in page
        assert "50.0 %" in page
        assert "expert 2 of layer 2" in page
        assert "code (9,216 tokens, MIT); mine.txt (a file of the one who built it)" in page
        assert "hf://datasets/a/b@c0ffee (cc-by-4.0)" in page
        assert "hf://datasets/a/c@c0ffee (licence not stated)" in page
        assert "token_embd.weight, 2 tensors of layer 7" in page
        assert "data:image/png;base64,YSBwaWN0dXJl" in page or "(coverage.png)" in page


def test_report_of_a_legacy_file_guesses_no_counts(tmp_path: Path) -> None:
    shown = []
    for name, found in ("known", EXPERTS), ("legacy", dataclasses.replace(EXPERTS, unknown=("x",))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "coverage.png").write_bytes(b"a picture")
        shown.append(report(tmp_path / name, found, ()))
    for known, legacy in zip(*shown, strict=True):
        assert "75.0 %" in legacy
        assert legacy.count("50.0 %") < known.count("50.0 %")


def test_report_of_a_dense_model_says_nothing_of_experts(tmp_path: Path) -> None:
    for page in report(tmp_path, imatrix(blk__0__attn_q__weight=entry([[1, 1]], 7)), ()):
        assert "xpert" not in page
        assert "Without statistics" not in page


def shown(capsys: pytest.CaptureFixture[str], path: Path, model: Path | None = None) -> str:
    show_imatrix(path, model, as_json=False)
    return capsys.readouterr().out


def test_show_says_what_a_person_can_act_on(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, REFERENCE)
    (row,) = (line for line in out.splitlines() if line.startswith(" 1 "))
    assert row.split()[:9] == ["1", "7", "2,048", "7/8", "62.5", "%", "0", "202", "1,950"]
    assert re.search(r"Unseen: .*expert 4 of layer 1\n", out)
    assert re.search(r"Rarest: .*expert 2 of layer 6.* 10 tokens", out)
    assert re.search(r"Experts: 23 of 24 .*95\.8 %.*62\.5 %", out)
    assert all(len(line) <= 100 for line in out.splitlines()[1:])


def test_show_reads_the_legacy_form_and_says_what_it_lacks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = shown(capsys, LEGACY)
    assert "counts" in out
    assert "6 stacks" in out
    assert "2,048" not in out
    with pytest.raises(InputError, match="GGUF"):
        show_imatrix(LEGACY, LEGACY, as_json=False)
    path = tmp_path / "i.gguf"
    write_imatrix(path, imatrix(blk__0__attn_q__weight=entry([[1, 1]], 7)))
    assert "7 tokens" in shown(capsys, path)
    with pytest.raises(InputError, match="256"):
        show_imatrix(path, write_llama(tmp_path / "m.gguf"), as_json=False)


def test_show_as_json_holds_every_weight(capsys: pytest.CaptureFixture[str]) -> None:
    show_imatrix(REFERENCE, None, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["weights"], facts["chunks"], facts["chunk_tokens"]) == (33, 4, 512)
    assert facts["coverage"]["reached"] == 23
    assert [len(layer["experts"]) for layer in facts["layers"]] == [0, 8, 0, 8, 0, 0, 8]
    assert [layer["unseen"] for layer in facts["layers"]] == [[], [4], [], [], [], [], []]
    assert len(facts["statistics"]) == 33
    assert facts["statistics"][0]["name"] == "blk.0.ssm_in.weight"
    assert facts["counts_are_exact"]
    show_imatrix(LEGACY, None, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert not facts["counts_are_exact"]
    assert facts["coverage"]["enough_share"] is None


@pytest.mark.parametrize(("layers", "experts"), [(3, 8), (40, 512), (1, 1)])
def test_pictures_are_the_same_bytes_again(layers: int, experts: int, tmp_path: Path) -> None:
    counts = np.random.default_rng(1).integers(0, 300, (layers, experts)).astype(np.float32)
    found = imatrix(
        **{
            f"blk__{n}__ffn_up_exps__weight": ImatrixEntry(np.ones((experts, 4), np.float32), row)
            for n, row in enumerate(counts)
        }
    )
    for name in ("a.png", "b.png"):
        draw_coverage(found, "a model", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_layers_that_differ_or_of_none(tmp_path: Path) -> None:
    uneven = imatrix(
        blk__0__ffn_up_exps__weight=entry(np.ones((4, 2)), 1, 0, 50, 9),
        blk__1__ffn_up_exps__weight=entry(np.ones((2, 2)), 0, 0),
    )
    draw_coverage(uneven, "uneven", tmp_path / "uneven.png")
    draw_coverage(imatrix(), "none", tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0
