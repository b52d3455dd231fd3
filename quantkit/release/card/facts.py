"""What a model card is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.release.card.front_matter import SourceCard
from quantkit.release.contents import BuiltLevel
from quantkit.release.fits import Fits
from quantkit.report.results import LevelResult
from quantkit.study.imatrix import Calibration


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from; words of the source and of others are shown, never obeyed.

    Attributes:
        repository: OWNER/NAME that the release is published to.
        target: that the levels were built for.
        recipe: without paths of the builder.
        levels: the published ones, at least one.
        left_out: levels of the build that are not published: baselines, failed, not chosen.
        coverage: as `report.coverage_values` returns it; None for a model without experts.
        versions: package → version, quantkit first.
        imatrix_file: its path in the repository.
        endpoint: of the Hub that the links lead to.
        licence_files: texts of the source's licence and notices, which are published with it.
        source_files: names of the source's files, as checkpoint.json has them.
        is_demo: the source is the model that ships with quantkit.
    """

    repository: str
    model: str
    architecture: str
    parameters: int
    source: SourceCard
    target: Target
    recipe: Recipe
    levels: tuple[BuiltLevel, ...]
    left_out: tuple[LevelResult, ...]
    fits: Fits
    calibration: Calibration
    coverage: Mapping[str, Any] | None
    versions: Mapping[str, str]
    imatrix_file: str
    endpoint: str = "https://huggingface.co"
    licence_files: tuple[str, ...] = ()
    source_files: tuple[str, ...] = ()
    is_demo: bool = False

    @property
    def folder(self) -> str:
        """Where the card's commands put the release on the reader's disk."""
        return f"./{self.model}" if self.model.startswith("-") else self.model

    @property
    def gguf_sources(self) -> tuple[str, ...]:
        """The source's files if they are GGUF files, the first shard first."""
        return tuple(name for name in self.source_files if name.endswith(".gguf"))

    @property
    def source_repository(self) -> str | None:
        """OWNER/NAME@COMMIT that holds the source's very files; None: unknown."""
        # a GGUF file names the repository of its weights, not of the file itself
        if self.source.repository is None or self.is_demo or self.gguf_sources:
            return None
        commit = self.source.commit
        return self.source.repository if commit is None else f"{self.source.repository}@{commit}"

    @property
    def local_source(self) -> str:
        """The source on the reader's disk; its own name goes into the artifacts' metadata."""
        if self.is_demo:
            return "demo"
        return f"original/{next(iter(self.gguf_sources), self.model)}"


def gpus_text(target: Target) -> str:
    """The target's description, or its GPUs."""
    gpus = ", ".join(f"{gpu.count} × {gpu.name}" for gpu in target.gpus)
    return " ".join((target.description or gpus).split())
