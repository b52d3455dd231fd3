"""How long a sweep will take, from a trial: a batch through a window of each shape, of zeros.

For use in a child process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.core.progress import Progress
from quantkit.core.units import bytes_text, seconds_text
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp.activations import Collector
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.quantize import kernels
from quantkit.study.errors import kernel_speeds
from quantkit.study.kld_statistics import BaseDistribution
from quantkit.study.sweep.cuts import CutModel, Window
from quantkit.study.sweep.estimate import SweepSizes, TextShape
from quantkit.study.sweep.memory import memory_of
from quantkit.study.sweep.windows import Embedding, Loaded, load

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Inputs
    from quantkit.llamacpp.windows import LoadedWindow

WORTH_SECONDS = 30.0
"""Sweeps that end sooner are not announced, and those that surely do not tried."""
ROUGH_FLOPS, ROUGH_ELEMENTS = 1e11, 1e7
"""What two cores do in a second of a matrix product, and of quantizing: to see if a trial pays."""
DISK_BYTES_A_SECOND = 2e9
"""Assumed: weights are read while others are used, hidden states are written and read between."""


def announce(
    sizes: SweepSizes,
    cut: CutModel,
    folder: Path,
    devices: DeviceSettings,
    first: int,
    progress: Progress,
) -> Loaded:
    """Say what a sweep takes from window `first` on, if that is long; returns what it loaded.

    Windows of the output are not among that: their trial comes first, so that it adds nothing to
    the memory of the sweep.
    """
    left = range(first, len(sizes.windows))
    share = sum(map(sizes.stored_bytes, left)) / (sizes.read_bytes or 1)
    flop = sum(sizes.flop(index).total for index in left)
    elements = sizes.measured_elements().total() + sum(sizes.exchanged_elements().values())
    if flop / ROUGH_FLOPS + share * elements / ROUGH_ELEMENTS < WORTH_SECONDS:
        return {}
    loaded, rates = _try_out(sizes, cut, folder, devices, first)
    seconds = sum(rates[sizes.shape_of[i]].seconds(sizes, i) for i in left)
    seconds += share * quantizing_seconds(sizes, devices.threads)
    seconds += share * 2 * sizes.states_written_bytes / DISK_BYTES_A_SECOND
    seconds = max(seconds, share * sizes.read_bytes / DISK_BYTES_A_SECOND)
    if seconds >= WORTH_SECONDS:
        progress.note(_sentence(sizes, devices, left, seconds))
    return loaded


def quantizing_seconds(sizes: SweepSizes, threads: int) -> float:
    """Seconds for errors and for exchanging units, from a short run of each kernel."""
    measured, exchanged = sizes.measured_elements(), sizes.exchanged_elements()
    kinds = {*measured, *(name for pair in exchanged for name in pair)}
    speeds = kernel_speeds([BY_NAME[name] for name in sorted(kinds)])
    seconds = sum(count / speeds[kind] for kind, count in measured.items())
    for (kind, own), count in exchanged.items():
        seconds += count / speeds[kind] + count / speeds[own]
    return seconds / threads


def _sentence(sizes: SweepSizes, devices: DeviceSettings, left: range, seconds: float) -> str:
    tokens = sum(sizes.tokens(index).total for index in left)
    held = [memory for index, memory in enumerate(memory_of(sizes)) if index in left]
    if devices.gpu_layers == 0:
        memory = f"{bytes_text(max(one.ram_bytes(devices.threads) for one in held))} of memory"
    else:
        own = max(one.host_bytes(devices.threads) for one in held)
        gpu = max(one.gpu_bytes for one in held)
        memory = f"{bytes_text(gpu)} of a GPU's memory, {bytes_text(own)} of the computer's"
    return (
        f"the study takes about {seconds_text(seconds)}: {tokens:,} tokens through one layer each; "
        f"up to {memory}, and {bytes_text(sizes.work_bytes)} on the disk until it ends"
    )


@dataclass(frozen=True)
class _Rates:
    """Seconds of a token through a window: as it is, summing activations, comparing logits."""

    plain: float = 0.0
    collecting: float = 0.0
    comparing: float = 0.0

    def seconds(self, sizes: SweepSizes, index: int) -> float:
        """Of one window."""
        tokens = sizes.tokens(index)
        plain = tokens.held_out + tokens.costs + tokens.branches
        return (
            plain * self.plain
            + tokens.calibration * self.collecting
            + tokens.branches * self.comparing
        )


def _try_out(
    sizes: SweepSizes, cut: CutModel, folder: Path, devices: DeviceSettings, first: int
) -> tuple[Loaded, dict[int, _Rates]]:
    """Loads a window of each shape and runs it; rates by the shape's number."""
    shapes = dict(zip(sizes.shape_of[first:], sizes.windows[first:], strict=True))
    loaded: Loaded = {}
    rates: dict[int, _Rates] = {}
    with ThreadPoolExecutor(devices.threads) as pool:
        for shape in sorted(shapes, key=lambda shape: shapes[shape].kind != "output"):
            window = shapes[shape]
            opened = load(window, cut, folder, devices)
            if isinstance(opened, Embedding):
                rates[shape] = _Rates()
                continue
            _prepare(opened, window)
            rates[shape] = _rates_of(opened, window, sizes, pool)
            if window.kind == "output":
                opened.close()
            else:
                loaded[window.shape] = opened
    return loaded, rates


