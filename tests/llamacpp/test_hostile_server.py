"""Answers that no llama-server gives: each ends in an error of ours, in bounded time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hostile_server as hostile
import numpy as np
import pytest
from hostile_server import Hostile, answering

from quantkit.core import answers_of_servers
from quantkit.core.errors import QuantkitError
from quantkit.llamacpp import endpoint
from quantkit.llamacpp.server import LlamaServer

STEP = {"id": 1, "logprob": -1.0, "top_logprobs": [{"id": 1, "logprob": -1.0}]}
TIMINGS = {"prompt_n": 2, "prompt_ms": 1.5, "predicted_n": 1, "predicted_ms": 1}
COMPLETION: dict[str, Any] = {
    "content": "x", "tokens": [1], "stop_type": "limit", "tokens_evaluated": 2,
    "timings": TIMINGS, "completion_probabilities": [STEP], "stop": True,
}  # fmt: skip
PROPS: dict[str, Any] = {"default_generation_settings": {"n_ctx": 9}}
PROMPT = np.array([1, 2], np.int32)


def asked(answer: Hostile, ask: Callable[[LlamaServer], object]) -> object:
    with answering(answer) as address, LlamaServer(address) as server:
        return ask(server)


def event(value: object) -> Hostile:
    answer = hostile.content(value)
    (body,) = answer.pieces()
    line = b"data: " + body + b"\n\n"
    return Hostile(lambda: [line], {"Content-Type": "text/event-stream"})


ASKED: dict[str, Callable[[LlamaServer], object]] = {
    "props": lambda server: server.props(),
    "tokenize": lambda server: server.tokenize("a"),
    "first token": lambda server: server.first_token(),
    "complete": lambda server: server.complete(PROMPT, 1),
    "prefill": lambda server: server.prefill(PROMPT, lambda share: None),
}


def test_what_is_right_is_taken() -> None:
    assert asked(hostile.content(PROPS), ASKED["props"]).context_tokens == 9  # type: ignore[attr-defined]
    told = asked(hostile.content(COMPLETION), ASKED["complete"])
    assert told == asked(event(COMPLETION), ASKED["prefill"])
    assert told.steps[0].rank == 1  # type: ignore[attr-defined]


WRONG: list[tuple[str, object]] = [
    *((name, value) for name in ASKED for value in (b"<html>", [], 3, None, {"error": "no"}, b"")),
    *(("props", PROPS | {"default_generation_settings": {"n_ctx": n}})
      for n in (True, 0, -1, "9", None, 1e9, 10**40)),
    *(("props", PROPS | {name: value}) for name, value in (
        ("total_slots", "x"), ("total_slots", [1]), ("chat_template", {}), ("bos_token", 3),
        ("model_path", ["a"]), ("build_info", {}),
    )),
    *(("tokenize", {"tokens": value}) for value in (
        3, "12", [["1"]], [1.5], ["1"], [True], [2**31], [None], [1, [2]], {"a": 1},
    )),
    *(("complete", COMPLETION | {name: value}) for name, value in (
        ("content", 3), ("tokens", "1"), ("tokens", [-5]), ("stop_type", None), ("timings", []),
        ("tokens_evaluated", "2"), ("tokens_evaluated", 3), ("completion_probabilities", None),
        ("completion_probabilities", [3]), ("completion_probabilities", {}),
        ("completion_probabilities", [STEP | {"logprob": math.nan}]),
        ("completion_probabilities", [STEP | {"top_logprobs": [{"id": 1}]}]),
        *(("timings", TIMINGS | {name: value}) for name, value in (
            ("prompt_n", -1), ("prompt_n", 10**30), ("prompt_ms", math.nan), ("prompt_ms", -1),
            ("predicted_n", 1.5), ("predicted_ms", math.inf), ("predicted_ms", None),
        )),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_answers_of_other_kinds(name: str, value: object) -> None:
    with pytest.raises(QuantkitError):
        asked(hostile.content(value), ASKED[name])


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_progress": []}, {"prompt_progress": {"total": "9"}}, {"stop": "yes"},
        {"prompt_progress": {"processed": -1}}, {"completion_probabilities": 3},
        {"completion_probabilities": [STEP] * 2000}, {"error": {"message": "x" * 10**6}},
        {"timings": {}},
    ],
)  # fmt: skip
def test_events_of_other_kinds(change: dict[str, object]) -> None:
    with pytest.raises(QuantkitError) as caught:
        asked(event(COMPLETION | change), ASKED["prefill"])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["props", "prefill"])
@pytest.mark.parametrize("kind", ["endless", "bomb", "slow", "around", "too short"])
def test_answers_without_an_end(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_of_servers, "RATE_SECONDS", 0.3)
    monkeypatch.setattr(endpoint, "MAX_ANSWER_BYTES", 4 << 20)
    answers = {
        "endless": hostile.endless(), "bomb": hostile.bomb(), "slow": hostile.slow(0.02),
        "around": hostile.around(), "too short": hostile.too_short(),
    }  # fmt: skip
    with pytest.raises(QuantkitError):
        asked(answers[kind], ASKED[name])
    assert answers[kind].sent_bytes < 64 << 20


@pytest.mark.parametrize("piece", [b":\n\n", b"data: {", b"x" * 100_000])
def test_streams_without_an_event(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(endpoint, "MAX_EVENT_BYTES", 1 << 20)
    answer = hostile.slow(0.01, piece)
    answer.headers = {"Content-Type": "text/event-stream"}
    with pytest.raises(QuantkitError):
        asked(answer, ASKED["prefill"])
