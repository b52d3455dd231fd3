"""Prompts on forks, against the same prompts after a fresh decode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from demo_artifacts import write_demo
from models import CPU, all_logits

from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.prompts import (
    Prompt,
    PromptRunner,
    Reply,
    Slots,
    log_probability,
    try_forks,
    worst_rank,
)
from quantkit.llamacpp.settings import ContextSettings

HEAD = 300
NOISE = 0.01
"""Of log-probabilities, relative: kernels for more tokens at a time round otherwise."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_demo(tmp_path_factory.mktemp("questions") / "demo.gguf", "Q8_0")
    model = Model(path, CPU)
    yield model
    model.close()


def made(model: Model, slots: Slots) -> Context:
    settings = ContextSettings(
        1024, batch_tokens=512, ubatch_tokens=512, sequences=slots.sequences, outputs=64
    )
    return Context(model, settings)


def drawn(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 2048, size, dtype=np.int32)


def asked(seed: int, common: int = 0) -> Prompt:
    tail = np.concatenate([drawn(99, common), drawn(seed, 9 + seed % 3)])
    return Prompt(tail, [drawn(seed + 50, 4), drawn(seed + 60, 1), drawn(seed + 70, 3)], 6)


def fresh(model: Model, head: np.ndarray, one: Prompt) -> tuple[list[float], int]:
    """Log-probabilities and rank, by decoding everything anew for each candidate."""
    found, rank = [], 0
    for candidate in one.candidates:
        tokens = np.concatenate([head, one.tokens, candidate])
        settings = ContextSettings(1024, batch_tokens=512, ubatch_tokens=512, all_outputs=True)
        context = Context(model, settings)
        rows = all_logits(context, tokens)[len(head) + len(one.tokens) - 1 : -1]
        found.append(log_probability(rows, candidate))
        rank = rank or worst_rank(rows, candidate)
        context.close()
    return found, rank


@pytest.mark.parametrize(("questions", "candidates", "common"), [(1, 1, 0), (2, 2, 7), (4, 3, 40)])
def test_answers_are_those_of_a_decode_of_their_own(
    model: Model, questions: int, candidates: int, common: int
) -> None:
    slots = Slots(questions, candidates)
    context, head = made(model, slots), drawn(1, HEAD)
    context.prefill(head, 0)
    said: dict[int, Reply] = {}
    rest = [asked(seed, common) for seed in range(5)]
    told: list[int] = []
    runner = PromptRunner(context, model.vocab, slots, told.append)
    runner.ask(HEAD, rest, said.__setitem__)
    assert list(said) == [0, 1, 2, 3, 4]
    assert sum(told) == sum(len(one.tokens) for one in rest)
    for number, one in enumerate(rest):
        expected, rank = fresh(model, head, one)
        assert said[number].log_probabilities == pytest.approx(expected, rel=NOISE)
        assert said[number].rank == pytest.approx(rank, rel=0.1, abs=3)
        context.clear()
        context.prefill(head, 0)
        alone = runner.ask_without_fork(HEAD, one)
        assert (alone.text, alone.truncated) == (said[number].text, said[number].truncated)
    context.close()


def test_the_prefix_stays_and_goes_on(model: Model) -> None:
    slots = Slots(3, 2)
    context, head, more, tail = made(model, slots), drawn(1, HEAD), drawn(2, 200), drawn(3, 12)
    runner = PromptRunner(context, model.vocab, slots)
    context.prefill(head, 0)
    before = runner.probe(HEAD, tail)
    runner.ask(HEAD, [asked(seed) for seed in range(4)], lambda _number, _said: None)
    assert runner.rate(HEAD, 7)[0] > 0
    assert np.array_equal(runner.probe(HEAD, tail), before)
    context.prefill(more, HEAD)
    behind = runner.probe(HEAD + 200, tail)
    context.clear()
    context.prefill(head, 0)
    context.prefill(more, HEAD)
    assert np.array_equal(context.decode(tail, HEAD + 200), behind)
    context.close()


def test_the_self_test_finds_forks_that_copy_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(3, 1)
    context = made(model, slots)
    found = try_forks(context, model.vocab, slots)
    assert found.alone == 0.0
    assert found.together <= 0.1
    monkeypatch.setattr(Context, "fork", lambda self, source, target: self.drop(target))
    broken = try_forks(context, model.vocab, slots)
    assert min(broken.alone, broken.together) > 0.1
    context.close()


def test_the_limit_and_the_end_of_an_answer(model: Model) -> None:
    slots = Slots(2, 1)
    context, head = made(model, slots), drawn(1, HEAD)
    context.prefill(head, 0)
    said: dict[int, Reply] = {}
    one = asked(1)
    short = [Prompt(one.tokens, (), limit) for limit in (1, 40)]
    PromptRunner(context, model.vocab, slots).ask(HEAD, short, said.__setitem__)
    assert said[0].truncated
    assert said[1].text.startswith(said[0].text)
    assert said[0].log_probabilities == ()
    assert said[0].rank is None
    context.close()


def test_log_probability_and_rank_by_hand() -> None:
    rows = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.7, 0.2]], np.float32))
    assert log_probability(rows, np.array([0, 2])) == pytest.approx(np.log(0.5 * 0.2))
    assert worst_rank(rows, np.array([0, 1])) == 1
    assert worst_rank(rows, np.array([0, 2])) == 2
    assert worst_rank(rows, np.array([0, 0])) == 3
