"""What the report and the model card say of a build, as far as its folder knows it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.plan.allocation_file import read_ruled_out
from quantkit.report.results import LevelResult
from quantkit.study.imatrix_coverage import Coverage, coverage_of
from quantkit.study.sensitivity import Sensitivity

CALIBRATION = "calibration.json"
BUILT = "build.json"
"""What was built, in the recipe's own order: receipts sort, and the order of a mixture counts."""
VERSIONS_OF = ("llama-cpp-python", "gguf", "numpy", "scipy")


@dataclass(frozen=True)
class ReportFacts:
    """What the templates show.

    Attributes:
        kv_type: of the retrieval check.
        imatrix: chunks, tokens, weights, unseen_experts, sources; ready, the name of the file
            that was taken instead of collecting.
        ruled_out: tensors whose row length excludes some types → those types.
        coverage: of the imatrix; its picture is in the folder where there are experts.
        counts_are_exact: whether its tokens are, or only whether there were any.
        versions: program or package → its version, of the build.
        unweighted: quantized tensors without statistics.
        dearest: all that costs were measured of, with the KLD of an error of 1 %; dearest first.
    """

    model: str
    architecture: str
    parameters: int
    target: Target
    recipe: Recipe
    results: tuple[LevelResult, ...]
    imatrix: Mapping[str, Any]
    kv_type: str
    ruled_out: Mapping[str, list[str]]
    coverage: Coverage
    counts_are_exact: bool
    unweighted: tuple[str, ...]
    versions: Mapping[str, str]
    dearest: tuple[tuple[str, float], ...] = ()


def installed_versions() -> dict[str, str]:
    """Of quantkit, and of what its results depend on."""
    versions = {"quantkit": __version__}
    return versions | {name: importlib.metadata.version(name) for name in VERSIONS_OF}


@dataclass(frozen=True)
class Built:
    """What build.json says."""

    recipe: Recipe
    target: Target
    versions: Mapping[str, str]


def built_json(recipe: Recipe, target: Target) -> dict[str, Any]:
    """The content of build.json."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "target": target.model_dump(mode="json"),
        "versions": installed_versions(),
    }


def read_built(folder: Path) -> Built:
    """What was built in `folder`.

    Raises:
        OSError, ValueError, KeyError: there is no such file, or it is none of this version.
    """
    content = json.loads((folder / BUILT).read_text(encoding="utf-8"))
    return Built(
        Recipe.model_validate(content["recipe"]),
        Target.model_validate(content["target"]),
        {str(name): str(version) for name, version in content["versions"].items()},
    )


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
    """
    imatrix = read_imatrix(folder / "imatrix.gguf")
    sensitivity = Sensitivity.load(folder / "sensitivity.json")
    return ReportFacts(
        model=model,
        architecture=architecture,
        parameters=parameters,
        target=target,
        recipe=recipe,
        results=tuple(results),
        imatrix=json.loads((folder / CALIBRATION).read_text(encoding="utf-8")),
        kv_type=results[0].retrieval.kv_type,
        ruled_out=read_ruled_out(folder / "levels" / results[0].name / "allocation.json"),
        coverage=coverage_of(imatrix),
        counts_are_exact=imatrix.counts_are_exact,
        unweighted=tuple(n for n in sensitivity.errors if n not in imatrix.entries),
        versions=read_built(folder).versions,
        dearest=tuple(sensitivity.dearest()),
    )
