"""The sweep: each window of a model runs all texts once, so that every weight is read once.

For each window in order: the calibration's sums of squared activations; the errors of its tensors;
the held-out and the cost text; the cost text again with each unit of its tensors exchanged, a new
branch; and all earlier branches, unperturbed. The last window gives the logits: those of the
held-out text are kept, and of each branch the KLD against the cost text's.

A window is the unit of resuming: hidden states lie in two files in turn, and what a window measured
is a line of a journal. For use in a child process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, TypeAdapter

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.disk import check_room
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import Progress
from quantkit.core.work_folders import Journal
from quantkit.formats.imatrix_file import ImatrixEntry
from quantkit.formats.logits_file import scored_positions
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.quantize.candidates import is_quantizable
from quantkit.quantize.encode import Importance
from quantkit.study.errors import TensorErrors, tensor_errors
from quantkit.study.exchange import Exchange
from quantkit.study.kld_statistics import BaseDistribution
from quantkit.study.sweep.branches import (
    Branch,
    Exchanged,
    choose_gains,
    choose_types,
)
from quantkit.study.sweep.cuts import CutModel, Window
from quantkit.study.sweep.estimate import SweepSizes, TextShape, TextShapes
from quantkit.study.sweep.states import HiddenStates

if TYPE_CHECKING:
    from quantkit.llamacpp.activations import Collector, Sums
    from quantkit.llamacpp.llama import Inputs, States, Tokens
    from quantkit.study.sweep.windows import OpenWindow

F64 = NDArray[np.float64]
OnLogits = Callable[[int, Iterable[NDArray[np.float32]]], None]
"""(index of the chunk, logits of its scored positions in parts, each valid until the next)."""


@dataclass(frozen=True)
class Texts:
    """Chunks of tokens, (chunks, chunk tokens); None where there are none.

    Attributes:
        bos: replaces each chunk's first token, unless None.
        calibration: what importance is collected on.
        held_out: whose logits are kept.
        costs: what branches run.
    """

    bos: int | None
    calibration: Tokens | None = None
    held_out: Tokens | None = None
    costs: Tokens | None = None


@dataclass(frozen=True)
class SumsPlace:
    """Where a weight's sums lie in a window's file: F64 squares, then counts.

    Shapes are (matrices, columns) and (counts,).
    """

    name: str
    matrices: NonNegativeInt
    columns: NonNegativeInt
    counts: NonNegativeInt


@dataclass(frozen=True)
class WindowRecord:
    """A line of the journal: what a window measured. Branches are named by their index."""

    window: int
    sums: tuple[SumsPlace, ...]
    errors: tuple[TensorErrors, ...]
    exchanged: dict[int, Exchanged]


@dataclass(frozen=True)
class Swept:
    """What a sweep measured.

    Attributes:
        sums: of the calibration, by weight.
        errors: in the source's order.
        branches: with `exchanged` and `klds` by their index; KLD of each position, nats.
    """

    sums: Mapping[str, Sums]
    errors: tuple[TensorErrors, ...]
    branches: Sequence[Branch]
    exchanged: Mapping[int, Exchanged]
    klds: Mapping[int, F64]


@dataclass
class _Text:
    """A text with its hidden states before each window."""

    chunks: Tokens
    states: HiddenStates

    @property
    def shape(self) -> TextShape:
        return TextShape(*self.chunks.shape)

    @property
    def tokens(self) -> int:
        """Of a chunk."""
        return self.shape.tokens

    def inputs(self, window: int, start: int, stop: int) -> Inputs:
        """Chunks [start, stop) as the window takes them."""
        if window == 0:
            return list(self.chunks[start:stop])
        return [self.states.read(window, chunk, 0, self.tokens) for chunk in range(start, stop)]


class Sweep:
    """One sweep over a model.

    Args:
        importance: of an imatrix that there is already; else the calibration's own.
        recipe: None: neither errors nor costs.
        on_logits: gets the logits of each chunk of the held-out text, at its scored positions.
        group_tokens: see `Collector`.
    """

    def __init__(
        self,
        cut: CutModel,
        source: TensorSource,
        texts: Texts,
        work: Path,
        devices: DeviceSettings,
        progress: Progress,
        *,
        importance: Importance | None = None,
        recipe: MeasureRecipe | None = None,
        on_logits: OnLogits | None = None,
        group_tokens: int = 16,
    ) -> None:
        self._cut, self._source, self._work = cut, source, work
        self._devices = dataclasses.replace(devices, use_extra_buffers=False)
        self._progress, self._recipe, self._on_logits = progress, recipe, on_logits
        self._group_tokens = group_tokens
        self._ready = importance is not None
        self._importance: dict[str, NDArray[np.float32]] = dict(importance or {})
        self._bos = texts.bos
        self._calibration = self._text("calibration", texts.calibration)
        self._held_out = self._text("held-out", texts.held_out)
        self._costs = self._text("costs", texts.costs if recipe else None)
        every = (self._calibration, self._held_out, self._costs)
        shapes = TextShapes(*(None if text is None else text.shape for text in every))
        self._sizes = sizes = SweepSizes(cut, source, shapes, recipe)
        self._branches, self._begun, self._last = sizes.branches, sizes.begun, sizes.last
        self._branch_states: HiddenStates | None = None
        if self._costs is not None:
            count, rows = len(self._branches), self._costs.chunks.size
            self._branch_states = HiddenStates(
                work, "branches", count, rows, cut.width, differences=sizes.differences
            )
        self._errors: dict[str, TensorErrors] = {}
        self._exchanged = {index: Exchanged() for index in range(len(self._branches))}
        self._klds: dict[int, F64] = {}

    def run(self) -> Swept:
        """Sweep, from the window that an earlier run in the same folder did not finish.

        The last window is not noted: who calls keeps what it gave.

        Raises:
            InputError: llama.cpp refuses a window, or weights are not finite.
            EnvironmentFault: activations or logits are not finite.
            DiskFullError: hidden states have no room.
        """
        from quantkit.study.sweep.trial import announce
        from quantkit.study.sweep.windows import open_windows

        journal = Journal(self._work / "windows.jsonl", self._purpose())
        first, sums = self.finished(journal)
        self._check_room()
        sizes, ahead = self._sizes, self._sizes.ahead_bytes
        steps = [sizes.tokens(index).total for index in range(len(sizes.windows))]
        self._progress.start(sum(steps), "layer-tokens", "study", done=sum(steps[:first]))
        cut = dataclasses.replace(self._cut, windows=sizes.windows)
        loaded = announce(sizes, cut, self._work, self._devices, first, self._progress)
        opened = open_windows(cut, self._source, self._work, self._devices, first, ahead, loaded)
        with ThreadPoolExecutor(self._devices.threads) as self._pool:
            for index, window in enumerate(opened, first):
                found, record = self._sweep(index, window)
                sums |= found
                if index < self._last:
                    for states in self._kept():
                        states.sync(index + 1)
                    journal.append(json.dumps(asdict(record)))
        for states in self._kept():
            states.close()
        errors = [self._errors[i.name] for i in self._source.tensors if i.name in self._errors]
        measured = tuple(entry for entry in errors if entry.errors)
        return Swept(sums, measured, self._branches, self._exchanged, self._klds)

    def finished(self, journal: Journal) -> tuple[int, dict[str, Sums]]:
        """Take over what an earlier run measured: its number of windows, and their sums.

        Raises:
            InputError: it is damaged, or not of this sweep.
        """
        records = journal.units(TypeAdapter(WindowRecord), self._is_ours)
        if [record.window for record in records] != list(range(len(records))):
            raise InputError(f"{journal.path} is damaged: its windows are not in order; delete it")
        sums: dict[str, Sums] = {}
        for record in records:
            sums |= self._taken(record)
        return len(records), sums

    def _text(self, name: str, chunks: Tokens | None) -> _Text | None:
        if chunks is None:
            return None
        (count, size), width = chunks.shape, self._cut.width
        if self._bos is not None:
            chunks = chunks.copy()
            chunks[:, 0] = self._bos
        return _Text(chunks, HiddenStates(self._work, name, count, size, width, differences=False))

    def _kept(self) -> Iterator[HiddenStates]:
        for text in (self._calibration, self._held_out, self._costs):
            if text is not None:
                yield text.states
        if self._branch_states is not None:
            yield self._branch_states

    def _check_room(self) -> None:
        sizes = [(self._spool, self._sizes.spool_bytes)]
        if self._last:
            for states in self._kept():
                sizes += [(path, states.size_bytes // 2) for path in states.paths]
        for index in range(len(self._sizes.windows)):
            sizes.append((self._sums_path(index), self._sizes.sums_bytes(index)))
        check_room(sizes, self._work)

    def _sums_path(self, window: int) -> Path:
        return self._work / f"sums-{window}.f64"

    @property
    def _spool(self) -> Path:
        return self._work / "cost-logits.f32"

    def _purpose(self) -> str:
        """Identifies what windows were swept for, apart from the model."""
        digest = hashlib.sha256()
        for text in (self._calibration, self._held_out, self._costs):
            digest.update(b"-" if text is None else repr(text.chunks.shape).encode())
            digest.update(b"" if text is None else text.chunks.astype("<i4").tobytes())
        if self._ready:
            for name in sorted(self._importance):
                digest.update(name.encode() + self._importance[name].tobytes())
        recipe = None if self._recipe is None else self._recipe.model_dump(mode="json")
        return json.dumps([recipe, digest.hexdigest()])

    def _is_ours(self, record: WindowRecord) -> bool:
        """Whether these are measurements of one of the windows but the last."""
        if not 0 <= record.window < self._last:
            return False
        inside = set(self._cut.windows[record.window].stored.values())
        infos = {i.name: i for i in self._source.tensors if i.name in inside}
        for place in record.sums:
            info = infos.get(place.name)
            if info is None or place.counts not in (1, info.matrices):
                return False
            if (place.matrices, place.columns) != (info.matrices, info.row_elements):
                return False
        candidates = set(self._recipe.candidates) if self._recipe else set()
        if any(e.name not in infos or not candidates.issuperset(e.errors) for e in record.errors):
            return False
        for number, found in record.exchanged.items():
            if not 0 <= number < len(self._branches):
                return False
            names = found.types.keys()
            if not (names == found.gains.keys() == found.errors.keys()):
                return False
            if not inside.intersection(self._branches[number].unit).issuperset(names):
                return False
            if not candidates.issuperset(found.types.values()):
                return False
        return True

    def _taken(self, record: WindowRecord) -> dict[str, Sums]:
        """Take over what an earlier run measured; returns the window's sums."""
        self._errors |= {entry.name: entry for entry in record.errors}
        for number, exchanged in record.exchanged.items():
            self._exchanged[number].add(exchanged)
        sums = read_sums(self._sums_path(record.window), record.sums)
        self._use(sums)
        return sums

    def _use(self, sums: Mapping[str, Sums]) -> None:
        """Take the importance of errors and probes from `sums`, unless there is a ready one."""
        if not self._ready:
            for name, found in sums.items():
                self._importance[name] = entry_of(found).importance()

    def _sweep(self, index: int, window: OpenWindow) -> tuple[dict[str, Sums], WindowRecord]:
        """All that one window has to do."""
        sums: dict[str, Sums] = {}
        if self._calibration is not None:
            sums = self._collect(index, window, self._calibration)
            self._use(sums)
        places = write_sums(self._sums_path(index), sums)
        errors = self._measure(index, window) if self._recipe is not None else ()
        self._errors |= {entry.name: entry for entry in errors}
        exchanged: dict[int, Exchanged] = {}
        if window.window.kind in ("output", "whole"):
            if self._held_out is not None:
                self._give_logits(index, window, self._held_out)
            if self._costs is not None:
                exchanged = self._finish_branches(index, window, self._costs)
        else:
            for text in (self._held_out, self._costs):
                if text is not None:
                    self._pass(index, window, text)
            if self._costs is not None:
                exchanged = self._branch(index, window, self._costs)
        for number, found in exchanged.items():
            self._exchanged[number].add(found)
        return sums, WindowRecord(index, places, errors, exchanged)

    # --- the texts -----------------------------------------------------------------------------

    def _batches(self, window: Window, text: _Text) -> Iterator[tuple[int, int]]:
        """Ranges of the text's chunks that are decoded together."""
        count = len(text.chunks)
        size = min(self._sizes.capacity(window, text.tokens), count)
        for start in range(0, count, size):
            yield start, min(start + size, count)

    def _run(
        self, window: OpenWindow, inputs: Inputs, collector: Collector | None = None
    ) -> NDArray[np.float32]:
        """What the window gives for sequences of equal length."""
        size = len(inputs[0])
        found = window.run(inputs, self._sizes.capacity(window.window, size), size, collector)
        self._progress.advance(size * len(inputs))
        return found

    def _run_rows(self, window: OpenWindow, rows: States, text: _Text) -> NDArray[np.float32]:
        """Logits that the output gives for hidden states, whose rows do not depend on each other.

        At most `rows_at_once` of them.
        """
        sequences, tokens = self._sizes.rows_at_once(window.window, text.tokens)
        self._progress.advance(len(rows))
        parts = np.split(rows, range(tokens, len(rows), tokens))
        return window.run(parts, sequences, tokens)

    def _pass(
        self, index: int, window: OpenWindow, text: _Text, collector: Collector | None = None
    ) -> None:
        """Run a text through the window, to the next window's hidden states if there are any."""
        for start, stop in self._batches(window.window, text):
            found = self._run(window, text.inputs(index, start, stop), collector)
            if collector is not None and collector.broken is not None:
                raise EnvironmentFault(
                    f"activations of {window.source_name(collector.broken)} are NaN or infinite in "
                    f"chunks {start + 1} to {stop} of {len(text.chunks)}; check the model (the "
                    "layers before are kept)"
                )
            if index < self._last:
                for chunk, rows in enumerate(np.split(found, stop - start), start):
                    text.states.write(index + 1, chunk, 0, rows)

    def _collect(self, index: int, window: OpenWindow, text: _Text) -> dict[str, Sums]:
        """The calibration's sums of the window's weights."""
        from quantkit.llamacpp.activations import Collector

        if window.window.kind == "embedding":
            self._pass(index, window, text)
            return {}
        if window.window.kind == "output":
            return {}
        collector = Collector(self._group_tokens)
        self._pass(index, window, text, collector)
        return {window.source_name(own): found for own, found in collector.sums.items()}

    def _measure(self, index: int, window: OpenWindow) -> tuple[TensorErrors, ...]:
        """Errors of the window's tensors that no earlier window has.

        With the last window, of those too that no text runs through: a prediction head's.
        """
        assert self._recipe is not None
        of_window = {info.name for info in window.tensors}
        infos = window.tensors if index < self._last else self._source.tensors
        return tuple(
            tensor_errors(
                window if info.name in of_window else self._source,
                info, self._importance, self._recipe, self._pool,
            )
            for info in infos
            if is_quantizable(info) and info.name not in self._errors
        )  # fmt: skip

    def _give_logits(self, index: int, window: OpenWindow, text: _Text) -> None:
        """Give the held-out text's logits at its scored positions, a chunk after the other."""
        assert self._on_logits is not None
        scored = scored_positions(text.tokens)
        rows = slice(scored.start, scored.stop)
        for chunk in range(len(text.chunks)):
            if window.window.kind == "whole":
                logits = self._run(window, text.inputs(index, chunk, chunk + 1))
                self._on_logits(chunk, [logits[rows]])
            else:
                self._on_logits(chunk, self._logits_of(index, window, text, chunk, scored))

    def _logits_of(
        self, index: int, window: OpenWindow, text: _Text, chunk: int, at: range
    ) -> Iterator[NDArray[np.float32]]:
        """Logits of positions of a chunk, each part valid until the next."""
        sequences, tokens = self._sizes.rows_at_once(window.window, text.tokens)
        step = sequences * tokens
        for start in range(at.start, at.stop, step):
            rows = text.states.read(index, chunk, start, min(start + step, at.stop))
            yield self._run_rows(window, rows, text)

    # --- branches ------------------------------------------------------------------------------

    def _branch(self, index: int, window: OpenWindow, text: _Text) -> dict[int, Exchanged]:
        """Begin the branches of the window's units, and carry the others on."""
        states = self._branch_states
        assert states is not None
        found: dict[int, Exchanged] = {}
        touching = [n for n in self._sizes.touches.get(index, ()) if self._branches[n].unit]
        for number in touching:
            with self._exchanging(window, number) as exchanged:
                found[number] = exchanged
                self._carry(index, window, text, [number])
        carried = [
            number
            for number, begun in self._begun.items()
            if begun <= index and number not in touching
        ]
        self._carry(index, window, text, carried)
        return found

    def _carry(self, index: int, window: OpenWindow, text: _Text, numbers: Sequence[int]) -> None:
        """Run branches through the window as it is now."""
        states, size = self._branch_states, text.tokens
        assert states is not None
        pairs = [(number, chunk) for number in numbers for chunk in range(len(text.chunks))]
        step = self._sizes.capacity(window.window, size)
        for at in range(0, len(pairs), step):
            batch = pairs[at : at + step]
            inputs = [self._branch_input(index, text, *pair) for pair in batch]
            rows = self._run(window, inputs)
            for (number, chunk), part in zip(batch, np.split(rows, len(batch)), strict=True):
                other = None
                if states.differences:
                    other = text.states.read(index + 1, chunk, 0, size)
                states.write(index + 1, number, chunk * size, part, other)

    def _branch_input(self, index: int, text: _Text, number: int, chunk: int) -> Tokens | States:
        """A branch's hidden states of a chunk before the window; the text's own where it begins."""
        states, size = self._branch_states, text.tokens
        assert states is not None
        if self._begun[number] == index:
            return text.inputs(index, chunk, chunk + 1)[0]
        own = text.states.read(index, chunk, 0, size) if states.differences else None
        return states.read(index, number, chunk * size, (chunk + 1) * size, own)

    @contextmanager
    def _exchanging(
        self, window: OpenWindow, number: int, *, restores: bool = True
    ) -> Iterator[Exchanged]:
        """Have the branch's tensors in the window exchanged; yields for what.

        Args:
            restores: not, where the window is not used any more: half the memory.
        """
        assert self._recipe is not None
        branch = self._branches[number]
        errors = {
            info.name: self._errors[info.name].errors
            for info in window.tensors
            if info.name in branch.unit and self._can_exchange(info)
        }
        tensors = [info for info in window.tensors if info.name in errors]
        types = choose_types(branch, tensors, errors, self._recipe.probe_error)
        gains = choose_gains(branch, types, errors)
        if restores:
            window.hold(list(types))
        try:
            put = Exchange(window, self._importance, self._pool).put(types, gains)
            yield Exchanged(types, gains, put)
        finally:
            window.restore()

    def _can_exchange(self, info: TensorInfo) -> bool:
        """Whether it has an error that can be put in its place, in its own type."""
        needs = BY_NAME[info.type_name].needs_imatrix
        has = bool(self._errors[info.name].errors)
        return has and (not needs or info.name in self._importance)

    def _finish_branches(self, index: int, window: OpenWindow, text: _Text) -> dict[int, Exchanged]:
        """The last window: KLD of all branches against the text itself."""
        size, count, null = text.tokens, len(text.chunks), len(self._branches) - 1
        whole = window.window.kind == "whole"
        touching = [n for n in self._sizes.touches.get(index, ()) if n != null]
        carried = [number for number in self._begun if number not in (*touching, null)]
        step = self._sizes.capacity(window.window, size) * size
        if not whole:
            sequences, tokens = self._sizes.rows_at_once(window.window, text.tokens)
            step = sequences * tokens
        parts = [(at, min(at + step, count * size)) for at in range(0, count * size, step)]
        self._klds = {number: np.empty(count * size) for number in self._begun}

        def logits(number: int | None, start: int, stop: int) -> NDArray[np.float32]:
            if whole:
                return self._run(window, text.inputs(index, start // size, stop // size))
            rows = text.states.read(index, 0, start, stop)
            if number is not None and self._begun[number] < index:
                states = self._branch_states
                assert states is not None
                rows = states.read(index, number, start, stop, rows)
            return self._run_rows(window, rows, text)

        def compare(number: int, start: int, stop: int, base: BaseDistribution) -> None:
            found = base.divergence(logits(number, start, stop), self._pool)
            self._klds[number][start:stop] = found

        exchanged: dict[int, Exchanged] = {}
        with self._spool.open("w+b") as spool:
            for start, stop in parts:
                own = logits(None, start, stop).copy()
                spool.write(own.data)
                base = BaseDistribution.of(own)
                for number in carried if whole else (*carried, null):
                    compare(number, start, stop, base)
            for number in (*touching, null) if whole else touching:
                last = not whole and number == touching[-1]
                with self._exchanging(window, number, restores=not last) as found:
                    exchanged[number] = found
                    spool.seek(0)
                    for start, stop in parts:
                        values = np.fromfile(spool, "<f4", (stop - start) * self._sizes.vocabulary)
                        base = BaseDistribution.of(values.reshape(-1, self._sizes.vocabulary))
                        compare(number, start, stop, base)
        self._spool.unlink()
        return exchanged


def entry_of(sums: Sums) -> ImatrixEntry:
    """Sums as an imatrix keeps them."""
    return ImatrixEntry(sums.squares.astype(np.float32), sums.counts.astype(np.float32))


def write_sums(path: Path, sums: Mapping[str, Sums]) -> tuple[SumsPlace, ...]:
    """Write the sums of a window; returns where they lie."""
    places = []
    with path.open("wb") as file:
        for name, found in sums.items():
            matrices, columns = found.squares.shape
            places.append(SumsPlace(name, matrices, columns, len(found.counts)))
            file.write(found.squares.astype("<f8").tobytes())
            file.write(found.counts.astype("<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())
    return tuple(places)


def read_sums(path: Path, places: Sequence[SumsPlace]) -> dict[str, Sums]:
    """What `write_sums` wrote.

    Raises:
        InputError: the file is not as long as its `places` say.
    """
    from quantkit.llamacpp.activations import Sums

    expected = sum(8 * (place.matrices * place.columns + place.counts) for place in places)
    if not path.is_file() or path.stat().st_size != expected:
        raise InputError(f"{path} is damaged; delete the folder to begin anew")
    found = {}
    with path.open("rb") as file:
        for place in places:
            squares = np.fromfile(file, "<f8", place.matrices * place.columns)
            counts = np.fromfile(file, "<i8", place.counts)
            whole = bool((squares <= np.finfo(np.float32).max).all())  # not with a NaN
            if not whole or min(squares.min(), counts.min()) < 0:
                raise InputError(f"{path} is damaged; delete the folder to begin anew")
            shape = (place.matrices, place.columns)
            found[place.name] = Sums(squares.reshape(shape), counts)
    return found
