"""base.gguf with one unit's tensors exchanged → the KLD that their errors cost.

A unit's weights are put into the loaded model with a known error, the text is run, and the stored
bytes are restored. When all units are measured, the KLD must be what it was before the first: 0
where the machine computes the same twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.calibration import CalibrationSource
from quantkit.errors import EnvironmentFault
from quantkit.formats.gguf_file import GGUFSource
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.journal import Journal
from quantkit.kld import BaseDistribution
from quantkit.measurement.candidates import nearest_type
from quantkit.measurement.errors import kernel_speeds
from quantkit.measurement.exchange import Exchange
from quantkit.native.calibration_text import model_calibration
from quantkit.native.child import Emit, run_isolated
from quantkit.native.settings import ContextSettings, DeviceSettings
from quantkit.progress import SILENT, Progress
from quantkit.quant_types import BY_NAME
from quantkit.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.sensitivity import Probe, UnitCost, unit_of
from quantkit.sizes import seconds_text

if TYPE_CHECKING:
    from quantkit.native.llama import Context, Model, Tokens

LOGITS_BYTES = 512 << 20
"""Most logits of one batch; base logits and probabilities take twice the text's in all."""
LARGEST_DIFFERENCE = 1e-6
"""Nats, of the base against itself; on a CPU there is none."""
FLOOR_PROBES = 5
TINY_ERROR = 3e-6
"""Changes the last bit of many weights, and costs nothing else that matters."""
LARGEST_GAIN = 3.0
_BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class CostJob:
    """What is measured, on what.

    Attributes:
        base: GGUF that is loaded, and whose rows are quantized.
        imatrix: weighs the columns; None: all count alike.
        units: tensors that are exchanged together.
        errors: tensor → type → relative error.
        calibration: what the text is of, with its `sources`; its first `used_chunks` are what the
            importance matrix was collected on, and are left out.
    """

    base: Path
    imatrix: Path | None
    units: tuple[tuple[str, ...], ...]
    errors: Mapping[str, Mapping[str, float]]
    recipe: MeasureRecipe
    calibration: ImatrixRecipe
    sources: tuple[CalibrationSource, ...]
    used_chunks: int


@dataclass(frozen=True)
class MeasuredCosts:
    """What the child brings back.

    Attributes:
        tokens: of the text, all positions of which count.
        restored_kld: of the base against itself when all was put back, nats; 0 on a CPU.
    """

    units: tuple[UnitCost, ...]
    tokens: int
    restored_kld: float


