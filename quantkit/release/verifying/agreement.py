"""Compares what a release claims with its files: sizes, bits, verdicts, hits, importance matrix.

Answers are scored again; the hits, bounds and verdicts in validation.json must follow from them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from quantkit.core.errors import InputError
from quantkit.core.paths import HubAddress
from quantkit.core.units import shown
from quantkit.formats.imatrix_file import COUNTS
from quantkit.formats.imatrix_file import SUMS as SQUARES
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile
from quantkit.release.layout import (
    ANSWERS,
    VALIDATION,
    ReleasedLevel,
    artifact_names,
    evidence_folder,
)
from quantkit.release.verifying.checking import Job, Outcome, count_text, layout_faults
from quantkit.retrieval.results import (
    Answer,
    Retrieval,
    TaskScore,
    Validation,
    parse_answers,
    score_tasks,
)
from quantkit.retrieval.scoring import FEWEST_DIGITS, score
from quantkit.retrieval.statistics import CONFIDENCE

_CLOSE = 1e-9
"""Relative; another version of scipy may differ in the last digits of bounds and means."""


def check_claims(job: Job, faults: list[str]) -> Outcome:
    """release.json, or the receipts, against the files; validation.json against its answers."""
    is_release = job.described.kind == "release"
    if is_release:
        _check_names(job, faults)
    _check_models(job, faults)
    _check_origin(job, faults)
    counted = [
        _evidence(job, level, claims, faults)
        for level, claims in job.described.manifest.levels.items()
        if level not in job.described.unvalidated
    ]
    answers = [count for count in counted if count is not None]
    weights = _imatrix_weights(job, faults)
    compared = (
        f"{count_text(len(job.artifacts), 'level')}, {sum(answers):,} answers of "
        f"{count_text(len(answers), 'level')}, importance matrix of {count_text(weights, 'weight')}"
    )
    facts = {
        "levels": len(job.artifacts), "validations": len(answers), "answers": sum(answers),
        "imatrix_weights": weights,
    }  # fmt: skip
    stated = ["sizes and bits"] if job.artifacts else []
    of_these = " of these files" if is_release else ""
    stated += [f"hits, bounds and verdicts{of_these}"] if answers else []
    if not stated:
        return "there are neither artifacts nor evidence here", None, facts
    return compared, f"{', '.join(stated)} as stated", facts


def _check_names(job: Job, faults: list[str]) -> None:
    """Levels whose files or evidence folder are not named after the model and the level."""
    manifest = job.described.manifest
    for level, claims in manifest.levels.items():
        stem, count = f"{manifest.model}-{level}", len(claims.files)
        names = [f"{stem}.gguf"]
        if count > 1:
            names = [f"{stem}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
        wanted = artifact_names(level, names)
        wrong = [pair for pair in zip(claims.files, wanted, strict=True) if pair[0] != pair[1]]
        if wrong:
            more = f", and {len(wrong) - 1} more are not" if len(wrong) > 1 else ""
            faults.append(f"{level}: {shown(wrong[0][0])} is not called {wrong[0][1]}{more}")
        folder = evidence_folder(level)
        if claims.evidence != folder:
            faults.append(f"{level}: its evidence is in {shown(claims.evidence)}, not {folder}")


def _check_models(job: Job, faults: list[str]) -> None:
    """Sizes, bits, parameters and architecture of the levels that are here."""
    manifest, is_release = job.described.manifest, job.described.kind == "release"
    owners: dict[str, str] = {manifest.imatrix: "the importance matrix"}
    for level, claims in manifest.levels.items():
        for file in claims.files:
            other = owners.setdefault(file, level)
            if other != level:
                faults.append(f"{shown(level)}: {shown(file)} is a file of {shown(other)} too")
    if is_release:
        stray = [n for n in job.described.hashes if n.lower().endswith(".gguf") and n not in owners]
        faults += [f"{name} is of no level in release.json" for name in stray]
    for level, artifact in job.artifacts.items():
        claims, size, elements = manifest.levels[level], artifact.size_bytes, artifact.elements
        if size != claims.size_bytes:
            faults.append(f"{level}: its files have {size} bytes, not {claims.size_bytes}")
        elif elements != manifest.parameters:
            faults.append(f"{level}: it has {elements} parameters, not {manifest.parameters}")
        elif not math.isclose(claims.bits_per_weight, bits := 8 * size / elements, rel_tol=1e-9):
            said = f"{claims.bits_per_weight:.4f}"
            faults.append(f"{level}: it has {bits:.4f} bits a weight, not {said}")
        found = artifact.metadata.get("general.architecture")
        if found is None or (is_release and found.value != manifest.architecture):
            name = "missing" if found is None else shown(str(found.value))
            wanted = shown(manifest.architecture)
            faults.append(f"{level}: its architecture is {name}, not {wanted}")


def _check_origin(job: Job, faults: list[str]) -> None:
    """What release.json says it was made from, against checkpoint.json.

    A checkpoint that came from a folder knows no repository; the publisher may have named one.
    """
    checkpoint, described = job.document(CheckpointFile, CHECKPOINT_FILE, faults), job.described
    if checkpoint is None:
        return
    if not checkpoint.files:
        faults.append(f"{CHECKPOINT_FILE} lists no files, so the source is not known")
    if described.kind == "build" or checkpoint.commit is None:
        return
    source, repository = described.manifest.source, HubAddress.parse(checkpoint.model).repository
    is_same = (source.repository or "").lower() == repository.lower()  # as the Hub compares
    for agrees, kind, one, other in (
        (is_same, "", source.repository, repository),
        (source.commit == checkpoint.commit, "the commit ", source.commit, checkpoint.commit),
    ):
        if not agrees:
            faults.append(
                f"release.json says it was made from {kind}{shown(str(one))}, {CHECKPOINT_FILE} "
                f"from {shown(other)}"
            )


def _evidence(job: Job, level: str, claims: ReleasedLevel, faults: list[str]) -> int | None:
    """How many answers a level's validation.json was compared with; None: it is not here."""
    is_release = job.described.kind == "release"
    validation = job.document(Validation, f"{claims.evidence}/{VALIDATION}", faults)
    if validation is not None and validation.artifact is None:
        silent = f"{level}: validation.json does not say which file was asked"
        (faults if is_release else job.notes).append(silent)
    elif validation is not None:
        there = {file.rpartition("/")[2]: job.described.hashes[file] for file in claims.files}
        validated = validation.artifact or {}
        for name in sorted(there.keys() | validated.keys()):
            here, then, file = there.get(name), validated.get(name), shown(name)
            if then == here:
                continue
            said = f"of {file}, which is not a file of this level"
            if then is None:
                said = f"not of {file}"
            elif here is not None:
                hashes = f"{shown(then[:12])}…, this level's has {here[:12]}…"
                said = f"of a {file} with the SHA-256 {hashes}"
            faults.append(f"{level}: validation.json is {said}")
    name = f"{claims.evidence}/{ANSWERS}"
    content = job.content(name, faults)
    if validation is None or content is None:
        return None
    try:
        answers = parse_answers(content, shown(name))
    except InputError as error:
        faults.append(str(error))
        return None
    faults += [f"{level}: {fault}" for fault in evidence_faults(validation, answers)]
    if validation.passed != claims.passed:
        where = "release.json" if is_release else "its receipt"
        faults.append(
            f"{level}: passed is {validation.passed} in validation.json, {claims.passed} in {where}"
        )
    if not claims.passed:
        kind = "a baseline" if claims.baseline else "not a baseline"
        job.notes.append(f"{level} did not pass its retrieval gate ({kind}), as it says")
    return len(answers)


