"""The text that costs are measured on: chunks of every domain of the calibration.

They come from all over each domain's text, from places that the importance matrix did not see as
far as there are any. Equal input gives equal chunks on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import InputError
from quantkit.study.calibration.texts import (
    CalibrationSource,
    Tokenizer,
    Tokens,
    chunk_places,
    drawn,
    model_tokenizer,
    read_domains,
)

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Model

Span = tuple[int, int]
"""First token, and the one after the last."""


@dataclass(frozen=True)
class CostText:
    """Chunks of tokens.

    Attributes:
        tokens: (chunks, chunk tokens).
        domains: of each chunk.
        notes: for the user.
    """

    tokens: Tokens
    domains: tuple[str, ...]
    notes: tuple[str, ...]


def cost_chunks(
    recipe: ImatrixRecipe,
    sources: Sequence[CalibrationSource],
    model: Model,
    used_chunks: int,
    count: int,
    size: int,
    seed: int,
) -> CostText:
    """`cost_text` as a loaded model reads it."""
    with model_tokenizer(model) as tokenizer:
        return cost_text(recipe, sources, tokenizer, used_chunks, count, size, seed)


def cost_text(
    recipe: ImatrixRecipe,
    sources: Sequence[CalibrationSource],
    tokenizer: Tokenizer,
    used_chunks: int,
    count: int,
    size: int,
    seed: int,
) -> CostText:
    """`count` chunks of `size` tokens, or as many as the calibration's text has.

    Each domain gets its share, less than one chunk more or less, and at least one chunk if there
    are as many chunks as domains. What a domain has not, the others fill up.

    Args:
        used_chunks: the calibration's first chunks, which the importance matrix saw.
        seed: decides about fractions of chunks, and at which places chunks begin.

    Raises:
        InputError: a file cannot be read, or no domain is long enough for one chunk.
    """
    step, read = recipe.chunk_tokens, list[str]()
    domains = read_domains(recipe, sources, tokenizer, used_chunks + count * -(-size // step), read)
    seen: dict[str, list[int]] = {name: [] for name in domains}
    room = {name: len(tokens) // step for name, tokens in domains.items()}
    for name, place in chunk_places(recipe, room, used_chunks):
        seen[name].append(place * step)
    pieces = {
        name: _pieces(len(tokens), [(at, at + step) for at in sorted(seen[name])], size)
        for name, tokens in domains.items()
    }
    have = {name: len(fresh) + len(again) for name, (fresh, again) in pieces.items()}
    shares = {name: Fraction(str(recipe.mixture.get(name, 1))) for name in domains}
    counts = chunk_counts(shares, have, count, seed)
    if not any(counts.values()):
        raise InputError(
            f"the calibration text, which costs are measured on, has not the {size} tokens of one "
            "chunk; give a longer text or a smaller measure.cost_chunk_tokens, or set "
            "measure.cost_tokens: 0"
        )
    chunks, of = [], []
    for name, (fresh, again) in pieces.items():
        new = min(counts[name], len(fresh))
        picked = _spread(fresh, new, seed, name) + _spread(again, counts[name] - new, seed, name)
        chunks += [domains[name][begin : begin + size] for begin in picked]
        of += [name] * len(picked)
    # What there is to say of the text was said when the importance matrix was collected on it.
    notes = [] if used_chunks else read
    overlap = sum(max(counts[name] - len(fresh), 0) for name, (fresh, _) in pieces.items())
    notes += _notes(shares, counts, have, count, overlap)
    return CostText(np.stack(chunks), tuple(of), tuple(notes))


def chunk_counts(
    shares: Mapping[str, Fraction], room: Mapping[str, int], count: int, seed: int
) -> dict[str, int]:
    """Domain → how many of `count` chunks it gets; fewer in all where there is not room for them.

    A systematic sample: the domains lie one after another on a line, each as long as its share of
    the chunks, and every whole step from a first one that the seed decides is a chunk. So with
    fewer chunks than domains each domain has its chance, and neighbours are not drawn together.
    """
    lengths = _lengths(shares, room, min(count, sum(room.values())))
    first, begin = drawn(seed, ""), Fraction(0)
    found = {}
    for name, length in lengths.items():
        end = begin + length
        found[name] = math.ceil(end - first) - math.ceil(begin - first)
        begin = end
    return found


def _lengths(
    shares: Mapping[str, Fraction], room: Mapping[str, int], count: int
) -> dict[str, Fraction]:
    """Domain → its share of `count`, at most its room, and at least 1 if all can have so much.

    What is over or under is settled among the others, as CSS does with flexible boxes.
    """
    least = Fraction(count >= sum(n > 0 for n in room.values()))
    fixed = {name: Fraction(0) for name in shares if not room[name]}
    while free := [name for name in shares if name not in fixed]:
        left = count - sum(fixed.values())
        total = sum(shares[name] for name in free)
        wanted = {name: left * shares[name] / total for name in free}
        kept = {name: min(max(wanted[name], least), Fraction(room[name])) for name in free}
        over = sum(kept.values()) - left
        fixed |= {
            name: kept[name]
            for name in free
            if over == 0 or (kept[name] > wanted[name] if over > 0 else kept[name] < wanted[name])
        }
    return {name: fixed[name] for name in shares}


def _pieces(length: int, seen: Sequence[Span], size: int) -> tuple[list[int], list[int]]:
    """Where pieces of `size` begin that are outside of `seen`, and then others that are not."""
    fresh = _cut(_gaps(length, seen), size)
    return fresh, _cut(_gaps(length, [(begin, begin + size) for begin in fresh]), size)


def _gaps(length: int, taken: Iterable[Span]) -> list[Span]:
    """What is left of [0, length) between spans in order."""
    at, found = 0, []
    for begin, end in taken:
        found.append((at, begin))
        at = end
    return [*found, (at, length)]


def _cut(spans: Iterable[Span], size: int) -> list[int]:
    return [at for begin, end in spans for at in range(begin, end - size + 1, size)]


def _spread(begins: Sequence[int], count: int, seed: int, name: str) -> list[int]:
    """`count` of `begins` at equal distances."""
    first, total = drawn(seed, name), len(begins)
    return [begins[math.floor((index + first) * total / count)] for index in range(count)]


def _notes(
    shares: Mapping[str, Fraction],
    counts: Mapping[str, int],
    have: Mapping[str, int],
    count: int,
    overlap: int,
) -> list[str]:
    found, chunks, total = [], sum(counts.values()), sum(shares.values())
    if chunks < count:
        found.append(f"the calibration text has only {chunks} of the {count} chunks for costs")
    else:
        short = [name for name, share in shares.items() if have[name] < int(share / total * count)]
        found += [
            f"the calibration text {name} has only {have[name]} chunks for costs, fewer than its "
            "share; the other texts fill up the rest"
            for name in short
        ]
    if overlap:
        found.append(
            f"the calibration text is too short: {overlap} of the {chunks} chunks for costs were "
            "also used for the importance matrix"
        )
    return found
