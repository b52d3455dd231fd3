"""Compares an artifact with its source: rows are encoded again and compared byte for byte.

Rows, sampled or all, are encoded by the code that quantizes (`encode.encode_rows`), with the
release's own importance matrix. The source is on this disk; the artifact may be remote.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.progress import SILENT, Progress
from quantkit.core.threads import run_all
from quantkit.core.units import shown
from quantkit.formats.imatrix_file import LARGEST_IMPORTANCE, Imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo, TensorSource
from quantkit.quantize import kernels
from quantkit.quantize.encode import ENCODED_ROWS_BYTES, Importance, encode_rows, row_blocks
from quantkit.quantize.quantize import artifact_metadata, preset_file_type
from quantkit.release.verifying.checking import Artifact

NEVER_MADE = frozenset({"I8", "I16", "I32", "I64", "F64"})
"""Types that are only copied: ggml aborts the process when asked to encode one."""
FILE_TYPE = "general.file_type"

ROWS_OF_A_MATRIX = 4
ROWS_OF_AN_EXPERT = 1
MOST_REQUESTS = 2000
"""For one artifact elsewhere: the Hub grants 3000 in five minutes to those without an account."""


@dataclass(frozen=True)
class Sampling:
    """Which rows are compared: all, or some that `seed` chooses.

    Attributes:
        most_requests: for one artifact; None where a reading costs next to nothing. Rows of a
            matrix then lie together, and of the experts of a stack some may be left out.
    """

    seed: int
    full: bool = False
    most_requests: int | None = None


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of a tensor in its type in the artifact; they lie in one matrix."""

    info: TensorInfo
    matrix: int
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        return BY_NAME[self.info.type_name].size_bytes(self.info.row_elements)