def _imatrix_weights(job: Job, faults: list[str]) -> int:
    """The number of weights in the importance matrix, by its header."""
    name = job.described.manifest.imatrix
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
        faults.append(f"{name} is not an importance matrix: general.type is not 'imatrix'")
    missing = [w for w in weights if w + COUNTS not in header.stored]
    faults += [f"{name}: {shown(weight)} has sums but no counts" for weight in missing]
    return len(weights)


def evidence_faults(validation: Validation, answers: Sequence[Answer]) -> list[str]:
    """Differences between a validation.json and what follows from the answers in niah.jsonl."""
    found = validation.niah
    recipe, faults = found.recipe, _answer_faults(found, answers)
    keys = {score.context_tokens: score.keys for score in found.scores}
    lengths = {answer.context_tokens for answer in answers}
    longest = max(recipe.context_tokens, default=0)
    reason, again = None, found
    if not lengths:
        reason = "niah.jsonl has no answers"
    elif stray := lengths - keys.keys():
        reason = f"niah.jsonl has answers at {min(stray)} tokens, which are not in validation.json"
    elif max(lengths) != longest:
        reason = (
            f"niah.jsonl has answers at up to {max(lengths)} tokens, and validation.json says that "
            f"questions were asked at {longest}"
        )
    elif found.confidence != CONFIDENCE:
        reason = (
            f"bounds of a confidence of {found.confidence} in validation.json cannot be worked out "
            f"again; quantkit's is {CONFIDENCE}"
        )
    else:
        try:
            scores = score_tasks(answers, keys, clustered=recipe.clustered)
            again = found.model_copy(update={"scores": scores})
        except ValueError as error:  # too few seeds
            reason = str(error)
    if reason is not None:
        return [*faults, reason]
    stated, scored = ({(s.task, s.context_tokens): s for s in of.scores} for of in (found, again))
    for place in sorted(stated.keys() | scored.keys()):
        faults += _score_faults(place, stated.get(place), scored.get(place))
    passed = validation.passed
    if len(again.gated) < len(again.recipe.gated):
        faults.append("niah.jsonl has no answers to what the gate looks at")
    elif passed != again.passed:
        first, least = again.gated[0], again.recipe.minimum_lower_bound
        needed = "nothing" if least is None else f"{least:.1%}"
        faults.append(
            f"passed is {passed} in validation.json, but {first.hits} of {first.trials} hits prove "
            f"{first.lower_bound:.1%} and {needed} is needed"
        )
    return faults


