"""A model measured in one sweep: imatrix.gguf, sensitivity.json and base.logits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.config.recipe import DivergenceRecipe, ImatrixRecipe, MeasureRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import atomic, publish
from quantkit.core.progress import SILENT, Emitted, Progress, told_to
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.imatrix_file import Imatrix, read_imatrix, write_imatrix
from quantkit.formats.logits_file import LogitsHeader, header_of, vocabulary_id
from quantkit.formats.tensors import TensorSource
from quantkit.llamacpp.child import Emit, give_memory_back, run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import ModelChoice, open_source
from quantkit.study.calibration.cost_texts import cost_chunks
from quantkit.study.calibration.texts import (
    CalibrationSource,
    CalibrationTokens,
    model_calibration,
    whole_chunks,
)
from quantkit.study.divergence import HAYSTACK_NAME, LogitsWriter, held_out_text
from quantkit.study.imatrix import Calibration, chunks_of_text, read_of
from quantkit.study.imatrix_coverage import coverage_of
from quantkit.study.sensitivity import SampledRows, Sensitivity
from quantkit.study.sweep.branches import (
    chosen_cost_tokens,
    measurable_units,
    plan_branches,
    unit_costs,
)
from quantkit.study.sweep.cuts import CutModel, cut
from quantkit.study.sweep.estimate import first_round
from quantkit.study.sweep.sweep import (
    OnLogits,
    Sweep,
    Swept,
    Texts,
    entry_of,
)

if TYPE_CHECKING:
    from quantkit.llamacpp.activations import Sums
    from quantkit.llamacpp.llama import Tokens

GROUP_TOKENS = 16
MAX_SELF_KLD = 1e-6  # nats, of the model against itself; 0 on a CPU


@dataclass(frozen=True)
class SweepJob:
    """What is measured of a model.

    Attributes:
        path: where the model's files are.
        keep_prediction: as `open_source` takes it.
        calibration: the text of importance, and of costs.
        sources: of the calibration, on this disk.
        ready: an importance matrix of the model's, instead of collecting one.
        imatrix, sensitivity, logits: files to write; None: that is not measured.
        measure: needed for `sensitivity`.
        divergence, text: the held-out text for `logits`; None: the haystack.
    """

    choice: ModelChoice
    path: Path
    keep_prediction: bool = False
    calibration: ImatrixRecipe | None = None
    sources: Sequence[CalibrationSource] = ()
    ready: Path | None = None
    imatrix: Path | None = None
    measure: MeasureRecipe | None = None
    sensitivity: Path | None = None
    divergence: DivergenceRecipe | None = None
    text: Path | None = None
    logits: Path | None = None

    @property
    def covers(self) -> bool:
        """Whether importance is collected until all experts are covered."""
        collects = self.ready is None and self.imatrix is not None
        return collects and self.calibration is not None and self.calibration.until_covered > 0


@dataclass(frozen=True)
class Measured:
    """What a sweep found, besides its files; None where that was not asked for."""

    calibration: Calibration | None = None
    sensitivity: Sensitivity | None = None
    logits: LogitsHeader | None = None


def measure_model(
    job: SweepJob, work: Path, devices: DeviceSettings, progress: Progress = SILENT
) -> Measured:
    """Measure a model in one sweep; `work` keeps finished windows of an interrupted run.

    Raises:
        InputError: a broken model, or a text shorter than one chunk.
        EnvironmentFault: activations or logits are not finite, weights were not restored, or native
            code crashed.
        DiskFullError: hidden states have no room.
    """
    if job.logits is not None:
        held_out_text(job.text)  # fails before anything is loaded
    on_message = told_to(progress, "layer-tokens", "study")
    arguments = {"job": job, "work": work, "devices": devices}
    # Tokenizing has a process of its own, whose memory the sweep need not pay for.
    texts: _Texts = run_isolated(f"{__name__}:prepare_in_child", arguments, on_message)
    arguments["texts"] = texts
    found: Measured = run_isolated(f"{__name__}:measure_in_child", arguments, on_message)
    return found


@dataclass(frozen=True)
class _Texts:
    """The texts of a sweep as the model reads them.

    Attributes:
        calibration: chunks of importance; where it goes on until experts are covered, all there
            are.
        origin: of the calibration, without its tokens.
        used: chunks of the calibration's text that importance is, or was, collected on.
        costs: None too where `used` is not known yet.
        header: of the logits of the held-out text.
    """

    bos: int | None
    calibration: Tokens | None
    origin: CalibrationTokens | None
    used: int
    held_out: Tokens | None
    costs: Tokens | None
    header: LogitsHeader | None


def prepare_in_child(job: SweepJob, work: Path, devices: DeviceSettings, emit: Emit) -> _Texts:
    """Body of the child process of `measure_model` that tokenizes."""
    source = open_source(job.choice, job.path, keep_prediction=job.keep_prediction)
    reading = _Reading(job, work, devices, source, Emitted(emit))
    calibration, origin, used = None, None, 0
    if job.ready is not None:
        used = reading.used_of(job.ready)
    elif job.imatrix is not None:
        origin, calibration = reading.calibration()
        used = len(calibration)
        origin = replace(origin, tokens=origin.tokens[:0])
    held_out, header = reading.held_out()
    costs = None if job.covers else reading.costs(used)
    return _Texts(reading.bos, calibration, origin, used, held_out, costs, header)


def read_costs_in_child(
    job: SweepJob, work: Path, devices: DeviceSettings, used: int, emit: Emit
) -> Tokens | None:
    """Body of a child process: the text for costs beside `used` chunks of the calibration."""
    source = open_source(job.choice, job.path, keep_prediction=job.keep_prediction)
    return _Reading(job, work, devices, source, Emitted(emit)).costs(used)


def measure_in_child(
    job: SweepJob, work: Path, devices: DeviceSettings, texts: _Texts, emit: Emit
) -> Measured:
    """Body of the child process of `measure_model` that sweeps."""
    give_memory_back()
    source = open_source(job.choice, job.path, keep_prediction=job.keep_prediction)
    return _Study(job, work, devices, source, texts, emit).run()


class _Reading:
    """Reads the texts with the model's own tokenizer."""

    def __init__(
        self,
        job: SweepJob,
        work: Path,
        devices: DeviceSettings,
        source: TensorSource,
        progress: Progress,
    ) -> None:
        from quantkit.llamacpp.llama import Model

        self._job, self._source, self._progress = job, source, progress
        header = write_shape(work, single_file_layout("vocabulary", source.metadata, ()))
        try:
            self._model = Model(header, devices, vocabulary=True)
        finally:
            header.unlink()
        self.bos = self._model.vocab.text_bos

    def used_of(self, ready: Path) -> int:
        """Chunks of the calibration's text that a ready importance matrix was collected on."""
        if self._job.calibration is None:
            return 0
        rows = {info.name: info.row_elements for info in self._source.tensors}
        return chunks_of_text(read_imatrix(ready, rows), self._job.sources, self._job.calibration)

    def calibration(self) -> tuple[CalibrationTokens, Tokens]:
        """The calibration, and its chunks."""
        recipe = self._job.calibration
        assert recipe is not None
        found = model_calibration(
            recipe, self._job.sources, self._model, lambda m: self._progress.note(m[1])
        )
        # A text gets BOS before it is cut, as in llama-imatrix; a mixture is cut already.
        tokens = found.tokens if recipe.mixture else self._model.vocab.prepend_bos(found.tokens)
        advice = "give a longer text or a smaller chunk_tokens"
        text = whole_chunks(tokens, recipe.chunk_tokens, "the calibration text", advice)
        if len(text) < recipe.chunks:
            self._progress.note(
                f"the calibration text has only {len(text)} of the requested {recipe.chunks} chunks"
            )
        return found, text if recipe.until_covered else text[: recipe.chunks]

    def held_out(self) -> tuple[Tokens | None, LogitsHeader | None]:
        """Chunks of the held-out text, and the header of its logits."""
        job, recipe = self._job, self._job.divergence
        if recipe is None or job.logits is None:
            return None, None
        vocab, size = self._model.vocab, recipe.chunk_tokens
        tokens = vocab.first_tokens(held_out_text(job.text), size * recipe.chunks)
        advice = "give a longer text or shorter chunks"
        chunks = whole_chunks(tokens, size, "the held-out text", advice)
        if len(chunks) < recipe.chunks:
            self._progress.note(
                f"the held-out text has only {len(chunks)} of the requested {recipe.chunks} chunks"
            )
        text = HAYSTACK_NAME if job.text is None else job.text.name
        vocabulary = vocabulary_id(self._source.metadata)
        name = job.path.name if job.choice.kind == "gguf" else job.choice.name
        return chunks, header_of(name, text, vocabulary, vocab.size, vocab.text_bos, chunks)

    def costs(self, used: int) -> Tokens | None:
        """Chunks to measure costs on, which are not among the calibration's first `used`."""
        recipe, calibration = self._job.measure, self._job.calibration
        if self._job.sensitivity is None or recipe is None or not recipe.measures_costs:
            return None
        assert calibration is not None
        units = measurable_units(cut(self._source), self._source, recipe)
        branches = len(plan_branches(units, recipe))
        tokens = chosen_cost_tokens(recipe, self._source, branches)
        found = cost_chunks(
            calibration, self._job.sources, self._model, used,
            tokens // recipe.cost_chunk_tokens, recipe.cost_chunk_tokens, recipe.seed,
        )  # fmt: skip
        for sentence in found.notes:
            self._progress.note(sentence)
        return found.tokens


