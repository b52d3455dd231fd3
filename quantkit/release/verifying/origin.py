"""A release against what it was made from: files, metadata, and rows encoded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT, Progress
from quantkit.core.units import bytes_text
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.llamacpp.ggml import PACKAGE, library_version
from quantkit.models.choose import ModelChoice, imatrix_name, open_source
from quantkit.release.sums import unsafe_name
from quantkit.release.verifying.checking import Job, Outcome, count_text
from quantkit.release.verifying.claims import CheckpointClaims, shown
from quantkit.release.verifying.derivation import (
    Compared,
    compare,
    metadata_faults,
    together,
)
from quantkit.release.verifying.description import CHECKPOINT
from quantkit.release.verifying.sampling import MOST_REQUESTS, Sampling

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


def check_source(job: Job, origin: Origin, faults: list[str]) -> Outcome:
    """The artifacts that are here against what they were made from.

    Raises:
        InputError: the source cannot be read, or holds weights that are not finite.
    """
    said, choice = job.said, origin.choice
    named = replace(choice, name=said.model)
    source = open_source(named, keep_prediction=said.keep_prediction)
    files = hashed = 0
    claims = job.claims(CheckpointClaims, CHECKPOINT, [])  # its faults were told before
    if claims is not None:
        wrong, hashed = source_faults(origin.folder, claims, origin.full, job.progress)
        faults += wrong
        files = len(claims.files)
    files_text = f"{count_text(files, 'file')} ({hashed} by hash)"
    found, chosen = list[Compared](), {"seed": origin.seed, "full": origin.full}
    rows = {info.name: info.row_elements for info in source.tensors}
    imatrix = _imatrix(job, rows, faults)
    if imatrix is None:
        return files_text, f"as in {CHECKPOINT}", {"files": files, "hashed": hashed, **chosen}
    requests = MOST_REQUESTS // max(1, len(job.artifacts)) if job.files.is_remote else None
    sampling = Sampling(origin.seed, origin.full, requests)
    workers = job.files.reads_at_once if job.files.is_remote else job.workers
    for level, artifact in job.artifacts.items():
        allocation = job.allocation(level, [])  # what is wrong with it was told by an earlier check
        preset = (allocation.preset,) if allocation is not None else ()
        faults += metadata_faults(
            level, artifact.metadata, source.metadata, imatrix, imatrix_name(said.model), *preset
        )
        found.append(
            compare(
                level,
                artifact,
                job.files.read,
                source,
                imatrix,
                job.said.imatrix,
                sampling,
                workers,
                job.progress,
            )
        )
    total = together(found)
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
    facts: dict[str, Any] = {"files": files, "hashed": hashed, **chosen}
    facts |= {"tensors": total.tensors, "matrices": total.matrices}
    facts |= {"all_matrices": total.all_matrices, "rows": total.rows, "all_rows": total.all_rows}
    facts |= {"size_bytes": total.size_bytes}
    return compared, "bit for bit" if total.rows else None, facts


def _imatrix(job: Job, rows: Mapping[str, int], faults: list[str]) -> Imatrix | None:
    """The release's importance matrix; None where it is broken: a fault.

    Raises:
        InputError: it is not here.
    """
    name = job.said.imatrix
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


def source_faults(
    folder: Path, claims: CheckpointClaims, full: bool, progress: Progress = SILENT
) -> tuple[list[str], int]:
    """How the files in `folder` differ from those that the release was made from.

    Args:
        full: hash them all; otherwise large ones are compared by size.

    Returns:
        What differs, and how many files were hashed.
    """
    faults, hashed = [], 0
    progress.start(len(claims.files), "files", "of the source")
    for name, claim in claims.files.items():
        progress.advance(1)
        path = folder / name
        if unsafe_name(name) is not None:
            faults.append(f"checkpoint.json names {shown(name)}, which is no file's name")
        elif not path.is_file():
            faults.append(f"the source has no {name}, which checkpoint.json lists")
        elif (size := path.stat().st_size) != claim.size_bytes:
            faults.append(
                f"the source's {name} has {size} bytes, checkpoint.json says {claim.size_bytes}"
            )
        elif full or size <= SMALL_BYTES:
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
