"""The retrieval check in one pass beside one prefill a question: time, tokens, and the answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.progress import SILENT
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import choose_model, open_source
from quantkit.quantize.quantize import convert
from quantkit.retrieval.results import Retrieval
from quantkit.retrieval.run.check import CheckSettings, check_retrieval

RECIPE = RetrievalRecipe(
    context_tokens=(2048, 8192),
    needles=16,
    probes={"near-miss": 4, "two-hop": 4},
    forks=16,
    minimum_lower_bound=None,
)


def retrieval_lines(folder: Path, devices: DeviceSettings) -> list[str]:
    """Both ways of the same grid on the demo model, one after the other."""
    base = folder / "retrieval-base.gguf"
    source = open_source(choose_model("demo"))
    convert(source, "source", base, folder, devices.threads, SILENT)
    one, one_seconds = _timed(base, CheckSettings(devices, "f16"), folder / "one")
    each, each_seconds = _timed(
        base, replace(CheckSettings(devices, "f16"), fresh=True), folder / "each"
    )
    pairs = list(zip(one.answers, each.answers, strict=True))
    hits = sum(a.hit == b.hit for a, b in pairs)
    same = sum(a.answer == b.answer for a, b in pairs)
    paid = one.prefill_tokens + one.question_tokens
    differ = max(r.fork_difference or 0.0 for r in one.rungs)
    lengths = " and ".join(f"{n:,}" for n in RECIPE.context_tokens)
    return [
        f"Demo model, f16 KV cache, {devices.threads} threads: {len(pairs)} questions at {lengths} "
        "tokens, once on forks of one prefill and once each after a prefill of its own; loading "
        "and making the prompts counted in both.",
        "",
        "| | tokens decoded | seconds |",
        "|---|---|---|",
        f"| one pass | {paid:,} | {one_seconds:.1f} |",
        f"| a prefill a question | {each.classic_tokens:,} | {each_seconds:.1f} |",
        f"| ratio | {paid / each.classic_tokens:.3f} | {one_seconds / each_seconds:.3f} |",
        "",
        f"Hits are equal in {hits} of {len(pairs)} questions, answers in {same}. A fork differed "
        f"from a fresh decode by {one.fork_difference:g}, a question asked again after all others "
        f"by {differ:g}.",
    ]


def _timed(base: Path, settings: CheckSettings, work: Path) -> tuple[Retrieval, float]:
    work.mkdir()
    began = time.perf_counter()
    found = check_retrieval(base, RECIPE, settings, work / "niah.jsonl", work)
    return found, time.perf_counter() - began
