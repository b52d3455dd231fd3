"""Verifies a release, published or not, against its own claims and against its source.

Five checks, each of which collects all faults: files, structure, types, claims, and the source
where one is given. Later checks leave out what an earlier one found damaged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.core.printable import shown
from quantkit.core.progress import SILENT, Progress
from quantkit.core.threads import run_all
from quantkit.core.units import bytes_text
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.llamacpp.ggml import PACKAGE, library_version
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile
from quantkit.models.choose import ModelChoice, imatrix_name, open_source
from quantkit.release.layout import SUMS, unsafe_name
from quantkit.release.verifying.agreement import check_claims
from quantkit.release.verifying.checking import Check, Job, Outcome, count_text
from quantkit.release.verifying.derivation import (
    MOST_REQUESTS,
    Compared,
    Sampling,
    compare,
    metadata_faults,
)
from quantkit.release.verifying.description import ALLOCATION, Description
from quantkit.release.verifying.files import ReleaseFiles
from quantkit.release.verifying.structure import (
    Artifact,
    layout_faults,
    missing_shards,
    shard_faults,
    type_faults,
)

SMALL_BYTES = 64 << 20
"""Files of the source that are hashed in any case; larger ones take minutes to read."""


@dataclass(frozen=True)
class Origin:
    """What a release is compared with: a model on this disk, and how much of it.

    Attributes:
        seed: chooses the rows.
        full: all rows, and the hashes of all files.
    """

    choice: ModelChoice
    seed: int
    full: bool = False

    @property
    def folder(self) -> Path:
        """Where the files of checkpoint.json lie."""
        assert self.choice.path is not None
        return self.choice.path.parent if self.choice.kind == "gguf" else self.choice.path


@dataclass(frozen=True)
class Verified:
    """What was found of a release.

    Attributes:
        not_covered: files that no hash covers.
        not_here: files that the release has and this folder does not.
        notes: what else a person should know.
    """

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
    said: Description,
    origin: Origin | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Verified:
    """Compare a release with what it says, and with `origin`.

    Args:
        workers: threads that encode rows again.
        on_check: told of each check when it is done.

    Raises:
        InputError: the origin cannot be read.
        EnvironmentFault: the network or the Hub failed.
    """
    job = Job(files, said, workers, progress, on_check)
    own = {SUMS} if said.kind == "release" else set()
    not_here = tuple(name for name in said.hashes if name not in files.sizes)
    not_covered = tuple(sorted(name for name in files.sizes if name not in {*said.hashes, *own}))
    if said.stale:
        job.notes.append(
            f"{', '.join(said.stale)} left out: made from an importance matrix, a model or an "
            "allocation that the build has replaced since"
        )
    job.run("files", lambda faults: _files(job, not_here, faults))
    job.run("structure", lambda faults: _structure(job, faults))
    job.run("types", lambda faults: _types(job, faults))
    job.run("claims", lambda faults: check_claims(job, faults))
    if origin is not None:
        job.run("source", lambda faults: _source(job, origin, faults))
    return Verified(files.where, said, tuple(job.checks), not_covered, not_here, tuple(job.notes))


def _files(job: Job, not_here: tuple[str, ...], faults: list[str]) -> Outcome:
    """SHA-256 of every file that is here."""
    files, said = job.files, job.said
    if files.is_remote:
        faults += [f"{name} is in {said.hashed_by}, not in the repository" for name in not_here]
        faults += [
            f"{shown(name)} is in the repository, and no hash of {said.hashed_by} covers it: "
            "programs may load it for one of the release's"
            for name in files.sizes
            if name.lower().endswith(".gguf") and name not in said.hashes
        ]
    names = [name for name in said.hashes if name in files.sizes]
    total = sum(files.sizes[name] for name in names)
    job.progress.start(total, "B", "hashes")
    wrong, lock = list[str](), threading.Lock()

    def advance(count: int) -> None:
        with lock:
            job.progress.advance(count)

    def look(name: str) -> None:
        try:
            found = files.sha256(name, advance)
        except InputError as error:
            with lock:
                wrong.append(str(error))
            return
        if found != said.hashes[name]:
            with lock:
                wrong.append(
                    f"{name} has the SHA-256 {found[:12]}…, {said.hashed_by} says "
                    f"{said.hashes[name][:12]}…"
                )

    run_all(look, names, files.reads_at_once, threading.Event())
    faults += sorted(wrong)
    compared = f"{count_text(len(names), 'file')}, {bytes_text(total)}"
    if files.is_remote:
        compared += ", large ones by the Hub's record"
    facts = {"files": len(names), "size_bytes": total, "not_here": len(not_here)}
    return compared, f"SHA-256 as in {said.hashed_by}", facts


def _structure(job: Job, faults: list[str]) -> Outcome:
    """The headers of every level that is here, and of the importance matrix."""
    count, tensors = 0, 0
    for level, claims in job.said.manifest.levels.items():
        missing = missing_shards(claims.files, job.files.sizes)
        if missing:
            some = ", ".join(map(shown, missing[:3]))
            faults.append(
                f"{level}: {len(missing)} of {len(claims.files)} files are missing: {some}"
            )
        if not all(file in job.files.sizes for file in claims.files):
            continue
        try:
            artifact = Artifact({file: job.header(file) for file in claims.files})
        except InputError as error:
            faults.append(str(error))
            continue
        job.artifacts[level] = artifact
        for file, header in artifact.headers.items():
            faults += layout_faults(file, header)
        faults += shard_faults(level, artifact)
        count, tensors = count + len(claims.files), tensors + len(artifact.infos)
    if not any(
        file in job.files.sizes for c in job.said.manifest.levels.values() for file in c.files
    ):
        faults.append("no GGUF file of any level is here")
    artifacts = count_text(len(job.artifacts), "artifact")
    compared = f"{artifacts} in {count_text(count, 'file')}, {count_text(tensors, 'tensor')}"
    facts = {"levels": len(job.artifacts), "files": count, "tensors": tensors}
    if not job.artifacts:
        return compared, None, facts
    return compared, "aligned, without gap or overlap, to the last byte", facts


def _types(job: Job, faults: list[str]) -> Outcome:
    """Types and bytes against allocation.json."""
    levels, tensors = 0, 0
    for level, artifact in job.artifacts.items():
        claims = job.allocation(level, faults)
        if claims is not None:
            faults += type_faults(level, artifact, claims)
            levels, tensors = levels + 1, tensors + len(claims.tensors)
    where = count_text(levels, "level")
    compared = f"{count_text(tensors, 'tensor')} of {where}"
    facts = {"levels": levels, "tensors": tensors}
    if not levels:
        return f"no {ALLOCATION} of a level that could be read is here", None, facts
    return compared, f"type and bytes as in {ALLOCATION}", facts


def _source(job: Job, origin: Origin, faults: list[str]) -> Outcome:
    """The artifacts that are here against what they were made from.

    Raises:
        InputError: the source cannot be read, or holds weights that are not finite.
    """
    said, choice = job.said.manifest, origin.choice
    named = replace(choice, name=said.model)
    source = open_source(named, keep_prediction=said.mtp == "keep")
    files = hashed = 0
    checkpoint = job.document(CheckpointFile, CHECKPOINT_FILE, [])  # its faults were told before
    if checkpoint is not None:
        wrong, hashed = _file_faults(origin, checkpoint, job.progress)
        faults += wrong
        files = len(checkpoint.files)
    files_text = f"{count_text(files, 'file')} ({hashed} by hash)"
    facts: dict[str, Any] = {"files": files, "hashed": hashed}
    facts |= {"seed": origin.seed, "full": origin.full}
    rows = {info.name: info.row_elements for info in source.tensors}
    imatrix = _imatrix(job, rows, faults)
    if imatrix is None:
        return files_text, f"as in {CHECKPOINT_FILE}", facts
    requests = MOST_REQUESTS // max(1, len(job.artifacts)) if job.files.is_remote else None
    sampling = Sampling(origin.seed, origin.full, requests)
    workers = job.files.reads_at_once if job.files.is_remote else job.workers
    total = Compared()
    for level, artifact in job.artifacts.items():
        allocation = job.allocation(level, [])  # what is wrong with it was told by an earlier check
        preset = (allocation.preset,) if allocation is not None else ()
        faults += metadata_faults(
            level, artifact.metadata, source.metadata, imatrix, imatrix_name(said.model), *preset
        )
        total += compare(
            level, artifact, job.files.read, source, imatrix, said.imatrix, sampling, workers,
            job.progress,
        )  # fmt: skip
    faults += total.faults
    if total.faults:
        here = {PACKAGE: library_version(), "quantkit": __version__}
        job.notes.append(version_words(said.versions, here))
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
    name = job.said.manifest.imatrix
    if name not in job.files.sizes and not job.files.is_remote:
        raise InputError(f"the weights cannot be compared without {name}: download it too")
    try:
        with job.files.path(name) as path:
            try:
                return read_imatrix(path, rows)
            except InputError as error:
                faults.append(str(error).replace(str(path), name))
    except InputError as error:
        faults.append(str(error))
    return None


def _file_faults(
    origin: Origin, checkpoint: CheckpointFile, progress: Progress
) -> tuple[list[str], int]:
    """How the source's files differ from checkpoint.json, and how many of them were hashed.

    Large ones are compared by size, unless the origin says `full`.
    """
    faults, hashed = [], 0
    progress.start(len(checkpoint.files), "files", "of the source")
    for name, claim in checkpoint.files.items():
        progress.advance(1)
        path = origin.folder / name
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
    return faults, hashed


def version_words(made_with: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What may explain a difference: the versions, and the machine's own kernels."""
    others = [
        f"{name} {shown(version)}, here is {here[name]}"
        for name, version in made_with.items()
        if name in here and version != here[name]
    ]
    if others:
        return (
            f"it was made with {'; '.join(others)}: another version may round otherwise; "
            "compare with the one that made it"
        )
    same = ", ".join(f"{name} {here[name]}" for name in made_with if name in here)
    return (
        f"it was made with the versions that are here ({same}), so what may explain it, beside "
        "other weights, is kernels that were compiled for another CPU"
    )
