"""A release, published or not, against its own claims and against what it was made from.

Five checks, each of which collects all that is wrong: files, structure, types, claims, and the
source where one is given. What one check finds broken, the later ones leave out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.core.progress import SILENT, Progress
from quantkit.core.threads import run_all
from quantkit.core.units import bytes_text
from quantkit.release.names import SUMS
from quantkit.release.verifying.agreement import check_claims
from quantkit.release.verifying.checking import Check, Job, Outcome, count_text
from quantkit.release.verifying.claims import shown
from quantkit.release.verifying.description import ALLOCATION, Description
from quantkit.release.verifying.files import ReleaseFiles
from quantkit.release.verifying.origin import Origin, check_source
from quantkit.release.verifying.structure import (
    Artifact,
    layout_faults,
    missing_shards,
    shard_faults,
    type_faults,
)


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
        job.run("source", lambda faults: check_source(job, origin, faults))
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
    for level, claims in job.said.levels.items():
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
    if not any(file in job.files.sizes for c in job.said.levels.values() for file in c.files):
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
