"""`quantkit publish` and `build --publish`: killed, finished, verified, downloaded and run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_builds import fail
from forked import PROGRAM, facts, printed, quantkit, start
from loopback_hub import GOOD_TOKEN, READ_TOKEN, Fault, LoopbackHub, hub
from small_recipes import write_recipe

from quantkit.core.paths import DEMO_MODEL

TO = "someone/quantkit-demo"
REPOSITORY = f"{TO}-GGUF"


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[LoopbackHub]:
    with hub({}, storage=tmp_path / "hub") as served:
        yield served


def environment(loopback: LoopbackHub, token: str = GOOD_TOKEN) -> dict[str, str]:
    return dict(os.environ) | {
        "HF_ENDPOINT": loopback.address,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
    }


def head(loopback: LoopbackHub) -> str | None:
    commit = loopback.commit(REPOSITORY)
    return None if commit is None or commit.parent is None else commit.id


def test_killed_half_way_finished_downloaded_and_run(
    loopback: LoopbackHub, own: Path, tmp_path: Path
) -> None:
    env = environment(loopback)
    loopback.upload_bytes_per_second = 2_000_000
    killed = start("publish", own, "--to", TO, env=env)
    while sum(loopback.received.values()) < 8_000_000:
        assert killed.is_alive()
        time.sleep(0.02)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert head(loopback) is None  # nothing is to be seen
    whole = {oid for oid in loopback.received if loopback.repository(REPOSITORY).object(oid)}
    assert whole
    before = dict(loopback.received)
    loopback.upload_bytes_per_second = None

    finished = quantkit("publish", own, "--to", TO, "--json", env=env)
    assert finished.returncode == 0, finished.stderr
    done = json.loads(finished.stdout)
    assert done["made"]
    assert done["commit"] == head(loopback)
    for oid in whole:  # what was there is not sent again
        assert loopback.received[oid] == before[oid]
    sizes = {file["sha256"]: file["size_bytes"] for file in done["files"].values()}
    assert all(loopback.repository(REPOSITORY).object(oid) for oid in loopback.received)
    assert loopback.received.keys() <= sizes.keys()

    assert GOOD_TOKEN not in finished.stdout + finished.stderr
    for path in own.rglob("*"):  # the token is in nothing that is written
        if path.is_file() and path.suffix != ".gguf":
            assert GOOD_TOKEN.encode() not in path.read_bytes(), path

    assert "skipped" in printed("publish", own, "--to", TO, env=env)
    assert loopback.commits_made == 1

    # elsewhere, by a plain client
    folder = tmp_path / "elsewhere"
    program = (
        "from huggingface_hub import snapshot_download\n"
        f"snapshot_download({REPOSITORY!r}, local_dir={str(folder)!r})\n"
    )
    plain = {name: value for name, value in env.items() if name != "HF_TOKEN"}
    plain |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    subprocess.run([sys.executable, "-c", program], env=plain, check=True)
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert checked.returncode == 0
    artifact = folder / "quantkit-demo-Q4.gguf"
    assert artifact.read_bytes() == (own / "levels/Q4/quantkit-demo-Q4.gguf").read_bytes()
    printed(
        "niah", artifact, "--context", 384, "--needles", 4, "--answer-tokens", 8, "--kv", "q8_0",
        "--minimum", 0.4, "--out", tmp_path / "niah", "--json",
    )  # fmt: skip
    printed(
        "quantize", "--model", "demo", "--types", folder / "levels/Q4/allocation.json",
        "--imatrix", folder / "quantkit-demo-imatrix.gguf", "--out", tmp_path / "again.gguf",
    )  # fmt: skip
    assert (tmp_path / "again.gguf").read_bytes() == artifact.read_bytes()
    for where in (folder, REPOSITORY):
        printed("verify", where, env=plain, cwd=tmp_path)


def test_what_a_person_sees(loopback: LoopbackHub, own: Path) -> None:
    fail(own, "Q4")
    env = environment(loopback)
    shown = quantkit("publish", own, "--to", "someone", "--dry-run", env=env)
    assert shown.returncode == 0, shown.stderr
    for words in (REPOSITORY, "dry run", "apache-2.0", "public", "not published", "README.md"):
        assert words in shown.stdout
    assert not loopback.written
    refused = quantkit("publish", own, "--to", "someone", "--levels", "Q8, Q4", env=env)
    assert refused.returncode == 1
    assert "1 of 4 multikey-4" in refused.stderr
    runs = [shown, refused]
    for folder, more, words in (
        (own, ("--pr", "--branch", "x"), "--pr"),
        (own.parent / "typo", (), "typo"),
        (own.parent, (), "receipts/report.json"),
    ):
        runs.append(quantkit("publish", folder, "--to", TO, *more, env=env))
        assert (runs[-1].returncode, words in runs[-1].stderr) == (2, True), runs[-1].stderr
    assert not (own.parent / "typo").exists()
    for run in runs:
        assert GOOD_TOKEN not in run.stdout + run.stderr
        assert "Traceback" not in run.stderr


def test_ctrl_c_ends_it_although_an_upload_is_under_way(loopback: LoopbackHub, own: Path) -> None:
    loopback.upload_bytes_per_second = 300_000  # all of it would take half a minute
    command = [*PROGRAM, "publish", str(own), "--to", TO, "--quiet"]
    started = subprocess.Popen(
        command,
        env=environment(loopback),
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    )
    while not sum(loopback.received.values()):
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    assert started.wait(120) == 130
    assert sum(loopback.received.values()) < 8_000_000
    assert loopback.commits_made == 0


def build_words(folder: Path, recipe: Path) -> tuple[object, ...]:
    """The command that builds the demo, in `out`, and publishes it."""
    return (
        "build", "--target", "1x3090", "--model", "demo", "--recipe", recipe,
        "--out", folder / "out", "--publish", "someone",
    )  # fmt: skip


def quick_recipe(folder: Path, **changes: object) -> Path:
    gate = {"context_tokens": [384], "needles": 4, "answer_tokens": 8, "minimum_lower_bound": 0.4}
    content: dict[str, object] = {
        "levels": [{"name": "Q4", "bits_per_weight": 4.6}],
        "retrieval": gate,
        "measure": {"candidates": ["Q8_0", "Q4_0", "Q2_K"], "sample_rows": 16, "cost_tokens": 0},
        "divergence": {"chunks": 0},
    }
    return write_recipe(folder / "tiny.yaml", **content | changes)


def test_a_release_is_built_again_byte_for_byte(loopback: LoopbackHub, tmp_path: Path) -> None:
    """Of a mixture whose order is not that of its names, with a text of one's own."""
    (tmp_path / "zz.txt").write_text(
        "One and two make three, and three and four make seven. " * 200
    )
    mixture = {"zz.txt": 1.0, "english-prose": 2.0, "code": 1.0}
    imatrix = {"chunks": 4, "chunk_tokens": 128, "mixture": mixture}
    recipe, out = quick_recipe(tmp_path, imatrix=imatrix), tmp_path / "out"
    target = ("--target", "1x3090", "--recipe", recipe)
    printed("build", "--model", "demo", *target, "--out", out, cwd=tmp_path)
    printed("publish", out, "--to", "someone", "--dry-run", env=environment(loopback))
    release = out / "release"
    assert str(tmp_path) not in (release / "recipe.yaml").read_text()
    target = ("--target", release / "target.yaml", "--recipe", release / "recipe.yaml")
    printed("build", "--model", "demo", *target, "--out", tmp_path / "again", cwd=tmp_path)
    for name in ("imatrix.gguf", "levels/Q4/quantkit-demo-Q4.gguf", "levels/Q4/allocation.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_what_a_build_that_publishes_refuses_first(loopback: LoopbackHub, tmp_path: Path) -> None:
    command = build_words(tmp_path, quick_recipe(tmp_path))
    loopback.write(REPOSITORY, {})
    for more, words in ((("--private",), "public"), (("--levels", "Q4_0"), "baselines")):
        early = quantkit(*command, *more, env=environment(loopback))
        assert early.returncode == 2
        assert words in early.stderr
        assert not (tmp_path / "out").exists()


def test_a_path_of_this_machine_in_a_model_is_told_before_the_build(
    loopback: LoopbackHub, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(DEMO_MODEL, model)
    with (model / "chat_template.jinja").open("a") as template:
        template.write(f"{{# {out}/notes #}}")
    impossible = {"context_tokens": [384], "needles": 1, "minimum_lower_bound": 0.9}
    recipe = quick_recipe(tmp_path, retrieval=impossible)  # ends before the first stage
    command = ("build", "--target", "1x3090", "--model", model, "--recipe", recipe, "--out", out)
    env = environment(loopback)
    for more in ((), ("--publish", "someone")):
        early = quantkit(*command, *more, env=env)
        assert early.returncode == 2
        told = "".join((early.stdout + early.stderr).split())
        assert "tokenizer.chat_template" in told
        assert f"{out}/notes" in told
        assert ("90.0%" in told) is not bool(more)  # it would go on, or it ends
        assert not out.exists()


def test_a_build_publishes_what_passed(loopback: LoopbackHub, tmp_path: Path) -> None:
    command = build_words(tmp_path, quick_recipe(tmp_path))
    for token in ("hf_wrong", READ_TOKEN):
        early = quantkit(*command, env=environment(loopback, token))
        assert early.returncode == 2
        assert "token" in early.stderr
        assert not (tmp_path / "out").exists()  # told before hours of work
    loopback.upload_faults["POST", "/commit/"] = [Fault(403, "not today")]
    failed = quantkit(*command, env=environment(loopback))
    assert failed.returncode == 2
    assert "not today" in failed.stderr
    assert "quantkit publish " in " ".join(failed.stderr.split())
    done = facts(*command, env=environment(loopback))
    assert done["published"]["commit"] == head(loopback)
    assert done["published"]["address"] == f"{loopback.address}/{REPOSITORY}"
    assert done["levels"][0]["name"] == "Q4"
