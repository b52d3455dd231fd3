"""Makes the calibration tokens of a recipe's texts or of its mixture of domains.

Equal input gives equal tokens on every machine.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import InputError
from quantkit.core.parsing import read_text
from quantkit.llamacpp.child import Emit
from quantkit.models.chat_template import ChatTemplate
from quantkit.study.calibration.rows import ROW_ENDINGS, ChatTexts, RenderChat, read_rows

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Model

Tokens = NDArray[np.int32]
Tokenize = Callable[[str], Tokens]

ENDINGS = (".txt", ".md", *ROW_ENDINGS)
"""Extensions of the files that are read of a folder or a dataset."""
PART_CHARACTERS = 1 << 24
"""Limit for text that is tokenized at once: a tokenizer needs many bytes per character."""


@dataclass(frozen=True)
class CalibrationSource:
    """One of a recipe's sources, on this disk.

    Attributes:
        name: as in the recipe.
        files: in reading order.
        origin: "quantkit" for a shipped text, "disk", or "hf://datasets/OWNER/NAME@COMMIT".
        licence: SPDX expression of a shipped text, or what the Hub states for a dataset, if any.
    """

    name: str
    files: tuple[Path, ...]
    origin: str
    licence: str | None

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Its names in `imatrix.datasets`."""
        if self.origin.startswith("hf://"):
            return (self.origin,)
        return tuple(path.name for path in self.files)


@dataclass(frozen=True)
class CalibrationTokens:
    """The calibration.

    Attributes:
        tokens: of a mixture whole chunks, each of one domain; else all tokens of the texts.
        domains: in the recipe's order; texts are one domain together.
        order: domain of each chunk of a mixture; empty for texts.
        notes: for the user: domains that ran out, conversations left out.
    """

    tokens: Tokens
    chunk_tokens: int
    domains: tuple[str, ...]
    order: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def taken_after(self, chunks: int) -> dict[str, int]:
        """Domain → its tokens in the first `chunks` chunks, of which there is at least one."""
        held = Counter(self.order[:chunks] or {self.domains[0]: chunks})
        return {name: held[name] * self.chunk_tokens for name in self.domains}


@dataclass(frozen=True)
class Tokenizer:
    """How a model reads texts and conversations.

    Attributes:
        plain: of texts, without BOS.
        special: of rendered conversations, with special tokens.
        render_chat: `ChatTemplate.render` of the model's template; None for a model without one:
            conversations become lines of "role: content".
    """

    plain: Tokenize
    special: Tokenize
    render_chat: RenderChat | None = None


def calibration_tokens(
    recipe: ImatrixRecipe, sources: Sequence[CalibrationSource], tokenizer: Tokenizer
) -> CalibrationTokens:
    """The tokens that the importance matrix is collected on.

    Of a mixture the recipe's `chunks` chunks, or all chunks if it continues until the experts are
    covered; the first `chunks` are the same in both cases. Texts are joined by an empty line.

    Raises:
        InputError: a file cannot be read, or no domain is long enough for one chunk.
    """
    notes: list[str] = []
    domains = read_domains(recipe, sources, tokenizer, recipe.chunks, notes)
    if recipe.mixture:
        return _mixture_tokens(recipe, domains, notes)
    ((name, tokens),) = domains.items()
    return CalibrationTokens(tokens, recipe.chunk_tokens, (name,), notes=tuple(notes))


def model_calibration(
    recipe: ImatrixRecipe, sources: Sequence[CalibrationSource], model: Model, emit: Emit
) -> CalibrationTokens:
    """`calibration_tokens` of a loaded model; notes for the user are emitted."""
    with model_tokenizer(model) as tokenizer:
        calibration = calibration_tokens(recipe, sources, tokenizer)
    for sentence in calibration.notes:
        emit(("note", sentence))
    return calibration


