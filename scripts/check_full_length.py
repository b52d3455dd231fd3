"""Run the retrieval check at full length, kill it on the way, and go on: the record of both runs.

    python scripts/check_full_length.py MODEL.gguf --out FOLDER [--context N ...] [--kill-at TOKENS]

The first run is ended with SIGKILL once its saved prefill has reached `--kill-at`; the second goes
on from there. The record, `record.json` and Markdown on the standard output, has what each length
took, whether forks changed the prefix, and memory as planned and as used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.core.units import bytes_text, seconds_text
from quantkit.llamacpp.ggml import library_version

LADDER = (8192, 32768, 131072, 262144, 516096)
POLL_SECONDS = 0.2


def check_command(model: Path, out: Path, lengths: Sequence[int], more: Sequence[str]) -> list[str]:
    """`quantkit niah` at these lengths."""
    contexts = [word for length in lengths for word in ("--context", str(length))]
    entry = "from quantkit.cli.app import main; main()"
    program = [sys.executable, "-P", "-c", entry]
    return [*program, "niah", str(model), "--out", str(out), *contexts, *more]


def run_and_kill(command: Sequence[str], out: Path, kill_at: int, log: Path) -> int:
    """Start `command`, and end it and its children once `kill_at` tokens are saved: how many were.

    Raises:
        RuntimeError: it ended by itself before.
    """
    state = out / ".work" / "state.json"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"it ended with {process.returncode}: {log.read_text()}")
                saved = _saved_tokens(state)
                if saved >= kill_at:
                    return saved
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _saved_tokens(state: Path) -> int:
    try:
        return int(json.loads(state.read_text(encoding="utf-8"))["tokens"])
    except (OSError, ValueError):
        return 0


def record(
    model: Path, out: Path, lengths: Sequence[int], kill_at: int, more: Sequence[str]
) -> dict[str, Any]:
    """Both runs, and what they left.

    Raises:
        RuntimeError: a run failed, or the folder holds something already.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise RuntimeError(f"{out} is not empty: what is there would count for this run")
    command = check_command(model, out, lengths, more)
    began = time.monotonic()
    killed_at = run_and_kill(command, out, kill_at, out / "killed.log")
    killed_after = time.monotonic() - began
    began = time.monotonic()
    with (out / "resumed.log").open("w") as log:
        finished = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if finished.returncode not in (0, 1):
        raise RuntimeError((out / "resumed.log").read_text(encoding="utf-8"))
    facts = json.loads((out / "validation.json").read_text(encoding="utf-8"))
    return {
        "model": model.name,
        "quantkit": __version__,
        "llama_cpp_python": library_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "killed_at_tokens": killed_at,
        "killed_after_seconds": killed_after,
        "resumed_seconds": time.monotonic() - began,
        "exit_code": finished.returncode,
        "resumed_log": (out / "resumed.log").read_text(encoding="utf-8"),
        **facts,
    }


def as_markdown(facts: dict[str, Any]) -> str:
    """The record as a section of benchmarks/results.md."""
    niah = facts["niah"]
    longest = max(niah["recipe"]["context_tokens"])
    paid = niah["prefill_tokens"] + niah["question_tokens"]
    lines = [
        f"{facts['model']}: killed at {facts['killed_at_tokens']:,} tokens of "
        f"{longest:,} after {seconds_text(facts['killed_after_seconds'])}, and run "
        f"again for {seconds_text(facts['resumed_seconds'])}. Prefilled "
        f"{niah['prefill_tokens']:,} tokens of haystack and {niah['question_tokens']:,} of "
        f"questions, {paid / longest:.3f} times the longest context; one prefill a "
        f"question takes {niah['classic_tokens']:,}.",
        "",
        "| context | task | found | proven (95 %) | log-probability | prefill, tokens/s | "
        "decode, tokens/s | forks differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rungs = {rung["context_tokens"]: rung for rung in niah["rungs"]}
    for score in sorted(niah["scores"], key=lambda s: s["context_tokens"]):
        rung = rungs[score["context_tokens"]]
        nats = score["log_probability"]
        lines.append(
            f"| {score['context_tokens']:,} | {_name(score)} | {score['hits']}/{score['trials']} "
            f"| ≥ {score['lower_bound']:.1%} | {'–' if nats is None else f'{nats:.4f}'} "
            f"| {_rate(rung, 'prefill')} | {_rate(rung, 'decode')} "
            f"| {_number(rung['fork_difference'])} |"
        )
    lines += ["", "| device | planned context + compute | used |", "|---|---|---|"]
    for use in niah["memory"]:
        planned = use["planned_context_bytes"] + use["planned_compute_bytes"]
        used = use["context_bytes"] + use["compute_bytes"]
        lines.append(f"| {use['device']} | {bytes_text(planned)} | {bytes_text(used)} |")
    return "\n".join(lines) + "\n"


def _name(score: dict[str, Any]) -> str:
    return f"multikey-{score['keys']}" if score["task"] == "multikey" else str(score["task"])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _rate(rung: dict[str, Any], what: str) -> str:
    seconds = rung[f"{what}_seconds"]
    return f"{rung[f'{what}_tokens'] / seconds:,.0f}" if seconds else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--context", type=int, action="append")
    parser.add_argument("--kill-at", type=int, default=200_000, help="tokens of saved prefill")
    known, more = parser.parse_known_args()
    facts = record(known.model, known.out, known.context or LADDER, known.kill_at, more)
    (known.out / "record.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(as_markdown(facts))


if __name__ == "__main__":
    main()
