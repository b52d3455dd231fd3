"""Fuzzes quantkit's readers in processes of their own, and prints a table: `make fuzz`.

Each target has its share of the time. Where atheris is installed, it finds inputs by the lines of
quantkit that they reach; else hypothesis draws them from seeds and from those that ended in a new
way. Exit 1 if an input ends in a traceback, takes HANG_SECONDS, or much memory. Those inputs, and
what was said of each, are left in --out, beside fuzz.json with the table.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any

HANG_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
"""How much an input may add to the memory of its process."""
START_SECONDS = 120.0
"""For the imports and the seeds of a target, and for its end."""
MOST_RESTARTS = 8
"""Of a target's process after hangs and crashes: more would be the same fault again."""
MOST_LOG_BYTES = 1 << 24
"""Of what libraries say of inputs, which nobody reads but that of the last one."""
SHARED_BYTES = 1 << 22
_STATE = struct.Struct("<QdQQ")
"""Inputs so far; when the present one began, 0 between two; most memory added; its length."""
KINDS = ("traceback", "memory", "hang", "crash")


@dataclass(frozen=True)
class Limits:
    """What an input may take."""

    hang_seconds: float = HANG_SECONDS
    memory_bytes: int = MEMORY_BYTES


@dataclass
class Row:
    """What was found of a target: number of inputs, and distinct faults of each kind."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


class Shared:
    """A file in memory that a worker writes and its parent reads, whatever becomes of the worker.

    It holds the present input, so that one that hangs or ends the process is known.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_STATE.size))
            os.truncate(path, SHARED_BYTES)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SHARED_BYTES)

    def write(self, inputs: int, began: float, memory_bytes: int, data: bytes = b"") -> None:
        if began:
            self._map[_STATE.size : _STATE.size + len(data)] = data
        _STATE.pack_into(self._map, 0, inputs, began, memory_bytes, len(data))

    def read(self) -> tuple[int, float, int, bytes]:
        inputs, began, memory_bytes, length = _STATE.unpack_from(self._map, 0)
        return inputs, began, memory_bytes, self._map[_STATE.size : _STATE.size + length]


def record(out: Path, target: str, kind: str, where: str, data: bytes, text: str) -> None:
    """Save an input and what became of it; one for each kind and place."""
    name = "".join(c if c.isalnum() else "-" for c in target)
    stem = f"{name}.{kind}.{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    (out / f"{stem}.input").write_bytes(data)
    fault = {"target": target, "kind": kind, "where": where, "text": text}
    (out / f"{stem}.json").write_text(json.dumps(fault, indent=1))


# --- the worker: one target ---


class Worker:
    """Gives inputs to a target, and records its faults."""

    def __init__(self, name: str, target: Any, out: Path, shared: Shared, limits: Limits) -> None:  # noqa: ANN401 - see fuzz_target
        from fuzz_target import outcome

        self.name, self.target, self.limits = name, target, limits
        self._out, self._shared, self._outcome = out, shared, outcome
        self.inputs, *_ = shared.read()
        self._peak = 0
        self._base = _most_memory()
        self._places: set[str] = set()

    def take(self, data: bytes) -> bool:
        """Read `data`; whether it ended as no input before."""
        data = data[: SHARED_BYTES - _STATE.size]
        self._shared.write(self.inputs, time.monotonic(), self._peak, data)
        found = self._outcome(self.target, data)
        self.inputs += 1
        self._peak = max(self._peak, _most_memory() - self._base)
        is_new = found.kind + found.where not in self._places
        self._places.add(found.kind + found.where)
        if found.is_fault and is_new:
            record(self._out, self.name, found.kind, found.where, data, found.text)
        if self._peak > self.limits.memory_bytes:
            text = f"the process has {self._peak} bytes more than at its start"
            record(self._out, self.name, "memory", "growth", data, text)
            self._base, self._peak = _most_memory(), 0
        self._shared.write(self.inputs, 0.0, self._peak)
        return is_new

    def limit_memory(self) -> None:
        """Let the system refuse allocations far above the limit, which touch nothing at first.

        Files that are mapped do not count, as headers of sparse GGUF files of any size are.
        """
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                most = int(line.split()[1]) * 1024 + 2 * self.limits.memory_bytes
                resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def with_atheris(
    worker: Worker, seed: int, seconds: float, inputs: int | None, folder: Path
) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris
    from fuzz_inputs import MOST_BYTES, mutated

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(worker.target.seeds):
        (corpus / str(number)).write_bytes(data)

    def mutate(data: bytes, most_bytes: int, number: int) -> bytes:
        if number % 4 == 0:
            return bytes(atheris.Mutate(data, most_bytes))
        return mutated(worker.target.form, data, Random(number))[:most_bytes]

    def take(data: bytes) -> None:
        worker.take(data)

    options = {
        "seed": seed % (1 << 31) or 1, "max_total_time": max(1, int(seconds)),
        "max_len": MOST_BYTES, "len_control": 0, "timeout": 100_000, "rss_limit_mb": 0,
        "detect_leaks": 0, "reload": 0, "verbosity": 0,
    }  # fmt: skip
    if inputs is not None:
        options["runs"] = inputs
    words = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *words, str(corpus)], take, custom_mutator=mutate)
    worker.limit_memory()
    atheris.Fuzz()


