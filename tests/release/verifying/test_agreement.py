"""What a release says of its levels, of what was asked and of its source, against its files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_release import STACK, SmallRelease, faults, set_to, verified

from quantkit.core.errors import InputError

Q4 = "tiny-Q4.gguf"


def test_evidence_of_another_artifact(release: SmallRelease) -> None:
    """Q8's answers, verdict and all, given for Q4's; and a hash of what was there before."""
    for name in ("validation.json", "niah.jsonl"):
        shutil.copyfile(release.path(f"levels/Q8/{name}"), release.path(f"levels/Q4/{name}"))
    release.edit_json("release.json", set_to("levels", "Q4", "passed", to=True))
    found = faults(release)
    assert any("not of" in fault and Q4 in fault for fault in found)
    shards = [Path(file).name for file in release.files("Q8")]
    for shard in shards:
        assert any("not a file of this level" in f and shard in f for f in found)
    assert len(found) == 1 + len(shards)


def test_evidence_of_the_artifact_that_was_there_before(release: SmallRelease) -> None:
    artifact = set_to("artifact", Q4, to="ab" * 32)
    release.edit_json("levels/Q4/validation.json", artifact)
    (fault,) = faults(release)
    release.path("levels/Q4/niah.jsonl").unlink()  # is not needed for it
    assert faults(release) == (fault,)
    assert all(words in fault for words in (Q4, "abababababab…", release.sum_of(Q4)[:12]))


@pytest.mark.parametrize("change", [set_to("artifact", to=None), lambda c: c.pop("artifact")])
def test_evidence_that_does_not_say_what_was_asked(
    release: SmallRelease, change: Callable[[Any], None]
) -> None:
    release.edit_json("levels/Q8/validation.json", change)
    assert faults(release) == ("Q8: validation.json does not say which file was asked",)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("tiny-Q4.gguf", "tiny-Q9.gguf", "Q4: tiny-Q9.gguf is not called tiny-Q4.gguf"),
        ("Q8", "Q9", "Q8: Q9/tiny-Q8-00001-of-"),
        ("levels/Q4", "evidence", "Q4: its evidence is in evidence, not levels/Q4"),
    ],
)
def test_a_level_is_called_as_its_files_are(
    release: SmallRelease, old: str, new: str, fault: str
) -> None:
    release.path(old).rename(release.path(new))

    def change(content: Any) -> None:  # noqa: ANN401
        for level in content["levels"].values():
            level["files"] = [re.sub(f"^{old}", new, file) for file in level["files"]]
            level["evidence"] = re.sub(f"^{old}", new, level["evidence"])

    release.edit_json("release.json", change)
    found = faults(release)
    assert any(one.startswith(fault) for one in found), found


def test_one_file_is_not_a_level_s_twice_nor_two_levels_own(release: SmallRelease) -> None:
    release.edit_json("release.json", set_to("levels", "Q4", "files", to=[Q4, Q4]))
    assert any(
        f"Q4: {Q4} is not called Q4/tiny-Q4-00001-of-00002.gguf" in f for f in faults(release)
    )
    release.edit_json("release.json", set_to("levels", "Q4", "files", to=[Q4]))
    release.edit_json("release.json", set_to("levels", "Q8", "files", to=[Q4]))
    found = faults(release)
    assert f"Q8: {Q4} is a file of Q4 too" in found
    assert f"Q8: {Q4} is not called tiny-Q8.gguf" in found


@pytest.mark.parametrize("level", ["", "Q4/x", "-Q4", "..", "Q4\n", "é", "Q" * 97])
def test_a_level_has_a_name_that_a_recipe_takes(release: SmallRelease, level: str) -> None:
    release.edit_json("release.json", lambda c: c["levels"].update({level: c["levels"]["Q4"]}))
    with pytest.raises(InputError, match="level name"):
        verified(release.folder)


@pytest.mark.parametrize("model", ["", "a/b", "x" * 201, "tiny\x1b[2J"])
def test_a_model_has_a_name_that_a_build_gives(release: SmallRelease, model: str) -> None:
    release.edit_json("release.json", set_to("model", to=model))
    with pytest.raises(InputError, match="model name"):
        verified(release.folder)


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
    release.edit_json("checkpoint.json", set_to("model", to=checkpoint[0]))
    release.edit_json("checkpoint.json", set_to("commit", to=checkpoint[1]))
    source = {"repository": said[0], "commit": said[1]}
    release.edit_json("release.json", set_to("source", to=source))
    found = faults(release)
    assert len(found) == faulty
    assert all(fault.startswith("release.json says it was made from ") for fault in found)


def test_a_checkpoint_of_no_files(release: SmallRelease) -> None:
    release.edit_json("checkpoint.json", set_to("files", to={}))
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
    ],
)
def test_a_number_of_thousands_of_digits_is_told_and_not_printed(
    release: SmallRelease, name: str, change: Callable[[Any], None]
) -> None:
    release.edit_json(name, change)
    (fault,) = faults(release)
    assert fault.startswith(f"{name} is ")
    assert len(fault) < 200


def test_a_manifest_s_or_an_answer_s_numbers_are_bounded_too(release: SmallRelease) -> None:
    path = release.path("levels/Q4/niah.jsonl")
    first, _, rest = path.read_text().partition("\n")
    answer = json.loads(first) | {"context_tokens": HUGE}
    path.write_text(json.dumps(answer) + "\n" + rest)
    release.sign()
    (fault,) = faults(release)
    assert fault.startswith("levels/Q4/niah.jsonl, line 1 ")
    assert "digits" in fault
    assert len(fault) < 200
    release.edit_json("release.json", set_to("levels", "Q4", "bits_per_weight", to=1e300))
    with pytest.raises(InputError, match=r"levels\.Q4\.bits_per_weight: .{,80}$"):
        verified(release.folder)
