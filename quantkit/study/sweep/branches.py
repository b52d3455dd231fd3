"""Branches: the cost text once more for each unit whose weights are exchanged, from there on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.documents import Amount
from quantkit.formats.tensors import Metadata, ModelHeader, TensorInfo
from quantkit.quantize.candidates import admissible, is_quantizable, nearest_type
from quantkit.study.sensitivity import Probe, UnitCost, units_of
from quantkit.study.sweep.cuts import CutModel

FLOOR_PROBES = 5
TINY_ERROR = 3e-6  # changes the last bit of many weights and nothing else that matters
MAX_GAIN = 3.0
MOST_COST_TOKENS, LEAST_COST_TOKENS = 4096, 512
COST_FLOP = 2e16
"""What 4,096 tokens take for the flagship, 350 branches of 12 G active weights, rounded up."""
MIN_ERROR_SHARE = 0.02
"""Of `probe_error`: below it, even an amplified error would be lost in noise."""
_BLOCK = re.compile(r"^blk\.(\d+)\.")
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Branch:
    """A run of the cost text with the error of one unit.

    Attributes:
        bits: the types' bits per weight are nearest to it.
        error: to which relative error each tensor's own is amplified, as far as that is possible.
        kind: `floor` measures what however small a change costs; `null` changes nothing, and its
            KLD says whether weights were restored.
    """

    unit: tuple[str, ...]
    bits: float
    error: float
    kind: Literal["probe", "floor", "null"] = "probe"


@dataclass
class Exchanged:
    """What a branch's tensors were exchanged for: tensor → type, gain, relative error."""

    types: dict[str, str] = field(default_factory=dict)
    gains: dict[str, Amount] = field(default_factory=dict)
    errors: dict[str, Amount] = field(default_factory=dict)

    def add(self, other: Exchanged) -> None:
        """Add what another window exchanged."""
        self.types |= other.types
        self.gains |= other.gains
        self.errors |= other.errors


def chosen_cost_tokens(recipe: MeasureRecipe, model: ModelHeader, branches: int) -> int:
    """Tokens of the cost text: the recipe's, or the most that a model can afford.

    A branch runs half of the layers on average, so tokens × branches × active weights is about the
    work in FLOP. From MOST_COST_TOKENS they are halved until it is at most COST_FLOP, but not below
    LEAST_COST_TOKENS: of 4,096 tokens in 32 chunks a unit's cost has a relative standard error of
    about 8 %, of 512 in 4 chunks three times that.
    """
    if recipe.cost_tokens is not None:
        return max(recipe.cost_tokens, recipe.cost_chunk_tokens) if recipe.measures_costs else 0
    work = branches * active_elements(model.metadata, model.tensors)
    tokens = MOST_COST_TOKENS
    while tokens > LEAST_COST_TOKENS and tokens * work > COST_FLOP:
        tokens //= 2
    return max(tokens, recipe.cost_chunk_tokens)


def active_elements(metadata: Metadata, tensors: Iterable[TensorInfo]) -> int:
    """Weights that one token runs through: of a layer's experts those that are used.

    Args:
        metadata: of the model that `tensors` are of.
    """
    architecture = metadata["general.architecture"].value
    used = metadata.get(f"{architecture}.expert_used_count")
    value = used.value if used is not None else 0
    values = value if isinstance(value, tuple) else (value,)
    most = max((v for v in values if isinstance(v, int)), default=0)
    found = 0
    for info in tensors:
        share = min(most, info.matrices) if info.matrices > 1 else 1
        found += info.elements // info.matrices * share
    return found


def measurable_units(
    cut: CutModel, model: ModelHeader, recipe: MeasureRecipe
) -> list[tuple[str, ...]]:
    """The units whose cost can be measured: all but those of layers that no window has."""
    inside = {name for window in cut.windows for name in window.stored.values()}
    names = [
        info.name
        for info in model.tensors
        if is_quantizable(info) and admissible(info, True, recipe.candidates)
    ]
    return [unit for unit in units_of(names, recipe.groups) if inside.issuperset(unit)]