def with_hypothesis(worker: Worker, seed: int, seconds: float, inputs: int | None) -> None:
    """Mutations of seeds and of inputs that ended in a new way; between them what hypothesis draws.

    Hypothesis alone would take longer for an input than most readers do.
    """
    from fuzz_inputs import mutated, of_nothing
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    end, corpus, batch = time.monotonic() + seconds, list(worker.target.seeds), 0
    most = 1 << 62 if inputs is None else worker.inputs + inputs

    def goes_on() -> bool:
        return time.monotonic() < end and worker.inputs < most

    def take(data: bytes) -> None:
        if goes_on() and worker.take(data):
            corpus.append(data)

    worker.limit_memory()
    quiet = settings(
        max_examples=50, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    while goes_on():
        rng = Random(seed + batch)
        for _ in range(500):
            take(mutated(worker.target.form, rng.choice(corpus), rng))
        seeded(seed + batch)(quiet(given(of_nothing())(take)))()
        batch += 1


def work(arguments: argparse.Namespace) -> None:
    """The body of a worker's process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent
    folder, limits = Path(arguments.folder), _limits(arguments)
    has_atheris = arguments.engine == "atheris"
    if has_atheris:
        import atheris

        with atheris.instrument_imports(include=["quantkit"]):
            worker = _worker(arguments, folder, limits)
    else:
        worker = _worker(arguments, folder, limits)
    left = (worker, arguments.seed, arguments.seconds, arguments.inputs)
    with_atheris(*left, folder) if has_atheris else with_hypothesis(*left)


def _worker(arguments: argparse.Namespace, folder: Path, limits: Limits) -> Worker:
    """Made once with its seeds read, so that what readers import late is not the input's memory."""
    from fuzz_target import outcome

    made = importlib.import_module(arguments.targets).TARGETS[arguments.worker]
    (folder / "target").mkdir()
    target = made(folder / "target")
    for data in target.seeds:
        outcome(target, data)
    return Worker(arguments.worker, target, arguments.out, Shared(folder / "shared"), limits)


# --- the parent ---


def watched(name: str, arguments: argparse.Namespace) -> Row:
    """Fuzz one target in a process, which is begun again after a hang or a crash."""
    row, limits = Row(name), _limits(arguments)
    left, seed = (
        arguments.seconds,
        arguments.seed + int(hashlib.sha256(name.encode()).hexdigest()[:6], 16),
    )
    for number in range(MOST_RESTARTS):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=arguments.memory_folder) as folder:
            shared, log_path = Shared(Path(folder) / "shared"), Path(folder) / "log"
            command = [sys.executable, "-P", __file__, "--worker", name, "--folder", folder]
            command += _passed(arguments, seconds=left, seed=seed + number)
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            end = began + left + START_SECONDS
            fault = _follow(process, shared, log_path, limits.hang_seconds, end)
            inputs, _, memory_bytes, data = shared.read()
            said = log_path.read_bytes()[-4000:].decode(errors="replace")
        row.inputs += inputs
        row.memory_bytes = max(row.memory_bytes, memory_bytes)
        row.seconds += time.monotonic() - began
        left -= time.monotonic() - began
        if fault is not None:
            kind, where = fault
            record(arguments.out, name, kind, where, data, said)
        if fault is None or left <= 1 or arguments.inputs is not None:
            break
    for path in arguments.out.glob("*.json"):
        found = json.loads(path.read_text())
        if found.get("target") == name:
            row.faults[found["kind"]] += 1
    return row


