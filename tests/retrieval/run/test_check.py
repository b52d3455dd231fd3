"""The retrieval check on the demo model: forks against fresh prefills, kills, broken artifacts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_artifacts import exchanged, mistyped, swapped, with_context_length, with_nan
from demo_artifacts import write_demo
from small_haystack import small_haystack
from watched import Killed, Watched

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault, GateError, InputError
from quantkit.core.paths import sentences
from quantkit.core.progress import SILENT, Progress
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.llama import Context
from quantkit.llamacpp.prompts import PromptRunner
from quantkit.llamacpp.saved_state import SavedState
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import choose_model, open_source
from quantkit.quantize.integrity import check_artifact
from quantkit.retrieval.results import Answer, Retrieval
from quantkit.retrieval.run import check, check_child, check_memory
from quantkit.retrieval.run.check import CheckSettings, check_retrieval

DEVICES = DeviceSettings(threads=2, use_extra_buffers=False, gpu_layers=0)
SETTINGS = CheckSettings(DEVICES, "f16")
GRID = {
    "context_tokens": (896, 1408),
    "needles": 6,
    "probes": {"near-miss": 1, "absent": 1, "multi-value": 1, "two-hop": 1},
    "minimum_lower_bound": None,
}


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most checks need no process of their own, whose start takes as long as they do."""
    if "isolated" not in request.keywords:
        monkeypatch.setattr(check, "run_isolated", called)


def called(task: str, arguments: dict[str, Any], on_message: Emit) -> Any:  # noqa: ANN401
    assert task == "quantkit.retrieval.run.check_child:ask_in_child"
    return check_child.ask_in_child(**arguments, emit=on_message)


def checked(
    model: Path,
    folder: Path,
    settings: CheckSettings = SETTINGS,
    progress: Progress = SILENT,
    haystack: Path | None = None,
    **changes: Any,  # noqa: ANN401 - fields of every type
) -> Retrieval:
    folder.mkdir(exist_ok=True)
    recipe = RetrievalRecipe.model_validate({**GRID, **changes})
    text = haystack or small_haystack()
    return check_retrieval(model, recipe, settings, folder / "niah.jsonl", folder, text, progress)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("niah") / "demo.gguf", "Q4_0")


