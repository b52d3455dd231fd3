"""Forks and parallel sequences on each kind of memory, against decodes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from memory_kinds import KINDS, WINDOW, write_kind
from models import CPU, all_logits

from quantkit.llamacpp.llama import ChunkLogits, Context, Model
from quantkit.llamacpp.prompts import Prompt, PromptRunner, Slots, relative_difference, try_forks
from quantkit.llamacpp.settings import ContextSettings, parallel_sequences

HEAD = 900
"""More tokens than a sliding window's own cache has cells."""
SLOTS = Slots(3, 2)
NOISE = 1e-2
"""Of the largest logit: kernels for more tokens at a time round otherwise."""


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    path = write_kind(tmp_path_factory.mktemp("kind") / f"{request.param}.gguf", request.param)
    model = Model(path, CPU)
    yield model
    model.close()


def drawn(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 2048, size, dtype=np.int32)


def made(model: Model) -> Context:
    return Context(model, ContextSettings(1536, 256, 256, SLOTS.sequences, outputs=32))


def test_forks_equal_fresh_decodes_and_leave_the_prefix_alone(model: Model) -> None:
    context, head, more = made(model), drawn(1, HEAD), drawn(2, 300)
    tails = [drawn(seed, 20) for seed in range(10, 14)]
    runner = PromptRunner(context, model.vocab, SLOTS)
    context.prefill(head, 0)
    forked = [runner.probe(HEAD, tail) for tail in tails]
    prompts = [Prompt(tail, [drawn(5, 4), drawn(6, 3)], 6) for tail in tails]
    runner.ask(HEAD, prompts, lambda _place, _said: None)
    context.prefill(more, HEAD)
    behind = runner.probe(HEAD + 300, tails[0])
    for tail, logits in zip(tails, forked, strict=True):
        context.clear()
        context.prefill(head, 0)
        assert np.array_equal(context.decode(tail, HEAD), logits)
    context.clear()
    context.prefill(head, 0)
    context.prefill(more, HEAD)
    assert np.array_equal(context.decode(tails[0], HEAD + 300), behind)
    context.close()


def test_a_saved_prefix_is_forked_as_the_one_that_was_decoded(model: Model, tmp_path: Path) -> None:
    context, head, tail = made(model), drawn(1, HEAD), drawn(3, 20)
    runner = PromptRunner(context, model.vocab, SLOTS)
    context.prefill(head, 0)
    context.save(0, head, tmp_path / "state")
    expected = runner.probe(HEAD, tail)
    context.clear()
    assert context.load(0, tmp_path / "state", HEAD) is not None
    for _ in range(4):  # each leaves the prefix to the next
        assert relative_difference(runner.probe(HEAD, tail), expected) <= 1e-3
    context.close()


def test_the_self_test_goes_beyond_the_window(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = made(model)
    decoded: list[int] = []
    real = Context.prefill

    def prefill(self: Context, tokens: np.ndarray, start: int, sequence: int = 0) -> None:
        decoded.append(start + len(tokens))
        real(self, tokens, start, sequence)

    monkeypatch.setattr(Context, "prefill", prefill)
    found = try_forks(context, model.vocab, SLOTS)
    assert found.alone == 0.0
    assert found.together < NOISE
    assert model.window_tokens in (0, WINDOW)
    assert max(decoded) > 2 * model.window_tokens
    context.close()


def test_chunks_side_by_side_are_as_alone(model: Model) -> None:
    """As an importance matrix, costs and KL divergences are collected."""
    chunks = [drawn(seed, 160) for seed in (1, 2, 3)]
    together = Context(model, parallel_sequences(3, 160))
    rows = together.decode_together(chunks).copy().reshape(3, 160, -1)
    together.close()
    alone = Context(model, ContextSettings(160, 160, 160, all_outputs=True))
    in_parts = ChunkLogits(model, 1024, None)  # in batches of 512, with a window's own cache
    long = drawn(4, 1024)
    scored = np.concatenate([part.copy() for _, part in in_parts.of(long)])
    in_parts.close()
    whole = Context(model, ContextSettings(1024, 1024, 1024, all_outputs=True))
    for chunk, logits in zip(chunks, rows, strict=True):
        assert relative_difference(logits, all_logits(alone, chunk)) < NOISE
    expected = all_logits(whole, long)[-len(scored) - 1 : -1]
    assert relative_difference(scored, expected) < NOISE
    alone.close()
    whole.close()