def _follow(
    process: subprocess.Popen[bytes], shared: Shared, log: Path, hang_seconds: float, end: float
) -> tuple[str, str] | None:
    """Wait for a worker, and end it where an input takes too long: (kind, where) of a fault."""
    try:
        while process.poll() is None:
            time.sleep(0.1)
            if log.stat().st_size > MOST_LOG_BYTES:
                os.truncate(log, 0)
            inputs, began, *_ = shared.read()
            if began and time.monotonic() - began > hang_seconds:
                return "hang", f"input {inputs} of one process"
            if time.monotonic() > end:
                return "hang", "the process itself, between two inputs"
    finally:
        process.kill()
        process.wait()
    # libFuzzer exits so that what Python has open is not closed
    return None if process.returncode == 0 else ("crash", f"exit status {process.returncode}")


def _limits(arguments: argparse.Namespace) -> Limits:
    return Limits(arguments.hang_seconds, arguments.memory_mb << 20)


def _passed(arguments: argparse.Namespace, seconds: float, seed: int) -> list[str]:
    values = {
        "targets": arguments.targets, "engine": arguments.engine, "out": arguments.out,
        "hang-seconds": arguments.hang_seconds, "memory-mb": arguments.memory_mb,
        "inputs": arguments.inputs, "seconds": seconds, "seed": seed,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def table(rows: list[Row]) -> str:
    """One line for each target, and their sum."""
    total = Row("all", sum(r.inputs for r in rows), sum(r.seconds for r in rows))
    total.memory_bytes = max((r.memory_bytes for r in rows), default=0)
    total.faults = {kind: sum(r.faults[kind] for r in rows) for kind in KINDS}
    width = max(len(row.target) for row in rows)
    lines = [f"{'':{width}} {'inputs':>10} {'tracebacks':>10} {'hangs':>6} {'crashes':>7} "
             f"{'memory':>6} {'most MB':>8}"]  # fmt: skip
    for row in (*rows, total):
        found = row.faults
        lines.append(
            f"{row.target:{width}} {row.inputs:>10,} {found['traceback']:>10} {found['hang']:>6} "
            f"{found['crash']:>7} {found['memory']:>6} {row.memory_bytes / 1e6:>8.0f}"
        )
    return "\n".join(lines)


def _engine() -> str:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return "hypothesis"
    return "atheris"


def main() -> int:
    """Fuzz all targets, or be one's worker; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    add: Callable[..., object] = parser.add_argument
    add("--seconds", type=float, default=3600.0, help="for all targets together")
    add("--processes", type=int, default=len(os.sched_getaffinity(0)))
    add("--seed", type=int, default=1)
    add("--inputs", type=int, help="end each target after so many, the same for the same seed")
    add("--out", type=Path, default=Path("build/fuzz"))
    add("--targets", default="fuzz_targets", help="module with the table of targets")
    add("--only", nargs="*", help="names of targets")
    add("--engine", choices=("atheris", "hypothesis"), default=_engine())
    add("--hang-seconds", type=float, default=HANG_SECONDS)
    add("--memory-mb", type=int, default=MEMORY_BYTES >> 20)
    add("--worker", help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return 0
    names = list(importlib.import_module(arguments.targets).TARGETS)
    names = [name for name in names if not arguments.only or name in arguments.only]
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    shm = Path("/dev/shm")
    arguments.memory_folder = shm if os.access(shm, os.W_OK) else None
    whole, began = arguments.seconds, time.monotonic()
    arguments.seconds = whole * arguments.processes / len(names)
    with ThreadPoolExecutor(arguments.processes) as pool:
        rows = list(pool.map(lambda name: watched(name, arguments), names))
    print(table(rows))
    seconds = time.monotonic() - began
    inputs = sum(row.inputs for row in rows)
    print(f"{inputs:,} inputs in {seconds:.0f} s: {inputs / seconds:.0f} a second")
    try:
        engine = f"{arguments.engine} {version(arguments.engine)}"
    except PackageNotFoundError:
        engine = arguments.engine
    facts = {
        "engine": engine, "seed": arguments.seed, "processes": arguments.processes,
        "seconds": round(seconds, 1), "inputs": inputs, "targets": [asdict(row) for row in rows],
    }  # fmt: skip
    (arguments.out / "fuzz.json").write_text(json.dumps(facts, indent=1) + "\n")
    return int(any(sum(row.faults.values()) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
