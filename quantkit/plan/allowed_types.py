"""Which types a tensor may get: what was measured, within the floors and pins of a level."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

from quantkit.config.levels import LevelRecipe
from quantkit.core.errors import InputError
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.plan.gpu_memory import padded_bytes

Costs = Mapping[str, Mapping[str, float]]
"""Tensor → type → cost."""


def smallest_types(
    tensors: Sequence[TensorInfo], costs: Costs, level: LevelRecipe
) -> dict[str, str]:
    """The smallest type that `allocate` may give each tensor.

    Raises:
        InputError: a minimum or a pin leaves a tensor without any candidate.
    """
    found = {info.name: info.type_name for info in tensors}
    for info in tensors:
        if info.name in costs:
            allowed = _allowed(info, costs[info.name], level)
            found[info.name] = min(allowed, key=partial(padded_bytes, info))
    return found


def smallest_bytes(tensors: Sequence[TensorInfo], costs: Costs, level: LevelRecipe) -> int:
    """Bytes of all tensors in the smallest types that `allocate` may give them, header aside."""
    types = smallest_types(tensors, costs, level)
    return sum(padded_bytes(info, types[info.name]) for info in tensors)


def allowed_types(
    tensors: Sequence[TensorInfo], costs: Costs, level: LevelRecipe
) -> dict[str, dict[str, float]]:
    """Tensor → the types that it may get under the level's rules → their costs.

    Raises:
        InputError: a minimum or a pin leaves a tensor without any candidate, two pins contradict
            each other, or a pin matches no tensor that is quantized.
    """
    free = [info for info in tensors if info.name in costs]
    for pattern in level.pin:
        if not any(re.search(pattern, info.name) for info in free):
            raise InputError(
                f"level {level.name} pins {pattern!r}, which no tensor that is quantized is called"
            )
    return {info.name: _allowed(info, costs[info.name], level) for info in free}


def _allowed(info: TensorInfo, costs: Mapping[str, float], level: LevelRecipe) -> dict[str, float]:
    pins = {kind for pattern, kind in level.pin.items() if re.search(pattern, info.name)}
    if len(pins) > 1:
        raise InputError(f"level {level.name} pins {info.name} to {' and to '.join(sorted(pins))}")
    possible = {**costs, info.type_name: 0.0}  # or it stays as the model has it
    for pin in pins:
        if pin not in possible:
            why = "is not among the measured candidates"
            if not BY_NAME[pin].fits_row(info.row_elements):
                why = f"has blocks of {BY_NAME[pin].block_elements}"
            raise InputError(
                f"level {level.name} pins {info.name} (rows of {info.row_elements}) to {pin}, "
                f"which {why}; possible are {', '.join(possible)}"
            )
        return {pin: possible[pin]}
    floors = [
        BY_NAME[t].bits_per_weight for p, t in level.minimum.items() if re.search(p, info.name)
    ]
    floor = max(floors, default=0.0)
    allowed = {t: cost for t, cost in costs.items() if BY_NAME[t].bits_per_weight >= floor}
    if not allowed:
        raise InputError(
            f"no candidate type for {info.name} (rows of {info.row_elements}) has at least "
            f"{floor:g} bits per weight; lower its minimum or add candidates to the recipe"
        )
    return allowed


def undominated(sizes: Mapping[str, int], costs: Mapping[str, float]) -> list[str]:
    """Types by rising size and falling cost, without those that are larger and no better."""
    kept: list[str] = []
    for name in sorted(costs, key=lambda t: (sizes[t], costs[t])):
        if not kept or costs[name] < costs[kept[-1]]:
            kept.append(name)
    return kept


def ruled_out(free: Sequence[TensorInfo]) -> dict[str, tuple[str, ...]]:
    """Tensor → the types that its row length rules out."""
    quantized = [kind for kind in BY_NAME.values() if kind.is_quantized]
    found = {
        info.name: tuple(kind.name for kind in quantized if not kind.fits_row(info.row_elements))
        for info in free
    }
    return {name: kinds for name, kinds in found.items() if kinds}
