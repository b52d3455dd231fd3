"""Verifies a release, published or not, against its own claims and against its source.

Five checks, each of which collects all faults: files, structure, types, claims, and the source
where one is given. Later checks leave out what an earlier one found damaged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from quantkit import __version__
from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT, Progress
from quantkit.core.threads import run_all
from quantkit.core.units import bytes_text, shown
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.llamacpp.ggml import PACKAGE, library_version
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile, SourceFile
from quantkit.models.choose import ModelChoice, imatrix_name, open_source
from quantkit.release.layout import SUMS, unsafe_name
from quantkit.release.verifying.agreement import check_claims
from quantkit.release.verifying.checking import (
    Check,
    Job,
    Outcome,
    check_structure,
    check_types,
    count_text,
)
from quantkit.release.verifying.derivation import (
    MOST_REQUESTS,
    Compared,
    Sampling,
    compare,
    metadata_faults,
)
from quantkit.release.verifying.description import Description
from quantkit.release.verifying.files import ReleaseFiles

SMALL_BYTES = 64 << 20
"""Files of the source that are hashed in any case; larger ones take minutes to read."""


@dataclass(frozen=True)
class Origin:
    """What a release is compared with: a model on this disk, and rows that `seed` chooses.

    With `full`: all rows, and the hashes of all files.
    """

    choice: ModelChoice
    seed: int
    full: bool = False


@dataclass(frozen=True)
class Verified:
    """What was found of a release; files that no hash covers, and files that are elsewhere."""

    where: str
    description: Description
    checks: tuple[Check, ...]
    not_covered: tuple[str, ...]
    not_here: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(fault for check in self.checks for fault in check.faults)


def verify(
    files: ReleaseFiles,
    described: Description,
    origin: Origin | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Verified:
    """Compare a release with its description, and with `origin`.

    Raises:
        InputError: the origin cannot be read.
        EnvironmentFault: the network or the Hub failed.
    """
    job = Job(files, described, workers, progress, on_check)
    covered = {*described.hashes, *([SUMS] if described.kind == "release" else [])}
    not_here = tuple(name for name in described.hashes if name not in files.sizes)
    not_covered = tuple(sorted(name for name in files.sizes if name not in covered))
    if described.stale:
        job.notes.append(
            f"{', '.join(described.stale)} left out: made from an importance matrix, a model or "
            "an allocation that the build has replaced since"
        )
    job.run("files", _check_files)
    job.run("structure", check_structure)
    job.run("types", check_types)
    job.run("claims", check_claims)
    if origin is not None:
        job.run("source", lambda job, faults: _check_source(job, origin, faults))
    checks, notes = tuple(job.checks), tuple(job.notes)
    return Verified(files.where, described, checks, not_covered, not_here, notes)


def _check_files(job: Job, faults: list[str]) -> Outcome:
    """SHA-256 of every file that is here."""
    files, hashes, source = job.files, job.described.hashes, job.described.hashed_by
    names = [name for name in hashes if name in files.sizes]
    if files.is_remote:
        faults += [
            f"{name} is in {source}, not in the repository"
            for name in hashes
            if name not in files.sizes
        ]
        faults += [
            f"{shown(name)} is in the repository, and no hash of {source} covers it: "
            "programs may load it for one of the release's"
            for name in files.sizes
            if name.lower().endswith(".gguf") and name not in hashes
        ]
    total = sum(files.sizes[name] for name in names)
    job.progress.start(total, "B", "hashes")
    lock = threading.Lock()
    wrong = list[str]()

    def advance(count: int) -> None:
        with lock:
            job.progress.advance(count)

    def look(name: str) -> None:
        try:
            found = files.sha256(name, advance)
        except InputError as error:
            wrong.append(str(error))
            return
        if found != hashes[name]:
            wrong.append(
                f"{name} has the SHA-256 {found[:12]}…, {source} says {hashes[name][:12]}…"
            )

    run_all(look, names, files.reads_at_once, threading.Event())
    faults += sorted(wrong)
    compared = f"{count_text(len(names), 'file')}, {bytes_text(total)}"
    if files.is_remote:
        compared += ", large ones by the Hub's record"
    facts = {"files": len(names), "size_bytes": total, "not_here": len(hashes) - len(names)}
    return compared, f"SHA-256 as in {source}", facts


def _check_source(job: Job, origin: Origin, faults: list[str]) -> Outcome:
    """The artifacts that are here against what they were made from.

    Raises:
        InputError: the source cannot be read, or holds weights that are not finite.
    """
    manifest = job.described.manifest
    named = replace(origin.choice, name=manifest.model)
    source = open_source(named, keep_prediction=manifest.mtp == "keep")
    # faults of documents were reported by earlier checks
    checkpoint = job.document(CheckpointFile, CHECKPOINT_FILE, [])
    claims = {} if checkpoint is None else checkpoint.files
    files, hashed = len(claims), _check_source_files(job, origin, claims, faults)
    files_text = f"{count_text(files, 'file')} ({hashed} by hash)"
    facts: dict[str, Any] = {
        "files": files, "hashed": hashed, "seed": origin.seed, "full": origin.full,
    }  # fmt: skip
    rows = {info.name: info.row_elements for info in source.tensors}
    imatrix = _imatrix(job, rows, faults)
    if imatrix is None:
        return files_text, f"as in {CHECKPOINT_FILE}", facts
    requests = MOST_REQUESTS // max(1, len(job.artifacts)) if job.files.is_remote else None
    sampling = Sampling(origin.seed, origin.full, requests)
    workers = job.files.reads_at_once if job.files.is_remote else job.workers
    total = Compared()
    for level, artifact in job.artifacts.items():
        allocation = job.allocation(level, [])
        preset = () if allocation is None else (allocation.preset,)
        name = imatrix_name(manifest.model)
        found = metadata_faults(artifact.metadata, source.metadata, imatrix, name, *preset)
        faults += [f"{level}: {fault}" for fault in found]
        total += compare(
            level, artifact, job.files.read, source, imatrix, manifest.imatrix, sampling, workers,
            job.progress,
        )  # fmt: skip
    faults += total.faults
    if total.faults:
        here = {PACKAGE: library_version(), "quantkit": __version__}
        job.notes.append(version_words(manifest.versions, here))
    rows_text = f"{total.rows:,} sampled rows of {total.all_rows:,} (seed {origin.seed})"
    if total.rows == total.all_rows:
        rows_text = f"all {total.rows:,} rows"
    compared = (
        f"{files_text}, {count_text(total.tensors, 'tensor')}, {total.matrices:,} of "
        f"{total.all_matrices:,} matrices, {rows_text}, {bytes_text(total.size_bytes)}"
    )
    facts |= asdict(total)
    del facts["faults"]
    return compared, "bit for bit" if total.rows else None, facts


def _imatrix(job: Job, rows: Mapping[str, int], faults: list[str]) -> Imatrix | None:
    """The release's importance matrix; None where it is broken: a fault.

    Raises:
        InputError: it is not here.
    """
    name = job.described.manifest.imatrix
    if name not in job.files.sizes and not job.files.is_remote:
        raise InputError(f"the weights cannot be compared without {name}: download it too")
    local = name
    try:
        with job.files.path(name) as path:
            local = str(path)
            return read_imatrix(path, rows)
    except InputError as error:
        faults.append(str(error).replace(local, name))
        return None


def _check_source_files(
    job: Job, origin: Origin, claims: Mapping[str, SourceFile], faults: list[str]
) -> int:
    """Compare the source's files with checkpoint.json; returns how many of them were hashed.

    Large ones are compared by size, unless the origin says `full`.
    """
    hashed, place = 0, origin.choice.path
    assert place is not None
    folder = place.parent if origin.choice.kind == "gguf" else place
    job.progress.start(len(claims), "files", "of the source")
    for name, claim in claims.items():
        job.progress.advance(1)
        path = folder / name
        if unsafe_name(name) is not None:
            faults.append(f"checkpoint.json names {shown(name)}, which is no file's name")
        elif not path.is_file():
            faults.append(f"the source has no {name}, which checkpoint.json lists")
        elif (size := path.stat().st_size) != claim.size_bytes:
            faults.append(
                f"the source's {name} has {size} bytes, checkpoint.json says {claim.size_bytes}"
            )
        elif origin.full or size <= SMALL_BYTES:
            hashed += 1
            if file_sha256(path) != claim.sha256:
                faults.append(f"the source's {name} is not the file that checkpoint.json lists")
    return hashed


def version_words(made_with: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What may explain a difference: the versions, and the machine's own kernels."""
    common = {name: version for name, version in made_with.items() if name in here}
    others = [f"{n} {shown(v)}, here is {here[n]}" for n, v in common.items() if v != here[n]]
    if others:
        return (
            f"it was made with {'; '.join(others)}: another version may round otherwise; "
            "compare with the one that made it"
        )
    same = ", ".join(f"{name} {version}" for name, version in common.items())
    return (
        f"it was made with the versions that are here ({same}), so what may explain it, beside "
        "other weights, is kernels that were compiled for another CPU"
    )
