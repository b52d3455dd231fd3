"""`quantkit verify`: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import broken_artifacts
import pytest
from forked import facts, printed, quantkit, refused
from loopback_hub import hub
from small_recipes import write_recipe
from small_release import STACK, SmallRelease

from quantkit.core.files import file_sha256

Q4 = "tiny-Q4.gguf"


def test_a_good_release_takes_a_line_a_check(whole_release: SmallRelease) -> None:
    done = quantkit("verify", whole_release.folder, "--source", whole_release.source)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    assert first == f"{whole_release.folder}: a release of tiny, Q4, Q8"
    assert [line.split()[:2] for line in lines if line.startswith("✓")] == [
        ["✓", name] for name in ("files", "structure", "types", "claims", "source")
    ]
    assert last.startswith("Verified: ")
    assert "--full" in last
    assert any("Q4 did not pass" in line for line in lines)
    quiet = quantkit("verify", whole_release.folder, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_the_facts_as_json(whole_release: SmallRelease) -> None:
    source_of = ("--source", whole_release.source, "--full", "--seed", "4")
    told = facts("verify", whole_release.folder, *source_of)
    assert (told["kind"], told["model"], told["levels"]) == ("release", "tiny", ["Q4", "Q8"])
    assert told["verified"] is True
    checks = {check["name"]: check for check in told["checks"]}
    assert list(checks) == ["files", "structure", "types", "claims", "source"]
    assert all(check["passed"] and not check["faults"] for check in checks.values())
    source = checks["source"]
    assert (source["full"], source["seed"]) == (True, 4)
    assert source["rows"] == source["all_rows"] > 0
    assert source["hashed"] == source["files"] == 1


def test_the_seed_is_drawn_and_can_be_given_again(whole_release: SmallRelease) -> None:
    words = ("verify", whole_release.folder, "--source", whole_release.source)
    one, other = (facts(*words)["checks"][-1]["seed"] for _ in range(2))
    assert one != other
    assert one != 1
    assert facts(*words, "--seed", one)["checks"][-1]["seed"] == one
    assert re.search(r"sampled rows of [\d,]+ \(seed \d+\)", printed(*words))


def test_what_was_not_compared_gets_no_tick(release: SmallRelease) -> None:
    shutil.rmtree(release.path("levels"))
    release.path("notes.txt").write_text("mine")
    done = quantkit("verify", release.folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("· types") and "no allocation.json" in line for line in lines)
    (claims,) = (line for line in lines if line.startswith("✓ claims"))
    assert "verdicts" not in claims
    assert lines[-1].startswith("Verified: ")
    assert "except 1 file" in lines[-1]
    assert "types" in lines[-1]
    checks = facts("verify", release.folder)["checks"]
    compared = {check["name"]: check["compared"] for check in checks}
    assert compared == {"files": True, "structure": True, "types": False, "claims": True}


def test_what_is_wrong_is_named_and_the_exit_code_is_1(
    release: SmallRelease, tmp_path: Path
) -> None:
    broken = broken_artifacts.swapped(release.path(Q4), tmp_path / "b.gguf", STACK, 0, 1)
    os.replace(broken, release.path(Q4))
    release.path("README.md").write_text("# other")
    release.path(release.files("Q8")[0]).unlink()
    done = quantkit("verify", release.folder, "--source", release.source)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {release.folder} ")
    assert "README.md" in line
    assert line.endswith("; and 1 more")
    assert "✗ files" in done.stdout
    assert "✓ types" in done.stdout
    assert f"Q4: {STACK}, Q4_K, " in done.stdout
    assert "2 of 16 rows" in done.stdout
    done = quantkit("verify", release.folder, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["verified"] is False
    assert len(told["checks"][0]["faults"]) == 2


def test_of_many_faults_a_screen_is_printed(release: SmallRelease) -> None:
    def no_type(content: dict[str, dict[str, dict[str, str]]]) -> None:
        for tensor in content["tensors"].values():
            tensor["type"] = "Q1_0"

    release.edit("levels/Q4/allocation.json", no_type)
    done = quantkit("verify", release.folder)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) < 20
    assert "5 more" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere"),
        (("./nowhere/at-all",), "./nowhere/at-all"),
        (("a/b/c",), "a/b/c"),
        ((".",), "SHA256SUMS"),
        ((".", "--full"), "--source"),
        ((".", "--source", "someone/model"), "quantkit download someone/model"),
        (("someone/model", "--source", "demo", "--full"), "hf download someone/model"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    assert words in refused("verify", *arguments, cwd=tmp_path)


def test_a_repository_by_its_name(release: SmallRelease) -> None:
    with hub({"someone/tiny-GGUF": {"v1": release.folder}}) as served:
        environment = {**os.environ, "HF_ENDPOINT": served.address, "HF_TOKEN": ""}
        words = ("verify", "someone/tiny-GGUF@v1", "--source", release.source)
        shown = printed(*words, env=environment)
        assert shown.startswith("someone/tiny-GGUF@")
        assert "by the Hub's record" in shown
        assert served.sent_bytes(Q4) < release.path(Q4).stat().st_size / 8
        gone = quantkit("verify", "someone/other", env=environment)
        assert gone.returncode == 2


def test_a_build_is_verified_by_its_receipts(tmp_path: Path) -> None:
    """From its first level on; what the build has replaced since is left out, and said."""
    build = tmp_path / "build"
    recipe = write_recipe(tmp_path / "tiny.yaml")
    words = ("build", "--target", "4x3090", "--model", "demo", "--out", build, "--quiet")
    printed(*words, "--recipe", recipe)
    told = facts("verify", build, "--source", "demo", "--full")
    assert (told["kind"], told["model"]) == ("build", "quantkit-demo")
    assert sorted(told["levels"]) == ["Q4", "Q8"]
    assert (told["not_here"], told["not_covered"]) == ([], [])
    source = told["checks"][-1]
    assert source["rows"] == source["all_rows"] > 0
    assert source["files"] == source["hashed"] > 3

    artifact = build / "levels" / "Q4" / "quantkit-demo-Q4.gguf"
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = quantkit("verify", build)
    assert done.returncode == 1
    assert "levels/Q4/quantkit-demo-Q4.gguf has the SHA-256" in done.stderr
    artifact.write_bytes(whole)

    validation = build / "levels" / "Q4" / "validation.json"
    older = json.loads(validation.read_text())
    assert older.pop("artifact") == {artifact.name: file_sha256(artifact)}
    validation.write_text(json.dumps(older))
    receipt = build / "receipts" / "validate.Q4.json"
    content = json.loads(receipt.read_text())
    for output in content["outputs"]:
        output["sha256"] = file_sha256(build / output["path"])
    receipt.write_text(json.dumps(content))
    assert "Q4: validation.json" in printed("verify", build)

    unfinished = tmp_path / "unfinished"
    shutil.copytree(build, unfinished)
    for name in ("report", "validate.Q8", "quantize.Q8", "validate.Q4"):
        (unfinished / "receipts" / f"{name}.json").unlink()
    printed("verify", unfinished)

    receipt = build / "receipts" / "quantize.Q8.json"
    content = json.loads(receipt.read_text())
    content["parts"]["imatrix"] = {"imatrix.gguf": "0" * 64}
    receipt.write_text(json.dumps(content))
    assert "Q8 left out" in printed("verify", build)
