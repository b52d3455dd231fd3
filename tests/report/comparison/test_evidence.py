"""What tells artifacts apart, in what order they come, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compared_artifacts import (
    CHUNKS,
    CONDITIONS,
    answers,
    compared_ladder,
    ladder,
    measured,
    retrieval,
)

from quantkit.core.errors import InputError
from quantkit.report.comparison.comparison import (
    compared,
    on_front,
    order,
    relation,
    verdict,
)
from quantkit.report.comparison.evidence import (
    KINDS,
    LEVEL,
    OF_TEXT,
    Evidence,
    Kind,
    Pair,
    all_pairs,
    holm,
)
from quantkit.report.comparison.measured import Measured, names_of, paired_answers


def judged(artifacts: list[Measured], name: str) -> tuple[str, str]:
    (found,) = [v for v in compared(artifacts, CONDITIONS).verdicts if v.name == name]
    return found.outcome, found.sentence


def test_a_ladder_is_put_in_order() -> None:
    comparison = compared_ladder()
    ordering, found = comparison.ordering, comparison.verdicts
    assert ordering.text in ("Q8 ≈ Q6 > Q4 > IQ1", "Q6 ≈ Q8 > Q4 > IQ1")
    assert ordering.neighbours[1].kinds == ("KLD", "log-probability", "text")
    assert ordering.neighbours[2].kinds == KINDS
    assert ordering.beside == ()
    assert [verdict.outcome for verdict in found] == ["reference", "no loss", "worse", "worse"]
    assert found[1].sentence.startswith(
        f"no measurable loss against Q8 at n = 192 questions, {CHUNKS} chunks of text (KLD p = "
    )
    assert found[2].sentence.startswith("worse than Q8: KLD +0.0")
    assert "; log-probability −0.0" in found[2].sentence
    # log-probability tells it before an answer flips
    assert "hits" not in relation(comparison.pairs, "Q8", "Q4").kinds
    assert "hits −192 of 192 answers (p < 0.0001)" in found[3].sentence
    assert comparison.smallest == "Q6"
    assert [verdict.without_loss for verdict in found] == [False, True, False, False]


def test_divergences_on_eight_chunks_tell_artifacts_apart() -> None:
    """As they are told of Q4_K_M and Q3_K_M, and of two that differ by noise alone."""
    q4, q3, twin = (
        replace(measured(name, size, kld=kld, stream=stream), chunks=8)
        for name, size, kld, stream in (
            ("Q4", 4, 0.034, 1),
            ("Q3", 3, 0.137, 2),
            ("Q4b", 4, 0.034, 3),
        )
    )
    (found,) = all_pairs([q4, q3])
    assert found.votes(-1) == ("KLD", "same top")
    assert relation([found], "Q4", "Q3").sign == ">"
    outcome, sentence = judged([q4, q3], "Q3")
    assert outcome == "worse"
    assert sentence.startswith("worse than Q4: KLD +0.09")
    assert relation(all_pairs([q4, twin]), "Q4", "Q4b").sign == "≈"
    # and against the base among them both are worse, in an order that agrees
    base = replace(measured("base", 9), chunks=8)
    everything = compared([base, q4, q3], CONDITIONS)
    assert everything.ordering.text == "base > Q4 > Q3"
    assert everything.smallest is None


def test_a_copy_of_the_base_differs_by_rounding_alone() -> None:
    base, copy = measured("base", 9), measured("copy", 8)
    rounded = replace(copy.positions, kld=np.full_like(copy.positions.kld, 5e-8))
    copy = replace(copy, positions=rounded, is_base=False)
    assert judged([base, copy], "copy")[0] == "same"


def test_a_loss_may_be_certain_and_tiny() -> None:
    """Pairs show the smallest differences; the words say that they are small."""
    q8 = measured("Q8", 9, kld=0.0002, asked=answers(noise=0))
    near = measured("near", 8, kld=0.0003, asked=answers(0.004, noise=0), stream=1)
    outcome, sentence = judged([q8, near], "near")
    assert outcome == "worse"
    assert sentence.startswith("worse than Q8: KLD +7.36e-05 nats a token")
    assert "; log-probability −0.00" in sentence
    assert "; mean loss of log-probability between 0.002" in sentence
    assert "less than 1 %" not in sentence
    assert compared([q8, near], CONDITIONS).smallest is None


def test_a_text_lends_no_power_to_five_questions() -> None:
    few = {"needles": 5, "seeds": (1,), "lengths": (2048,)}
    q8, q6, lost = (
        measured(name, size, kld=0.01, asked=answers(loss, **few))  # type: ignore[arg-type]
        for name, size, loss in (("Q8", 9, 0.0), ("Q6", 8, 0.0), ("IQ1", 2, 9.0))
    )
    assert (q8.hits, lost.hits) == (5, 0)
    found = compared([q8, q6, lost], CONDITIONS)
    assert [verdict.outcome for verdict in found.verdicts] == ["reference", "too few", "too few"]
    assert found.smallest is None
    sentence = found.verdicts[2].sentence
    assert "too few questions to tell by hits: were all 5 hits lost, p = 0.94 at best" in sentence
    assert "no measurable loss" not in sentence


def test_hits_tell_nothing_where_the_reference_has_none() -> None:
    q8, small = (
        measured(name, size, kld=0.01, asked=answers(9.0, noise=0))
        for name, size in (("Q8", 9), ("small", 2))
    )
    assert q8.hits == 0
    found = compared([q8, small], CONDITIONS)
    assert found.verdicts[1].outcome == "too few"
    assert "hits tell nothing, because Q8 has none" in found.verdicts[1].sentence
    assert found.smallest is None
    # what the log-probability tells, it tells all the same
    worse = measured("small", 2, kld=0.01, asked=answers(12.0, noise=0))
    assert compared([q8, worse], CONDITIONS).verdicts[1].outcome == "worse"


def test_intervals_hold_for_all_artifacts_together() -> None:
    q8, q6, *rest = ladder()
    alone = all_pairs([q8, q6])[0].evidence["text"]
    among = all_pairs([q8, q6, *rest])[0].evidence["text"]
    assert alone.low is not None
    assert among.low is not None
    assert among.low < alone.low


def test_the_same_file_twice() -> None:
    one = measured("one", 5_000, kld=0.01, asked=answers())
    other = replace(one, name="other", size_bytes=4_000)
    (pair,) = all_pairs([one, other])
    assert {kind: e.p for kind, e in pair.evidence.items()} == dict.fromkeys(KINDS, 1.0)
    assert relation([pair], "one", "other").sign == "≈"
    outcome, sentence = judged([one, other], "other")
    assert outcome == "same"
    assert sentence == (
        f"cannot be told from one: no difference at all at n = 192 questions, {CHUNKS} chunks of "
        "text"
    )


def test_better_is_said_too() -> None:
    worse = measured("large", 9_000, kld=0.1, text_loss=0.3, asked=answers(6.0, stream=1))
    better = measured("small", 2_000, kld=0.01, asked=answers(stream=2), stream=2)
    assert order([worse, better], all_pairs([worse, better])).text == "small > large"
    outcome, sentence = judged([worse, better], "small")
    assert outcome == "better"
    assert sentence.startswith("better than large: KLD −0.1")
    assert "; hits +192 of 192 answers (p < 0.0001); log-" in sentence
    assert on_front([worse, better]) == {"small"}


def test_too_few_to_tell_anything() -> None:
    few = {"needles": 1, "seeds": (1,), "lengths": (2048,)}
    pieces = [
        replace(
            measured(name, size, kld=kld, text_loss=loss, asked=answers(loss, **few)),  # type: ignore[arg-type]
            chunks=1,
        )
        for name, size, kld, loss in (("good", 9_000, 0.001, 0.0), ("bad", 2_000, 1.5, 6.0))
    ]
    outcome, sentence = judged(pieces, "bad")
    assert outcome == "too few"
    assert sentence == (
        "nothing tells it from good at n = 1 question, 1 chunk of text, but too few chunks to tell "
        "by KLD: p = 1.00 for a clear loss; too few chunks to tell by same top: p = 1.00 for a "
        "clear loss; too few questions to tell by hits: were all 1 hits lost, p = 1.00 at best; "
        "too few questions to tell by log-probability: were all lost, p = 1.00 at best; too few "
        "chunks to tell by text: p = 1.00 for a clear loss"
    )
    assert compared(pieces, CONDITIONS).smallest is None


def test_swapping_two_artifacts_turns_everything() -> None:
    q8, _, q4, _ = ladder()
    (one,), (other,) = all_pairs([q8, q4]), all_pairs([q4, q8])
    assert (other.first, other.second) == ("Q4", "Q8")
    for kind, evidence in one.evidence.items():
        turned = other.evidence[kind]
        assert turned.difference == pytest.approx(-evidence.difference)
        assert turned.p == pytest.approx(evidence.p, abs=2e-3)  # of other random changes of signs
        assert (turned.gained, turned.lost) == (evidence.lost, evidence.gained)
    assert relation([one], "Q8", "Q4") == relation([other], "Q8", "Q4")
    assert (one.evidence["KLD"].vote, other.evidence["KLD"].vote) == (-1, 1)  # less is better


def test_all_votes_share_one_error_rate() -> None:
    pairs = all_pairs(ladder())
    evidence = [found for pair in pairs for found in pair.evidence.values()]
    assert len(evidence) == 6 * len(KINDS)
    assert [e.corrected_p for e in evidence] == holm([e.p for e in evidence])


def pair(left: str, right: str, votes: dict[Kind, int]) -> Pair:
    """A pair whose evidence votes so for the right one."""
    evidence = {
        kind: Evidence(
            9, 1, 1, float(vote), None, None, 0.5, 9, 0.001, False, 1e-3 if vote else 1.0, 1e-3
        )
        for kind, vote in votes.items()
    }
    return Pair(left, right, evidence)


def test_what_cannot_be_told_apart_is_not_transitive() -> None:
    a, b, c = (
        measured(name, size, kld=0.01, asked=answers(loss, noise=0))
        for name, size, loss in (("A", 3, 0.0), ("B", 2, 0.01), ("C", 1, 0.02))
    )
    pairs = [pair("A", "B", {"hits": 0}), pair("B", "C", {"hits": 0}), pair("A", "C", {"hits": -1})]
    ordering = order([a, b, c], pairs)
    assert ordering.text == "A ≈ B ≈ C"
    assert [found.text for found in ordering.beside] == ["A > C (hits)"]
    # and the other way: what the line suggests and nothing shows
    pairs = [pair("A", "B", {"text": -1}), pair("B", "C", {"text": 0}), pair("A", "C", {"text": 0})]
    ordering = order([a, b, c], pairs)
    assert sorted(ordering.names) == ["A", "B", "C"]
    shown = [found.text for found in (*ordering.neighbours, *ordering.beside)]
    assert "A > B (text)" in shown
    assert not any(text.startswith(("A > C", "C < A")) for text in shown)


def test_evidence_that_disagrees() -> None:
    found = pair("A", "B", {"hits": -1, "text": 1})
    known = relation([found], "B", "A")
    assert known.text == "B ≷ A (text, hits)"
    mixed = verdict("B", [found], "A")
    assert mixed.outcome == "mixed"
    assert mixed.sentence.startswith("worse than A: hits ")
    assert "; but better than A: text +1 nats a token (p = 0.0010)" in mixed.sentence


def test_without_questions_the_text_is_the_evidence() -> None:
    artifacts = [replace(artifact, retrieval=None) for artifact in ladder()]
    pairs = all_pairs(artifacts)
    assert all(set(found.evidence) == OF_TEXT for found in pairs)
    assert order(artifacts, pairs).text.endswith("> Q4 > IQ1")
    assert "questions" not in judged(artifacts, "Q6")[1]


def test_answers_pair_or_say_why_not() -> None:
    one = measured("one", 2, kld=0.1, asked=answers())
    assert len(paired_answers(one, one)) == 192
    fewer = replace(one, name="fewer", retrieval=retrieval(one.main_answers[:-1]))
    with pytest.raises(
        InputError, match=r"one was asked question 31 of multikey, seed 3, at 8,192"
    ):
        paired_answers(fewer, one)
    first, *rest = one.main_answers
    for change in ({"prompt_tokens": 5}, {"values": ("1",)}, {"log_probability": None}):
        changed = replace(one, name="x", retrieval=retrieval((replace(first, **change), *rest)))  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match="different prompts for question 0 of multikey, seed 1"
        ):
            paired_answers(one, changed)
    # a probe's answers are scored, and decide nothing
    probe = replace(first, task="absent")
    asked = replace(one, retrieval=retrieval((*one.main_answers, probe)))
    assert len(paired_answers(asked, one)) == 192


def test_front() -> None:
    q8, q6, q4, iq1 = ladder()
    assert on_front([q8, q6, q4, iq1]) == {"Q8", "Q6", "Q4", "IQ1"}
    beaten = replace(q4, name="fat Q4", size_bytes=q6.size_bytes)
    assert on_front([q6, beaten]) == {"Q6"}
    twin = replace(q6, name="twin")
    assert on_front([q6, twin]) == {"Q6", "twin"}  # neither beats the other


def test_reference_is_the_base_or_the_largest() -> None:
    artifacts = ladder()
    assert compared(artifacts[::-1], CONDITIONS).reference == "Q8"
    assert compared(artifacts[::-1], CONDITIONS).artifacts[0].name == "Q8"
    base = measured("base", 1_000, asked=answers())
    found = compared([*artifacts, base], CONDITIONS)
    assert found.reference == "base"
    assert [pair.first for pair in found.pairs][:4] == ["base"] * 4
    assert len(found.verdicts) == 5
    # of equal sizes the one that is nearest to the base, whatever it is called
    broken, twin = (
        measured(name, 9, kld=kld, asked=answers()) for name, kld in (("a", 1.4), ("b", 0.01))
    )
    assert compared([broken, twin], CONDITIONS).reference == "b"


def test_names_must_tell_artifacts_apart() -> None:
    q8 = ladder()[0]
    for names in (("x", "x"), ("", "x")):
        with pytest.raises(ValueError, match="different names"):
            compared([replace(q8, name=name) for name in names], CONDITIONS)


def test_names() -> None:
    paths = ["a/b/x.gguf", "a/c/x.gguf", "y.gguf", "d/c/x.gguf", "v1.5-Q4.gguf"]
    assert names_of([Path(path) for path in paths]) == ["b/x", "a/c/x", "y", "d/c/x", "v1.5-Q4"]
    assert names_of([Path("x.gguf"), Path("a/x.gguf")]) == ["x", "a/x"]
    shards = [Path("m.gguf"), Path("m-00001-of-00002.gguf")]
    assert names_of(shards) == ["m", "m-00001-of-00002"]
    assert names_of([Path("q-.gguf"), Path("q-x.gguf")]) == ["q-", "q-x"]
    assert names_of([Path("m.gguf"), Path("m.bin")]) == ["m.gguf", "m.bin"]
    levels = [Path(f"a/my-model-{level}.gguf") for level in ("Q4_K_M", "Q4_K_S", "IQ1-x")]
    assert names_of(levels) == ["Q4_K_M", "Q4_K_S", "IQ1-x"]
    assert names_of(levels[:2]) == ["Q4_K_M", "Q4_K_S"]
    assert names_of(levels[:1]) == ["my-model-Q4_K_M"]
    assert names_of([Path("m-00001-of-00003.gguf"), Path("m-Q4-00001-of-00002.gguf")]) == [
        "m", "m-Q4",
    ]  # fmt: skip


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Of artifacts that differ by noise alone, hardly any comparison tells any two apart."""
    alarms = 0
    for trial in range(20):
        equal = [
            measured(
                f"a{i}", 9 - i, kld=0.01, stream=100 * trial + i,
                asked=answers(noise=0.2, needles=6, stream=100 * trial + i),
            )
            for i in range(3)
        ]  # fmt: skip
        alarms += any(pair.votes(1) or pair.votes(-1) for pair in all_pairs(equal))
    assert alarms <= 4  # at 5 %, five or more of 20 have a chance of 0.3 %
    assert LEVEL == 0.05
