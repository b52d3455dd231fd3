"""The facts that the report shows, read from a build's folder; and build.json."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit import __version__
from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.core.documents import JsonDocument
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.report.results import LevelResult
from quantkit.study.imatrix import Calibration
from quantkit.study.imatrix_coverage import Coverage, coverage_of
from quantkit.study.sensitivity import Sensitivity

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
    dearest: tuple[tuple[str, float], ...] = ()


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
        coverage=coverage_of(imatrix),
        counts_are_exact=imatrix.counts_are_exact,
        unweighted=tuple(n for n in sensitivity.errors if n not in imatrix.entries),
        versions=BuildFile.read(folder / BUILT).versions,
        dearest=tuple(sensitivity.dearest()),
    )