def measure_costs(
    job: CostJob,
    work: Path,
    devices: DeviceSettings,
    workers: int,
    progress: Progress = SILENT,
) -> MeasuredCosts:
    """Measure what the errors of each unit cost; `work` keeps the units that are done.

    A unit that no graph of the text shows has no cost and is left out.

    Raises:
        EnvironmentFault: the model did not come back to its KLD of 0, or native code crashed.
    """

    def on_message(message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "start":
            progress.start(len(job.units), "units", "costs", done=value)
        elif kind == "note":
            progress.note(value)
        else:
            progress.advance(value)

    found: MeasuredCosts = run_isolated(
        "quantkit.measurement.costs:measure_in_child",
        {"job": job, "work": work, "devices": devices, "workers": workers},
        on_message,
    )
    return found


def measure_in_child(
    job: CostJob, work: Path, devices: DeviceSettings, workers: int, emit: Emit
) -> MeasuredCosts:
    """Body of the child process of `measure_costs`."""
    from quantkit.native.llama import Model
    from quantkit.native.weights import LoadedWeights

    plain = DeviceSettings(devices.threads, False, devices.gpu_layers, devices.tensor_split)
    model = Model(job.base, plain, writable=True)  # repacked weights could not be exchanged
    tokens = _text(job, model, emit)
    base = GGUFSource(job.base)
    weights = LoadedWeights(model, {info.name for info in base.tensors})
    rows = {info.name: info.row_elements for info in base.tensors}
    entries = {} if job.imatrix is None else read_imatrix(job.imatrix, rows).entries
    importance = {name: entry.importance() for name, entry in entries.items()}
    journal = Journal(work / "costs.jsonl", _purpose(job, tokens))
    done = {unit.tensors: unit for unit in map(unit_of, map(json.loads, journal.lines))}
    shown = [unit for unit in job.units if weights.names.issuperset(unit)]
    left = [unit for unit in shown if unit not in done]
    with ThreadPoolExecutor(workers) as pool:
        meter = _Meter(model, tokens, pool)
        probing = _Probing(job, base, Exchange(base, weights, importance, pool), meter)
        began = time.perf_counter()
        _check_repeatable(float(meter.kld().mean()))
        if left:
            emit(("note", probing.outlook(left, time.perf_counter() - began, workers)))
        emit(("start", len(done)))
        floor = probing.floor(shown if left else ())
        for unit in left:
            done[unit] = UnitCost(unit, probing.probes(unit), floor(unit))
            journal.append(json.dumps(asdict(done[unit])))
            emit(("advance", 1))
        restored = float(meter.kld().mean())
        if restored > LARGEST_DIFFERENCE:
            raise EnvironmentFault(
                f"after the last unit the base model's KLD against itself is {restored:.2g}, not "
                "0: its weights did not come back; run it again"
            )
    units = tuple(done[unit] for unit in job.units if unit in done)
    return MeasuredCosts(units, int(tokens.size), restored)


def _check_repeatable(difference: float) -> None:
    if difference > LARGEST_DIFFERENCE:
        raise EnvironmentFault(
            f"the base model's KLD against itself is {difference:.2g} here, and costs are measured "
            f"where it is at most {LARGEST_DIFFERENCE:g}; run it on another device"
        )


@dataclass(frozen=True)
class _Probing:
    """Measures units of a loaded model."""

    job: CostJob
    base: GGUFSource
    exchange: Exchange
    meter: _Meter

    def probes(self, unit: Sequence[str]) -> tuple[Probe, ...]:
        """The unit's probes; the stored weights are back when it returns."""
        found = []
        for bits in self.job.recipe.probe_bits:
            types = self._types(unit, bits)
            found.append(self._probe(types, self._gains(types, self.job.recipe.probe_error)))
        self.exchange.restore(unit)
        return tuple(found)

    def floor(self, units: Sequence[tuple[str, ...]]) -> Callable[[Sequence[str]], float]:
        """Unit → the KLD of a change that costs nothing, by the layer where it begins.

        Measured at a few layers with errors of about TINY_ERROR, and interpolated: the deeper it
        begins, the less of the model is left to round otherwise.
        """
        inside = [unit for unit in units if _layer(unit) is not None]
        layers, found = [], []
        for index in sorted(set(np.linspace(0, len(inside) - 1, FLOOR_PROBES).astype(int))):
            unit = inside[index]
            types = self._types(unit, self.job.recipe.probe_bits[0])
            probe = self._probe(types, self._gains(types, TINY_ERROR, least=0.0))
            self.exchange.restore(unit)
            layers.append(_layer(unit) or 0)
            found.append(probe.kld)
        depth = layers[-1] if layers else 0

        def at(unit: Sequence[str]) -> float:
            layer = _layer(unit)
            if layer is None:  # the embedding lies before all layers, the output behind them
                layer = depth if unit[0].startswith("output") else 0
            return float(np.interp(layer, layers, found)) if found else 0.0

        return at

    def outlook(self, units: Sequence[tuple[str, ...]], run_seconds: float, workers: int) -> str:
        """What measuring `units` will take, when one run of the text took `run_seconds`."""
        types = [self._types(unit, bits) for unit in units for bits in self.job.recipe.probe_bits]
        kinds = sorted({kind for chosen in types for kind in chosen.values()})
        speeds = kernel_speeds([BY_NAME[kind] for kind in kinds])
        elements = {info.name: info.elements for info in self.base.tensors}
        pairs = [pair for chosen in types for pair in chosen.items()]
        seconds = sum(elements[name] / speeds[kind] for name, kind in pairs) / workers
        seconds += run_seconds * (len(types) + FLOOR_PROBES + 1)
        return (
            f"what errors cost, for {len(units)} units on {self.meter.positions:,} tokens, will "
            f"take about {seconds_text(seconds)}"
        )

    def _probe(self, types: Mapping[str, str], gains: Mapping[str, float]) -> Probe:
        errors = self.exchange.put(types, gains)
        kld = self.meter.kld()
        deviation = float(kld.std(ddof=1)) / kld.size**0.5
        return Probe(dict(types), dict(gains), errors, float(kld.mean()), deviation)

    def _types(self, unit: Sequence[str], bits: float) -> dict[str, str]:
        known, candidates = self.job.errors, self.job.recipe.candidates
        infos = [info for info in self.base.tensors if info.name in set(unit)]
        found = {}
        for info in infos:
            allowed = [name for name in candidates if name in known[info.name]]
            found[info.name] = nearest_type(allowed, bits)
        return found

    def _gains(
        self, types: Mapping[str, str], wanted: float, least: float = 1.0
    ) -> dict[str, float]:
        """What takes each tensor's error to `wanted`."""
        gains = {}
        for name, kind in types.items():
            error = self.job.errors[name][kind]
            gain = (wanted / error) ** 0.5 if error > 0 else 1.0
            gains[name] = min(max(gain, least), LARGEST_GAIN)
        return gains


def _layer(unit: Sequence[str]) -> int | None:
    match = _BLOCK.match(unit[0])
    return int(match[1]) if match else None


def _text(job: CostJob, model: Model, emit: Emit) -> Tokens:
    """The text's tokens, (chunks, chunk tokens)."""
    whole = job.calibration.model_copy(update={"until_covered": 1})  # all that there is
    found = model_calibration(whole, job.sources, model, lambda _: None).tokens
    size, wanted = job.calibration.chunk_tokens, job.recipe.cost_chunks
    chunks = found[: len(found) // size * size].reshape(-1, size)
    text, overlap = held_out(chunks, job.used_chunks, wanted)
    if overlap:
        emit(
            (
                "note",
                f"{overlap} of the {len(text)} chunks that costs are measured on are of the text "
                "that the importance matrix was collected on: there is no more",
            )
        )
    return text[:, : job.recipe.cost_chunk_tokens]


def held_out(chunks: Tokens, used: int, wanted: int) -> tuple[Tokens, int]:
    """`wanted` rows of `chunks` after the first `used`; where they end, the last of those again.

    Returns:
        The rows, and how many of them are among the first `used`.
    """
    fresh = chunks[used : used + wanted]
    overlap = min(wanted - len(fresh), len(chunks) - len(fresh))
    again = chunks[min(used, len(chunks)) - overlap : min(used, len(chunks))]
    return np.concatenate([fresh, again]), overlap


def _purpose(job: CostJob, tokens: Tokens) -> str:
    """What makes a kept unit another one; the work folder is emptied for another base."""
    wanted = job.recipe.model_dump(mode="json", include={"probe_bits", "probe_error", "candidates"})
    digest = hashlib.sha256(json.dumps(job.errors, sort_keys=True).encode())
    digest.update(tokens.tobytes())
    return json.dumps(wanted) + digest.hexdigest()


class _Meter:
    """The text, run through the model as often as is asked for, against the first run."""

    def __init__(self, model: Model, tokens: Tokens, pool: ThreadPoolExecutor) -> None:
        from quantkit.native.llama import Context

        count, size = tokens.shape
        fits = max(1, LOGITS_BYTES // (4 * model.vocab.size * size))
        self._together, self._pool = min(count, fits), pool
        self.positions = count * size
        batch = self._together * size
        settings = ContextSettings(
            batch,
            batch_tokens=batch,
            ubatch_tokens=batch,
            sequences=self._together,
            shared_cells=False,
            all_outputs=True,
        )
        self._context: Context = Context(model, settings)
        self._chunks = [model.vocab.with_bos(chunk) for chunk in tokens]
        self._base = [BaseDistribution.of(logits.copy()) for logits in self._run()]

    def _run(self) -> Iterator[NDArray[np.float32]]:
        """Logits of a batch of chunks at a time, valid until the next."""
        for at in range(0, len(self._chunks), self._together):
            self._context.clear()
            self._context.decode_together(self._chunks[at : at + self._together])
            yield self._context.all_logits()

    def kld(self) -> NDArray[np.float64]:
        """Of every position, nats."""
        pairs = zip(self._base, self._run(), strict=True)
        return np.concatenate([base.divergence(logits, self._pool) for base, logits in pairs])
