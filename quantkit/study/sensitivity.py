"""sensitivity.json: the error of each tensor at each type, and what errors cost the whole model.

The error is relative, Σ w·(x − q(x))² / Σ w·x². What it costs is measured with one unit, a tensor
or a few, exchanged in the loaded base model: a KLD at a known error, the probe. The cost of another
error of the same unit follows from its probes; the sum over units predicts an artifact's KLD.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.documents import Amount, JsonDocument

EXAMPLE_ERROR = 0.01
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Probe:
    """One measurement of a unit.

    Attributes:
        types: tensor → type whose error it carried.
        gains: tensor → what that error's amplitude was multiplied by.
        errors: tensor → relative error, as it then was in the model.
        kld: mean over the positions, nats; `standard_error` of that mean.
    """

    types: Mapping[str, str]
    gains: Mapping[str, Amount]
    errors: Mapping[str, Amount]
    kld: FiniteFloat
    chunk_klds: tuple[FiniteFloat, ...] = ()

    @property
    def standard_error(self) -> float:
        count = len(self.chunk_klds)
        return statistics.stdev(self.chunk_klds) / count**0.5 if count > 1 else 0.0

    @property
    def error(self) -> float:
        """Summed over the unit's tensors."""
        return sum(self.errors.values())


@dataclass(frozen=True)
class UnitCost:
    """What a unit's errors cost.

    Attributes:
        floor: KLD of however small a change of these tensors, nats: rounding of activations, and
            choices of experts that were nearly even, then come out otherwise. An artifact pays it
            once and not for each tensor, so it is no part of the cost.
    """

    tensors: Annotated[tuple[str, ...], Field(min_length=1)]
    probes: tuple[Probe, ...]
    floor: FiniteFloat = 0.0

    def cost(self, error: float) -> float:
        """KLD at the summed relative error `error`, nats.

        Straight lines from the origin through the probes, and beyond the last one in proportion.
        A probe costs at least its standard error: less was not measured.
        """
        seen = sorted(
            (probe.error, max(probe.kld - self.floor, probe.standard_error))
            for probe in self.probes
            if probe.error > 0
        )
        if not seen or error <= 0:
            return 0.0
        below_error, below = 0.0, 0.0
        for at, cost in seen:
            cost = max(cost, below)
            if error <= at:
                return below + (cost - below) * (error - below_error) / (at - below_error)
            below_error, below = at, cost
        return below * error / below_error


@dataclass(frozen=True)
class SampledRows:
    """The rows of a tensor that its errors were measured on; the standard error is relative."""

    rows: int
    of_rows: int
    relative_standard_error: float


class Sensitivity(JsonDocument):
    """All that allocation needs to know of a model, and how it was measured.

    Attributes:
        sampling: by tensor.
        cost_tokens: of the text that costs were measured on.
        restored_kld: of the base against itself after the last unit, nats.
        errors: tensor → type → relative error; tensors that stay as they are have no entry.
        costs: of each unit; empty where they were not measured.
    """

    unversioned = 1
    version: Literal[1] = 1
    recipe: MeasureRecipe | None = None
    sampling: dict[str, SampledRows] = Field(default_factory=dict)
    median_relative_standard_error: float = 0.0
    cost_tokens: int = 0
    restored_kld: float = 0.0
    errors: dict[str, dict[str, float]]
    costs: tuple[UnitCost, ...] = ()

    def tensor_costs(self) -> dict[str, dict[str, float]]:
        """Tensor → type → KLD that it adds; errors themselves where no cost was measured.

        A tensor that no graph showed, a multi-token prediction layer's for example, costs what
        the median tensor of its kind does, or of all.
        """
        if not self.costs:
            return {name: dict(kinds) for name, kinds in self.errors.items()}
        found: dict[str, dict[str, float]] = {}
        slopes: dict[str, list[float]] = {}
        for unit in self.costs:
            count = len(unit.tensors)  # errors add up, and each has its part
            for name in unit.tensors:
                kinds = self.errors.get(name, {})
                found[name] = {kind: unit.cost(e * count) / count for kind, e in kinds.items()}
                slopes.setdefault(_kind(name), []).append(unit.cost(1e-3) / 1e-3)
        usual = statistics.median(s for kind in slopes.values() for s in kind)
        for name, kinds in self.errors.items():
            if name not in found:
                slope = statistics.median(slopes.get(_kind(name), [usual]))
                found[name] = {kind: slope * error for kind, error in kinds.items()}
        return {name: found[name] for name in self.errors}

    def dearest(self, error: float = EXAMPLE_ERROR) -> list[tuple[str, float]]:
        """Units, a name each, with the KLD of that relative error in their tensors, dearest first.

        A unit of several tensors is called by the first of them.
        """
        found = []
        for unit in self.costs:
            others = f" and {len(unit.tensors) - 1} more" if len(unit.tensors) > 1 else ""
            found.append((unit.tensors[0] + others, unit.cost(error * len(unit.tensors))))
        return sorted(found, key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Study:
    """What is known of a model before it is quantized, in a folder.

    Attributes:
        home: the model's folder: builds of the same model and recipe go on from here.
        imatrix: file with the importance matrix.
        sensitivity: relative errors of the tensors at each type, and what they cost, in nats.
        logits: file with the model's logits on the held-out text; None if the recipe wants none.
    """

    home: Path
    imatrix: Path
    sensitivity: Sensitivity
    logits: Path | None


def units_of(names: Iterable[str], groups: Sequence[str]) -> list[tuple[str, ...]]:
    """The units that are measured: tensors whose match of a group captures the same are one.

    `blk\\.(\\d+)\\.ffn_(?:up|gate|down)_exps` makes one unit of a layer's experts. What no group
    matches is a unit of its own. In the order of first appearance.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        key: tuple[str, ...] = (name,)
        for pattern in groups:
            match = re.search(pattern, name)
            if match:
                key = (pattern, *(text or "" for text in match.groups()))
                break
        found.setdefault(key, []).append(name)
    return [tuple(unit) for unit in found.values()]


def _kind(name: str) -> str:
    return _NUMBER.sub("*", name)