@pytest.fixture(scope="module")
def one_pass(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    return checked(model, tmp_path_factory.mktemp("one pass"))


def by_place(found: Retrieval) -> dict[tuple[int, int, str, int], Answer]:
    return {answer.place: answer for answer in found.answers}


def test_every_cell_is_as_after_a_prefill_of_its_own(
    model: Path, one_pass: Retrieval, tmp_path: Path
) -> None:
    fresh = checked(model, tmp_path, replace(SETTINGS, fresh=True))
    assert one_pass.forked
    assert not fresh.forked
    expected, found = by_place(fresh), by_place(one_pass)
    assert len(found) == 2 * (6 + 4)
    assert found.keys() == expected.keys()
    for place, answer in found.items():
        assert answer.hit == expected[place].hit, place
        assert answer.prompt_tokens == expected[place].prompt_tokens
        assert answer.prompt_tokens <= answer.context_tokens
        if answer.task in ("multikey", "near-miss"):
            assert answer.answer == expected[place].answer
    assert next(s for s in one_pass.scores if s.task == "multikey").hits == 6
    # each rung's own costs, and what one prefill a question took
    assert fresh.classic_tokens == sum(answer.prompt_tokens for answer in fresh.answers)
    assert sum(rung.prefill_tokens for rung in fresh.rungs) > 8 * one_pass.prefill_tokens


def test_one_prefill_answers_all(one_pass: Retrieval) -> None:
    assert sum(rung.prefill_tokens for rung in one_pass.rungs) == one_pass.prefill_tokens
    assert 1200 <= one_pass.prefill_tokens <= 1408
    assert one_pass.fork_difference == 0.0
    assert [rung.fork_difference for rung in one_pass.rungs] == [0.0, 0.0]
    assert [rung.context_tokens for rung in one_pass.rungs] == [896, 1408]
    assert all(rung.decode_tokens > 0 and rung.prefill_seconds > 0 for rung in one_pass.rungs)
    (cpu,) = [use for use in one_pass.memory if use.device == "CPU"]
    assert cpu.context_bytes == cpu.planned_context_bytes > 0
    assert cpu.compute_bytes == cpu.planned_compute_bytes > 0
    names = [score.name for score in one_pass.scores if score.context_tokens == 1408]
    assert names[0].startswith("multikey-")
    assert int(names[0].removeprefix("multikey-")) > 12  # both rungs' needles and near misses
    assert names[1:] == ["near-miss", "absent", "multi-value", "two-hop"]


def test_log_probabilities_rank_and_margin(one_pass: Retrieval) -> None:
    needles = [answer for answer in one_pass.answers if answer.task == "multikey"]
    assert all(-0.1 < answer.log_probability < 0 for answer in needles)  # type: ignore[operator]
    assert {answer.rank for answer in needles} == {1}
    assert any(answer.margin is not None for answer in needles)
    assert all(answer.margin > 5 for answer in needles if answer.margin is not None)
    others = [a for a in one_pass.answers if a.task in ("absent", "multi-value")]
    assert {(a.log_probability, a.rank, a.margin) for a in others} == {(None, None, None)}
    wrong = [a for a in one_pass.answers if a.task == "two-hop"]  # it was never trained to
    assert all(answer.rank > 1 and not answer.hit for answer in wrong)  # type: ignore[operator]


def test_classic_mode_has_one_needle_at_each_depth(model: Path, tmp_path: Path) -> None:
    found = checked(model, tmp_path, mode="classic", probes={})
    settings = replace(SETTINGS, fresh=True)
    fresh = checked(model, tmp_path / "fresh", settings, mode="classic", probes={})
    assert [(a.context_tokens, a.task, a.hit) for a in found.answers] == [
        (length, "single", True) for length in (896, 1408) for _ in range(3)
    ]
    assert [a.answer for a in fresh.answers] == [a.answer for a in found.answers]
    assert [a.depth for a in found.answers[:3]] == pytest.approx([0.1, 0.5, 0.9], abs=0.05)
    assert {score.name for score in found.scores} == {"single"}
    paid = sum(rung.prefill_tokens for rung in found.rungs)
    assert paid == found.prefill_tokens < 0.9 * found.classic_tokens


class Tokens(Watched):
    unit = "tokens"


@pytest.mark.isolated
def test_a_killed_run_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    saving = replace(SETTINGS, save_seconds=0)
    work, out = tmp_path / "killed", tmp_path / "killed" / "niah.jsonl"
    asked = {"context_tokens": (2304, 3072), "probes": {}}
    whole = checked(model, tmp_path / "whole", saving, **asked)
    for reports in (2, 3, 3):  # in the first prefill, at its questions, in the second
        with pytest.raises(Killed):
            checked(model, work, saving, Tokens(reports), **asked)
        assert not out.exists()
    watched = Tokens()
    found = checked(model, work, saving, watched, **asked)
    assert out.read_bytes() == (tmp_path / "whole" / "niah.jsonl").read_bytes()
    assert found.answers == whole.answers
    assert any("an earlier run saved" in sentence for sentence in watched.notes)
    tokens = [rung.prefill_tokens for rung in found.rungs]
    assert tokens == [rung.prefill_tokens for rung in whole.rungs]
    assert [r.question_tokens for r in found.rungs] == [r.question_tokens for r in whole.rungs]
    assert watched.done == watched.total
    # asked once more, it has nothing left to do
    journal = work / "answers.jsonl"
    kept = journal.read_bytes()
    idle = Tokens()
    again = checked(model, work, saving, idle, **asked)
    assert (again.answers, journal.read_bytes()) == (whole.answers, kept)
    assert idle.done == idle.total > 0
    # and killed between two of those that were answered side by side
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: 1 + 6 + 1 + 5]))
    assert checked(model, work, saving, **asked).answers == whole.answers


