"""Scoring: the value counts, words around it do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.retrieval.scoring import Scored, score, spoken

VALUE = "48213"


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ("48213", True),
        ("The number is 48213.", True),
        ("**48213**", True),
        ("It is 48,213.", True),
        ("It is 48 213 or so", True),
        ("number:48213,then", True),
        ("<think>maybe 11111</think> 48213", True),
        ("<think>48213", True),  # thinking is off: a model that says so anyhow has said it
        ("<think>48213</think> 11111", False),
        ("4821", False),
        ("482130", False),
        ("148213", False),
        ("48213123", False),
        ("1,048,213", False),
        ("48,213,000", False),
        ("48,2139", False),
        ("48,21 3", False),
        ("", False),
    ],
)
def test_one_value(answer: str, hit: bool) -> None:
    assert score("multikey", (VALUE,), answer) == Scored(hit, int(hit))


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ("48213", False),  # still thinking
        ("It could be 48213. ", False),
        ("It could be 11111.</think>48213", True),
        ("It could be 48213.</think>11111", False),
        ("One.</think>48213</think>11111", False),
        ("<think></think>48213", True),
        ("", False),
    ],
)
def test_thinking_has_to_end(answer: str, hit: bool) -> None:
    assert score("single", (VALUE,), answer, thinking=True).hit is hit
    assert not spoken("48213", thinking=True)


def test_all_values_are_wanted_and_counted() -> None:
    values = ("48213", "51234", "60001", "99999")
    assert score("multi-value", values, "48213, 51234, 60001 and 99999.") == Scored(True, 4)
    assert score("multi-value", values, "99,999; 51,234") == Scored(False, 2)
    assert score("multi-value", values, "48213512346000199999") == Scored(False, 0)
    assert score("multi-value", ("123", "456"), "123,456") == Scored(True, 2)
    assert score("multi-value", ("123", "456"), "1,123; 456") == Scored(False, 1)


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ("none", True),
        ("None.", True),
        ("It isn't mentioned.", True),
        ("It isn\u2019t mentioned in the 2 texts.", True),
        ("There is no such number.", True),
        ("none, or 48213", False),  # hidden or invented
        ("none, or 48,213", False),
        ("77777", False),
        ("", False),
        ("the the the", False),  # a broken model
        ("<think>48213?</think>none", True),
        ("It is not mentioned in the address of 1936.", True),  # values are longer
    ],
)
def test_absent_keys_are_declined(answer: str, hit: bool) -> None:
    assert score("absent", (), answer, digits=5) == Scored(hit, 0)
    assert not score("absent", (), f"{answer} 1936", digits=4).hit
    assert not score("absent", (), answer.partition("</think>")[0], thinking=True).hit


@given(st.integers(100, 10**12), st.text(max_size=30), st.text(max_size=30))
def test_words_around_do_no_harm(number: int, before: str, after: str) -> None:
    quoted = f"{before}: {number} :{after}".replace("</think>", "")
    assert score("multikey", (str(number),), quoted).hit
    assert score("multikey", (str(number),), f"{before}: {number:,} :{after}").hit == (
        "</think>" not in after
    )
    assert not score("multikey", (str(number),), f"{number}7").hit
