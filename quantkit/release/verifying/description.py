"""What a release says of itself: by SHA256SUMS and release.json, or by the receipts of a build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from quantkit.config.levels import LevelRecipe
from quantkit.core.errors import InputError
from quantkit.core.hub_address import HubAddress
from quantkit.core.progress import Progress
from quantkit.core.receipts import Receipt, finished_receipts
from quantkit.hub.reading import Hub
from quantkit.models.choose import artifact_name
from quantkit.release.names import MANIFEST, SUMS, evidence_folder
from quantkit.release.sums import parse_sums
from quantkit.release.verifying.claims import (
    LevelClaims,
    ReleaseClaims,
    SourceClaims,
    parse_claims,
    shown,
)
from quantkit.release.verifying.files import FolderFiles, HubFiles, ReleaseFiles

RECEIPTS = "receipts"
CHECKPOINT = "checkpoint.json"
ALLOCATION, VALIDATION, ANSWERS = "allocation.json", "validation.json", "niah.jsonl"
EVIDENCE_FILES = (ALLOCATION, VALIDATION, ANSWERS)
"""Of a level, in the folder of its evidence."""
BUILD_ONLY = frozenset({RECEIPTS, ".work", "checkpoint", "release"})
"""Folders of a build that hold no outputs of its stages."""
MOST_NAME_CHARACTERS = 96
"""Of a level; a file system gives the file's whole name 255 bytes."""
_MODEL = re.compile(r"[\w.-]{1,200}")


@dataclass(frozen=True)
class Description:
    """What is verified.

    Attributes:
        hashed_by: what `hashes` are from, for messages.
        hashes: name → SHA-256.
        architecture: None where it is not said.
        keep_prediction: the multi-token prediction layers are part of it.
        imatrix: name of the importance matrix.
        source: what a release says it was made from; a build has no second word for it.
        versions: of what it was made with.
        stale: levels of a build that were made from what is no longer there; they are left out.
        unvalidated: levels of a build whose retrieval check is not done, or of another artifact.
    """

    kind: Literal["release", "build"]
    hashed_by: str
    hashes: Mapping[str, str]
    model: str
    architecture: str | None
    parameters: int
    keep_prediction: bool
    imatrix: str
    versions: Mapping[str, str]
    levels: Mapping[str, LevelClaims]
    source: SourceClaims | None = None
    stale: tuple[str, ...] = ()
    unvalidated: frozenset[str] = frozenset()


def open_folder(folder: Path, workers: int) -> tuple[FolderFiles, Description]:
    """A downloaded release, or a build's folder.

    Raises:
        InputError: it is neither, or what describes it is broken.
    """
    if (folder / SUMS).is_file():
        files = FolderFiles(folder, workers=workers)
        return files, describe_release(files)
    if (folder / RECEIPTS).is_dir():
        return FolderFiles(folder, BUILD_ONLY, workers), describe_build(folder)
    raise InputError(
        f"{folder} is neither a release ({SUMS}, {MANIFEST}) nor the folder of a build "
        f"({RECEIPTS}/); give one, or OWNER/NAME on the Hub"
    )


