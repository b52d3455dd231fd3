"""Compares what a release claims with its files: sizes, bits, verdicts, hits, importance matrix.

Answers are scored again; the hits, bounds and verdicts in validation.json must follow from them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields

from quantkit.core.errors import InputError
from quantkit.core.hub_address import HubAddress
from quantkit.core.printable import shown
from quantkit.formats.imatrix_file import COUNTS
from quantkit.formats.imatrix_file import SUMS as SQUARES
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile
from quantkit.release.layout import ReleasedLevel, artifact_names, evidence_folder
from quantkit.release.verifying.checking import Job, Outcome, count_text, layout_faults
from quantkit.release.verifying.description import ANSWERS, VALIDATION
from quantkit.retrieval.results import Answer, Retrieval, TaskScore, parse_answers, score_tasks
from quantkit.retrieval.scoring import FEWEST_DIGITS, score
from quantkit.retrieval.statistics import CONFIDENCE
from quantkit.retrieval.validation import Validation

_CLOSE = 1e-9
"""Relative; another version of scipy may differ in the last digits of bounds and means."""


def check_claims(job: Job, faults: list[str]) -> Outcome:
    """release.json, or the receipts, against the files; validation.json against its answers."""
    is_release = job.described.kind == "release"
    if is_release:
        _name_faults(job, faults)
    _model_faults(job, faults)
    _source_faults(job, faults)
    answers = levels = 0
    for level, claims in job.described.manifest.levels.items():
        if level in job.described.unvalidated:
            continue
        counted = _evidence(job, level, claims, faults)
        if counted is not None:
            levels, answers = levels + 1, answers + counted
    weights = _imatrix_weights(job, faults)
    compared = (
        f"{count_text(len(job.artifacts), 'level')}, {answers:,} answers of "
        f"{count_text(levels, 'level')}, importance matrix of {count_text(weights, 'weight')}"
    )
    facts = {
        "levels": len(job.artifacts), "validations": levels, "answers": answers,
        "imatrix_weights": weights,
    }  # fmt: skip
    stated = ["sizes and bits"] if job.artifacts else []
    of_these = " of these files" if is_release else ""
    stated += [f"hits, bounds and verdicts{of_these}"] if levels else []
    if not stated:
        return "there are neither artifacts nor evidence here", None, facts
    return compared, f"{', '.join(stated)} as stated", facts


def _name_faults(job: Job, faults: list[str]) -> None:
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
        if claims.evidence != evidence_folder(level):
            faults.append(
                f"{level}: its evidence is in {shown(claims.evidence)}, not "
                f"{evidence_folder(level)}"
            )


def _model_faults(job: Job, faults: list[str]) -> None:
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
        claims, size = manifest.levels[level], artifact.size_bytes
        elements = artifact.elements
        if size != claims.size_bytes:
            faults.append(f"{level}: its files have {size} bytes, not {claims.size_bytes}")
        elif elements != manifest.parameters:
            faults.append(f"{level}: it has {elements} parameters, not {manifest.parameters}")
        elif not math.isclose(claims.bits_per_weight, 8 * size / elements, rel_tol=1e-9):
            faults.append(
                f"{level}: it has {8 * size / elements:.4f} bits a weight, not "
                f"{claims.bits_per_weight:.4f}"
            )
        found = artifact.metadata.get("general.architecture")
        if found is None or (is_release and found.value != manifest.architecture):
            name = "missing" if found is None else shown(str(found.value))
            faults.append(
                f"{level}: its architecture is {name}, not {shown(manifest.architecture)}"
            )


def _source_faults(job: Job, faults: list[str]) -> None:
    """What release.json says it was made from, against checkpoint.json.

    A checkpoint that came from a folder knows no repository; the publisher may have named one.
    """
    checkpoint, said = job.document(CheckpointFile, CHECKPOINT_FILE, faults), job.described
    if checkpoint is None:
        return
    if not checkpoint.files:
        faults.append(f"{CHECKPOINT_FILE} lists no files, so the source is not known")
    if said.kind == "build" or checkpoint.commit is None:
        return
    source, repository = said.manifest.source, HubAddress.parse(checkpoint.model).repository
    if (source.repository or "").lower() != repository.lower():  # as the Hub compares
        faults.append(
            f"release.json says it was made from {shown(str(source.repository))}, "
            f"{CHECKPOINT_FILE} from {shown(repository)}"
        )
    if source.commit != checkpoint.commit:
        faults.append(
            f"release.json says it was made from the commit {shown(str(source.commit))}, "
            f"{CHECKPOINT_FILE} from {shown(checkpoint.commit)}"
        )


def _asked_faults(
    job: Job, level: str, claims: ReleasedLevel, asked: Mapping[str, str]
) -> list[str]:
    """Differences between the files that were asked and the files of the level, by SHA-256."""
    there = {file.rpartition("/")[2]: job.described.hashes[file] for file in claims.files}
    faults = []
    for name in sorted(there.keys() | asked.keys()):
        here, then = there.get(name), asked.get(name)
        if here is None:
            faults.append(
                f"{level}: validation.json is of {shown(name)}, which is not a file of this level"
            )
        elif then is None:
            faults.append(f"{level}: validation.json is not of {shown(name)}")
        elif then != here:
            faults.append(
                f"{level}: validation.json is of a {shown(name)} with the SHA-256 "
                f"{shown(then[:12])}…, this level's has {here[:12]}…"
            )
    return faults


def _evidence(job: Job, level: str, claims: ReleasedLevel, faults: list[str]) -> int | None:
    """How many answers a level's validation.json was compared with; None: it is not here."""
    is_release = job.described.kind == "release"
    validation = job.document(Validation, f"{claims.evidence}/{VALIDATION}", faults)
    if validation is not None and validation.artifact is not None:
        faults += _asked_faults(job, level, claims, validation.artifact)
    elif validation is not None:
        silent = f"{level}: validation.json does not say which file was asked"
        (faults if is_release else job.notes).append(silent)
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


