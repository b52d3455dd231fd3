"""Logits of a text that is cut into chunks, at the scored positions."""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.formats.logits_file import scored_positions
from quantkit.llamacpp.llama import Context, Logits, Model, Tokens, Vocabulary, with_first
from quantkit.llamacpp.settings import ContextSettings

BATCH_TOKENS = 512
"""Limits the logits in memory: 256 MiB with a vocabulary of 131072."""


class ChunkLogits:
    """Runs chunks of `chunk_tokens` through a model, each from an empty context.

    Args:
        bos: replaces each chunk's first token, unless None.
    """

    def __init__(self, model: Model, chunk_tokens: int, bos: int | None) -> None:
        batch = min(chunk_tokens, BATCH_TOKENS)
        settings = ContextSettings(
            chunk_tokens, batch_tokens=batch, ubatch_tokens=batch, all_outputs=True
        )
        self._context = Context(model, settings)
        self._positions = scored_positions(chunk_tokens)
        self._bos = bos

    def of(self, chunk: Tokens) -> Iterator[tuple[range, Logits]]:
        """(indices among the scored positions, their logits), the logits valid until the next."""
        self._context.clear()
        at = 0
        for logits in self._context.logits_at(with_first(chunk, self._bos), self._positions):
            yield range(at, at + len(logits)), logits
            at += len(logits)


def first_tokens(vocab: Vocabulary, text: str, count: int) -> Tokens:
    """The first `count` tokens of `text`, with BOS before them as llama-perplexity has it."""
    # A long text need not be tokenized to its end: a prefix gives the same tokens, except for the
    # last ones at the cut.
    for characters in (16 * count, len(text)):
        tokens = vocab.prepend_bos(vocab.tokenize(text[:characters], parse_special=False))
        if len(tokens) >= count + 64:
            break
    return tokens[:count]
