"""Kill builds of the demo at random points, run each to its end, and compare the bytes.

    python scripts/kill_builds.py --out FOLDER [--kills 100] [--each 4] [--seed 1]

Two builds run undisturbed. What is the same in both is what a build makes the same each time: every
GGUF file, the base's logits, types, plans and pages; times and rates differ, and so does what holds
them. Each further build is killed at up to `--each` random moments, by SIGKILL, and run again each
time until it ends: of every second kill only the parent is a victim, whose children have to end
too. Its files must be those of the undisturbed builds, no more and no fewer, and the same in every
byte that those have in common. The record, Markdown, goes to the standard output; exit 1 if a byte
differs.

The builds are those of `make demo`, but for the length of the retrieval check, on which no file
depends that is compared: at 32,768 tokens it would take most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from quantkit import __version__
from quantkit.core.paths import resource
from quantkit.core.units import seconds_text
from quantkit.llamacpp.ggml import library_version

RETRIEVAL = {"context_tokens": [1024], "needles": 8, "probes": {}, "minimum_lower_bound": 0.2}
"""In the place of the demo's own fields of that name."""
GONE_SECONDS = 20
POLL_SECONDS = 0.02
KEPT = 0.7
"""About as much of its time has a run that was killed saved for the next."""


@dataclass
class Kills:
    """What was killed, and what differed at the end.

    Attributes:
        stages: unfinished stage at the kill → number of kills.
        faults: a sentence for each.
    """

    stages: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def files_of(folder: Path) -> dict[str, str]:
    """Path of every file below `folder`, also of hidden ones → SHA-256; locks aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def differences(first: dict[str, str], second: dict[str, str], found: dict[str, str]) -> list[str]:
    """How the files of a build differ from those of two others: a sentence for each."""
    sentences = [f"{name} is missing" for name in first.keys() - found.keys()]
    sentences += [f"{name} is left over" for name in found.keys() - first.keys()]
    same = [name for name, digest in first.items() if second.get(name) == digest]
    sentences += [
        f"{name} differs" for name in same if name in found and found[name] != first[name]
    ]
    return sorted(sentences)


def build(command: list[str], folder: Path, until: float | None, *, alone: bool = False) -> bool:
    """Run the build; whether it was killed after `until` seconds instead of ending.

    Args:
        alone: kill only the process that was started, and wait for the death of its children.

    Raises:
        RuntimeError: the build failed, or a child outlived its parent.
    """
    log = folder.with_suffix(".log")
    with log.open("a") as output:
        process = subprocess.Popen(
            [*command, "--out", str(folder)],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(until)
        except subprocess.TimeoutExpired:
            if alone:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _wait_for_children(process.pid)
            return True
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {log.read_text()[-2000:]}")
    return False


def _wait_for_children(group: int) -> None:
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(POLL_SECONDS)
    os.killpg(group, signal.SIGKILL)
    raise RuntimeError("a child process outlived the build that started it")


def unfinished_stage(folder: Path) -> str:
    """The stage whose work is there, or what comes before the first or after the last."""
    places = (folder / "study" / ".work", folder / ".work")
    works = [path.name for place in places for path in place.glob("*") if path.is_dir()]
    return works[0].partition(".")[0] if works else "between stages"


def run(out: Path, kills: int, each: int, seed: int) -> str:
    """The record of `kills` kills."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load((resource("recipes") / "demo.yaml").read_text())
    recipe["retrieval"] |= RETRIEVAL
    (out / "demo.yaml").write_text(yaml.safe_dump(recipe))
    entry = "from quantkit.cli.app import main; main()"
    command = [
        sys.executable, "-P", "-c", entry, "build", "--target", "4x3090", "--model", "demo",
        "--recipe", str(out / "demo.yaml"), "--quiet",
    ]  # fmt: skip
    undisturbed, seconds = [], 0.0
    for name in ("first", "second"):
        began = time.monotonic()
        build(command, out / name, None)
        seconds = time.monotonic() - began
        undisturbed.append(files_of(out / name))
    first, second = undisturbed
    shared = [name for name in first if second.get(name) == first[name]]
    if not [name for name in shared if name.endswith(".gguf")]:
        raise RuntimeError("two undisturbed builds have no GGUF file in common")

    chance, found = random.Random(seed), Kills()
    done, builds = 0, 0
    while done < kills:
        folder, builds = out / f"killed-{builds}", builds + 1
        left = seconds
        for _ in range(min(each, kills - done)):
            moment = chance.uniform(0, left)
            if not build(command, folder, moment, alone=done % 2 == 1):
                break
            found.stages[unfinished_stage(folder)] += 1
            done += 1
            left = max(left - KEPT * moment, 1.0)
        build(command, folder, None)
        faults = differences(first, second, files_of(folder))
        found.faults += [f"{folder.name}: {sentence}" for sentence in faults]
        sys.stderr.write(f"{done} of {kills} kills, {len(found.faults)} faults\n")
        if not faults:
            shutil.rmtree(folder)
            folder.with_suffix(".log").unlink()
    return _record(found, done, builds, seconds, len(first), shared)


def _record(
    found: Kills, done: int, builds: int, seconds: float, files: int, shared: list[str]
) -> str:
    ggufs = sum(name.endswith(".gguf") for name in shared)
    stages = ", ".join(f"{count} × {stage}" for stage, count in found.stages.most_common())
    lines = [
        f"{done} kills of {builds} builds, each run to its end afterwards: "
        f"{len(found.faults)} differences.",
        "",
        f"An undisturbed build took {seconds_text(seconds)} and has {files} files; {len(shared)} "
        f"of them, all {ggufs} GGUF files among these, are the same in two such builds, and are "
        "what is compared; the others hold times.",
        "",
        f"The stage that a kill left unfinished: {stages}.",
        "",
        f"quantkit {__version__}, llama-cpp-python {library_version()}, {os.cpu_count()} cores, "
        f"{platform.machine()}.",
    ]
    return "\n".join([*lines, *(f"- {fault}" for fault in found.faults)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="Folder for the builds.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--each", type=int, default=4, help="Kills of one build.")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    text = run(given.out, given.kills, given.each, given.seed)
    print(text)
    sys.exit(": 0 differences." not in text)


if __name__ == "__main__":
    main()