def evidence_faults(level: str, validation: Validation, answers: Sequence[Answer]) -> list[str]:
    """Differences between a validation.json and what follows from the answers in niah.jsonl."""
    said = validation.niah
    recipe = said.recipe
    faults = _answer_faults(level, said, answers)
    keys = {score.context_tokens: score.keys for score in said.scores}
    lengths = {answer.context_tokens for answer in answers}
    reason = None
    if not lengths:
        reason = "niah.jsonl has no answers"
    elif lengths - keys.keys():
        reason = (
            f"niah.jsonl has answers at {min(lengths - keys.keys())} tokens, which are not in "
            "validation.json"
        )
    elif max(lengths) != (longest := max(recipe.context_tokens, default=0)):
        reason = (
            f"niah.jsonl has answers at up to {max(lengths)} tokens, and validation.json says that "
            f"questions were asked at {longest}"
        )
    elif said.confidence != CONFIDENCE:
        reason = (
            f"bounds of a confidence of {said.confidence} in validation.json cannot be worked out "
            f"again; quantkit's is {CONFIDENCE}"
        )
    if reason is not None:
        return [*faults, f"{level}: {reason}"]
    try:
        scores = score_tasks(answers, keys, clustered=recipe.clustered)
    except ValueError as error:  # too few seeds
        return [*faults, f"{level}: {error}"]
    again = said.model_copy(update={"scores": scores})
    by_place = [{(s.task, s.context_tokens): s for s in of.scores} for of in (said, again)]
    for place in sorted(by_place[0].keys() | by_place[1].keys()):
        faults += _score_faults(level, place, *(scores.get(place) for scores in by_place))
    return faults + _verdict_faults(level, validation.passed, again)


def _answer_faults(level: str, said: Retrieval, answers: Sequence[Answer]) -> list[str]:
    """Answers that are counted twice, or scored otherwise than their text."""
    twice = [place for place, count in Counter(a.place for a in answers).items() if count > 1]
    faults = [
        f"{level}: niah.jsonl answers {shown(task)} {index} of seed {seed} at {context} tokens "
        "more than once"
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
            f"{level}: {len(wrong)} answers in niah.jsonl are scored wrongly, the first is "
            f"{shown(first.task)} {first.index} of seed {first.seed} at {first.context_tokens} "
            f"tokens, said to be a {'hit' if first.hit else 'miss'}: {shown(first.answer)!r}"
        )
    return faults


def _score_faults(
    level: str, place: tuple[str, int], said: TaskScore | None, found: TaskScore | None
) -> list[str]:
    where = f"{level}: {shown(place[0])} at {place[1]} tokens"
    if said is None or found is None:
        return [f"{where} is only in {'niah.jsonl' if said is None else 'validation.json'}"]
    return [
        f"{where}: {field.name} is {getattr(said, field.name)} in validation.json, "
        f"{getattr(found, field.name)} by niah.jsonl"
        for field in fields(TaskScore)
        if not _same(getattr(said, field.name), getattr(found, field.name))
    ]


def _verdict_faults(level: str, passed: bool, again: Retrieval) -> list[str]:
    """A verdict that does not follow from what the answers give."""
    if len(again.gated) < len(again.recipe.gated):
        return [f"{level}: niah.jsonl has no answers to what the gate looks at"]
    if passed == again.passed:
        return []
    first, least = again.gated[0], again.recipe.minimum_lower_bound
    return [
        f"{level}: passed is {passed} in validation.json, but {first.hits} of {first.trials} hits "
        f"prove {first.lower_bound:.1%} and {'nothing' if least is None else f'{least:.1%}'} is "
        "needed"
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=1e-300)
    return one == other
