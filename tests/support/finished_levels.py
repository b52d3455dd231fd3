"""Folders of finished levels, as a build leaves them, from answers that a test makes up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.config.recipe import RetrievalRecipe, recipe_for
from quantkit.config.target import RunSettings, load_target
from quantkit.core.receipts import Output, Receipt
from quantkit.plan.allocation_file import AllocatedTensor, AllocationFile
from quantkit.plan.placement import PLACEMENT_FILE, GPUPlan, Placement, PlacementFile
from quantkit.quantize.integrity import Integrity
from quantkit.report.results import LevelResult, ReportFacts, read_level
from quantkit.retrieval.results import (
    Answer,
    DeviceUse,
    Retrieval,
    Rung,
    Validation,
    answer_lines,
    score_tasks,
)
from quantkit.study.imatrix import Calibration
from quantkit.study.imatrix_coverage import coverage_of
from quantkit.study.kld_statistics import KLDStatistics
from quantkit.study.sensitivity import Estimate

KEYS = {8192: 16, 32768: 32, 131072: 48, 516096: 64}
"""Context tokens → keys hidden before the questions of that length."""
PROBES = ("near-miss", "absent", "two-hop")
INTEGRITY = Integrity(433, 41_234, 0.0123, "blk.3.ffn_up_exps.weight")
COMMAND = "llama-server -m m.gguf -ngl 999 -sm layer -ts 2,2,2,2 -c 516096 -fa on"


def answer(
    task: str, context: int, index: int, of: int, seed: int = 1, **changes: object
) -> Answer:
    """Question `index` of `of`, rightly answered unless `changes` say otherwise."""
    value = str(10000 + 97 * index + seed)
    absent = task == "absent"
    content: dict[str, Any] = {
        "context_tokens": context, "prompt_tokens": context - 40, "seed": seed, "task": task,
        "index": index, "depth": 0.5 if absent else (index + 0.4) / of,
        "key": f"amber-{('anchor', 'badger', 'comet', 'dove')[index % 4]}",
        "values": () if absent else (value,), "answer": "none" if absent else value,
        "hit": True, "found": 0 if absent else 1, "truncated": False,
        "log_probability": None if absent else -0.02 * (1 + index % 3), "rank": 1, "margin": 6.5,
    }  # fmt: skip
    return Answer(**content | changes)


def answers_of(missing: float, seeds: Sequence[int] = (1,), each: int = 32) -> list[Answer]:
    """Answers at all of KEYS, of which about the share `missing` is wrong or cut off."""
    rng = random.Random(f"{missing}")
    found = []
    for context in KEYS:
        for task, count in (("multikey", each), *((probe, 8) for probe in PROBES)):
            for seed in seeds:
                for index in range(count):
                    worse = missing * (2 if task == "two-hop" else 1) * (context / 516096) ** 0.3
                    changes: dict[str, Any] = {}
                    if rng.random() < worse:
                        cut = rng.random() < 0.25
                        changes = {
                            "hit": False, "found": 0, "truncated": cut, "margin": -1.4,
                            "answer": "The number is" if cut else "99999", "rank": 7,
                            "log_probability": None if task == "absent" else -rng.uniform(1, 9),
                        }  # fmt: skip
                    found.append(answer(task, context, index, count, seed, **changes))
    return found


def recipe_of(**changes: Any) -> RetrievalRecipe:  # noqa: ANN401 - fields of every type
    """That asks for what `answers_of` gives."""
    asked = {"needles": 32, "context_tokens": tuple(KEYS), "probes": dict.fromkeys(PROBES, 8)}
    return RetrievalRecipe.model_validate(asked | changes)


def retrieval(answers: Sequence[Answer], recipe: RetrievalRecipe | None = None) -> Retrieval:
    """What a check with these answers found, with figures of cost that can be told apart."""
    recipe = recipe or recipe_of()
    lengths = sorted({a.context_tokens for a in answers})
    rungs = [
        Rung(length, KEYS[length], length - before - 100, (length - before) / (2000 - length / 500),
             4000 + length // 1000, 24, 24 / (72 - length / 11000), 0.0)
        for before, length in zip([0, *lengths], lengths, strict=False)
    ]  # fmt: skip
    return Retrieval(
        recipe=recipe, kv_type="q8_0", answers=tuple(answers), rungs=tuple(rungs),
        scores=score_tasks(answers, KEYS, clustered=recipe.clustered),
        forked=True, fork_difference=0.0,
        prefill_tokens=sum(rung.prefill_tokens for rung in rungs),
        question_tokens=sum(rung.question_tokens for rung in rungs),
        classic_tokens=sum(a.prompt_tokens for a in answers),
        memory=(DeviceUse("CUDA0", 17 << 30, 3 << 29, 1 << 29, 18 << 30, 3 << 29, 1 << 28),),
    )  # fmt: skip


def finish_level(
    build: Path, name: str, answers: Sequence[Answer], *, bits: float = 4.6, baseline: bool = False,
    kld: float | None = 0.01, recipe: RetrievalRecipe | None = None,
) -> LevelResult:  # fmt: skip
    """Write what a build leaves of a level in `build`, and read it back."""
    found = retrieval(answers, recipe)
    divergence = None if kld is None else KLDStatistics(
        2040, kld, kld / 20, kld / 2, 9 * kld, 20 * kld, 50 * kld, 1 - kld, 0.001, 8.1, 8.0,
        kld / 5, 0.001,
    )  # fmt: skip
    folder = build / "levels" / name
    folder.mkdir(parents=True)
    gpu = GPUPlan(
        name="RTX 3090", layers=2, capacity_bytes=24 << 30, weights_bytes=17 << 30,
        context_bytes=1 << 30, compute_bytes=1 << 29, reserve_bytes=1 << 29,
    )  # fmt: skip
    placement = Placement(
        run=RunSettings(context_tokens=516096), trained_context_tokens=1 << 20, gpus=(gpu,) * 4,
        host_bytes=0, host_compute_bytes=0, compute_is_estimated=False,
    )  # fmt: skip
    PlacementFile(command=COMMAND, placement=placement).write(folder / PLACEMENT_FILE)
    tensors = dict.fromkeys("ab", AllocatedTensor(type="Q4_K", bytes=1))
    AllocationFile(
        tensors=tensors, predicted_kld=kld, predicted_kld_error=None if kld is None else kld / 10
    ).write(folder / "allocation.json")
    Validation(passed=found.passed, niah=found, kld=divergence, integrity=INTEGRITY).write(
        folder / "validation.json"
    )
    (folder / "niah.jsonl").write_text(answer_lines(answers))
    size = int(bits * 15_000_000_000)
    receipt = Receipt(
        f"quantize:{name}", {}, (Output(f"levels/{name}/m-{name}.gguf", size, 0, ""),), 1.0, {}
    )
    return read_level(build, name, receipt, 120_000_000_000, baseline=baseline)


def report_facts(results: Sequence[LevelResult], **changes: object) -> ReportFacts:
    """Of a model without experts, whose imatrix saw a shipped text."""
    recipe = recipe_for("demo", None)
    asked = RetrievalRecipe(needles=32, context_tokens=tuple(KEYS))
    coverage = coverage_of({})
    content: dict[str, Any] = {
        "model": "Some-Model-120B", "architecture": "nemotron_h_moe", "parameters": 120_670_000_000,
        "target": load_target("4x3090"), "recipe": recipe.model_copy(update={"retrieval": asked}),
        "results": tuple(results), "ruled_out": {}, "coverage": coverage,
        "counts_are_exact": True, "unweighted": (), "versions": {"quantkit": "0.1.0"},
        "imatrix": Calibration(chunks=400, tokens=204800, weights=1, unseen_experts=0, sources=()),
        "dearest": (
            ("token_embd.weight", Estimate(0.02, (-0.002, 0.002))),
            ("blk.0.ssm_in.weight", Estimate(0.001)),
        ),
    }  # fmt: skip
    return ReportFacts(**content | changes)