class _Study:
    """Sweeps, and writes what was found."""

    def __init__(
        self,
        job: SweepJob,
        work: Path,
        devices: DeviceSettings,
        source: TensorSource,
        texts: _Texts,
        emit: Emit,
    ) -> None:
        self._job, self._work, self._devices = job, work, devices
        self._source, self._texts = source, texts
        self._emit, self._progress = emit, Emitted(emit)
        self._cut: CutModel = cut(source)
        self._group = GROUP_TOKENS
        if job.calibration is not None:
            self._group = math.gcd(job.calibration.chunk_tokens, GROUP_TOKENS)

    def run(self) -> Measured:
        job, read = self._job, self._texts
        if self._cut.why_whole is not None:
            self._progress.note(
                f"{self._cut.why_whole}: the whole model is loaded at once, and must fit in memory"
            )
        importance, sums = None, None
        used, chunks, costs = read.used, read.calibration, read.costs
        if job.ready is not None:
            rows = {info.name: info.row_elements for info in self._source.tensors}
            importance = read_imatrix(job.ready, rows).importance()
        elif chunks is not None and job.covers:
            sums, used = self._cover(chunks)
            importance = {name: entry_of(found).importance() for name, found in sums.items()}
            arguments = {"job": job, "work": self._work, "devices": self._devices, "used": used}
            costs = run_isolated(f"{__name__}:read_costs_in_child", arguments, self._emit)
            chunks = None
        logits, on_logits = self._work / "base.logits", None
        texts = Texts(read.bos, chunks, read.held_out, costs)
        with ExitStack() as stack:
            if read.header is not None and read.held_out is not None:
                writer = LogitsWriter(logits, read.header, read.held_out, self._devices.threads)
                on_logits = stack.enter_context(writer).write
            swept = self._sweep("sweep", texts, importance=importance, on_logits=on_logits).run()
        calibration = None
        if read.origin is not None:
            calibration = self._write_imatrix(sums or swept.sums, used, read.origin)
        sensitivity = self._sensitivity(swept, costs)
        if sensitivity is not None and job.sensitivity is not None:
            sensitivity.write(job.sensitivity)
        if read.header is not None and job.logits is not None:
            publish(logits, job.logits)
        return Measured(calibration, sensitivity, read.header)

    def _sweep(
        self,
        name: str,
        texts: Texts,
        *,
        importance: dict[str, np.ndarray] | None = None,
        on_logits: OnLogits | None = None,
        measures: bool = True,
    ) -> Sweep:
        work = self._work / name
        work.mkdir(exist_ok=True)
        recipe = self._job.measure if measures and self._job.sensitivity is not None else None
        return Sweep(
            self._cut, self._source, texts, work, self._devices, self._progress,
            importance=importance, recipe=recipe, on_logits=on_logits, group_tokens=self._group,
        )  # fmt: skip

    def _cover(self, text: Tokens) -> tuple[dict[str, Sums], int]:
        """Importance alone, of so many chunks that every expert has seen enough; with how many.

        In rounds, each a sweep that doubles the chunks: whether an expert of the last layer has
        seen enough is known at its end only.
        """
        recipe = self._job.calibration
        assert recipe is not None
        sums: dict[str, Sums] = {}
        begin, stop = 0, min(first_round(recipe), len(text))
        while True:
            texts = Texts(self._texts.bos, calibration=text[begin:stop])
            swept = self._sweep(f"importance-{begin}", texts, measures=False).run()
            for name, found in swept.sums.items():
                if name in sums:
                    sums[name].squares += found.squares
                    sums[name].counts += found.counts
                else:
                    sums[name] = found
            missed = coverage_of(sums).missed(recipe.until_covered)
            if not missed:
                return sums, stop
            if stop == len(text):
                self._progress.note(
                    f"the calibration text ended, and {missed:,} experts have fewer than "
                    f"{recipe.until_covered} tokens; give more text"
                )
                return sums, stop
            begin, stop = stop, min(2 * stop, len(text))

    def _write_imatrix(
        self, sums: Mapping[str, Sums], chunks: int, origin: CalibrationTokens
    ) -> Calibration:
        job, recipe = self._job, self._job.calibration
        assert recipe is not None
        assert job.imatrix is not None
        if not sums:
            raise EnvironmentFault(
                "llama.cpp reported no matrix product of the model's layers; update "
                "llama-cpp-python"
            )
        entries = {name: entry_of(found) for name, found in sums.items()}
        names = tuple(name for source in job.sources for name in source.dataset_names)
        with atomic(job.imatrix) as partial:
            write_imatrix(partial, Imatrix(entries, recipe.chunk_tokens, chunks, names))
        coverage = coverage_of(sums)
        return Calibration(
            chunks=chunks,
            tokens=chunks * recipe.chunk_tokens,
            weights=len(entries),
            unseen_experts=coverage.missed(1),
            uncovered_experts=coverage.missed(recipe.until_covered),
            sources=read_of(job.sources, origin, chunks),
        )

    def _sensitivity(self, swept: Swept, text: Tokens | None) -> Sensitivity | None:
        recipe = self._job.measure
        if recipe is None or self._job.sensitivity is None:
            return None
        rows = {info.name: info.rows for info in self._source.tensors}
        costs, restored = [], 0.0
        if text is not None:
            costs = unit_costs(swept.branches, swept.exchanged, swept.klds, text.shape[1])
            restored = float(swept.klds[len(swept.branches) - 1].mean())
        if restored > MAX_SELF_KLD:
            raise EnvironmentFault(
                f"the model's KLD against itself is {restored:.2g} on this device (limit "
                f"{MAX_SELF_KLD:g}), so costs cannot be measured; use another device, or turn "
                "costs off with measure.cost_tokens: 0"
            )
        return Sensitivity(
            recipe=recipe,
            sampling={
                e.name: SampledRows(e.rows, rows[e.name], e.standard_error) for e in swept.errors
            },
            median_relative_standard_error=statistics.median(
                [entry.standard_error for entry in swept.errors] or [0.0]
            ),
            cost_tokens=0 if text is None else text.size,
            restored_kld=restored,
            errors={entry.name: dict(entry.errors) for entry in swept.errors},
            costs=tuple(costs),
        )
