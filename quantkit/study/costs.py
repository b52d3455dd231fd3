"""Measures how much KLD a quantization error of each unit (a tensor or a group) costs.

A unit's weights are replaced in the loaded base model by ones with a known error, the text is run,
and the stored bytes are restored. At the end the base's KLD against itself must be what it was at
the start: 0 if the machine computes the same twice.
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
from pydantic import TypeAdapter

from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.core.units import seconds_text
from quantkit.core.work_folders import Journal
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import DeviceSettings, parallel_sequences
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.candidates import nearest_type
from quantkit.study.calibration.texts import CalibrationSource, model_calibration, whole_chunks
from quantkit.study.errors import kernel_speeds
from quantkit.study.exchange import Exchange
from quantkit.study.kld_statistics import BaseDistribution
from quantkit.study.sensitivity import Probe, UnitCost

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Context, Model, Tokens

LOGITS_BYTES = 512 << 20
"""Limit for the logits of one batch; base logits and probabilities of the whole text take twice
what its logits take."""
MAX_SEQUENCES = 64  # chunks decoded in one batch; llama.cpp takes 256 sequences at most
MAX_SELF_KLD = 1e-6  # nats, of the base against itself; 0 on a CPU
FLOOR_PROBES = 5
TINY_ERROR = 3e-6  # changes the last bit of many weights and nothing else that matters
MAX_GAIN = 3.0
MIN_ERROR_SHARE = 0.02
"""Of `probe_error`: below it, even an amplified error would be lost in noise."""
_BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class CostInputs:
    """What costs are measured with, besides the errors.

    Attributes:
        base: GGUF that is loaded, of the same weights as the source.
        imatrix: weights of the columns; None weighs all columns alike.
        calibration: the text; its first `used_chunks`, which the imatrix saw, are skipped.
    """

    base: Path
    imatrix: Path | None
    calibration: ImatrixRecipe
    sources: Sequence[CalibrationSource]
    used_chunks: int


@dataclass(frozen=True)
class CostJob:
    """A measurement: `units` of tensors exchanged together; tensor → type → relative error."""

    inputs: CostInputs
    units: tuple[tuple[str, ...], ...]
    errors: Mapping[str, Mapping[str, float]]
    recipe: MeasureRecipe


@dataclass(frozen=True)
class MeasuredCosts:
    """Costs, tokens of the text, and the base's KLD against itself after the last unit, nats."""

    units: tuple[UnitCost, ...]
    tokens: int
    restored_kld: float


def measure_costs(
    job: CostJob, work: Path, devices: DeviceSettings, progress: Progress = SILENT
) -> MeasuredCosts:
    """Measure the cost of each unit's errors; `work` keeps finished units for a resumed run.

    Left out are units that llama.cpp never runs (multi-token prediction layers), and units stored
    in a type that needs an imatrix to be encoded again when there is none for them.

    Raises:
        InputError: the text is shorter than one chunk.
        EnvironmentFault: the base's KLD against itself is not 0, or native code crashed.
    """
    found: MeasuredCosts = run_isolated(
        "quantkit.study.costs:measure_in_child",
        {"job": job, "work": work, "devices": devices},
        told_to(progress, "units", "sensitivity"),
    )
    return found


