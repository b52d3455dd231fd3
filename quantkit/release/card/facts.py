"""What a model card is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.release.card.source_card import SourceCard
from quantkit.release.fits import TargetFits
from quantkit.report.results import LevelResult


@dataclass(frozen=True)
class CardLevel:
    """A published level.

    Attributes:
        files: its GGUF files by their paths in the repository, the first shard first.
    """

    result: LevelResult
    files: tuple[str, ...]


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from; words of the source and of others are shown, never obeyed.

    Attributes:
        repository: OWNER/NAME that is published to.
        target: that the levels were built for.
        recipe: without paths of the builder.
        levels: at least one.
        left_out: levels of the build that are not published: baselines, failed, not chosen.
        fits_contexts: that were tried for `fits`, tokens.
        fits_estimated: why the memory is only estimated; None: llama.cpp was asked.
        calibration: the content of calibration.json.
        coverage: as `stages.report.coverage_values` has it; None for a model without experts.
        versions: package → version, quantkit first.
        imatrix_file: its path in the repository.
        endpoint: of the Hub that the links lead to.
        licence_files: texts of the source's licence and notices, which are published with it.
        source_files: names of the source's files, as checkpoint.json has them.
        is_demo: the source is the model that comes with quantkit.
    """

    repository: str
    model: str
    architecture: str
    parameters: int
    source: SourceCard
    target: Target
    recipe: Recipe
    levels: tuple[CardLevel, ...]
    left_out: tuple[LevelResult, ...]
    fits: tuple[TargetFits, ...]
    fits_contexts: tuple[int, ...]
    fits_estimated: str | None
    calibration: Mapping[str, Any]
    coverage: Mapping[str, Any] | None
    versions: Mapping[str, str]
    imatrix_file: str
    endpoint: str = "https://huggingface.co"
    licence_files: tuple[str, ...] = ()
    source_files: tuple[str, ...] = ()
    is_demo: bool = False
