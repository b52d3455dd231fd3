"""A model's logits on a text cut into chunks, at the positions that count."""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.formats.logits_file import counted
from quantkit.llamacpp.llama import Context, Logits, Model, Tokens
from quantkit.llamacpp.settings import ContextSettings

BATCH_TOKENS = 512
"""Most whose logits are in memory together: 256 MiB with a vocabulary of 131072."""


class TextLogits:
    """Runs chunks of `chunk_tokens` through a model, each from an empty context.

    Args:
        bos: put in place of each chunk's first token; None leaves it.
    """

    def __init__(self, model: Model, chunk_tokens: int, bos: int | None) -> None:
        batch = min(chunk_tokens, BATCH_TOKENS)
        settings = ContextSettings(
            chunk_tokens, batch_tokens=batch, ubatch_tokens=batch, all_outputs=True
        )
        self._context = Context(model, settings)
        self._positions = counted(chunk_tokens)
        self._bos = bos

    def of(self, chunk: Tokens) -> Iterator[tuple[range, Logits]]:
        """(which of the counted positions, their logits), in order; the logits until the next."""
        tokens = chunk.copy()
        if self._bos is not None:
            tokens[0] = self._bos
        self._context.clear()
        at = 0
        for logits in self._context.logits_at(tokens, self._positions):
            yield range(at, at + len(logits)), logits
            at += len(logits)


def begun_tokens(model: Model, text: str, count: int) -> Tokens:
    """The first `count` tokens of `text` or all that there are, begun as llama-perplexity does."""
    vocab = model.vocab
    # A text may be long, and few of its tokens are asked for. Its first characters give the same
    # tokens as the whole, but for the last ones, which the cut may have changed.
    characters, slack = 16 * count, 64
    if characters < len(text):
        tokens = vocab.begun(vocab.tokenize(text[:characters], parse_special=False))
        if len(tokens) >= count + slack:
            return tokens[:count]
    return vocab.begun(vocab.tokenize(text, parse_special=False))[:count]


def bos_of(model: Model) -> int | None:
    """The token that begins every text of the model; None where it wants none."""
    vocab = model.vocab
    return vocab.bos if vocab.adds_bos and vocab.bos >= 0 else None