def measure_in_child(
    job: CostJob, work: Path, devices: DeviceSettings, emit: Emit
) -> MeasuredCosts:
    """Body of the child process of `measure_costs`."""
    from quantkit.llamacpp.llama import Model
    from quantkit.llamacpp.weights import LoadedWeights

    plain = DeviceSettings(devices.threads, False, devices.gpu_layers, devices.tensor_split)
    model = Model(job.inputs.base, plain, writable=True)  # repacked weights cannot be exchanged
    tokens = _text(job, model, emit)
    base = GGUFSource(job.inputs.base)
    weights = LoadedWeights(model, {info.name for info in base.tensors})
    importance = {}
    if job.inputs.imatrix is not None:
        rows = {info.name: info.row_elements for info in base.tensors}
        importance = read_imatrix(job.inputs.imatrix, rows).importance()
    exchangeable = {
        info.name
        for info in base.tensors
        if info.name in weights.names
        and (info.name in importance or not BY_NAME[info.type_name].needs_imatrix)
    }
    measurable = [unit for unit in job.units if exchangeable.issuperset(unit)]

    def is_whole(unit: UnitCost) -> bool:
        named = [part.keys() for p in unit.probes for part in (p.types, p.gains, p.errors)]
        return (
            unit.tensors in measurable
            and len(unit.probes) == len(job.recipe.probe_bits)
            and all(names == set(unit.tensors) for names in named)
        )

    journal = Journal(work / "costs.jsonl", _purpose(job, tokens))
    done = {unit.tensors: unit for unit in journal.units(TypeAdapter(UnitCost), is_whole)}
    left = [unit for unit in measurable if unit not in done]
    with ThreadPoolExecutor(devices.threads) as pool:
        meter = _Meter(model, tokens, pool)
        probing = _Probing(job, base, Exchange(base, weights, importance, pool), meter)
        began = time.perf_counter()
        if (difference := float(meter.kld().mean())) > MAX_SELF_KLD:
            raise EnvironmentFault(
                f"the base model's KLD against itself is {difference:.2g} on this device (limit "
                f"{MAX_SELF_KLD:g}), so costs cannot be measured; use another device, or turn "
                "costs off with measure.cost_chunks: 0"
            )
        if left:
            emit(("note", probing.estimate(left, time.perf_counter() - began, devices.threads)))
        emit(("start", (len(done), len(measurable))))
        floor = probing.floor(measurable if left else ())
        for unit in left:
            done[unit] = UnitCost(unit, probing.probes(unit), floor(unit))
            journal.append(json.dumps(asdict(done[unit])))
            emit(("advance", 1))
        restored = float(meter.kld().mean())
        if restored > MAX_SELF_KLD:
            raise EnvironmentFault(
                f"the base model's KLD against itself is {restored:.2g} after the last unit, not "
                "0: its weights were not restored; run it again"
            )
    units = tuple(done[unit] for unit in job.units if unit in done)
    return MeasuredCosts(units, int(tokens.size), restored)


@dataclass(frozen=True)
class _Probing:
    """Measures units of a loaded model."""

    job: CostJob
    base: GGUFSource
    exchange: Exchange
    meter: _Meter

    def probes(self, unit: Sequence[str]) -> tuple[Probe, ...]:
        """Probe the unit, then restore its weights."""
        error, bits = self.job.recipe.probe_error, self.job.recipe.probe_bits
        found = tuple(self._probe(self._types(unit, b), error) for b in bits)
        self.exchange.restore(unit)
        return found

    def floor(self, units: Sequence[tuple[str, ...]]) -> Callable[[Sequence[str]], float]:
        """A function of a unit: the KLD that even a negligible change of its weights causes.

        Measured at a few layers with errors of about TINY_ERROR, and interpolated by layer: the
        deeper the change, the fewer layers are left to round differently. A base in a coarse type
        has no such small changes, and a floor of 0.
        """
        inside = sorted((layer, unit) for unit in units if (layer := _layer(unit)) is not None)
        found: dict[int, float] = {}
        for index in np.linspace(0, len(inside) - 1, min(FLOOR_PROBES, len(inside))).astype(int):
            layer, unit = inside[index]
            if layer not in found:
                types = self._types(unit, self.job.recipe.probe_bits[0])
                probe = self._probe(types, TINY_ERROR, least_gain=0.0)
                self.exchange.restore(unit)
                if 0 < probe.error <= 10 * TINY_ERROR * len(unit):
                    found[layer] = probe.kld

        def at(unit: Sequence[str]) -> float:
            layer = _layer(unit)
            if layer is None:  # the embedding comes before all layers, the output after them
                layer = max(found, default=0) if unit[0].startswith("output") else 0
            return float(np.interp(layer, list(found), list(found.values()))) if found else 0.0

        return at

    def estimate(self, units: Sequence[tuple[str, ...]], run_seconds: float, workers: int) -> str:
        """Estimate of the time for `units`, given that one run of the text took `run_seconds`."""
        types = [self._types(unit, bits) for unit in units for bits in self.job.recipe.probe_bits]
        kinds = sorted({kind for chosen in types for kind in chosen.values()})
        speeds = kernel_speeds([BY_NAME[kind] for kind in kinds])
        elements = {info.name: info.elements for info in self.base.tensors}
        pairs = [pair for chosen in types for pair in chosen.items()]
        seconds = sum(elements[name] / speeds[kind] for name, kind in pairs) / workers
        seconds += run_seconds * (len(types) + FLOOR_PROBES + 1)
        return (
            f"measuring the sensitivity of {len(units)} units on {self.meter.positions:,} tokens "
            f"takes about {seconds_text(seconds)}"
        )

    def _probe(self, types: dict[str, str], target: float, least_gain: float = 1.0) -> Probe:
        """Amplify each tensor's error to `target`, as far as that is possible, and measure."""
        gains = {}
        for name, kind in types.items():
            error = self.job.errors[name][kind]
            gain = (target / error) ** 0.5 if error > 0 else 1.0
            gains[name] = min(max(gain, least_gain), MAX_GAIN)
        errors = self.exchange.put(types, gains)
        kld = self.meter.kld()
        deviation = float(kld.std(ddof=1)) / kld.size**0.5
        return Probe(types, gains, errors, float(kld.mean()), deviation)

    def _types(self, unit: Sequence[str], bits: float) -> dict[str, str]:
        """Tensor → its type nearest to `bits` whose error is large enough to measure.

        A base in 4 bits has hardly any error at its own type.
        """
        found = {}
        for info in (info for info in self.base.tensors if info.name in set(unit)):
            errors = self.job.errors[info.name]
            least = min(MIN_ERROR_SHARE * self.job.recipe.probe_error, max(errors.values()))
            found[info.name] = nearest_type([n for n, e in errors.items() if e >= least], bits)
        return found