def spans(infos: Sequence[TensorInfo], sampling: Sampling) -> Iterator[list[Span]]:
    """The rows to compare, some at a time: a tensor's where all are, else all at once."""
    infos = [info for info in infos if info.elements]
    if sampling.full:
        yield from ([Span(i, *b) for b in row_blocks(i, ENCODED_ROWS_BYTES)] for i in infos)
        return
    rng = np.random.default_rng(sampling.seed)
    stacks = sum(info.matrices > 1 for info in infos)
    experts = None
    if sampling.most_requests is not None and stacks:
        experts = max(1, (sampling.most_requests - (len(infos) - stacks)) // stacks)
    yield [span for info in infos for span in _sampled(info, rng, experts, sampling)]


def _sampled(
    info: TensorInfo, rng: np.random.Generator, experts: int | None, sampling: Sampling
) -> Iterator[Span]:
    each = info.rows // info.matrices
    count = min(each, ROWS_OF_A_MATRIX if info.matrices == 1 else ROWS_OF_AN_EXPERT)
    chosen: Sequence[int] = range(info.matrices)
    if experts is not None and experts < info.matrices:
        chosen = sorted(rng.choice(info.matrices, experts, replace=False).tolist())
    for matrix in chosen:
        base = matrix * each
        if sampling.most_requests is not None:  # one request
            first = base + int(rng.integers(each - count + 1))
            yield Span(info, matrix, first, first + count)
        else:
            for row in sorted(rng.choice(each, count, replace=False).tolist()):
                yield Span(info, matrix, base + row, base + row + 1)


@dataclass(frozen=True)
class Compared:
    """What was compared, of all that there is; `faults` is what differs. Compared can be added."""

    tensors: int = 0
    matrices: int = 0
    all_matrices: int = 0
    rows: int = 0
    all_rows: int = 0
    size_bytes: int = 0
    faults: tuple[str, ...] = ()

    def __add__(self, other: Compared) -> Compared:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Compared(*(one + another for one, another in pairs))


@dataclass
class _Tally:
    """What was compared of one tensor, and what differs."""

    info: TensorInfo
    rows: int = 0
    size_bytes: int = 0
    wrong_rows: int = 0
    wrong_bytes: int = 0
    first_wrong: list[int] = field(default_factory=list)
    """Of each span."""
    matrices: set[int] = field(default_factory=set)
    unencoded: bool = False

    def add(self, span: Span, made: NDArray[np.uint8], there: bytes) -> None:
        self.rows += span.stop - span.start
        self.size_bytes += made.size
        self.matrices.add(span.matrix)
        if made.tobytes() == there:
            return
        rows = made.reshape(-1, span.row_bytes)
        differs = (rows != np.frombuffer(there, np.uint8).reshape(rows.shape)).sum(axis=1)
        wrong = span.start + np.flatnonzero(differs)
        self.wrong_rows += wrong.size
        self.first_wrong += wrong[:1].tolist()
        self.wrong_bytes += int(differs.sum())

    def fault(self, imatrix_file: str) -> str | None:
        name, kind = shown(self.info.name), self.info.type_name
        if self.unencoded:
            return f"{name} cannot be encoded as {kind} with what {imatrix_file} holds for it"
        if not self.wrong_rows:
            return None
        matrix, row = divmod(min(self.first_wrong), self.info.rows // self.info.matrices)
        where = f"row {row}" + (f" of expert {matrix}" if self.info.matrices > 1 else "")
        return (
            f"{name}, {kind}, is not what the source gives in {self.wrong_rows} of "
            f"{self.rows} rows, {self.wrong_bytes} of {self.size_bytes} bytes; the first is {where}"
        )


def metadata_faults(
    artifact: Metadata, source: Metadata, imatrix: Imatrix, imatrix_file: str, *preset: str | None
) -> list[str]:
    """How the artifact's metadata differs from what quantkit writes for the source.

    Args:
        imatrix_file: the name that builds give the importance matrix.
        preset: that allocation.json names; left out where it is not known.
    """
    expected = artifact_metadata(source, imatrix, imatrix_file)
    expected.pop("general.alignment", None)  # files have the default
    if not preset and FILE_TYPE in artifact:
        expected[FILE_TYPE] = artifact[FILE_TYPE]
    elif preset and (file_type := preset_file_type(preset[0])) is not None:
        expected[FILE_TYPE] = MetaValue("u32", file_type)
    faults = []
    for key in dict.fromkeys((*expected, *artifact)):
        if key not in artifact:
            faults.append(f"its metadata has no {shown(key)}")
        elif key not in expected:
            faults.append(f"its metadata has {shown(key)}, which the source does not give")
        elif expected[key] != artifact[key]:
            faults.append(f"its metadata's {shown(key)} is not what the source gives")
    return faults


def shape_faults(
    artifact: Artifact, source: TensorSource, imatrix: Imatrix, imatrix_file: str
) -> dict[str, str]:
    """Tensor → why its rows cannot be compared with the source's; none where all can."""
    there = {info.name: info for info in artifact.infos}
    faults = {}
    for wanted in source.tensors:
        info = there.get(wanted.name)
        entry = imatrix.entries.get(wanted.name)
        shape = (wanted.matrices, wanted.row_elements)
        if info is None:
            reason = "is missing"
        elif info.shape != wanted.shape:
            reason = f"has the shape {info.shape}, not {wanted.shape}"
        elif info.type_name == wanted.type_name:
            continue  # taken as it is
        elif info.type_name in NEVER_MADE:
            reason = f"is {info.type_name}, the source's is {wanted.type_name}"
        elif entry is None and BY_NAME[info.type_name].needs_imatrix:
            reason = f"is {info.type_name}, which needs importance; {imatrix_file} has none for it"
        elif entry is not None and entry.sums.shape != shape:
            reason = (
                f"has importance of the shape {entry.sums.shape} in {imatrix_file}, not {shape}"
            )
        elif entry is not None and not entry.is_usable:
            reason = (
                f"has importance in {imatrix_file} that no activations give: sums over counts "
                f"beyond {LARGEST_IMPORTANCE:g}"
            )
        else:
            continue
        faults[wanted.name] = f"{shown(wanted.name)} {reason}"
    for name in sorted(there.keys() - {info.name for info in source.tensors}):
        faults[name] = f"{shown(name)} is not a tensor of the source"
    return faults


def compare(
    level: str,
    artifact: Artifact,
    read: Callable[[str, int, int], bytes],
    source: TensorSource,
    imatrix: Imatrix,
    imatrix_file: str,
    sampling: Sampling,
    workers: int,
    progress: Progress = SILENT,
) -> Compared:
    """Encode rows of `source` as `artifact` has them, and compare the bytes.

    Args:
        read: gives the bytes [start, stop) of a file of the artifact.
        imatrix_file: its name, for messages.
        workers: threads, each of which reads, encodes and compares.

    Raises:
        InputError: the source's weights are not finite.
    """
    unlike = shape_faults(artifact, source, imatrix, imatrix_file)
    places = artifact.tensors
    stored_types = {info.name: info.type_name for info in source.tensors}
    infos = [info for info in artifact.infos if info.name not in unlike]
    with np.errstate(over="ignore"):  # of tensors that are kept as they are
        importance: Importance = {
            name: entry.importance()
            for name, entry in imatrix.entries.items()
            if name in places and name not in unlike
        }
    for kind in {BY_NAME[info.type_name] for info in infos}:
        if kind.is_quantized:
            kernels.prepare(kind)
    tallies = {info.name: _Tally(info) for info in infos}
    lock = threading.Lock()

    def encoded(span: Span, importance: Importance) -> NDArray[np.uint8]:
        rows, stored_type = (span.start, span.stop), stored_types[span.info.name]
        return encode_rows(source, span.info, span.matrix, rows, importance, stored_type)

    def work(span: Span) -> None:
        info, tally = span.info, tallies[span.info.name]
        if tally.unencoded:
            return
        try:
            made = encoded(span, importance)
        except InputError:
            weights = importance.get(info.name)
            if weights is None:
                raise
            encoded(span, {info.name: np.ones_like(weights)})  # else it is the source
            tally.unencoded = True
            return
        file, at = places[info.name]
        start, stop = (at.offset + row * span.row_bytes for row in (span.start, span.stop))
        there = read(file, start, stop)
        with lock:
            tally.add(span, made, there)
            progress.advance(stop - start)

    total = sum(places[info.name][1].size_bytes for info in infos)
    for number, batch in enumerate(spans(infos, sampling)):
        if not sampling.full:
            total = sum((span.stop - span.start) * span.row_bytes for span in batch)
        if number == 0:
            progress.start(total, "B", level)
        run_all(work, batch, workers, threading.Event())
    found = [tally.fault(imatrix_file) for tally in tallies.values()]
    faults = [*unlike.values(), *(fault for fault in found if fault is not None)]
    return Compared(
        tensors=len(infos),
        matrices=sum(len(tally.matrices) for tally in tallies.values()),
        all_matrices=sum(info.matrices for info in artifact.infos),
        rows=sum(tally.rows for tally in tallies.values()),
        all_rows=sum(info.rows for info in artifact.infos),
        size_bytes=sum(tally.size_bytes for tally in tallies.values()),
        faults=tuple(f"{level}: {fault}" for fault in faults),
    )
