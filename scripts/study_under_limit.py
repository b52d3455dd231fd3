"""Study a model under a limit of memory, and print memory, time and bytes read by depth.

    python scripts/make_shape.py checkpoint LARGE --layers 'MEMEMEM*E…' --experts 36 --fill random
    python scripts/study_under_limit.py LARGE OUT --recipe RECIPE.yaml --limit-gib 6

The limit is RLIMIT_DATA: all memory of a process that is its own, and not the page cache. Memory is
read from /proc every two seconds, so peaks between are those that the kernel keeps (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

EVERY_SECONDS = 2.0
ROWS = 10
"""Of the table."""


@dataclass(frozen=True)
class Sample:
    """The sweep's process at a moment.

    Attributes:
        windows: that are done.
        peak: largest resident memory so far, bytes.
        read: from the disk so far, bytes.
    """

    seconds: float
    windows: int
    anonymous: int
    peak: int
    read: int


def sample(process: psutil.Process, began: float, journal: Path) -> Sample | None:
    """The state of the child that has read the most; None where there is none."""
    found = []
    for child in process.children(recursive=True):
        try:
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
            read = int(child.io_counters().read_bytes)
        except (OSError, psutil.Error):
            continue
        sizes = dict(line.split(":", 1) for line in status.splitlines())
        kib = {name: int(sizes[name].split()[0]) for name in ("RssAnon", "VmHWM") if name in sizes}
        if len(kib) == 2:
            found.append((read, 1024 * kib["RssAnon"], 1024 * kib["VmHWM"]))
    if not found:
        return None
    read, anonymous, peak = max(found)
    done = max(journal.read_text(encoding="utf-8").count("\n") - 1, 0) if journal.exists() else 0
    return Sample(time.monotonic() - began, done, anonymous, peak, read)


def table(samples: list[Sample], model_bytes: int) -> list[str]:
    """Rows by the windows that were done."""
    most = max(found.windows for found in samples)  # the journal is gone at the end
    lines = [
        "| windows done | seconds | memory, GiB | peak so far, GiB | read, of the checkpoint |",
        "|---|---|---|---|---|",
    ]
    for index in range(ROWS + 1):
        wanted = round(index * most / ROWS)
        at = next(found for found in samples if found.windows >= wanted)
        lines.append(
            f"| {at.windows} | {at.seconds:,.0f} | {at.anonymous / 2**30:.2f} | "
            f"{at.peak / 2**30:.2f} | {at.read / model_bytes:.1%} |"
        )
    last = samples[-1]
    lines.append(
        f"| all | {last.seconds:,.0f} | {last.anonymous / 2**30:.2f} | {last.peak / 2**30:.2f} | "
        f"{last.read / model_bytes:.1%} |"
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--limit-gib", type=float, default=6.0)
    given = parser.parse_args()
    program = Path(sys.executable).with_name("quantkit")
    command = [
        "prlimit", f"--data={int(given.limit_gib * 2**30)}", program, "study", given.model,
        "--out", given.out, "--recipe", given.recipe,
    ]  # fmt: skip
    began, samples = time.monotonic(), list[Sample]()
    process = psutil.Popen([str(word) for word in command])
    journal = given.out / "study" / ".work" / "study" / "sweep" / "windows.jsonl"
    with (given.out.with_name(given.out.name + ".samples.jsonl")).open("w") as log:
        while process.poll() is None:
            if (found := sample(process, began, journal)) is not None:
                samples.append(found)
                log.write(json.dumps(asdict(found)) + "\n")
            time.sleep(EVERY_SECONDS)
    if process.returncode != 0:
        sys.exit(process.returncode)
    size = sum(path.stat().st_size for path in given.model.glob("*.safetensors"))
    print(f"{size / 1e9:,.2f} GB of weights, a limit of {given.limit_gib:g} GiB")
    print(*table(samples, size), sep="\n")


if __name__ == "__main__":
    main()
