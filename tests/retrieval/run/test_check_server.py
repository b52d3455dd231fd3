"""The retrieval check on a running server: beside the native check, its costs, stops, faults."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from demo_artifacts import WANTS_BOS, write_demo
from loopback_llama_server import Faults, LoopbackServer, llama_server
from watched import Recorder

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.llamacpp.endpoint import API_KEY_VARIABLE
from quantkit.llamacpp.selftest import device_settings
from quantkit.llamacpp.server import LlamaServer
from quantkit.retrieval.results import Answer, Retrieval, ServerFacts
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.retrieval.run.check_server import (
    TEST_FLOOR,
    Likeliest,
    check_served,
    largest_difference,
)

CONTEXT_TOKENS = 1024
SELF_TEST_COMPLETIONS = 5
RECIPE = RetrievalRecipe(
    context_tokens=(512, 800),
    needles=3,
    probes={"near-miss": 1, "absent": 1},
    digits=4,
    answer_tokens=8,
    minimum_lower_bound=None,
)
CLASSIC = RECIPE.model_copy(update={"mode": "classic", "depths": (0.1, 0.9), "probes": {}})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("served") / "demo.gguf")


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[LoopbackServer]:
    with llama_server(model, CONTEXT_TOKENS) as side:
        yield side


@pytest.fixture
def side(running: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> LoopbackServer:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    running.recover()
    return running


def check(
    side: LoopbackServer, folder: Path, recipe: RetrievalRecipe = RECIPE
) -> tuple[Retrieval, ServerFacts, Recorder]:
    watcher = Recorder()
    out, work = folder / "niah.jsonl", folder / "work"
    return *check_served(side.address, recipe, out, work, progress=watcher), watcher


def natively(model: Path, folder: Path, recipe: RetrievalRecipe) -> Retrieval:
    settings = CheckSettings(device_settings(1), "f16")
    return check_retrieval(model, recipe, settings, folder / "native.jsonl", folder / "native")


def assert_same(served: Retrieval, native: Retrieval) -> None:
    """The same prompts, answers and scores; log-probabilities up to what kernels round."""
    assert len(served.answers) == len(native.answers) > 1
    for found, expected in zip(served.answers, native.answers, strict=True):
        measured = {"log_probability": None, "margin": None}
        assert replace(found, **measured) == replace(expected, **measured)
        for name in measured:
            value, right = getattr(found, name), getattr(expected, name)
            if right is None:
                assert value is None, (name, expected)
            else:
                assert value == pytest.approx(right, abs=0.02, rel=0.02), (name, expected)
    assert [score.hits for score in served.scores] == [score.hits for score in native.scores]
    assert [score.keys for score in served.scores] == [score.keys for score in native.scores]


@pytest.mark.parametrize("recipe", [RECIPE, CLASSIC], ids=["one-pass", "classic"])
def test_finds_what_the_native_check_finds(
    side: LoopbackServer, model: Path, tmp_path: Path, recipe: RetrievalRecipe
) -> None:
    served, facts, watcher = check(side, tmp_path, recipe)
    native = natively(model, tmp_path, recipe)
    assert_same(served, native)
    assert any(answer.log_probability is not None for answer in served.answers)
    assert served.classic_tokens == native.classic_tokens
    assert facts.one_pass_tokens == native.prefill_tokens + native.question_tokens
    assert (facts.model, facts.context_tokens, facts.chat_template) == ("tiny.gguf", 1024, True)
    assert (facts.file, facts.loopback) == ("tiny.gguf", True)
    assert not any(word in str(facts) for word in ("/models", "127.0.0.1", side.address))
    assert facts.log_probabilities
    assert not served.forked
    assert served.fork_difference < 1e-3
    assert watcher.done == pytest.approx(watcher.total)
    written = (tmp_path / "niah.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in written] == [a.answer for a in served.answers]


def test_counts_what_the_server_prefilled(side: LoopbackServer, tmp_path: Path) -> None:
    side.faults = Faults(underflowed=True)  # one candidate without a probability spoils no test
    served, facts, _ = check(side, tmp_path)
    assert served.fork_difference < 1e-3
    total = served.prefill_tokens + served.question_tokens
    of_test = sum(one.prefilled_tokens for one in side.served[:SELF_TEST_COMPLETIONS])
    assert total == side.prefilled_tokens
    assert facts.one_pass_tokens <= total
    assert total - of_test <= facts.one_pass_tokens + 4 * len(side.served)  # from checkpoints on
    assert 3 * total < served.classic_tokens
    assert sum(rung.prefill_tokens for rung in served.rungs) == served.prefill_tokens
    assert all(rung.prefill_seconds > 0 and rung.decode_seconds > 0 for rung in served.rungs)
    assert {one.body["id_slot"] for one in side.served} == {0}


def test_a_server_that_keeps_nothing_costs_what_it_costs(
    side: LoopbackServer, model: Path, tmp_path: Path
) -> None:
    side.faults = Faults(forgetful=True)
    recipe = RECIPE.model_copy(update={"context_tokens": (512,), "needles": 2, "probes": {}})
    served, facts, watcher = check(side, tmp_path, recipe)
    total = served.prefill_tokens + served.question_tokens
    assert f"{total:,} tokens, where {facts.one_pass_tokens:,}" in watcher.notes[-1]
    assert total == sum(len(one.prompt) for one in side.served) > served.classic_tokens
    assert_same(served, natively(model, tmp_path, recipe))


def test_goes_on_after_a_stop(side: LoopbackServer, tmp_path: Path) -> None:
    whole, _, _ = check(side, tmp_path / "whole")
    needed = len(side.served)
    side.recover()
    side.faults = Faults(stop_after=SELF_TEST_COMPLETIONS + 6)
    with pytest.raises(EnvironmentFault, match="are kept"):
        check(side, tmp_path / "parts")
    assert not (tmp_path / "parts" / "niah.jsonl").exists()
    first = side.served
    side.recover()
    again, _, watcher = check(side, tmp_path / "parts")
    assert plain(again) == plain(whole)
    assert len(side.served) < needed
    assert not any("anew" in note for note in watcher.notes)
    assert watcher.done == pytest.approx(watcher.total)
    prefilled = sum(one.prefilled_tokens for one in [*first, *side.served])
    unfinished = prefilled - again.prefill_tokens - again.question_tokens
    assert 0 <= unfinished < CONTEXT_TOKENS / 4  # of the question that was not answered
    side.recover()
    _, _, watcher = check(side, tmp_path / "parts")
    assert len(side.served) == SELF_TEST_COMPLETIONS  # whether it is the same model still
    assert watcher.done == pytest.approx(watcher.total)


def plain(found: Retrieval) -> list[Answer]:
    return [
        replace(
            answer,
            log_probability=answer.log_probability and round(answer.log_probability, 4),
            margin=answer.margin and round(answer.margin, 2),
        )
        for answer in found.answers
    ]


def test_another_model_begins_anew(side: LoopbackServer, tmp_path: Path) -> None:
    check(side, tmp_path)
    needed = len(side.served)
    side.recover()
    side.props = {"model_path": "/models/other.gguf"}
    check(side, tmp_path)
    assert len(side.served) == needed


@pytest.mark.parametrize("stop_after", [SELF_TEST_COMPLETIONS + 6, None])
def test_another_file_under_the_same_name_begins_anew(
    side: LoopbackServer, tmp_path: Path, stop_after: int | None
) -> None:
    """Alias, path, size and build are the same; only what it says differs."""
    side.faults = Faults(stop_after=stop_after)
    with nullcontext() if stop_after is None else pytest.raises(EnvironmentFault):
        check(side, tmp_path)
    with llama_server(write_demo(tmp_path / "demo.gguf", "Q4_0"), CONTEXT_TOKENS) as other:
        other.facts["size_bytes"] = side.facts["size_bytes"]
        found, _, watcher = check(other, tmp_path)
        asked = len(other.served)
        whole, _, _ = check(other, tmp_path / "whole")
        assert asked == len(other.served) - asked
    assert sum("asked anew" in note for note in watcher.notes) == 1
    assert plain(found) == plain(whole)
    assert found.prefill_tokens == whole.prefill_tokens
    assert watcher.done == pytest.approx(watcher.total)


@pytest.mark.parametrize(
    "faults",
    [Faults(confused=True), Faults(confused=True, underflowed=True), Faults(certain=True)],
)
def test_a_confused_server_proves_nothing(
    side: LoopbackServer, tmp_path: Path, faults: Faults
) -> None:
    side.faults = faults
    with pytest.raises(EnvironmentFault, match="quantkit niah"):
        check(side, tmp_path)
    assert not (tmp_path / "niah.jsonl").exists()


FRESH = ((1, -0.5), (2, -2.0), (3, -9.5), (4, -14.0))


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        (FRESH, 0.0),
        (((1, -0.75), (2, -2.0), (3, -9.5)), 0.25),  # the fourth is too unlikely to count
        (((2, -2.0), (1, -0.5), (3, -8.5), (4, -99.0)), 1.0),  # 10 % of the largest allowed it
        (((1, -0.5), (2, -2.0)), math.inf),
        (((1, math.nan), (2, -2.0), (3, -9.5)), math.inf),
        ((), math.inf),
    ],
)
def test_difference_in_nats(found: Likeliest, difference: float) -> None:
    assert largest_difference(FRESH, found, TEST_FLOOR) == pytest.approx(difference)
    for values in ((), ((1, 0.0), (2, 0.0)), ((1, 1e6),), ((1, -20.0),)):
        assert largest_difference(values, values, TEST_FLOOR) == math.inf


@pytest.mark.parametrize("faults", [Faults(no_token_grammars=True), Faults(speculative=True)])
def test_no_log_probability_where_it_would_not_be_exact(
    side: LoopbackServer, tmp_path: Path, faults: Faults
) -> None:
    side.faults = faults
    served, facts, watcher = check(side, tmp_path)
    assert not facts.log_probabilities
    assert {(a.log_probability, a.rank, a.margin) for a in served.answers} == {(None, None, None)}
    assert sum(answer.hit for answer in served.answers) >= 6
    assert "log-probabilities are not known" in watcher.notes[1]


def test_context_too_short(side: LoopbackServer, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"context_tokens": (512, 2048)})
    with pytest.raises(InputError, match=r"1024.*-c 2048"):
        check(side, tmp_path, recipe)
    assert side.served == []


def test_prompts_begin_with_bos_where_the_model_wants_one(tmp_path: Path) -> None:
    model = write_demo(tmp_path / "bos.gguf", changes=WANTS_BOS)
    with llama_server(model, CONTEXT_TOKENS) as side:
        with LlamaServer(side.address) as client:
            bos = client.first_token()
        served, _, _ = check(side, tmp_path)
        assert {one.prompt[0] for one in side.served} == {bos}
    assert_same(served, natively(model, tmp_path, RECIPE))


def test_thinking_is_kept_in_the_answer(side: LoopbackServer, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(
        update={"thinking": True, "answer_tokens": 256, "context_tokens": (1024,)}
    )
    served, _, _ = check(side, tmp_path, recipe)
    questions = [
        one.body for one in side.served[SELF_TEST_COMPLETIONS:] if not one.body.get("stream")
    ]
    assert len(questions) == len(served.answers)
    assert all("</think>" in body["preserved_tokens"] for body in questions)
    assert all(answer.log_probability is None for answer in served.answers)


@contextmanager
def real_server(model: Path, *options: str) -> Iterator[str]:
    """llama.cpp's own llama-server on a free port."""
    tools = os.environ.get("QUANTKIT_LLAMA_TOOLS", "")
    program = Path(tools) / "llama-server"
    if not tools or not program.exists():
        pytest.skip("needs llama-server in QUANTKIT_LLAMA_TOOLS: make oracle-tools")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    words = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    words += ["-c", str(2 * CONTEXT_TOKENS), "-np", "2", "-t", "1", "-tb", "1", "--no-repack"]
    log = model.with_suffix(".log")
    with log.open("wb") as printed:
        process = subprocess.Popen([*words, *options], stdout=printed, stderr=printed)
    try:
        address, give_up = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                with LlamaServer(address) as client:
                    client.props()
                break
            except EnvironmentFault:
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < give_up
                time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