def open_release(
    name: str, workers: int, progress: Progress, *, full: bool = False
) -> tuple[ReleaseFiles, Description]:
    """A release's files, and what it says of itself.

    Args:
        name: a downloaded release, the folder of a build, or OWNER/NAME[@REVISION] on the Hub.
        full: whether all rows are going to be read, which takes a folder.

    Raises:
        InputError: it is none of these, or what describes it is broken.
        EnvironmentFault: the network or the Hub failed.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_folder(folder, workers)
    address = HubAddress.parse(name)
    repository = address.repository
    if folder.exists() or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise InputError(
            f"no release at {name}: give a downloaded release, the folder of a build, or "
            "OWNER/NAME on the Hub"
        )
    if full:
        raise InputError(
            f"--full reads all of {name}: download it first (hf download {repository} --local-dir "
            "DIR) and give the folder; without --full, sampled rows are fetched"
        )
    hub = Hub()
    files = HubFiles(hub, hub.listing(repository, address.revision, progress.note), progress.note)
    return files, describe_release(files)


def describe_release(files: ReleaseFiles) -> Description:
    """What SHA256SUMS and release.json say.

    Raises:
        InputError: one of them is missing or broken.
    """
    for name in (SUMS, MANIFEST):
        if name not in files.sizes:
            raise InputError(
                f"{files.where} has no {name}, so it is no release of quantkit, or only a part of "
                f"one: download {name} too"
            )
    try:
        text = files.content(SUMS).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{files.where}: {SUMS} is not text") from None
    hashes = parse_sums(text)
    claims = parse_claims(ReleaseClaims, files.content(MANIFEST), MANIFEST)
    if not _MODEL.fullmatch(claims.model):
        raise InputError(f"{MANIFEST}: {shown(claims.model)} is no name of a model")
    for level, said in claims.levels.items():
        if not _is_level_name(level):
            raise InputError(
                f"{MANIFEST}: {shown(level)} is no name of a level: letters, digits, '.', '_' and "
                f"'-', {MOST_NAME_CHARACTERS} characters at most"
            )
        unknown = [file for file in said.files if file not in hashes]
        if unknown:
            raise InputError(
                f"{MANIFEST}: levels.{shown(level)}.files names {shown(unknown[0])}, which is not "
                f"in {SUMS}"
            )
        evidence = [f"{said.evidence}/{file}" for file in EVIDENCE_FILES]
        absent = [name for name in evidence if name not in hashes]
        if absent:
            raise InputError(
                f"{MANIFEST}: levels.{shown(level)}.evidence gives {shown(absent[0])}, which is "
                f"not in {SUMS}"
            )
    if claims.imatrix not in hashes:
        raise InputError(
            f"{MANIFEST}: imatrix names {shown(claims.imatrix)}, which is not in {SUMS}"
        )
    if CHECKPOINT not in hashes:
        raise InputError(f"{SUMS} has no {CHECKPOINT}: it does not say what it was made from")
    return Description(
        kind="release",
        hashed_by=SUMS,
        hashes=hashes,
        model=claims.model,
        architecture=claims.architecture,
        parameters=claims.parameters,
        keep_prediction=claims.mtp == "keep",
        imatrix=claims.imatrix,
        versions=claims.versions,
        levels=claims.levels,
        source=claims.source,
    )


def _is_level_name(name: str) -> bool:
    """Whether a recipe could have called a level so."""
    try:
        LevelRecipe(name=name)
    except ValidationError:
        return False
    return len(name) <= MOST_NAME_CHARACTERS


def describe_build(folder: Path) -> Description:
    """What the receipts of a build say; levels are those that were quantized from what is there.

    Raises:
        InputError: the build has not come so far, or a receipt is broken.
    """
    receipts = {receipt.stage: receipt for receipt in finished_receipts(folder, "")}
    names = [s.partition(":")[2] for s in receipts if s.startswith("quantize:")]
    try:
        checkpoint, imatrix = receipts["checkpoint"], receipts["imatrix"]
        parameters, settings = checkpoint.facts["parameters"], checkpoint.parts["settings"]
        model = HubAddress.parse(str(settings["model"]))
        current = [n for n in names if _is_current(receipts[f"quantize:{n}"], receipts)]
        levels = {name: _level(name, receipts, int(parameters)) for name in current}
        return Description(
            kind="build",
            hashed_by="the receipts",
            hashes={o.path: o.sha256 for r in receipts.values() for o in r.outputs},
            model=artifact_name(model.repository.partition("/")[2] or model.repository),
            architecture=None,
            parameters=int(parameters),
            keep_prediction=settings["mtp"] == "keep",
            imatrix=imatrix.outputs[0].path,
            versions={k: str(v) for k, v in _native_versions(receipts).items()},
            levels=levels,
            stale=tuple(name for name in names if name not in current),
            unvalidated=frozenset(n for n in current if _validated(n, receipts) is None),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"the receipts in {folder / RECEIPTS} are of no build that has come to its importance "
            f"matrix ({type(error).__name__}: {error}); run the build again, it goes on from there"
        ) from None


def _is_current(receipt: Receipt, receipts: Mapping[str, Receipt]) -> bool:
    """Whether a stage was given what the stages before it have written last."""
    return all(
        receipts[stage].output_hashes == hashes
        for stage, hashes in receipt.parts.items()
        if stage in receipts
    )


def _validated(name: str, receipts: Mapping[str, Receipt]) -> Receipt | None:
    """The receipt of a level's retrieval check, where it was of the artifact that is there."""
    validated = receipts.get(f"validate:{name}")
    return validated if validated is not None and _is_current(validated, receipts) else None


def _level(name: str, receipts: Mapping[str, Receipt], parameters: int) -> LevelClaims:
    quantized = receipts[f"quantize:{name}"]
    validated = _validated(name, receipts)
    size = sum(output.size_bytes for output in quantized.outputs)
    return LevelClaims(
        files=tuple(output.path for output in quantized.outputs),
        evidence=evidence_folder(name),
        passed=bool(validated and validated.facts["passed"]),
        baseline=bool(validated and validated.parts["settings"]["baseline"]),
        size_bytes=size,
        bits_per_weight=8 * size / parameters,
    )


def _native_versions(receipts: Mapping[str, Receipt]) -> dict[str, object]:
    """Of the library whose kernels made the artifacts."""
    from quantkit.llamacpp.ggml import PACKAGE

    made = [r.parts[PACKAGE] for s, r in receipts.items() if s.startswith("quantize:")]
    return dict.fromkeys([PACKAGE], made[-1]) if made else {}