@contextmanager
def model_tokenizer(model: Model) -> Iterator[Tokenizer]:
    """How a loaded model reads texts and conversations."""
    template, vocab = model.chat_template(), model.vocab
    bos, eos = vocab.token_text(vocab.bos), vocab.token_text(vocab.eos)
    plain = functools.partial(vocab.tokenize, parse_special=False)
    with ChatTemplate(template or "", bos, eos) as chat:
        yield Tokenizer(plain, vocab.tokenize, None if template is None else chat.render)


def whole_chunks(tokens: Tokens, size: int, text: str, advice: str) -> Tokens:
    """`tokens` cut into chunks, shape (chunks, size), without what is left at the end.

    Raises:
        InputError: there is not one chunk; the message names the `text` and gives the `advice`.
    """
    count = len(tokens) // size
    if count == 0:
        raise InputError(
            f"{text} has {len(tokens)} tokens, fewer than one chunk of {size}; {advice}"
        )
    return tokens[: count * size].reshape(count, size)


def read_domains(
    recipe: ImatrixRecipe,
    sources: Sequence[CalibrationSource],
    tokenizer: Tokenizer,
    chunks: int,
    notes: list[str],
) -> dict[str, Tokens]:
    """Domain → its tokens, as many as `chunks` chunks may need; texts are one domain together.

    What the user should know of them is added to `notes`.

    Raises:
        InputError: a file cannot be read.
    """
    if not recipe.mixture:
        files = [path for source in sources for path in source.files]
        name = ", ".join(source.name for source in sources)
        return {name: _joined(list(_texts_tokens(files, tokenizer, notes)))}
    # Spread chunks are from all over the text, and coverage may need all of it.
    whole = recipe.spread or recipe.until_covered > 0
    enough = None if whole else chunks * recipe.chunk_tokens
    return {source.name: _domain_tokens(source, enough, tokenizer, notes) for source in sources}


def chunk_places(
    recipe: ImatrixRecipe, room: Mapping[str, int], chunks: int
) -> list[tuple[str, int]]:
    """The domain of each of the first `chunks` chunks, and which of that domain's it is.

    Fewer where the domains have not so many: `room`.
    """
    if not recipe.mixture:
        ((name, count),) = room.items()
        return [(name, place) for place in range(min(chunks, count))]
    order = chunk_order(recipe.mixture, room, chunks, recipe.seed)
    places = {name: iter(spread_out(n) if recipe.spread else range(n)) for name, n in room.items()}
    return [(name, next(places[name])) for name in order]


