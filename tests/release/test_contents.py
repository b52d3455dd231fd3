"""Which files of a build are published, and builds that are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_builds import LEVELS, change_json, divide, fail, flip, rewrite

from quantkit.core.errors import GateError, InputError
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT
from quantkit.release.contents import Build, check_outputs, chosen, published_as, read_build


def names(found: Build, wanted: Sequence[str] | None = None, **options: bool) -> list[str]:
    return [level.name for level in chosen(found, wanted, **options)]


def test_a_build_is_what_its_receipts_say(finished_build: Path) -> None:
    found = read_build(finished_build)
    assert (found.model, found.source, found.commit) == ("quantkit-demo", "quantkit-demo", None)
    assert found.target.name == "4x3090"
    assert [level.name for level in found.levels] == [level["name"] for level in LEVELS]
    assert found.parameters == sum(i.elements for i in found.levels[0].artifact().tensors)
    check_outputs(found, found.levels, SILENT)


def test_all_that_passed_is_chosen_but_no_baseline(own: Path) -> None:
    assert names(read_build(own)) == ["Q8", "Q4"]
    assert names(read_build(own), ["Q4_0"]) == ["Q4_0"]
    fail(own, "Q8")
    failed = read_build(own)
    assert names(failed) == ["Q4"]
    assert names(failed, allow_failed=True) == ["Q8", "Q4"]
    assert names(failed, ["Q8"], allow_failed=True) == ["Q8"]
    with pytest.raises(GateError, match="1 of 4 multikey-4 at 384 tokens"):
        names(failed, ["Q8", "Q4"])
    with pytest.raises(InputError, match=r"'Q6'.*Q8, Q4, Q4_0"):
        names(failed, ["Q6"])
    fail(own, "Q4")
    with pytest.raises(GateError, match=r"Q8 .*; Q4 .*--allow-failed"):
        names(read_build(own))


def test_each_file_is_published_from_the_stage_that_wrote_it(own: Path) -> None:
    shards = divide(own, "Q4")
    found = read_build(own)
    levels = chosen(found, ["Q4"])
    files = published_as(found, levels, "quantkit-demo-imatrix.gguf")
    assert {f"Q4/{path.name}" for path in shards} < files.keys()
    assert "levels/Q4/niah.jsonl" in files
    assert not any("Q8" in name or "base" in name for name in files)
    for output in files.values():
        assert output.sha256 == file_sha256(own / output.path)
    assert files["quantkit-demo-imatrix.gguf"].path == "imatrix.gguf"
    artifact = levels[0].artifact()
    assert not any(key.startswith("split.") for key in artifact.metadata)
    assert len(artifact.tensors) == len(found.levels[0].artifact().tensors)


@pytest.mark.parametrize(
    "name",
    ["levels/Q4/quantkit-demo-Q4.gguf", "imatrix.gguf", "levels/Q4/niah.jsonl", "checkpoint.json"],
)
def test_what_is_not_as_its_stage_wrote_it_is_refused(own: Path, name: str) -> None:
    flip(own / name)
    found = read_build(own)
    with pytest.raises(InputError, match=rf"{name} .*SHA-256"):
        check_outputs(found, chosen(found, ["Q4"]), SILENT)
    if name.startswith("levels"):  # another level's is nobody's concern
        check_outputs(found, chosen(found, ["Q8"]), SILENT)


def changed(path: Path) -> None:
    another = {"quantize:Q4": {"levels/Q4/quantkit-demo-Q4.gguf": 64 * "0"}}
    change_json(path, lambda content: content["parts"].update(another))


def odd(path: Path) -> None:
    change_json(path, lambda content: content.update(parts=["a list"]))


@pytest.mark.parametrize(
    ("receipt", "damage", "words"),
    [
        ("report", Path.unlink, "no finished build .*receipts/report.json"),
        ("validate.Q4", odd, "validate:Q4 has no receipt"),
        ("validate.Q4", Path.unlink, "validate:Q4 has no receipt"),
        ("validate.Q4", changed, "validate:Q4 used an older output of quantize:Q4"),
        ("report", changed, "report used an older output of quantize:Q4"),
    ],
)
def test_an_unfinished_build(
    own: Path, receipt: str, damage: Callable[[Path], None], words: str
) -> None:
    """A check of an earlier artifact is no check of this one."""
    damage(own / "receipts" / f"{receipt}.json")
    with pytest.raises(InputError, match=words):
        read_build(own)


def test_a_build_of_another_version_is_refused(own: Path) -> None:
    unknown = {"name": "x", "unknown": 1}
    change_json(own / "build.json", lambda content: content.update(recipe=unknown))
    with pytest.raises(InputError, match="this version of quantkit"):
        read_build(own)
    (own / "build.json").unlink()  # which an older one did not write
    rewrite(own, "report", [own / "report.html", own / "calibration.json"])
    with pytest.raises(InputError, match=r"stage report .*build\.json"):
        read_build(own)


def test_the_licence_of_a_source_from_the_hub_goes_with_it(own: Path) -> None:
    texts = {"LICENSE": b"Do as you like.", "NOTICE.txt": b"By us."}
    (own / "checkpoint").mkdir()
    for name, text in texts.items():
        (own / "checkpoint" / name).write_bytes(text)

    def from_the_hub(content: dict[str, Any]) -> None:
        content["commit"] = 40 * "0"
        content["files"] |= {
            name: {"size_bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            for name, text in texts.items()
        }

    assert not read_build(own).licences  # of a folder: nobody knows where it is by now
    change_json(own / "checkpoint.json", from_the_hub)
    rewrite(own, "checkpoint")
    found = read_build(own)
    levels = chosen(found, ["Q4"])
    files = published_as(found, levels, "imatrix.gguf")
    assert all(files[name].path == f"checkpoint/{name}" for name in texts)
    check_outputs(found, levels, SILENT)
    (own / "checkpoint" / "LICENSE").write_bytes(b"Do as we like..")
    with pytest.raises(InputError, match="LICENSE"):
        check_outputs(found, levels, SILENT)
