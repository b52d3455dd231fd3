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
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.journal import Journal
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.core.units import seconds_text
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.calibration.texts import CalibrationSource
from quantkit.study.calibration.tokens import model_calibration
from quantkit.study.candidates import nearest_type
from quantkit.study.errors import kernel_speeds
from quantkit.study.exchange import Exchange
from quantkit.study.kl_divergence import BaseDistribution
from quantkit.study.sensitivity import Probe, UnitCost, unit_of

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Context, Model, Tokens

LOGITS_BYTES = 512 << 20
"""Most logits of one batch; base logits and probabilities take twice the text's in all."""
MOST_TOGETHER = 64
"""Chunks side by side; llama.cpp takes 256 sequences at most."""
LARGEST_DIFFERENCE = 1e-6
"""Nats, of the base against itself; on a CPU there is none."""
FLOOR_PROBES = 5
TINY_ERROR = 3e-6
"""Changes the last bit of many weights, and costs nothing else that matters."""
LARGEST_GAIN = 3.0
SMALLEST_SHARE = 0.02
"""Of `probe_error`: a type with less, amplified, would still be lost in the noise."""
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

    A unit that no graph of the text shows has no cost and is left out, and so is one whose tensors
    the base stores in a type that cannot be made again without statistics that there are not.

    Raises:
        InputError: the text is shorter than one chunk.
        EnvironmentFault: the model did not come back to its KLD of 0, or native code crashed.
    """

    found: MeasuredCosts = run_isolated(
        "quantkit.study.costs:measure_in_child",
        {"job": job, "work": work, "devices": devices, "workers": workers},
        told_to(progress, "units", "costs"),
    )
    return found


def measure_in_child(
    job: CostJob, work: Path, devices: DeviceSettings, workers: int, emit: Emit
) -> MeasuredCosts:
    """Body of the child process of `measure_costs`."""
    from quantkit.llamacpp.llama import Model
    from quantkit.llamacpp.weights import LoadedWeights

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
    known = {
        info.name
        for info in base.tensors
        if info.name in weights.names
        and (info.name in importance or not BY_NAME[info.type_name].needs_imatrix)
    }
    shown = [unit for unit in job.units if known.issuperset(unit)]
    left = [unit for unit in shown if unit not in done]
    with ThreadPoolExecutor(workers) as pool:
        meter = _Meter(model, tokens, pool)
        probing = _Probing(job, base, Exchange(base, weights, importance, pool), meter)
        began = time.perf_counter()
        _check_repeatable(float(meter.kld().mean()))
        if left:
            emit(("note", probing.outlook(left, time.perf_counter() - began, workers)))
        emit(("start", (len(done), len(shown))))
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
            f"where it is at most {LARGEST_DIFFERENCE:g}; run it on another device, or leave costs "
            "out with measure.cost_chunks: 0"
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
        begins, the less of the model is left to round otherwise. A base in a coarse type has no
        such small changes, and then no floor that could be told from a cost.
        """
        inside = sorted((layer, unit) for unit in units if (layer := _layer(unit)) is not None)
        found: dict[int, float] = {}
        for index in np.linspace(0, len(inside) - 1, min(FLOOR_PROBES, len(inside))).astype(int):
            layer, unit = inside[index]
            if layer not in found:
                types = self._types(unit, self.job.recipe.probe_bits[0])
                probe = self._probe(types, self._gains(types, TINY_ERROR, least=0.0))
                self.exchange.restore(unit)
                if 0 < probe.error <= 10 * TINY_ERROR * len(unit):
                    found[layer] = probe.kld

        def at(unit: Sequence[str]) -> float:
            layer = _layer(unit)
            if layer is None:  # the embedding lies before all layers, the output behind them
                layer = max(found, default=0) if unit[0].startswith("output") else 0
            return float(np.interp(layer, list(found), list(found.values()))) if found else 0.0

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
        """Tensor → its type nearest to `bits` that has an error to speak of.

        A base in 4 bits has hardly any at its own type.
        """
        found = {}
        for info in (info for info in self.base.tensors if info.name in set(unit)):
            errors = self.job.errors[info.name]
            least = min(SMALLEST_SHARE * self.job.recipe.probe_error, max(errors.values()))
            found[info.name] = nearest_type([n for n, e in errors.items() if e >= least], bits)
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
    size, wanted = job.calibration.chunk_tokens, job.recipe.cost_chunks
    enough = {"chunks": job.used_chunks + wanted, "until_covered": 0}
    recipe = job.calibration.model_copy(update=enough)
    found = model_calibration(recipe, job.sources, model, lambda _: None).tokens
    chunks = found[: len(found) // size * size].reshape(-1, size)
    text, overlap = held_out(chunks, job.used_chunks, wanted)
    if not len(text):
        raise InputError(
            f"the calibration text has {len(found)} tokens, fewer than one chunk of {size}, and "
            "costs are measured on it; give a longer text, a smaller imatrix.chunk_tokens, or "
            "measure.cost_chunks: 0"
        )
    for words in _words(job, len(text), overlap):
        emit(("note", words))
    return text[:, : job.recipe.cost_chunk_tokens]


def _words(job: CostJob, chunks: int, overlap: int) -> Iterator[str]:
    """What the person should know of the text."""
    size, asked = job.calibration.chunk_tokens, job.recipe.cost_chunk_tokens
    if overlap:
        yield (
            f"{overlap} of the {chunks} chunks that costs are measured on are of the text that the "
            "importance matrix was collected on: there is no more"
        )
    if asked > size:
        yield f"costs are measured on chunks of {size} tokens, the calibration's, not of {asked}"


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
        from quantkit.llamacpp.llama import Context

        count, size = tokens.shape
        fits = max(1, LOGITS_BYTES // (4 * model.vocab.size * size))
        self._together, self._pool = min(count, fits, MOST_TOGETHER), pool
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