def _prepare(opened: LoadedWindow, window: Window) -> None:
    """Give norms ones and routers numbers: among equals all tokens go to the same experts."""
    random = np.random.default_rng(1)
    for info in window.tensors:
        if info.name not in opened.names or info.name not in window.stored:
            continue
        if info.name.endswith("norm.weight"):
            rows = np.ones((info.rows, info.row_elements), np.float32)
        elif "ffn_gate_inp" in info.name:
            rows = random.standard_normal((info.rows, info.row_elements), np.float32)
        else:
            continue
        opened.set(info.name, kernels.quantize(BY_NAME[info.type_name], rows, None))


def _rates_of(
    opened: LoadedWindow, window: Window, sizes: SweepSizes, pool: ThreadPoolExecutor
) -> _Rates:
    """Rates of a loaded window, each from the second of two runs."""
    text = sizes.texts.costs or sizes.texts.held_out or sizes.texts.calibration
    if text is None:
        return _Rates()
    if window.kind == "output":
        sequences, tokens = sizes.rows_at_once(window, text.tokens)
    else:
        sequences, tokens = _batch(sizes, window, text)
    count = sequences * tokens
    inputs = _inputs(opened, sizes, sequences, tokens)
    context = opened.context(sequences, tokens)
    logits = context.run(inputs)
    comparing = 0.0
    if window.kind in ("output", "whole") and sizes.branches:
        base = BaseDistribution.of(logits.copy())
        comparing = _seconds(lambda: base.divergence(logits, pool)) / count
    plain = _seconds(lambda: context.run(inputs)) / count
    collecting, calibration = plain, sizes.texts.calibration
    if calibration is not None and window.kind != "output":
        sequences, tokens = _batch(sizes, window, calibration)
        inputs = _inputs(opened, sizes, sequences, tokens)
        context = opened.context(sequences, tokens)
        context.run(inputs, Collector())
        collecting = _seconds(lambda: context.run(inputs, Collector())) / (sequences * tokens)
    return _Rates(plain, collecting, comparing)


def _batch(sizes: SweepSizes, window: Window, text: TextShape) -> tuple[int, int]:
    return min(sizes.capacity(window, text.tokens), text.chunks), text.tokens


def _inputs(opened: LoadedWindow, sizes: SweepSizes, sequences: int, tokens: int) -> Inputs:
    random = np.random.default_rng(1)
    if opened.width:
        states = random.standard_normal((sequences, tokens, opened.width), np.float32)
        return list(states)
    return list(random.integers(0, sizes.vocabulary, (sequences, tokens)).astype(np.int32))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