@pytest.mark.parametrize("recipe", [RECIPE, CLASSIC], ids=["one-pass", "classic"])
def test_against_llama_server_itself(tmp_path: Path, kind: str, recipe: RetrievalRecipe) -> None:
    model = write_demo(tmp_path / "demo.gguf", kind)
    with real_server(model) as address:
        served, facts = check_served(address, recipe, tmp_path / "niah.jsonl", tmp_path / "work")
    assert_same(served, natively(model, tmp_path, recipe))
    assert (facts.model, facts.context_tokens, facts.slots) == ("demo.gguf", CONTEXT_TOKENS, 2)
    total = served.prefill_tokens + served.question_tokens
    asked = len(served.answers) * 6
    of_test = 3 * min(recipe.context_tokens)
    assert total <= facts.one_pass_tokens + 4 * asked + of_test
    assert total >= max(answer.prompt_tokens for answer in served.answers)
    assert served.fork_difference < 0.02
    assert facts.log_probabilities


@pytest.mark.slow
def test_llama_server_without_a_cache_and_with_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recurrent model without checkpoints is prefilled anew for each question."""
    model = write_demo(tmp_path / "demo.gguf")
    monkeypatch.setenv(API_KEY_VARIABLE, "sesame")
    options = ("--ctx-checkpoints", "0", "--api-key", "sesame", "--repeat-penalty", "1.5")
    with real_server(model, *options) as address:
        served, _ = check_served(address, RECIPE, tmp_path / "niah.jsonl", tmp_path / "work")
        monkeypatch.setenv(API_KEY_VARIABLE, "barley")
        with pytest.raises(InputError, match=API_KEY_VARIABLE):
            check_served(address, RECIPE, tmp_path / "other.jsonl", tmp_path / "other")
    assert served.prefill_tokens + served.question_tokens > served.classic_tokens / 2
    assert_same(served, natively(model, tmp_path, RECIPE))