def _mixture_tokens(
    recipe: ImatrixRecipe, domains: Mapping[str, Tokens], notes: list[str]
) -> CalibrationTokens:
    size = recipe.chunk_tokens
    room = {name: len(tokens) // size for name, tokens in domains.items()}
    most = sum(room.values()) if recipe.until_covered else recipe.chunks
    places = chunk_places(recipe, room, most)
    if not places:
        raise InputError(
            f"no domain of the calibration mixture has the {size} tokens of one chunk; "
            + "; ".join([*notes, "give longer texts or a smaller chunk_tokens"])
        )
    chunks = [domains[name][place * size : (place + 1) * size] for name, place in places]
    order = tuple(name for name, _ in places)
    total = sum(map(Fraction, map(str, recipe.mixture.values())))
    for name, share in recipe.mixture.items():
        wanted = int(Fraction(str(share)) / total * recipe.chunks)
        if room[name] < wanted:
            notes.append(
                f"the calibration text {name} has only {room[name]} of the {wanted} chunks of its "
                "share; the other texts fill up the rest"
            )
    return CalibrationTokens(_joined(chunks), size, tuple(domains), order, tuple(notes))


def _domain_tokens(
    source: CalibrationSource, enough: int | None, tokenizer: Tokenizer, notes: list[str]
) -> Tokens:
    """The tokens of a domain's files in order, up to the piece that reaches `enough`."""
    parts: list[Tokens] = []
    count = 0
    for path in source.files:
        rows = path.suffix in ROW_ENDINGS
        pieces = _row_tokens(path, tokenizer, notes) if rows else _text_tokens(path, tokenizer)
        with closing(pieces):
            for tokens in pieces:
                parts.append(tokens)
                count += len(tokens)
                if enough is not None and count >= enough:
                    return _joined(parts)
    return _joined(parts)


def _text_tokens(path: Path, tokenizer: Tokenizer) -> Generator[Tokens]:
    """The tokens of a text and an empty line, in parts that end at an empty line."""
    text = read_text(path) + "\n\n"
    begin = 0
    while begin < len(text):
        end = begin + PART_CHARACTERS
        if end < len(text):
            line_end = text.rfind("\n\n", begin, end)
            end = line_end + 2 if line_end >= 0 else end
        yield tokenizer.plain(text[begin:end])
        begin = end


def _row_tokens(path: Path, tokenizer: Tokenizer, notes: list[str]) -> Generator[Tokens]:
    """The tokens of each row; at the end, notes about refused chats are added to `notes`."""
    chat = ChatTexts(tokenizer.render_chat)
    try:
        for row in read_rows(path):
            if isinstance(row, str):
                yield tokenizer.plain(row + "\n\n")
            elif (text := chat.text(row)) is not None:
                yield tokenizer.special(text)
    finally:
        notes += chat.notes(path.name)


def _texts_tokens(
    files: Iterable[Path], tokenizer: Tokenizer, notes: list[str]
) -> Iterator[Tokens]:
    """The tokens of files; consecutive texts are joined before they are tokenized."""
    texts: list[str] = []
    for path in files:
        if path.suffix not in ROW_ENDINGS:
            texts.append(read_text(path))
            continue
        if texts:
            yield tokenizer.plain("\n\n".join([*texts, ""]))
            texts = []
        yield from _row_tokens(path, tokenizer, notes)
    if texts:
        yield tokenizer.plain("\n\n".join(texts))


def _joined(parts: Sequence[Tokens]) -> Tokens:
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def chunk_order(
    shares: Mapping[str, float], room: Mapping[str, int], chunks: int, seed: int
) -> list[str]:
    """The domain of each chunk, `chunks` of them or as many as there are.

    Until a domain runs out, the number of its chunks among the first k differs by less than one
    from its share of k: the chairman assignment of Tijdeman (1980), which takes the domain whose
    next chunk is due first. Then the others go on by their shares of the rest. The seed decides
    ties, by names without folders, so that the order does not depend on the texts' location.
    """

    ranked = sorted(shares, key=lambda name: drawn(seed, name))
    left = {name: room[name] for name in ranked if room[name] > 0}
    order: list[str] = []
    while left and len(order) < chunks:
        weights = {name: Fraction(str(shares[name])) for name in left}
        total = sum(weights.values())
        share = {name: weight / total for name, weight in weights.items()}
        slack = Fraction(1, max(2 * len(left) - 2, 1))
        taken = dict.fromkeys(left, 0)
        step = 0
        while len(order) < chunks and all(taken[name] < left[name] for name in left):
            step += 1
            owed = {name: share[name] * step - taken[name] for name in left}
            due = [name for name in left if owed[name] >= slack]
            chosen = min(due, key=lambda name: (1 - slack - owed[name]) / share[name])
            taken[chosen] += 1
            order.append(chosen)
        left = {name: left[name] - taken[name] for name in left if left[name] > taken[name]}
    return order


def drawn(seed: int, name: str) -> Fraction:
    """A number in [0, 1) for the text `name`, wherever it lies on this disk."""
    plain = name if name.startswith("hf://") else PurePath(name).name
    digest = hashlib.sha256(f"{seed} {plain}".encode()).digest()
    return Fraction(int.from_bytes(digest, "big"), 1 << 8 * len(digest))


def spread_out(count: int) -> list[int]:
    """The numbers below `count` in bit-reversed order: any first few are evenly spread."""
    bits = max(count - 1, 0).bit_length()
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [number for number in reversed_bits if number < count]