@pytest.mark.parametrize("mode", ["one-pass", "classic"])
def test_what_a_killed_run_had_closed_is_not_counted_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    asked = {"mode": mode, "probes": {}, "context_tokens": (1024, 2560), "needles": 3}
    whole = checked(model, tmp_path / "whole", **asked)
    real = SavedState.save
    saved: list[int] = []

    def save(self: SavedState, context: Context, tokens: np.ndarray, facts: dict[str, Any]) -> None:
        if len(tokens) > 1024 and not saved:  # behind the first length, before it is saved
            saved.append(len(tokens))
            raise Killed
        real(self, context, tokens, facts)

    monkeypatch.setattr(SavedState, "save", save)
    saving = replace(SETTINGS, save_seconds=0)
    with pytest.raises(Killed):
        checked(model, tmp_path, saving, **asked)
    found = checked(model, tmp_path, saving, **asked)
    assert found.answers == whole.answers
    tokens = [(r.prefill_tokens, r.question_tokens) for r in found.rungs]
    assert tokens == [(r.prefill_tokens, r.question_tokens) for r in whole.rungs]
    assert sum(r.prefill_tokens for r in found.rungs) == whole.prefill_tokens


DAMAGED = (
    '{"answer": 3}', '{"answer": {}}', "[]", "3", "{}", '{"rung": {"context_tokens": 896}}',
    '{"tested": {"difference": NaN, "forces": true, "likeliest": []}}',
    '{"tested": {"difference": 0, "forces": true, "likeliest": [[1]]}}',
)  # fmt: skip
"""Lines of a journal."""
CHANGED = (
    {"context_tokens": 897}, {"seed": 7}, {"task": "other"}, {"index": 9}, {"key": "x"},
    {"values": ["1"]}, {"values": "1"}, {"hit": None}, {"found": 9}, {"answer": "no"},
    {"log_probability": "-1"},
)  # fmt: skip
"""Fields of an answer."""
COSTS = (
    {"context_tokens": 897}, {"prefill_tokens": -1}, {"prefill_seconds": math.nan},
    {"decode_tokens": 1.5}, {"question_tokens": None}, {"fork_difference": math.inf},
)  # fmt: skip
"""Fields of a cost."""


def test_a_damaged_journal_is_refused(model: Path, tmp_path: Path) -> None:
    few = {"probes": {}, "context_tokens": (896,), "needles": 2}
    whole = checked(model, tmp_path, **few)
    journal = tmp_path / "answers.jsonl"
    purpose, *lines = journal.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    answer = next(e["answer"] for e in entries if "answer" in e)
    cost = next(e for e in entries if "rung" in e)
    bad = [
        *DAMAGED,
        *(json.dumps({"answer": answer | change}) for change in CHANGED),
        *(json.dumps(cost | {"rung": cost["rung"] | change}) for change in COSTS),
        *(json.dumps(cost | {"seed": seed}) for seed in (5, None, "1")),
    ]
    for line in bad:
        journal.write_text("\n".join([purpose, *lines, line, ""]))
        with pytest.raises(InputError, match=rf"answers\.jsonl, line {len(lines) + 2}"):
            checked(model, tmp_path, **few)
    journal.write_text("\n".join([purpose, *lines, ""]))
    assert checked(model, tmp_path, **few) == whole


@pytest.mark.parametrize(
    "facts", [{}, {"rung": 3, "cost": {}}, {"rung": [1], "cost": {"prefill_tokens": -1}}]
)
def test_a_saved_prefix_with_damaged_costs_is_not_used(
    facts: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    few = {"probes": {}, "context_tokens": (2304,), "needles": 2}
    whole = checked(model, tmp_path / "whole", **few)
    with pytest.raises(Killed):
        checked(model, tmp_path, replace(SETTINGS, save_seconds=0), Tokens(2), **few)
    about = tmp_path / "state.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"facts": facts}))
    found = checked(model, tmp_path, **few)
    assert found.answers == whole.answers
    assert [r.prefill_tokens for r in found.rungs] == [r.prefill_tokens for r in whole.rungs]


def test_answers_to_other_questions_are_forgotten(model: Path, tmp_path: Path) -> None:
    few = {"probes": {}, "context_tokens": (768,), "needles": 3}
    checked(model, tmp_path, **few)
    haystack = tmp_path / "other.txt"
    haystack.write_text(" ".join(sentences()[-200:]))
    watched = Tokens()
    found = checked(model, tmp_path, SETTINGS, watched, haystack, **few)
    assert watched.total > 700  # nothing of the first run was taken over
    assert len(found.answers) == 3


def test_a_prefix_that_forks_change_ends_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PromptRunner.ask

    def ask(self: PromptRunner, position: int, *rest: Any) -> None:  # noqa: ANN401
        real(self, position, *rest)
        self._context.clear()
        self._context.prefill(np.full(position, 7, np.int32), 0)

    monkeypatch.setattr(PromptRunner, "ask", ask)
    with pytest.raises(EnvironmentFault, match="--fresh"):
        checked(model, tmp_path, probes={})


def test_forks_that_are_not_exact_are_told_and_not_used(
    model: Path, one_pass: Retrieval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "fork", lambda self, source, target: self.drop(target))
    watched = Tokens()
    found = checked(model, tmp_path, progress=watched)
    assert not found.forked
    assert found.fork_difference > 0.1
    assert any("each question gets a prefill of its own" in note for note in watched.notes)
    expected = by_place(one_pass)
    assert len(found.answers) == len(expected)
    assert all(answer.hit == expected[answer.place].hit for answer in found.answers)


def test_no_memory_is_told_before_the_weights_are_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_memory, "free_memory", lambda: {"CPU": 1 << 20})
    with pytest.raises(EnvironmentFault, match=r"1\.0 MiB"):
        checked(model, tmp_path, forks=8)
    monkeypatch.setattr(check_memory, "free_memory", lambda: {"CPU": 15 << 20})
    watched = Tokens()
    checked(model, tmp_path, progress=watched, forks=8)
    (note,) = [note for note in watched.notes if "memory holds" in note]
    questions = int(note.removeprefix("memory holds ").split()[0])
    assert questions < 8


