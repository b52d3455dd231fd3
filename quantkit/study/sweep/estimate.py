"""What a sweep will take, said before it starts: time by a trial of each shape, memory and disk.

For use in a child process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.units import bytes_text, seconds_text
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.quantize.candidates import admissible, is_quantizable, nearest_type
from quantkit.study.errors import kernel_speeds, seconds_of_errors
from quantkit.study.sweep.cuts import CutModel, Window

if TYPE_CHECKING:
    from quantkit.llamacpp.windows import LoadedWindow

TRIAL_FLOP = 5e12
"""Shorter sweeps, of a minute or less on two cores, are begun without a trial."""


def needs_trial(cut: CutModel, steps: Sequence[int]) -> bool:
    """Whether a sweep takes long enough to be told of; `steps` are each window's tokens."""
    pairs = zip(cut.windows, steps, strict=True)
    return sum(2.0 * _elements(window) * count for window, count in pairs) > TRIAL_FLOP


def running_seconds(
    cut: CutModel,
    steps: Sequence[int],
    loaded: Mapping[tuple[object, ...], LoadedWindow],
    batch: Callable[[Window], tuple[int, int]],
) -> float:
    """Seconds for all windows, from one batch of zeros through each shape.

    Args:
        batch: of a window, sequences and tokens of each that are decoded together.
    """
    rates: dict[tuple[object, ...], float] = {}
    for window in cut.windows:
        if window.shape not in rates and window.shape in loaded:
            rates[window.shape] = _seconds_of_a_token(loaded[window.shape], *batch(window))
    pairs = zip(cut.windows, steps, strict=True)
    return sum(rates.get(window.shape, 0.0) * count for window, count in pairs)


def _seconds_of_a_token(loaded: LoadedWindow, sequences: int, tokens: int) -> float:
    width = loaded.width
    one = np.zeros((tokens, width), np.float32) if width else np.zeros(tokens, np.int32)
    context = loaded.context(sequences, tokens)
    context.run([one] * sequences)  # allocates
    began = time.perf_counter()
    context.run([one] * sequences)
    return (time.perf_counter() - began) / (sequences * tokens)


def quantizing_seconds(
    tensors: Sequence[TensorInfo], recipe: MeasureRecipe, workers: int, *, costs: bool
) -> float:
    """Seconds for errors, and for exchanging each tensor once for each probe."""
    blocks = {info.name for info in tensors if info.name.startswith("blk.")}
    seconds = seconds_of_errors(tensors, blocks, recipe, workers)
    if not costs:
        return seconds
    elements: dict[str, int] = {}
    for info in tensors:
        kinds = [kind.name for kind in admissible(info, True, recipe.candidates)]
        for bits in recipe.probe_bits if is_quantizable(info) and kinds else ():
            kind = nearest_type(kinds, bits)
            elements[kind] = elements.get(kind, 0) + info.elements
    speeds = kernel_speeds([BY_NAME[kind] for kind in elements])
    return seconds + sum(count / speeds[kind] for kind, count in elements.items()) / workers


def sentence(layer_tokens: int, seconds: float, memory_bytes: int, disk_bytes: int) -> str:
    """What the person is told."""
    return (
        f"the study takes about {seconds_text(seconds)}: {layer_tokens:,} tokens through one layer "
        f"each; about {bytes_text(memory_bytes)} of memory and {bytes_text(disk_bytes)} of disk"
    )


def _elements(window: Window) -> int:
    return sum(info.elements for info in window.tensors)