def _layer(unit: Sequence[str]) -> int | None:
    match = _BLOCK.match(unit[0])
    return int(match[1]) if match else None


def _text(job: CostJob, model: Model, emit: Emit) -> Tokens:
    """The text's tokens, (chunks, chunk tokens)."""
    inputs, count, requested = job.inputs, job.recipe.cost_chunks, job.recipe.cost_chunk_tokens
    size = inputs.calibration.chunk_tokens
    recipe = inputs.calibration.model_copy(
        update={"chunks": inputs.used_chunks + count, "until_covered": 0}
    )
    found = model_calibration(recipe, inputs.sources, model, lambda _: None).tokens
    advice = "give a longer text or a smaller imatrix.chunk_tokens, or set measure.cost_chunks: 0"
    chunks = whole_chunks(found, size, "the calibration text, which costs are measured on,", advice)
    text, overlap = held_out(chunks, inputs.used_chunks, count)
    if overlap:
        note = (
            f"the calibration text is too short: {overlap} of the {len(text)} chunks for costs "
            "were also used for the importance matrix"
        )
        emit(("note", note))
    if requested > size:
        note = f"costs are measured on the calibration's chunks of {size} tokens, not {requested}"
        emit(("note", note))
    return text[:, :requested]


def held_out(chunks: Tokens, used: int, count: int) -> tuple[Tokens, int]:
    """`count` rows of `chunks` after the first `used`, filled up with the last of those.

    With them, how many are among the first `used`.
    """
    fresh = chunks[used : used + count]
    overlap = min(count - len(fresh), len(chunks) - len(fresh))
    again = chunks[min(used, len(chunks)) - overlap : min(used, len(chunks))]
    return np.concatenate([fresh, again]), overlap


def _purpose(job: CostJob, tokens: Tokens) -> str:
    """Identifies the measurement that finished units belong to, apart from the base."""
    recipe = job.recipe.model_dump(mode="json", include={"probe_bits", "probe_error", "candidates"})
    digest = hashlib.sha256(json.dumps(job.errors, sort_keys=True).encode())
    digest.update(tokens.tobytes())
    return json.dumps(recipe) + digest.hexdigest()


class _Meter:
    """Runs the text through the model again and again, and compares with the first run."""

    def __init__(self, model: Model, tokens: Tokens, pool: ThreadPoolExecutor) -> None:
        from quantkit.llamacpp.llama import Context, with_first

        count, size = tokens.shape
        fits = max(1, LOGITS_BYTES // (4 * model.vocab.size * size))
        self._sequences, self._pool = min(count, fits, MAX_SEQUENCES), pool
        self.positions = count * size
        self._context: Context = Context(model, parallel_sequences(self._sequences, size))
        self._chunks = [with_first(chunk, model.vocab.text_bos) for chunk in tokens]
        self._base = [BaseDistribution.of(logits.copy()) for logits in self._run()]

    def _run(self) -> Iterator[NDArray[np.float32]]:
        """Logits of one batch of chunks after the other, each valid until the next."""
        for at in range(0, len(self._chunks), self._sequences):
            self._context.clear()
            yield self._context.decode_together(self._chunks[at : at + self._sequences])

    def kld(self) -> NDArray[np.float64]:
        """KLD of every position, nats."""
        pairs = zip(self._base, self._run(), strict=True)
        return np.concatenate([base.divergence(logits, self._pool) for base, logits in pairs])