@pytest.mark.parametrize("tensor", ["blk.4.ssm_in.weight", "blk.1.ffn_up_exps.weight"])
def test_a_tensor_of_the_wrong_type_fails_the_gate(
    model: Path, tmp_path: Path, tensor: str
) -> None:
    broken = mistyped(model, tmp_path / "broken.gguf", tensor, "IQ4_NL")
    gate = {"probes": {}, "context_tokens": (768,), "needles": 10, "minimum_lower_bound": 0.7}
    assert checked(model, tmp_path / "whole", **gate).passed
    found = checked(broken, tmp_path / "work", **gate)
    assert not found.passed
    mean = found.scores[0].log_probability
    assert mean is not None
    assert mean < -5


def test_weights_that_are_not_the_models_fail_before_it_is_asked(
    model: Path, tmp_path: Path
) -> None:
    source = open_source(choose_model("demo"))
    own = {k: v for k, v in source.metadata.items() if k.startswith("nemotron_h_moe.")}
    whole = check_artifact(model, source, own)
    assert whole.worst_error < 0.05
    assert whole.matrices == sum(info.matrices for info in source.tensors)
    types = {info.name: "Q4_0" if info.type_name == "BF16" else info.type_name
             for info in source.tensors}  # fmt: skip
    check_artifact(model, source, own, types)
    out = tmp_path / "broken.gguf"

    def refuse(broken: Path, words: str, types: dict[str, str] | None) -> None:
        with pytest.raises(GateError, match=words):
            check_artifact(broken, source, own, types)

    norms = ("blk.0.attn_norm.weight", "blk.1.attn_norm.weight")
    refuse(exchanged(model, out, *norms), r"blk\.0\.attn_norm\.weight", types)
    for tensor in ("blk.1.ffn_up_exps.weight", "blk.6.ffn_down_exps.weight"):
        refuse(swapped(model, out, tensor, 2, 5), rf"experts 2, 5 of {tensor}, Q4_0", types)
    mistyped(model, out, "blk.2.attn_q.weight", "IQ4_NL")
    refuse(out, r"blk\.2\.attn_q\.weight is IQ4_NL, not Q4_0", types)
    refuse(out, "relative squared error", None)
    with_context_length(model, out, 1024)
    refuse(out, "context_length is 1024, not 1048576", None)
    refuse(model, r"extra\.weight is missing", {**types, "extra.weight": "F32"})
    del types["output.weight"]
    refuse(model, r"output\.weight", types)


def test_logits_that_are_no_numbers_are_the_files_fault(model: Path, tmp_path: Path) -> None:
    broken = with_nan(model, tmp_path / "nan.gguf", "output_norm.weight")
    with pytest.raises(GateError, match="not finite"):
        checked(broken, tmp_path / "work")


def test_a_truncated_context_length_fails_the_gate(model: Path, tmp_path: Path) -> None:
    out = with_context_length(model, tmp_path / "short.gguf", 1024)
    with pytest.raises(GateError, match=r"1024.*1408"):
        checked(out, tmp_path / "work")