def plan_branches(units: Sequence[tuple[str, ...]], recipe: MeasureRecipe) -> list[Branch]:
    """A branch for each probe of each unit, floors at a few layers, and the null branch, last."""
    probes = [Branch(u, bits, recipe.probe_error) for u in units for bits in recipe.probe_bits]
    inside = sorted((layer, unit) for unit in units if (layer := layer_of(unit)) is not None)
    picked = np.linspace(0, len(inside) - 1, min(FLOOR_PROBES, len(inside))).astype(int)
    floors = dict.fromkeys(inside[index][1] for index in picked)
    first = recipe.probe_bits[0]
    return [
        *probes,
        *(Branch(unit, first, TINY_ERROR, "floor") for unit in floors),
        Branch((), first, 0.0, "null"),
    ]


def layer_of(unit: Sequence[str]) -> int | None:
    match = _BLOCK.match(unit[0])
    return int(match[1]) if match else None


def choose_types(
    branch: Branch,
    tensors: Sequence[TensorInfo],
    errors: Mapping[str, Mapping[str, float]],
    probe_error: float,
) -> dict[str, str]:
    """Tensor of the unit → its type nearest to the branch's bits with an error that is measurable.

    A base in 4 bits has hardly any error at its own type.
    """
    found = {}
    for info in tensors:
        if info.name in branch.unit:
            of = errors[info.name]
            least = min(MIN_ERROR_SHARE * probe_error, max(of.values()))
            found[info.name] = nearest_type([n for n, e in of.items() if e >= least], branch.bits)
    return found


def choose_gains(
    branch: Branch, types: Mapping[str, str], errors: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Tensor → factor on its error's amplitude, at most MAX_GAIN; a probe's is not below 1."""
    least, gains = (0.0 if branch.kind == "floor" else 1.0), {}
    for name, kind in types.items():
        error = errors[name][kind]
        gain = (branch.error / error) ** 0.5 if error > 0 else 1.0
        gains[name] = min(max(gain, least), MAX_GAIN)
    return gains


def unit_costs(
    branches: Sequence[Branch],
    exchanged: Mapping[int, Exchanged],
    klds: Mapping[int, F64],
    chunk_tokens: int,
) -> list[UnitCost]:
    """The cost of each unit whose tensors were all exchanged, in the order of the branches.

    Args:
        exchanged, klds: by the index of the branch; KLD of each position, nats.
        chunk_tokens: positions of one chunk: those of a text are no independent sample.
    """
    whole = {
        index: branch
        for index, branch in enumerate(branches)
        if index in klds and exchanged[index].types.keys() == set(branch.unit)
    }
    probes = {
        index: Probe(
            exchanged[index].types,
            exchanged[index].gains,
            exchanged[index].errors,
            float(klds[index].mean()),
            tuple(klds[index].reshape(-1, chunk_tokens).mean(axis=1).tolist()),
        )
        for index in whole
    }
    floor = _Floor([(whole[i].unit, p) for i, p in probes.items() if whole[i].kind == "floor"])
    units: dict[tuple[str, ...], list[Probe]] = {}
    for index, probe in probes.items():
        if whole[index].kind == "probe":
            units.setdefault(whole[index].unit, []).append(probe)
    return [UnitCost(unit, tuple(found), floor(unit)) for unit, found in units.items()]


class _Floor:
    """A function of a unit: the KLD that even a negligible change of its weights causes.

    Measured at a few layers with errors of about TINY_ERROR, and interpolated by layer: the deeper
    the change, the fewer layers are left to round differently. A base in a coarse type has no such
    small changes, and a floor of 0.
    """

    def __init__(self, probes: Collection[tuple[tuple[str, ...], Probe]]) -> None:
        self._found: dict[int, float] = {}
        for unit, probe in sorted(probes, key=lambda pair: layer_of(pair[0]) or 0):
            layer = layer_of(unit)
            assert layer is not None
            if layer not in self._found and 0 < probe.error <= 10 * TINY_ERROR * len(unit):
                self._found[layer] = probe.kld

    def __call__(self, unit: Sequence[str]) -> float:
        layer, found = layer_of(unit), self._found
        if layer is None:  # the embedding comes before all layers, the output after them
            layer = max(found, default=0) if unit[0].startswith("output") else 0
        return float(np.interp(layer, list(found), list(found.values()))) if found else 0.0
