"""What a build left of a level: its files, and what was planned, chosen and found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.core.receipts import Receipt
from quantkit.plan.allocation_file import AllocationFile
from quantkit.plan.placement import PLACEMENT_FILE, PlacementFile
from quantkit.quantize.integrity import Integrity
from quantkit.retrieval.results import Answer, Retrieval, Validation, parse_answers
from quantkit.study.kld_statistics import KLDStatistics


@dataclass(frozen=True)
class LevelResult:
    """One level as the closing table, the report and the model card show it.

    Attributes:
        files: relative to the build folder.
    """

    name: str
    baseline: bool
    files: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    allocation: AllocationFile
    placed: PlacementFile
    validation: Validation

    @property
    def passed(self) -> bool:
        return self.validation.passed

    @property
    def verdict(self) -> str:
        return verdict(self.validation, baseline=self.baseline)

    @property
    def context_tokens(self) -> int:
        """The context that the level was planned for."""
        return self.placed.placement.run.context_tokens

    @property
    def command(self) -> str:
        """Starts llama-server as planned."""
        return self.placed.command

    @property
    def retrieval(self) -> Retrieval:
        return self.validation.niah

    @property
    def kld(self) -> KLDStatistics | None:
        return self.validation.kld

    @property
    def integrity(self) -> Integrity | None:
        return self.validation.integrity

    @property
    def heatmap(self) -> str:
        """Relative to the build folder, as is `answers`."""
        return f"levels/{self.name}/heatmap.png"

    @property
    def answers(self) -> str:
        return f"levels/{self.name}/niah.jsonl"

    def facts(self) -> dict[str, Any]:
        """What `quantkit build --json` prints of it."""
        found = self.validation.model_dump(mode="json")
        plain = (
            "name", "baseline", "passed", "verdict", "files", "size_bytes", "bits_per_weight",
            "context_tokens", "command", "heatmap", "answers",
        )  # fmt: skip
        gpus = self.placed.placement.gpus
        return {name: getattr(self, name) for name in plain} | {
            "gpu_bytes": [gpu.total_bytes for gpu in gpus],
            "gpu_capacity_bytes": [gpu.capacity_bytes for gpu in gpus],
            "retrieval": found["niah"],
            "kld": found["kld"],
            "integrity": found["integrity"],
            "types": self.allocation.type_counts,
            "predicted_kld": self.allocation.predicted_kld,
            "fallbacks": self.allocation.fallback_text,
        }


def verdict(validation: Validation, *, baseline: bool) -> str:
    """`passed`, `FAILED`, what a failure means for a baseline, or that there is no gate."""
    if validation.niah.recipe.minimum_lower_bound is None:
        return "no gate"
    if validation.passed:
        return "passed"
    return "failed, a baseline" if baseline else "FAILED"


def read_answers(path: Path) -> tuple[Answer, ...]:
    """All answers of a niah.jsonl, in its order.

    Raises:
        InputError: it cannot be read, or a line is not an answer.
    """
    try:
        return parse_answers(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read_level(
    build: Path, name: str, quantized: Receipt, parameters: int, *, baseline: bool
) -> LevelResult:
    """What the folder `build` holds of the finished level `name`.

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = build / "levels" / name
    size = sum(output.size_bytes for output in quantized.outputs)
    return LevelResult(
        name=name,
        baseline=baseline,
        files=tuple(output.path for output in quantized.outputs),
        size_bytes=size,
        bits_per_weight=8 * size / parameters,
        allocation=AllocationFile.read(folder / "allocation.json"),
        placed=PlacementFile.read(folder / PLACEMENT_FILE),
        validation=Validation.read(folder / "validation.json"),
    )