def _answer_faults(said: Retrieval, answers: Sequence[Answer]) -> list[str]:
    """Answers that are counted twice, or scored otherwise than their text."""
    twice = [place for place, count in Counter(a.place for a in answers).items() if count > 1]
    faults = [
        f"niah.jsonl answers {shown(task)} {index} of seed {seed} at {context} tokens more than "
        "once"
        for context, seed, task, index in twice[:1]
    ]
    digits = min((len(v) for a in answers for v in a.values), default=FEWEST_DIGITS)
    wrong = []
    for answer in answers:
        scored = score(
            answer.task, answer.values, answer.answer,
            thinking=said.recipe.thinking, digits=max(digits, FEWEST_DIGITS),
        )  # fmt: skip
        if (scored.hit, scored.found) != (answer.hit, answer.found):
            wrong.append(answer)
    if wrong:
        first = wrong[0]
        faults.append(
            f"{len(wrong)} answers in niah.jsonl are scored wrongly, the first is "
            f"{shown(first.task)} {first.index} of seed {first.seed} at {first.context_tokens} "
            f"tokens, said to be a {'hit' if first.hit else 'miss'}: {shown(first.answer)!r}"
        )
    return faults


def _score_faults(
    place: tuple[str, int], said: TaskScore | None, found: TaskScore | None
) -> list[str]:
    where = f"{shown(place[0])} at {place[1]} tokens"
    if said is None or found is None:
        return [f"{where} is only in {'niah.jsonl' if said is None else 'validation.json'}"]
    faults = []
    for name in (field.name for field in fields(TaskScore)):
        one, other = getattr(said, name), getattr(found, name)
        numbers = isinstance(one, float) and isinstance(other, float | int)
        if one != other and not (
            numbers and math.isclose(one, other, rel_tol=_CLOSE, abs_tol=1e-300)
        ):
            faults.append(f"{where}: {name} is {one} in validation.json, {other} by niah.jsonl")
    return faults
