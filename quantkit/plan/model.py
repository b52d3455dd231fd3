"""What is planned: a model, a level of it, and what was found for the level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.levels import LevelRecipe
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.llamacpp.presets import StockTypes
from quantkit.models.geometry import ModelGeometry, geometry_of
from quantkit.plan.allocate import Allocation
from quantkit.plan.place import Placement


@dataclass(frozen=True)
class PlannedModel:
    """What is planned.

    Attributes:
        stem: of the names of its files.
        metadata: of the artifact, as far as it is known already.
    """

    stem: str
    metadata: Metadata
    tensors: Sequence[TensorInfo]
    geometry: ModelGeometry

    @staticmethod
    def of(stem: str, metadata: Metadata, tensors: Sequence[TensorInfo]) -> PlannedModel:
        return PlannedModel(stem, metadata, tensors, geometry_of(metadata))

    @property
    def elements(self) -> int:
        return sum(info.elements for info in self.tensors)


@dataclass(frozen=True)
class LevelPlan:
    """A level with the bytes that its files may have; of a preset, with llama.cpp's types."""

    recipe: LevelRecipe
    budget_bytes: int
    stock: StockTypes | None = None


@dataclass(frozen=True)
class Fitted:
    """An allocation and the placement that holds it."""

    allocation: Allocation
    placement: Placement
