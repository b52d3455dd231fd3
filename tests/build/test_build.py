"""Whole builds on the demo model: skipping, gates, and kill -9 in every stage."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import yaml
from finished_builds import copied
from forked import quantkit, start
from loopback_hub import COMMIT, Fault, LoopbackHub, hub
from places import DATA
from small_recipes import write_recipe
from waiting import wait_until

from quantkit.core.files import file_sha256
from quantkit.core.paths import DEMO_MODEL, cache_folder
from quantkit.core.receipts import read_receipt, write_receipt
from quantkit.models.remote_headers import FIRST_BYTES
from quantkit.plan.placement import PlacementFile
from quantkit.study.sensitivity import Sensitivity

STUDIED = ("imatrix", "measure", "logits")
"""Done by one sweep, which is called the study."""
LATER = (
    "allocate:Q8", "place:Q8", "quantize:Q8", "validate:Q8",
    "allocate:Q4", "place:Q4", "quantize:Q4", "validate:Q4", "report",
)  # fmt: skip
UNMEASURED = {
    "measure": {"candidates": ["Q8_0", "Q4_0", "Q2_K"], "sample_rows": 16, "cost_tokens": 0},
    "divergence": {"chunks": 0},
}
"""Of a recipe: tensors count alike, and the levels are not compared with the base."""


def command(out: Path, recipe: Path, *more: str) -> list[str]:
    return [
        "build", "--target", "4x3090", "--model", "demo", "--recipe", str(recipe),
        "--out", str(out), *more,
    ]  # fmt: skip


def run(out: Path, recipe: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return quantkit(*command(out, recipe, *more))


PAGES = ("report.html", "README.md")


def contents(out: Path) -> dict[str, str]:
    """What a build leaves, times aside: hashes, and validation.json without its seconds.

    Receipts hold times, and the two pages show the check's rates.
    """
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and "receipts" not in path.parts and path.name != ".lock":
            name = path.relative_to(out).as_posix()
            found[name] = "a page" if name in PAGES else file_sha256(path)
            if path.name == "validation.json":
                facts = json.loads(path.read_text())
                for rung in facts["niah"]["rungs"]:
                    assert rung.pop("prefill_seconds") > 0
                    assert rung.pop("decode_seconds") > 0
                found[name] = json.dumps(facts)
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A finished build of a new interpreter, in a folder with a space in its name."""
    out = tmp_path_factory.mktemp("a build") / "out"
    program = (sys.executable, "-c", "from quantkit.cli.app import main; main()")
    finished = subprocess.run([*program, *command(out, recipe)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for stage in ("checkpoint", "study", *LATER):
        assert f"✓ {stage}" in finished.stdout
    return out


def test_what_a_build_leaves(built: Path) -> None:
    klds = []
    for level in ("Q8", "Q4"):
        folder = built / "levels" / level
        artifact = folder / f"quantkit-demo-{level}.gguf"
        allocation = json.loads((folder / "allocation.json").read_text())
        assert artifact.stat().st_size == allocation["total_bytes"] <= allocation["budget_bytes"]
        reader = gguf.GGUFReader(artifact)
        assert {t.name: t.tensor_type.name for t in reader.tensors} == {
            name: entry["type"] for name, entry in allocation["tensors"].items()
        }
        planned_bytes = sum(entry["bytes"] for entry in allocation["tensors"].values())
        assert planned_bytes == sum(tensor.n_bytes for tensor in reader.tensors)
        placement = PlacementFile.read(folder / "placement.json").placement
        assert placement.fits
        assert sum(placement.tensor_split) == 8  # seven layers and the output
        assert placement.run.context_tokens == 516096
        validation = json.loads((folder / "validation.json").read_text())
        (score,) = validation["niah"]["scores"]
        assert (score["task"], score["keys"]) == ("multikey", 4)
        assert validation["niah"]["fork_difference"] == 0.0
        answers = [json.loads(line) for line in (folder / "niah.jsonl").read_text().splitlines()]
        assert len(answers) == score["trials"] == 4
        assert (folder / "heatmap.png").read_bytes().startswith(b"\x89PNG")
        klds.append(validation["kld"]["mean"])
    assert 0 < klds[0] < klds[1]
    assert not list(built.rglob("*.partial"))
    for name in ("checkpoint.json", "imatrix.gguf", "sensitivity.json", "base.logits"):
        assert (built / name).samefile(built / "study" / name)
    for folder in (built, built / "study"):
        assert not any((folder / ".work").iterdir())


def test_report_says_no_path_of_this_machine(built: Path) -> None:
    page = (built / "report.html").read_text()
    assert "quantkit-demo" in page
    assert page.count("data:image/png;base64,") == 1  # coverage: heatmaps are tables
    for path in built.rglob("*"):
        if path.suffix in (".html", ".md", ".json", ".jsonl", ".gguf") and path.is_file():
            assert str(built).encode() not in path.read_bytes(), path


def test_second_run_skips_every_stage_and_says_why(built: Path, recipe: Path) -> None:
    before = contents(built)
    again = run(built, recipe)
    assert again.returncode == 0
    stages = ("checkpoint", *STUDIED, *LATER)
    for stage in stages:
        assert f"· {stage}" in again.stdout
    assert again.stdout.count("skipped: up to date") == len(stages)
    assert "study" not in re.findall(r"✓ (\S+)", again.stdout)
    assert contents(built) == before


def test_a_change_runs_only_what_depends_on_it(built: Path, tmp_path: Path) -> None:
    changed = write_recipe(
        tmp_path / "r.yaml",
        levels=[{"name": "Q8", "bits_per_weight": 8.6}, {"name": "Q4", "bits_per_weight": 4.5}],
    )
    out = copied(built, tmp_path / "copy")
    again = run(out, changed)
    assert "✓ allocate:Q4" in again.stdout
    assert "settings.level.bits_per_weight has changed from 4.6 to 4.5" in again.stdout
    for stage in ("imatrix", "measure", "quantize:Q8", "validate:Q8"):
        assert f"· {stage}" in again.stdout


def test_a_build_of_an_earlier_version_says_why_it_goes_on(
    built: Path, recipe: Path, tmp_path: Path
) -> None:
    """A stage whose file had another form runs again, and what depends on that file."""
    out = copied(built, tmp_path / "copy")
    earlier = read_receipt(out, "place:Q8")
    assert earlier is not None
    (out / "levels/Q8/placement.json").write_text('{"context_tokens": 516096, "tensor_split": []}')
    outputs = [out / output.path for output in earlier.outputs]
    write_receipt(out, "place:Q8", {**earlier.parts, "stage version": 3}, outputs, 1.0, {})
    again = run(out, recipe)
    assert again.returncode == 0, again.stderr
    assert "place:Q8 runs again: stage version has changed from 3 to 4" in again.stdout
    for stage in ("allocate:Q8", "quantize:Q8", "place:Q4", "validate:Q8"):
        assert f"· {stage}" in again.stdout
    assert contents(out) == contents(built)


def marks(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a study's files were written again."""
    stats = {name: (folder / name).stat() for name in ("imatrix.gguf", "sensitivity.json")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_the_bases_logits_are_made_again_alone(built: Path, recipe: Path, tmp_path: Path) -> None:
    out = copied(built, tmp_path / "copy")
    kept = marks(out / "study")
    for folder in (out, out / "study"):
        (folder / "base.logits").unlink()
    again = run(out, recipe)
    assert "its output base.logits is missing" in again.stdout
    assert "✓ study" in again.stdout
    for stage in ("imatrix", "measure", *LATER):  # its bytes are the same again
        assert f"· {stage}" in again.stdout
    longer = write_recipe(tmp_path / "r.yaml", divergence={"chunks": 2, "chunk_tokens": 128})
    again = run(out, longer, "--levels", "Q4")
    assert "logits runs again: settings.chunks has changed from 1 to 2" in again.stdout
    for stage in ("imatrix", "measure", "quantize:Q4"):
        assert f"· {stage}" in again.stdout
    assert "✓ validate:Q4" in again.stdout
    kld = json.loads((out / "levels" / "Q4" / "validation.json").read_text())["kld"]
    assert kld["tokens"] == 2 * 63
    assert marks(out / "study") == kept
    for name in ("imatrix.gguf", "sensitivity.json"):
        assert file_sha256(out / name) == file_sha256(built / name)


def test_another_candidate_leaves_imatrix_and_logits_alone(built: Path, tmp_path: Path) -> None:
    out = copied(built, tmp_path / "copy")
    kept = marks(out / "study")
    recipe = yaml.safe_load(write_recipe(tmp_path / "r.yaml").read_text())
    measure = {**recipe["measure"], "candidates": ["Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0"]}
    changed = write_recipe(tmp_path / "r.yaml", measure=measure)
    again = run(out, changed, "--levels", "Q8")
    assert again.returncode == 0, again.stderr
    assert "measure runs again: settings.measure.candidates has changed" in again.stdout
    for stage in ("imatrix", "logits"):
        assert f"· {stage}" in again.stdout
    assert marks(out / "study")["imatrix.gguf"] == kept["imatrix.gguf"]
    assert marks(out / "study")["sensitivity.json"] != kept["sensitivity.json"]
    for name in ("imatrix.gguf", "base.logits"):
        assert file_sha256(out / name) == file_sha256(built / name)
    ours, theirs = (Sensitivity.read(of / "sensitivity.json") for of in (out, built))
    assert ours == Sensitivity.read(out / "study" / "sensitivity.json")
    left = {
        name: {kind: error for kind, error in kinds.items() if kind != "Q2_K"}
        for name, kinds in theirs.errors.items()
    }
    assert ours.errors == left  # from the imatrix's file as from its sums
    assert ours.costs == theirs.costs


def test_an_adopted_file_that_is_lost_is_adopted_again(
    built: Path, recipe: Path, tmp_path: Path
) -> None:
    out = copied(built, tmp_path / "copy")
    for name in ("checkpoint.json", "imatrix.gguf", "sensitivity.json"):
        (out / name).unlink()
    (out / "base.logits").write_bytes(b"x")
    again = run(out, recipe)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped: up to date") == 1 + len(STUDIED) + len(LATER)
    assert contents(out) == contents(built)


def test_a_ready_imatrix_gives_what_collecting_it_gave(built: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", divergence={"chunks": 0})
    out = tmp_path / "out"
    finished = run(out, recipe, "--imatrix", str(built / "imatrix.gguf"), "--levels", "Q4")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "weights of imatrix.gguf" in finished.stdout
    artifact = "levels/Q4/quantkit-demo-Q4.gguf"
    for name in ("imatrix.gguf", "sensitivity.json", artifact):
        assert file_sha256(out / name) == file_sha256(built / name)
    assert "the file imatrix.gguf" in (out / "report.html").read_text()

    # a legacy .dat of the same model: its counts are not known, and the report does not guess
    legacy = DATA / "imatrix" / "demo-4x512.imatrix.dat"
    finished = run(out, recipe, "--imatrix", str(legacy), "--levels", "Q4")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "a legacy .dat holds no counts" in finished.stdout
    page = (out / "report.html").read_text()
    assert "By how many tokens, the file does not say." in page
    assert "tokens or more" not in page


def test_the_calibration_is_recorded(built: Path, tmp_path: Path) -> None:
    record = json.loads((built / "calibration.json").read_text())
    (source,) = record["sources"]
    assert (source["name"], source["origin"]) == ("english-prose.txt", "quantkit")
    assert source["licence"]
    assert source["tokens"] == record["tokens"] == 256
    (file,) = source["files"]
    assert file["sha256"] == file_sha256(DEMO_MODEL.parents[2] / "calibration" / file["name"])

    # of one's own text and folder: equal shares, and no path of this machine
    text, folder = tmp_path / "mine.txt", tmp_path / "texts"
    folder.mkdir()
    words = " ".join(f"word{n}" for n in range(4000))
    text.write_text(words)
    (folder / "a.md").write_text(words)
    out = tmp_path / "out"
    own = ("--calibration", str(text), "--calibration", str(folder))
    finished = run(out, write_recipe(tmp_path / "r.yaml", **UNMEASURED), *own, "--levels", "Q4")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    record = json.loads((out / "calibration.json").read_text())
    assert [(s["name"], s["tokens"]) for s in record["sources"]] == [
        ("mine.txt", 128), ("texts", 128),
    ]  # fmt: skip
    for name in ("calibration.json", "report.html", "README.md", "imatrix.gguf"):
        assert str(tmp_path).encode() not in (out / name).read_bytes()


@pytest.mark.timeout(600)
def test_killed_in_every_stage_gives_the_same_bytes(
    built: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    study = out / "study"
    windows = study / ".work" / "study" / "sweep" / "windows.jsonl"

    def swept(count: int) -> bool:
        return windows.exists() and windows.read_bytes().count(b"\n") > count

    moments: list[tuple[str, Path, Callable[[], bool]]] = [
        ("checkpoint", study, (study / ".work" / "checkpoint").exists),
        ("imatrix", study, (study / ".work" / "study").exists),
        ("imatrix", study, lambda: swept(1)),  # windows of the sweep, beside the journal's purpose
        ("imatrix", study, lambda: swept(5)),
        *((stage, out, (out / ".work" / stage.replace(":", ".")).exists) for stage in LATER),
    ]
    for stage, folder, reached in moments:
        process = start(*command(out, recipe, "--quiet"))
        deadline = time.monotonic() + 120
        while not reached() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, stage
        receipt = folder / "receipts" / f"{stage.replace(':', '.')}.json"
        assert not receipt.exists(), f"{stage} was over before it was killed"
    finished = run(out, recipe)
    assert finished.returncode == 0, finished.stderr
    ours, reference = contents(out), contents(built)
    assert ours.keys() == reference.keys()
    assert {n for n in ours if ours[n] != reference[n]} == set()


def test_a_check_that_cannot_be_made_is_told_before_the_long_stages(tmp_path: Path) -> None:
    crowded = {"context_tokens": [384], "needles": 40, "minimum_lower_bound": None}
    refused = run(tmp_path / "out", write_recipe(tmp_path / "r.yaml", retrieval=crowded))
    assert refused.returncode == 2
    assert "a context of 384 tokens" in refused.stderr
    assert not list((tmp_path / "out").rglob("imatrix.gguf"))


def test_a_failed_gate_exits_1_and_names_the_level(built: Path, tmp_path: Path) -> None:
    out = copied(built, tmp_path / "copy")
    levels = [
        {"name": "Q8", "bits_per_weight": 8.6, "baseline": True},
        {"name": "Q4", "bits_per_weight": 4.6},
    ]
    impossible = {  # the demo model was never shown values of twelve digits
        "context_tokens": [512], "needles": 4, "digits": 12, "answer_tokens": 3,
        "minimum_lower_bound": 0.4,
    }  # fmt: skip
    recipe = write_recipe(tmp_path / "r.yaml", levels=levels, retrieval=impossible)
    failed = run(out, recipe)
    assert failed.returncode == 1, failed.stderr
    for level in ("Q8", "Q4"):
        assert f"✓ validate:{level}" in failed.stdout
    assert "Q4 found 0 of 4" in failed.stderr
    assert "Q8 found" not in failed.stderr  # a baseline's failure is shown and does not count
    assert "failed, a baseline" in failed.stdout
    assert "Traceback" not in failed.stderr
    only = run(out, recipe, "--levels", "Q8", "--json")
    assert only.returncode == 0, only.stderr
    (level,) = json.loads(only.stdout)["levels"]
    assert level["passed"] is False
    assert level["baseline"] is True


def run_from_hub(
    served: LoopbackHub, repository: str, out: Path, recipe: Path, target: str = "4x3090"
) -> subprocess.CompletedProcess[str]:
    changed = {"demo": repository, "4x3090": target}
    arguments = [changed.get(word, word) for word in command(out, recipe)]
    return quantkit(*arguments, env=environment(served, out.parent, recipe.parent))


def environment(served: LoopbackHub, home: Path, cache: Path) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": served.address,
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(without_headers(cache / "cache")),
    }


def without_headers(folder: Path) -> Path:
    """A cache folder that has all of the user's but headers of repositories, and gets its own."""
    ours, theirs = folder / "quantkit", cache_folder()
    ours.mkdir(parents=True, exist_ok=True)
    for entry in theirs.iterdir() if theirs.is_dir() else ():
        if entry.name != "headers" and not (ours / entry.name).exists():
            (ours / entry.name).symlink_to(entry)
    return folder


def test_a_build_from_a_repository(tmp_path: Path) -> None:
    levels = [{"name": "Q4", "bits_per_weight": 4.6}]
    recipe = write_recipe(tmp_path / "r.yaml", levels=levels, **UNMEASURED)
    out = tmp_path / "out"
    with hub({"someone/small": DEMO_MODEL}) as served:
        finished = run_from_hub(served, "someone/small", out, recipe)
        assert finished.returncode == 0, finished.stderr
        checkpoint = json.loads((out / "checkpoint.json").read_text())
        assert checkpoint == {
            "version": 1,
            "model": "someone/small",
            "commit": COMMIT,
            "files": {
                path.name: {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in sorted(DEMO_MODEL.iterdir())
            },
        }
        assert (out / "levels" / "Q4" / "small-Q4.gguf").is_file()
        served.served.clear()
        (out / "checkpoint" / "config.json").write_text("{}")
        repaired = run_from_hub(served, "someone/small", out, recipe)
        assert served.names() == ["config.json"]
        assert "✓ checkpoint" in repaired.stdout
        assert repaired.stdout.count("skipped: up to date") == 7  # its bytes are the same again
    offline = run_from_hub(served, "someone/small", out, recipe)  # the hub is gone
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.count("skipped: up to date") == 8


def test_a_repository_is_refused_before_a_folder_is_made(tmp_path: Path, recipe: Path) -> None:
    foo = tmp_path / "foo"
    foo.mkdir()
    (foo / "config.json").write_text('{"architectures": ["FooForCausalLM"]}')
    (foo / "model.safetensors").write_bytes(b"weights")
    free = shutil.disk_usage(tmp_path).free
    with hub({"someone/foo": foo, "someone/large": DEMO_MODEL}) as served:
        served.api_faults = [503]
        refused = run_from_hub(served, "someone/foo", tmp_path / "a" / "out", recipe)
        assert "HTTP 503; trying again in 1 s" in refused.stdout
        assert refused.returncode == 2
        assert "FooForCausalLM" in refused.stderr
        small = tmp_path / "small.yaml"
        small.write_text(
            "name: small\ncards: [{name: tiny, memory_gib: 2}]\ncontext_tokens: 1024\n"
            "weight_budget_gib: 0.001\n"
        )
        out = tmp_path / "c" / "out"
        large = run_from_hub(served, "someone/large", out, recipe, str(small))
        assert large.returncode == 2
        assert "nothing fits small" in large.stderr
        assert "larger target" in large.stderr
        # the download would fit, but not the levels as well
        served.claims = {"model.safetensors": free * 6 // 10}
        served.always = {"model.safetensors": Fault(status=404, at_hub=True)}
        full = run_from_hub(served, "someone/large", tmp_path / "b" / "out", recipe)
        assert full.returncode == 3, full.stderr
        assert "for the levels" in full.stderr
        assert "choose a folder on another disk with --out" in full.stderr
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "c").exists()
    assert 0 < served.sent_bytes("model.safetensors") < 1 << 20  # its header, and no more
    assert not (tmp_path / "b" / "out").exists()


def test_a_build_and_a_download_share_a_folder_one_after_the_other(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", divergence={"chunks": 0})
    out, weights = tmp_path / "b", "model.safetensors"
    download = ["download", "someone/small", "--out", str(out / "checkpoint"), "--quiet"]
    build = [word.replace("demo", "someone/small") for word in command(out, recipe)]
    size = (DEMO_MODEL / weights).stat().st_size
    with hub({"someone/small": DEMO_MODEL}) as served:
        env = environment(served, tmp_path, tmp_path)
        for first, second in ((build, download), (download, build)):
            served.bytes_per_second = size / 60  # until the second is refused
            # more than the header, which a build reads before it takes the folder
            begun = served.sent_bytes(weights) + FIRST_BYTES
            running = start(*first, env=env)
            wait_until(lambda begun=begun: served.sent_bytes(weights) > begun)
            refused = quantkit(*second, env=env)
            assert refused.returncode == 2, refused.stderr
            assert "another run is writing to" in refused.stderr
            served.bytes_per_second = None
            if first is build:
                running.kill()  # the rest of a build is for other tests
            running.join()
            assert running.exitcode == (-signal.SIGKILL if first is build else 0)
        brought = {p.name: file_sha256(p) for p in (out / "checkpoint").iterdir() if p.is_file()}
        assert brought == {p.name: file_sha256(p) for p in DEMO_MODEL.iterdir()}
        assert not list((out / "checkpoint").rglob("*.partial"))
