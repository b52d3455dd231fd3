"""sensitivity.json: the error of each tensor at each type, and what errors cost the whole model.

The error is relative, Σ w·(x − q(x))² / Σ w·x². What it costs is measured with one unit, a tensor
or a few, exchanged in the model: a KLD at a known error, the probe. The cost of another error of
the same unit follows from its probes; the sum over units predicts an artifact's KLD.

Standard errors are of the text: its chunks are the sample, because positions of one chunk depend on
each other. All units run the same chunks, so what makes one chunk harder makes it so for many units
at once, and errors of units do not add up as if they were independent: a prediction's error comes
from the sums of its units' costs, chunk by chunk.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.documents import Amount, JsonDocument

EXAMPLE_ERROR = 0.01
SMALL_ERROR = 1e-3
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Estimate:
    """A mean over the chunks of a text.

    Attributes:
        deviations: each chunk's value less the mean; empty where nothing was measured.
    """

    mean: float
    deviations: tuple[float, ...] = ()

    @property
    def standard_error(self) -> float:
        """Of the mean, from the spread of the chunks; 0 for one chunk, which has none."""
        count = len(self.deviations)
        return math.hypot(*self.deviations) / math.sqrt(count * (count - 1)) if count > 1 else 0.0

    @property
    def known_error(self) -> float | None:
        """The standard error, None where there is one chunk or none."""
        return self.standard_error if len(self.deviations) > 1 else None

    def times(self, factor: float) -> Estimate:
        return Estimate(self.mean * factor, tuple(each * factor for each in self.deviations))

    def towards(self, other: Estimate, part: float) -> Estimate:
        """What lies at `part` of the line to `other`, on the same chunks."""
        pairs = zip(self.deviations, other.deviations, strict=True)
        between = tuple(a + (b - a) * part for a, b in pairs)
        return Estimate(self.mean + (other.mean - self.mean) * part, between)


def total(estimates: Iterable[Estimate]) -> Estimate:
    """The sum of estimates on the same chunks, whose deviations add up chunk by chunk."""
    found = list(estimates)
    chunks = zip(*(one.deviations for one in found if one.deviations), strict=True)
    return Estimate(sum(one.mean for one in found), tuple(map(sum, chunks)))


@dataclass(frozen=True)
class Probe:
    """One measurement of a unit.

    Attributes:
        types: tensor → type whose error it carried.
        gains: tensor → what that error's amplitude was multiplied by.
        errors: tensor → relative error, as it then was in the model.
        kld: mean over the positions of the text, nats.
        chunk_klds: the same of each of its chunks, which are equally long.
    """

    types: Mapping[str, str]
    gains: Mapping[str, Amount]
    errors: Mapping[str, Amount]
    kld: FiniteFloat
    chunk_klds: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]

    @property
    def estimate(self) -> Estimate:
        mean = sum(self.chunk_klds) / len(self.chunk_klds)
        return Estimate(self.kld, tuple(kld - mean for kld in self.chunk_klds))

    @property
    def standard_error(self) -> float:
        """Of `kld`."""
        return self.estimate.standard_error

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
        """KLD at the summed relative error `error`, nats: the mean of `at`."""
        return self.at(error).mean

    def at(self, error: float) -> Estimate:
        """KLD at the summed relative error `error`, nats.

        Straight lines from the origin through the probes, and beyond the last one in proportion.
        A probe costs at least its standard error: less was not measured.
        """
        seen = sorted(
            ((probe.error, self._least(probe)) for probe in self.probes if probe.error > 0),
            key=lambda pair: (pair[0], pair[1].mean),
        )
        if not seen or error <= 0:
            return Estimate(0.0)
        below_error, below = 0.0, seen[0][1].times(0.0)
        for at, cost in seen:
            cost = max(cost, below, key=lambda one: one.mean)
            if error <= at:
                return below.towards(cost, (error - below_error) / (at - below_error))
            below_error, below = at, cost
        return below.times(error / below_error)

    def _least(self, probe: Probe) -> Estimate:
        found = probe.estimate
        mean = max(found.mean - self.floor, found.standard_error)
        return Estimate(mean, found.deviations)


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
        restored_kld: of the model against itself after the last unit, nats.
        errors: tensor → type → relative error; tensors that stay as they are have no entry.
        costs: of each unit, all on the same chunks; empty where they were not measured.
    """

    unversioned = 1
    version: Literal[2] = 2
    recipe: MeasureRecipe | None = None
    sampling: dict[str, SampledRows] = Field(default_factory=dict)
    median_relative_standard_error: float = 0.0
    cost_tokens: int = 0
    restored_kld: float = 0.0
    errors: dict[str, dict[str, float]]
    costs: tuple[UnitCost, ...] = ()

    @model_validator(mode="after")
    def _on_the_same_chunks(self) -> Self:
        counts = {len(probe.chunk_klds) for unit in self.costs for probe in unit.probes}
        if len(counts) > 1:
            raise ValueError(f"probes have {min(counts)} to {max(counts)} chunks of one text")
        return self

    def tensor_costs(self) -> dict[str, dict[str, float]]:
        """Tensor → type → KLD that it adds; errors themselves where no cost was measured.

        A tensor that no graph showed, a multi-token prediction layer's for example, costs what
        the median tensor of its kind does, or of all.
        """
        if not self.costs:
            return {name: dict(kinds) for name, kinds in self.errors.items()}
        lines = self._lines()
        return {
            name: {kind: lines[name](error).mean for kind, error in kinds.items()}
            for name, kinds in self.errors.items()
        }

    def predicted(self, types: Mapping[str, str]) -> Estimate | None:
        """The KLD of an artifact whose tensors have these types, nats; those without errors cost
        nothing.

        None where no cost was measured.
        """
        if not self.costs:
            return None
        lines, known = self._lines(), self.errors
        return total(
            lines[name](known[name][kind])
            for name, kind in types.items()
            if kind in known.get(name, {})
        )

    def _lines(self) -> dict[str, Callable[[float], Estimate]]:
        """Tensor → what its relative error costs."""
        found: dict[str, Callable[[float], Estimate]] = {}
        kinds: dict[str, list[UnitCost]] = {}
        for unit in self.costs:
            for name in unit.tensors:
                found[name] = functools.partial(_part, unit)
                kinds.setdefault(_kind(name), []).append(unit)
        every = [unit for units in kinds.values() for unit in units]
        for name in self.errors:
            if name not in found:
                typical = _median(kinds.get(_kind(name), every))
                found[name] = functools.partial(_in_proportion, typical)
        return found

    def dearest(self, error: float = EXAMPLE_ERROR) -> list[tuple[str, Estimate]]:
        """Units, a name each, with the KLD of that relative error in their tensors, dearest first.

        A unit of several tensors is called by the first of them.
        """
        found = []
        for unit in self.costs:
            others = f" and {len(unit.tensors) - 1} more" if len(unit.tensors) > 1 else ""
            found.append((unit.tensors[0] + others, unit.at(error * len(unit.tensors))))
        return sorted(found, key=lambda pair: -pair[1].mean)


def _part(unit: UnitCost, error: float) -> Estimate:
    """What one tensor's error costs: errors of a unit add up, and each has its part."""
    count = len(unit.tensors)
    return unit.at(error * count).times(1 / count)


def _in_proportion(unit: UnitCost, error: float) -> Estimate:
    return unit.at(SMALL_ERROR).times(error / SMALL_ERROR)


def _median(units: Sequence[UnitCost]) -> UnitCost:
    """The unit whose small errors cost the median."""
    ordered = sorted(units, key=lambda unit: unit.cost(SMALL_ERROR))
    return ordered[(len(ordered) - 1) // 2]


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
