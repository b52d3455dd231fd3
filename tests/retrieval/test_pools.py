"""Keys, values and needles: drawn by seed, none twice."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_needles import draw_needles

from quantkit.core.errors import InputError
from quantkit.retrieval.needles import KeyPool, ValuePool, numbers_in


def test_training_draws_are_as_ever() -> None:
    # the demo model was trained on them: scripts/train_demo_model.py
    drawn = [
        (needle.key, needle.value)
        for seed in range(20)
        for count in (1, 2, 5, 64, 400)
        for digits in (4, 5, 7)
        for needle in draw_needles(random.Random(seed), count, digits)
    ]
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    assert digest == "b25ed37f38ed3720ffd3425790ee2a2ce40e585790b2c8aeab76b9655a22eb7b"


def test_most_keys_have_a_near_miss() -> None:
    pool = KeyPool(random.Random(1), 64)
    keys = [pool.take().split("-") for _ in range(64)]
    assert len({tuple(key) for key in keys}) == 64
    near = [any(a != b and (a[0] == b[0] or a[1] == b[1]) for b in keys) for a in keys]
    assert sum(near) >= 60


@given(st.integers(1, 40), st.integers(0, 100))
def test_a_pool_holds_what_it_was_made_for(triples: int, seed: int) -> None:
    pool = KeyPool(random.Random(seed), 3 * triples + 1)
    drawn = [pool.take_with_neighbours() for _ in range(triples)]
    for key, same_adjective, same_noun in drawn:
        adjective, noun = key.split("-")
        assert same_adjective.split("-")[0] == adjective
        assert same_noun.split("-")[1] == noun
    keys = [key for triple in drawn for key in triple]
    assert len({*keys, pool.take()}) == 3 * triples + 1


def test_the_largest_pool() -> None:
    pool = KeyPool(random.Random(1), 5690)
    assert len({pool.take() for _ in range(5690)}) == 5690
    with pytest.raises(InputError, match="5691 keys are wanted, 5690 can be told apart"):
        KeyPool(random.Random(1), 5691)


def test_values_avoid_what_is_there() -> None:
    text = "In 1936 it was $48,213,000; in 1937 123456."
    assert numbers_in(text, 4) == {"1936", "1937", "1234", "2345", "3456", "4821", "8213", "2130",
                                   "1300", "3000"}  # fmt: skip
    forbidden = numbers_in(text, 3)
    pool = ValuePool(random.Random(1), 3, forbidden)
    half = [pool.take() for _ in range(450 - len([value for value in forbidden if value[0] > "0"]))]
    assert not set(half) & forbidden
    assert len(set(half)) == len(half)
    with pytest.raises(InputError, match=r"3 digits run out: \d+ are hidden and \d+ stand in"):
        pool.take()
