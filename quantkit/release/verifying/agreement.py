"""What a release claims against its files: sizes, bits, verdicts, hits, the importance matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping

from quantkit.core.errors import InputError
from quantkit.core.hub_address import HubAddress
from quantkit.formats.imatrix_file import COUNTS
from quantkit.formats.imatrix_file import SUMS as SQUARES
from quantkit.release.names import artifact_names, evidence_folder
from quantkit.release.verifying.checking import Job, Outcome, count_text
from quantkit.release.verifying.claims import (
    CheckpointClaims,
    LevelClaims,
    ValidationClaims,
    parse_answers,
    shown,
)
from quantkit.release.verifying.description import ANSWERS, CHECKPOINT, VALIDATION
from quantkit.release.verifying.evidence import evidence_faults
from quantkit.release.verifying.structure import layout_faults


def check_claims(job: Job, faults: list[str]) -> Outcome:
    """release.json, or the receipts, against the files; validation.json against its answers."""
    _name_faults(job, faults)
    _model_faults(job, faults)
    _source_faults(job, faults)
    answers = levels = 0
    for level, claims in job.said.levels.items():
        counted = None if level in job.said.unvalidated else _evidence(job, level, claims, faults)
        if counted is not None:
            levels, answers = levels + 1, answers + counted
    weights = _imatrix_weights(job, faults)
    compared = (
        f"{count_text(len(job.artifacts), 'level')}, {answers:,} answers of "
        f"{count_text(levels, 'level')}, importance matrix of {count_text(weights, 'weight')}"
    )
    facts = {"levels": len(job.artifacts), "validations": levels, "answers": answers}
    facts |= {"imatrix_weights": weights}
    stated = ["sizes and bits"] if job.artifacts else []
    of_these = " of these files" if job.said.kind == "release" else ""
    stated += [f"hits, bounds and verdicts{of_these}"] if levels else []
    if not stated:
        return "neither artifacts nor evidence are here", None, facts
    return compared, f"{', '.join(stated)} as stated", facts


def _name_faults(job: Job, faults: list[str]) -> None:
    """Levels whose files, or whose evidence, are called after something else."""
    if job.said.kind != "release":
        return
    for level, claims in job.said.levels.items():
        stem, count = f"{job.said.model}-{level}", len(claims.files)
        names = [f"{stem}.gguf"]
        if count > 1:
            names = [f"{stem}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
        wanted = artifact_names(level, names)
        wrong = [pair for pair in zip(claims.files, wanted, strict=True) if pair[0] != pair[1]]
        if wrong:
            more = f", and {len(wrong) - 1} more are not" if len(wrong) > 1 else ""
            faults.append(f"{level}: {shown(wrong[0][0])} is not called {wrong[0][1]}{more}")
        if claims.evidence != evidence_folder(level):
            faults.append(
                f"{level}: its evidence is in {shown(claims.evidence)}, not "
                f"{evidence_folder(level)}"
            )


def _model_faults(job: Job, faults: list[str]) -> None:
    """Sizes, bits, parameters and architecture of the levels that are here."""
    said = job.said
    owners: dict[str, str] = {said.imatrix: "the importance matrix"}
    for level, claims in said.levels.items():
        for file in claims.files:
            other = owners.setdefault(file, level)
            if other != level:
                faults.append(f"{shown(level)}: {shown(file)} is a file of {shown(other)} too")
    if said.kind == "release":
        stray = [n for n in said.hashes if n.lower().endswith(".gguf") and n not in owners]
        faults += [f"{name} is of no level in release.json" for name in stray]
    for level, artifact in job.artifacts.items():
        claims, size = said.levels[level], artifact.size_bytes
        elements = artifact.elements
        if size != claims.size_bytes:
            faults.append(f"{level}: its files have {size} bytes, not {claims.size_bytes}")
        elif elements != said.parameters:
            faults.append(f"{level}: it has {elements} parameters, not {said.parameters}")
        elif not math.isclose(claims.bits_per_weight, 8 * size / elements, rel_tol=1e-9):
            faults.append(
                f"{level}: it has {8 * size / elements:.4f} bits a weight, not "
                f"{claims.bits_per_weight:.4f}"
            )
        found = artifact.metadata.get("general.architecture")
        architecture = None if found is None else found.value
        if architecture is None or said.architecture not in (None, architecture):
            faults.append(
                f"{level}: its architecture is {shown(str(architecture))}, not "
                f"{shown(str(said.architecture))}"
            )


def _source_faults(job: Job, faults: list[str]) -> None:
    """What release.json says it was made from, against checkpoint.json.

    A checkpoint that came from a folder knows no repository; who published may have named one.
    """
    checkpoint, said = job.claims(CheckpointClaims, CHECKPOINT, faults), job.said.source
    if checkpoint is None:
        return
    if not checkpoint.files:
        faults.append(f"{CHECKPOINT} lists no file: it does not say what it was made from")
    if said is None or checkpoint.commit is None:
        return
    repository = HubAddress.parse(checkpoint.model).repository
    if (said.repository or "").lower() != repository.lower():  # as the Hub compares
        faults.append(
            f"release.json says it was made from {shown(str(said.repository))}, {CHECKPOINT} from "
            f"{shown(repository)}"
        )
    if said.commit != checkpoint.commit:
        faults.append(
            f"release.json says it was made from the commit {shown(str(said.commit))}, "
            f"{CHECKPOINT} from {shown(checkpoint.commit)}"
        )


def _asked_faults(job: Job, level: str, claims: LevelClaims, asked: Mapping[str, str]) -> list[str]:
    """Whether what was asked are the files of the level, by their hashes."""
    there = {file.rpartition("/")[2]: job.said.hashes[file] for file in claims.files}
    faults = []
    for name in sorted(there.keys() | asked.keys()):
        here, then = there.get(name), asked.get(name)
        if here is None:
            faults.append(f"{level}: what was asked had the file {shown(name)}, which is not its")
        elif then is None:
            faults.append(f"{level}: what was asked had no file {shown(name)}")
        elif then != here:
            faults.append(
                f"{level}: the {shown(name)} that was asked has the SHA-256 {shown(then[:12])}…, "
                f"the one of this level {here[:12]}…"
            )
    return faults


def _evidence(job: Job, level: str, claims: LevelClaims, faults: list[str]) -> int | None:
    """How many answers a level's validation.json was compared with; None: it is not here."""
    validation = job.claims(ValidationClaims, f"{claims.evidence}/{VALIDATION}", faults)
    if validation is not None and validation.artifact is not None:
        faults += _asked_faults(job, level, claims, validation.artifact)
    elif validation is not None:
        silent = f"{level}: validation.json does not say which file was asked"
        (faults if job.said.kind == "release" else job.notes).append(silent)
    name = f"{claims.evidence}/{ANSWERS}"
    content = job.content(name, faults)
    if validation is None or content is None:
        return None
    try:
        answers = parse_answers(content, shown(name))
    except InputError as error:
        faults.append(str(error))
        return None
    faults += evidence_faults(level, validation, answers)
    if validation.passed != claims.passed:
        where = "release.json" if job.said.kind == "release" else "its receipt"
        faults.append(
            f"{level}: passed is {validation.passed} in validation.json, {claims.passed} in {where}"
        )
    if not claims.passed:
        kind = "a baseline" if claims.baseline else "not a baseline"
        job.notes.append(f"{level} did not pass its retrieval gate ({kind}), as it says")
    return len(answers)


def _imatrix_weights(job: Job, faults: list[str]) -> int:
    """Weights in the importance matrix, by its header."""
    name = job.said.imatrix
    if name not in job.files.sizes:
        return 0
    try:
        header = job.header(name)
    except InputError as error:
        faults.append(str(error))
        return 0
    faults += layout_faults(name, header)
    kind = header.metadata.get("general.type")
    weights = [n.removesuffix(SQUARES) for n in header.stored if n.endswith(SQUARES)]
    if kind is None or kind.value != "imatrix":
        faults.append(f"{name} is no importance matrix: general.type is not 'imatrix'")
    missing = [w for w in weights if w + COUNTS not in header.stored]
    faults += [f"{name}: {shown(weight)} has sums but no counts" for weight in missing]
    return len(weights)
