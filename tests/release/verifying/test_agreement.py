"""What a release says of its levels, its answers and its source, against its files."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_levels import answers_of, recipe_of, retrieval
from small_release import STACK, SmallRelease, faults, set_to, verified

from quantkit.core.errors import InputError
from quantkit.release.verifying.agreement import evidence_faults
from quantkit.retrieval.results import Answer, Validation

Q4 = "tiny-Q4.gguf"
Change = Callable[[Any], None]
"""Of the content of a JSON file."""


def test_evidence_of_another_artifact(release: SmallRelease) -> None:
    """Q8's answers, verdict and all, given for Q4's; and a hash of what was there before."""
    for name in ("validation.json", "niah.jsonl"):
        shutil.copyfile(release.path(f"levels/Q8/{name}"), release.path(f"levels/Q4/{name}"))
    release.edit("release.json", set_to("levels", "Q4", "passed", to=True))
    found = faults(release)
    assert any("not of" in fault and Q4 in fault for fault in found)
    shards = [Path(file).name for file in release.files("Q8")]
    for shard in shards:
        assert any("not a file of this level" in f and shard in f for f in found)
    assert len(found) == 1 + len(shards)


def test_evidence_of_the_artifact_that_was_there_before(release: SmallRelease) -> None:
    artifact = set_to("artifact", Q4, to="ab" * 32)
    release.edit("levels/Q4/validation.json", artifact)
    (fault,) = faults(release)
    release.path("levels/Q4/niah.jsonl").unlink()  # is not needed for it
    assert faults(release) == (fault,)
    assert all(words in fault for words in (Q4, "abababababab…", release.sum_of(Q4)[:12]))


@pytest.mark.parametrize("change", [set_to("artifact", to=None), lambda c: c.pop("artifact")])
def test_evidence_that_does_not_say_what_was_asked(release: SmallRelease, change: Change) -> None:
    release.edit("levels/Q8/validation.json", change)
    assert faults(release) == ("Q8: validation.json does not say which file was asked",)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("tiny-Q4.gguf", "tiny-Q9.gguf", "Q4: tiny-Q9.gguf is not called tiny-Q4.gguf"),
        ("Q8", "Q9", "Q8: Q9/tiny-Q8-00001-of-"),
        ("levels/Q4", "evidence", "Q4: its evidence is in evidence, not levels/Q4"),
    ],
)
def test_names_of_files_and_levels(release: SmallRelease, old: str, new: str, fault: str) -> None:
    release.path(old).rename(release.path(new))

    def change(content: Any) -> None:  # noqa: ANN401
        for level in content["levels"].values():
            level["files"] = [re.sub(f"^{old}", new, file) for file in level["files"]]
            level["evidence"] = re.sub(f"^{old}", new, level["evidence"])

    release.edit("release.json", change)
    found = faults(release)
    assert any(one.startswith(fault) for one in found), found


def test_one_file_is_not_a_level_s_twice_nor_two_levels_own(release: SmallRelease) -> None:
    release.edit("release.json", set_to("levels", "Q4", "files", to=[Q4, Q4]))
    assert f"Q4: {Q4} is not called Q4/tiny-Q4-00001-of-00002.gguf, and " in str(faults(release))
    release.edit("release.json", set_to("levels", "Q4", "files", to=[Q4]))
    release.edit("release.json", set_to("levels", "Q8", "files", to=[Q4]))
    assert {f"Q8: {Q4} is a file of Q4 too", f"Q8: {Q4} is not called tiny-Q8.gguf"} < set(
        faults(release)
    )


def with_level(name: str) -> Change:
    return lambda content: content["levels"].update({name: content["levels"]["Q4"]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((with_level(name), "level name")
          for name in ("", "Q4/x", "-Q4", "..", "Q4\n", "é", "Q" * 97)),
        *((set_to("model", to=name), "model name")
          for name in ("", "a/b", "x" * 201, "tiny\x1b[2J")),
        (set_to("levels", to={}), "levels is empty"),
        (set_to("levels", "Q4", "bits_per_weight", to=1e300), r"\.Q4\.bits_per_weight: .{,80}$"),
        (set_to("imatrix", to="../x"), r"imatrix names \.\./x, which is not in SHA256SUMS"),
        (set_to("levels", "Q4", "files", to=["../x"]), r"levels\.Q4\.files names \.\./x, which"),
        (set_to("levels", "Q4", "files", to=["/etc/x"]), r"levels\.Q4\.files names /etc/x, which"),
        (set_to("levels", "Q4", "evidence", to="../x"), r"levels\.Q4\.evidence names \.\./x/alloc"),
    ],
)  # fmt: skip
def test_names_that_no_build_gives(release: SmallRelease, change: Change, words: str) -> None:
    release.edit("release.json", change)
    with pytest.raises(InputError, match=words) as refused:
        verified(release.folder)
    assert str(refused.value).isprintable()


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("checkpoint", "said", "faulty"),
    [
        (("meta/tiny@main", COMMIT), ("meta/tiny", COMMIT), 0),
        (("meta/tiny", COMMIT), ("Meta/Tiny", COMMIT), 0),
        (("meta/tiny", COMMIT), ("other/tiny", COMMIT), 1),
        (("meta/tiny", COMMIT), ("meta/tiny", "f" * 40), 1),
        (("meta/tiny", COMMIT), (None, None), 2),
        (("tiny", None), ("meta/tiny", COMMIT), 0),
        (("tiny", None), (None, None), 0),
    ],
)
def test_what_a_release_says_it_was_made_from(
    release: SmallRelease,
    checkpoint: tuple[str, str | None],
    said: tuple[str | None, str | None],
    faulty: int,
) -> None:
    release.edit("checkpoint.json", set_to("model", to=checkpoint[0]))
    release.edit("checkpoint.json", set_to("commit", to=checkpoint[1]))
    source = {"repository": said[0], "commit": said[1]}
    release.edit("release.json", set_to("source", to=source))
    found = faults(release)
    assert len(found) == faulty
    assert all(fault.startswith("release.json says it was made from ") for fault in found)


def test_a_checkpoint_of_no_files(release: SmallRelease) -> None:
    release.edit("checkpoint.json", set_to("files", to={}))
    (fault,) = verified(release.folder, release.source).faults
    assert fault.startswith("checkpoint.json lists no files")


HUGE = 10**3999


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("levels/Q4/allocation.json", set_to("total_bytes", to=HUGE)),
        ("levels/Q4/allocation.json", set_to("tensors", STACK, "bytes", to=HUGE)),
        ("levels/Q4/validation.json", set_to("niah", "rungs", 0, "keys", to=HUGE)),
        ("levels/Q4/validation.json", set_to("niah", "recipe", "minimum_lower_bound", to=1e300)),
        ("levels/Q4/validation.json", set_to("niah", "scores", 0, "hits", to=HUGE)),
        ("levels/Q4/validation.json", set_to("niah", "scores", 0, "context_tokens", to=-HUGE)),
        ("checkpoint.json", set_to("files", "tiny.gguf", "size_bytes", to=HUGE)),
        ("levels/Q4/niah.jsonl", lambda old: old.replace(b": 8192,", b": %d," % HUGE, 1)),
    ],
)
def test_numbers_of_thousands_of_digits(release: SmallRelease, name: str, change: Change) -> None:
    release.edit(name, change)
    (fault,) = faults(release)
    assert re.match(f"{name} is |{name}, line 1 .*digits", fault)
    assert len(fault) < 200


# ---- validation.json against niah.jsonl: all that could be made better than it was

ANSWERS = answers_of(0.05, seeds=(1, 2, 3))


def claims(
    answers: Sequence[Answer] = ANSWERS, minimum: float | None = 0.9, **changes: object
) -> Validation:
    """What a build writes of `answers`."""
    recipe = recipe_of(seeds=(1, 2, 3), minimum_lower_bound=minimum, **changes)
    found = retrieval(answers, recipe)
    content = Validation(passed=found.passed, niah=found).text()
    return Validation.parse(content.encode(), "validation.json")


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("minimum", [0.3, 0.999, None])
@pytest.mark.parametrize("gate", [(), ("multikey", "two-hop")])
def test_a_build_s_own_agree(clustered: bool, minimum: float | None, gate: tuple[str, ...]) -> None:
    said = claims(clustered=clustered, minimum=minimum, gate=gate)
    assert evidence_faults(said, ANSWERS) == []
    assert said.passed is (minimum != 0.999)
    (fault,) = evidence_faults(said.model_copy(update={"passed": not said.passed}), ANSWERS)
    needed = "nothing" if minimum is None else f"{minimum:.1%}"
    assert re.match(
        f"passed is {not said.passed} in validation.json, but .*{needed} is needed", fault
    )


def doctored(recipe: Mapping[str, object] | None = None, **changes: object) -> Validation:
    good = claims(minimum=0.999)
    asked = good.niah.recipe.model_copy(update=recipe)
    niah = good.niah.model_copy(update={"recipe": asked, **changes})
    return good.model_copy(update={"niah": niah})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"recipe": {"context_tokens": (8192, 1048576)}}, "asked at 1048576"),
        ({"recipe": {"context_tokens": ()}}, "asked at 0"),
        ({"confidence": 0.5}, "a confidence of 0.5"),
        ({"recipe": {"clustered": True}}, "multikey at 516096 tokens: lower_bound is"),
        ({"recipe": {"gate": ("updated",)}}, "no answers to what the gate looks at"),
        ({"recipe": {"minimum_lower_bound": 0.1}}, "passed is False"),
    ],
)
def test_conditions_that_are_not_those_of_the_answers(changes: dict[str, Any], fault: str) -> None:
    assert fault in str(evidence_faults(doctored(**changes), ANSWERS))


def test_a_score_that_does_not_follow() -> None:
    good = claims()
    tasks = list(good.niah.scores)
    for field, value in (("hits", 96), ("upper_bound", 1.0), ("truncated", 0),
                         ("log_probability", -0.0001)):  # fmt: skip
        better = [dataclasses.replace(tasks[3], **{field: value}), *tasks[:3], *tasks[4:]]
        found = evidence_faults(doctored(scores=tuple(better)), ANSWERS)
        assert f"multikey at 516096 tokens: {field} is {value}" in str(found)
    fewer = evidence_faults(doctored(scores=tuple(tasks[:-1])), ANSWERS)
    assert "two-hop at 516096 tokens is only in niah.jsonl" in str(fewer)


def test_answers_that_count_for_what_they_are_not() -> None:
    """Also where validation.json is made to follow."""
    misses = [a for a in ANSWERS if not a.hit and a.values]
    assert misses
    better = [
        dataclasses.replace(a, hit=True, found=1, truncated=False) if a in misses else a
        for a in ANSWERS
    ]
    (fault,) = evidence_faults(claims(better), better)
    assert fault.startswith(f"{len(misses)} answers in niah.jsonl are scored wrongly")
    assert "a hit" in fault


def test_answers_that_are_missing_or_there_twice() -> None:
    hits = [a for a in ANSWERS if a.hit]
    assert evidence_faults(claims(), hits)  # the misses left out
    twice = [*ANSWERS, next(a for a in hits if a.context_tokens == 516096)]
    (fault,) = evidence_faults(claims(twice), twice)
    assert "more than once" in fault
    stray = [*ANSWERS, dataclasses.replace(ANSWERS[0], context_tokens=77)]
    assert "answers at 77 tokens" in str(evidence_faults(claims(), stray))
    assert evidence_faults(claims(), [])


def test_clustered_bounds_of_one_haystack_are_refused() -> None:
    some = [a for a in ANSWERS if a.seed == 1]
    uneven = [*ANSWERS, *(dataclasses.replace(some[0], task="updated", index=n) for n in range(2))]
    for answers in (some, uneven):
        assert "not 1" in str(evidence_faults(doctored({"clustered": True}), answers))
