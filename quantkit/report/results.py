"""What a build left in its folder: each level's results, and the facts of the report."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit import __version__
from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.core.documents import JsonDocument
from quantkit.core.parsing import MOST_JSON_BYTES, read_bounded
from quantkit.core.receipts import Receipt
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.plan.allocation_file import AllocationFile
from quantkit.plan.placement import PLACEMENT_FILE, PlacementFile
from quantkit.quantize.integrity import Integrity
from quantkit.retrieval.results import Answer, Retrieval, Validation, parse_answers
from quantkit.study.imatrix import Calibration
from quantkit.study.imatrix_coverage import Coverage, coverage_of
from quantkit.study.kld_statistics import KLDStatistics
from quantkit.study.sensitivity import Estimate, Sensitivity


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
    def unchecked(self) -> str | None:
        """A sentence on how the check's settings differ from the command's; None: they do not.

        A check at a longer context than the command's shows what the command can do.
        """
        run, found = self.placed.placement.run, self.retrieval
        differences = []
        if found.kv_type != run.kv_type:
            differences.append(f"with the KV cache in {found.kv_type} instead of {run.kv_type}")
        if found.context_tokens < run.context_tokens:
            differences.append(
                f"up to {found.context_tokens:,} tokens instead of {run.context_tokens:,}"
            )
        if not differences:
            return None
        return (
            f"Retrieval was checked {' and '.join(differences)}: the command as it stands was not "
            "checked."
        )

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
            "context_tokens", "command", "unchecked", "heatmap", "answers",
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
            "predicted_kld_error": self.allocation.predicted_kld_error,
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
    return parse_answers(read_bounded(path, MOST_JSON_BYTES), str(path))


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


CALIBRATION = "calibration.json"
BUILT = "build.json"
VERSIONS_OF = ("llama-cpp-python", "gguf", "numpy", "scipy")


@dataclass(frozen=True)
class ReportFacts:
    """What the report's templates show.

    Attributes:
        ruled_out: tensor → types that its rows do not divide into.
        coverage: of the experts by the calibration.
        counts_are_exact: whether token counts are known, or only whether there were any.
        versions: program or package → its version, of the build.
        unweighted: quantized tensors without importance.
        dearest: measured units with the KLD of an error of 1 %, the most expensive first.
    """

    model: str
    architecture: str
    parameters: int
    target: Target
    recipe: Recipe
    results: tuple[LevelResult, ...]
    imatrix: Calibration
    ruled_out: Mapping[str, tuple[str, ...]]
    coverage: Coverage
    counts_are_exact: bool
    unweighted: tuple[str, ...]
    versions: Mapping[str, str]
    dearest: tuple[tuple[str, Estimate], ...] = ()


def installed_versions() -> dict[str, str]:
    """The versions of quantkit and of the packages that its results depend on."""
    versions = {"quantkit": __version__}
    return versions | {name: importlib.metadata.version(name) for name in VERSIONS_OF}


class BuildFile(JsonDocument):
    """build.json: what was built, in the recipe's own order; receipts sort, and a mixture's order
    counts."""

    version: Literal[1] = 1
    recipe: Recipe
    target: Target
    versions: dict[str, str]


def report_facts(
    folder: Path,
    model: str,
    architecture: str,
    parameters: int,
    target: Target,
    recipe: Recipe,
    results: Sequence[LevelResult],
) -> ReportFacts:
    """Read what is known of the build in `folder`, whose stages up to the checks have run.

    Args:
        model: what artifacts are called after.
        results: the levels that are to be shown, one at least.

    Raises:
        InputError: a file is missing or damaged.
    """
    imatrix = read_imatrix(folder / "imatrix.gguf")
    sensitivity = Sensitivity.read(folder / "sensitivity.json")
    return ReportFacts(
        model=model,
        architecture=architecture,
        parameters=parameters,
        target=target,
        recipe=recipe,
        results=tuple(results),
        imatrix=Calibration.read(folder / CALIBRATION),
        ruled_out=results[0].allocation.ruled_out_by_row_length,
        coverage=coverage_of(imatrix.entries),
        counts_are_exact=imatrix.counts_are_exact,
        unweighted=tuple(n for n in sensitivity.errors if n not in imatrix.entries),
        versions=BuildFile.read(folder / BUILT).versions,
        dearest=tuple(sensitivity.dearest()),
    )
