"""Collecting an importance matrix: against decoding alone, and against llama-imatrix.

llama-imatrix is timed as a whole process, and so is quantkit, in turn, on one model, one text and
as many threads. Each runs on two numbers of chunks; the tokens between them by the time between
them is the rate. So starting, loading, tokenizing, and the trial by which quantkit foretells its
time, are in neither.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from processes import quantkit, run

from quantkit.llamacpp.activations import Collector
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.settings import DeviceSettings, parallel_sequences

RUNS = 5
CHUNK = 512
DECODED_CHUNKS = 16
FEW, MANY = 64, 192
TEXT = Path(__file__).parents[1] / "calibration" / "english-prose.txt"


@dataclass(frozen=True)
class Rates:
    """Tokens a second without and with the callback, and the callback's share of the time."""

    decoding: float
    collecting: float
    share: float


def collection_lines(base: Path, devices: DeviceSettings) -> list[str]:
    """The comparisons in words."""
    rates = callback_rates(base, devices)
    lines = [
        f"- decoding alone: {rates.decoding:,.0f} tokens/s",
        f"- collecting the importance matrix, which leaves the logits out: "
        f"{rates.collecting:,.0f} tokens/s (ratio {rates.collecting / rates.decoding:.2f}), "
        f"{rates.share:.1%} of the time in the callback",
    ]
    for threads in sorted({1, devices.threads}):
        theirs, ours, ratio = rates_in_turn(base, replace(devices, threads=threads))
        lines.append(
            f"- as whole processes on {threads} thread{'s' * (threads > 1)}, without their start "
            f"(the time that {MANY} chunks take beyond {FEW}): llama-imatrix {theirs:,.0f} "
            f"tokens/s, quantkit {ours:,.0f} tokens/s (median of {RUNS} ratios: {ratio:.2f})"
        )
    return lines


def callback_rates(base: Path, devices: DeviceSettings) -> Rates:
    """Decode the same chunks with and without the callback, in turn; medians."""
    model = Model(base, devices)
    tokens = np.random.default_rng(2).integers(5, 2000, CHUNK * DECODED_CHUNKS, dtype=np.int32)
    chunks = list(tokens.reshape(DECODED_CHUNKS, CHUNK))
    settings = parallel_sequences(DECODED_CHUNKS, CHUNK)
    together = settings.sequences
    collector = Collector()
    contexts = (Context(model, settings), Context(model, settings, collector))
    times: tuple[list[float], list[float]] = ([], [])
    shares = []
    for _ in range(RUNS + 1):
        for context, found in zip(contexts, times, strict=True):
            collector.seconds = 0.0
            began = time.perf_counter()
            for at in range(0, DECODED_CHUNKS, together):
                context.clear()
                context.decode_together(chunks[at : at + together])
            found.append(time.perf_counter() - began)
        shares.append(collector.seconds / found[-1])
    for context in contexts:
        context.close()
    model.close()
    decoding, collecting = (len(tokens) / statistics.median(found[1:]) for found in times)
    return Rates(decoding, collecting, statistics.median(shares[1:]))  # the first warms up


def rates_in_turn(base: Path, devices: DeviceSettings) -> tuple[float, float, float]:
    """Tokens a second of llama-imatrix and of quantkit, and the second by the first: medians.

    The ratio is of runs one after the other: what else the machine does changes within minutes.
    """
    threads, out = str(devices.threads), base.with_name("timed.imatrix.gguf")
    # Its perplexity is left out, and its log is silent: neither is part of what quantkit does.
    theirs = [
        Path(os.environ["QUANTKIT_LLAMA_TOOLS"]) / "llama-imatrix", "-m", base, "-f", TEXT,
        "-o", out, "-c", str(CHUNK), "-t", threads, "--no-ppl", "--log-disable",
    ]  # fmt: skip
    if not devices.use_extra_buffers:
        theirs.append("--no-repack")
    ours = quantkit("imatrix", base, "--calibration", TEXT, "--out", out, "--workers", threads)
    ours += ["--chunk-tokens", str(CHUNK), "--quiet"]
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for command, found in zip((theirs, ours), rates, strict=True):
            seconds = []
            for chunks in (FEW, MANY):
                out.unlink(missing_ok=True)  # quantkit would refuse to write over it
                seconds.append(run([*command, "--chunks", str(chunks)]).seconds)
            found.append(CHUNK * (MANY - FEW) / (seconds[1] - seconds[0]))
        print(f"llama-imatrix {rates[0][-1]:,.0f}, quantkit {rates[1][-1]:,.0f}", file=sys.stderr)
    out.unlink()
    ratios = [ours / theirs for theirs, ours in zip(*rates, strict=True)]
    return statistics.median(rates[0]), statistics.median(rates[1]), statistics.median(ratios)
