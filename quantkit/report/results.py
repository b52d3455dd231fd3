"""The JSON that a build leaves for people and programs, with units in the names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quantkit.core.receipts import Receipt
from quantkit.llamacpp.presets import Fallback
from quantkit.plan.placement import PLACEMENT_FILE, PlacementFile
from quantkit.quantize.integrity import Integrity
from quantkit.retrieval.results import MAIN_TASKS, Answer, DeviceUse, Rung, TaskScore
from quantkit.study.kld_statistics import KLDStatistics


@dataclass(frozen=True)
class LevelRetrieval:
    """What a level's validation.json says of retrieval; as in `Retrieval` where not said here.

    Attributes:
        gate: tasks whose bounds must hold; empty: the main one.
        clustered: whether bounds allow for haystacks of different difficulty.
    """

    context_tokens: int
    confidence: float
    minimum_lower_bound: float | None
    gate: tuple[str, ...]
    scores: tuple[TaskScore, ...]
    rungs: tuple[Rung, ...]
    prefill_tokens: int
    question_tokens: int
    classic_tokens: int
    forked: bool
    fork_difference: float
    seeds: tuple[int, ...]
    clustered: bool
    kv_type: str
    thinking: bool
    memory: tuple[DeviceUse, ...]

    @property
    def longest(self) -> tuple[TaskScore, ...]:
        """A score a task, at the longest context."""
        return tuple(s for s in self.scores if s.context_tokens == self.context_tokens)

    @property
    def gated(self) -> tuple[TaskScore, ...]:
        """The scores that the gate looks at; the first is the headline."""
        wanted = self.gate or MAIN_TASKS
        return tuple(score for score in self.longest if score.task in wanted)


@dataclass(frozen=True)
class LevelResult:
    """One level as the closing table and the report show it.

    Attributes:
        files: relative to the build folder, as are heatmap and answers (niah.jsonl).
        predicted_kld: the sum of the tensors' measured costs; None where there is none.
        fallbacks: of a preset, in words.
        kld: divergence from the base; None when it was not measured.
        integrity: of the artifact; what was compared with the model that it was made from.
    """

    name: str
    baseline: bool
    passed: bool
    files: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    gpu_bytes: tuple[int, ...]
    gpu_capacity_bytes: tuple[int, ...]
    context_tokens: int
    command: str
    retrieval: LevelRetrieval
    kld: KLDStatistics | None
    types: dict[str, int]
    heatmap: str
    answers: str
    verdict: str
    integrity: Integrity | None = None
    predicted_kld: float | None = None
    fallbacks: str = ""


def verdict(validation: Mapping[str, Any], *, baseline: bool) -> str:
    """`passed`, `FAILED`, what a failure means for a baseline, or that nothing was asked."""
    if validation["niah"]["minimum_lower_bound"] is None:
        return "no gate"
    if validation["passed"]:
        return "passed"
    return "failed, a baseline" if baseline else "FAILED"


def fallback_text(fallbacks: Mapping[str, Fallback]) -> str:
    """`12 tensors fell back: 10 Q4_K → Q5_0, 2 Q6_K → Q8_0`; empty where none did."""
    pairs = Counter((f.wanted, f.given) for f in fallbacks.values()).most_common()
    count = len(fallbacks)
    words = ", ".join(f"{n} {wanted} → {given}" for (wanted, given), n in pairs)
    return f"{count} tensor{'s' * (count > 1)} fell back: {words}" if count else ""


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_answers(path: Path) -> tuple[Answer, ...]:
    """All answers of a niah.jsonl, in its order."""
    lines = path.read_text(encoding="utf-8").split("\n")  # an answer may have any other break
    return tuple(Answer.read(line) for line in lines if line)


def _retrieval(niah: Mapping[str, Any]) -> LevelRetrieval:
    """The section `niah` of a validation.json; keys that it has besides are left out."""
    plain = {f.name: niah[f.name] for f in fields(LevelRetrieval) if f.name in niah}
    scores = [{f.name: task[f.name] for f in fields(TaskScore)} for task in niah["tasks"]]
    return LevelRetrieval(
        **plain
        | {
            "gate": tuple(niah["gate"]),
            "seeds": tuple(niah["seeds"]),
            "scores": tuple(TaskScore(**score) for score in scores),
            "rungs": tuple(Rung(**rung) for rung in niah["rungs"]),
            "memory": tuple(DeviceUse(**use) for use in niah["memory"]),
        }
    )


def read_level(
    build: Path, name: str, quantized: Receipt, parameters: int, *, baseline: bool
) -> LevelResult:
    """Put together what the folder `build` says of the finished level `name`."""
    folder = build / "levels" / name
    validation, placed = (
        _read(folder / "validation.json"),
        PlacementFile.read(folder / PLACEMENT_FILE),
    )
    allocation = _read(folder / "allocation.json")
    size = sum(output.size_bytes for output in quantized.outputs)
    kld, integrity = validation["kld"], validation["integrity"]
    return LevelResult(
        name=name,
        baseline=baseline,
        passed=validation["passed"],
        files=tuple(output.path for output in quantized.outputs),
        size_bytes=size,
        bits_per_weight=8 * size / parameters,
        gpu_bytes=tuple(gpu.total_bytes for gpu in placed.placement.gpus),
        gpu_capacity_bytes=tuple(gpu.capacity_bytes for gpu in placed.placement.gpus),
        context_tokens=placed.placement.run.context_tokens,
        command=placed.command,
        retrieval=_retrieval(validation["niah"]),
        kld=None if kld is None else KLDStatistics(**kld),
        types=dict(Counter(e["type"] for e in allocation["tensors"].values()).most_common()),
        heatmap=f"levels/{name}/heatmap.png",
        answers=f"levels/{name}/niah.jsonl",
        verdict=verdict(validation, baseline=baseline),
        integrity=None if integrity is None else Integrity(**integrity),
        predicted_kld=allocation["predicted_kld"],
        fallbacks=fallback_text({k: Fallback(**v) for k, v in allocation["fallbacks"].items()}),
    )
