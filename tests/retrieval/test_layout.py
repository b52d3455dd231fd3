"""Layouts: sentences before their cuts and near their places, whatever is asked for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.core.errors import InputError
from quantkit.retrieval.layout import GUARD_TOKENS, Item, check_room, lay_out

LONGEST = 90


def case(seed: int, lengths: int, most: int) -> tuple[list[Item], list[int], list[int]]:
    """Items, cuts, and tokens of haystack sentences."""
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(1_000, 12_000), lengths))
    items = []
    for cut in range(lengths):
        count = rng.randint(1, most)
        items += [
            Item(cut, (i + rng.random()) / count, (i + 1) / count, rng.randint(5, 25))
            for i in range(count)
        ]
    return items, cuts, [rng.randint(1, LONGEST) for _ in range(4_000)]


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 60))
@settings(max_examples=300)
def test_nothing_is_cut_or_late(seed: int, lengths: int, most: int) -> None:
    items, cuts, sizes = case(seed, lengths, most)
    try:
        check_room(items, cuts, cuts)
    except InputError:
        return
    pieces = lay_out(items, cuts, lambda i: sizes[i], LONGEST)
    at = 0
    for piece in pieces:
        assert piece.begins_at == at
        at += piece.tokens
    assert [p.index for p in pieces if not p.hidden] == list(
        range(sum(not p.hidden for p in pieces))
    )
    hidden = [piece for piece in pieces if piece.hidden]
    assert sorted(piece.index for piece in hidden) == list(range(len(items)))
    assert at >= cuts[-1] + GUARD_TOKENS
    for piece in hidden:
        item = items[piece.index]
        end = piece.begins_at + piece.tokens
        assert end + GUARD_TOKENS <= cuts[item.cut]
        assert piece.begins_at <= item.until * cuts[item.cut]
        for cut in cuts:
            assert end + GUARD_TOKENS <= cut or piece.begins_at >= cut + GUARD_TOKENS


@given(st.integers(0, 40), st.integers(1, LONGEST))
def test_with_room_each_stands_in_its_stratum(shift: int, size: int) -> None:
    count, cut = 8, 8 * 400
    items = [Item(0, (i + shift / 41) / count, (i + 1) / count, 20) for i in range(count)]
    pieces = lay_out(items, [cut], lambda _: size, size)
    begins = {piece.index: piece.begins_at for piece in pieces if piece.hidden}
    for index, begin in begins.items():
        assert index * 400 <= begin <= (index + 1) * 400
        assert begin - items[index].at * cut <= size


def test_equal_deadlines_keep_their_order() -> None:
    items = [Item(0, 0.5, 0.6, 20) for _ in range(5)]
    pieces = lay_out(items, [4_000], lambda _: 30, 30)
    assert [piece.index for piece in pieces if piece.hidden] == list(range(5))


def test_what_cannot_be_laid_out() -> None:
    items = [Item(0, 0.5, 1.0, 100)]
    with pytest.raises(InputError, match="haystacks of 110"):
        lay_out(items, [110], lambda _: 30, 30)
    check_room([*items, Item(1, 0.5, 1.0, 400)], [400, 1_000], [512, 1_024])
    with pytest.raises(InputError, match=r"512 .*400.* take 322"):
        check_room([*items, Item(1, 0.5, 1.0, 500)], [400, 900], [512, 1_024])
