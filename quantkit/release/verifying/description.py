"""What a release says of itself: by SHA256SUMS and release.json, or by the receipts of a build."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.config.levels import LEVEL_NAME
from quantkit.core.errors import InputError
from quantkit.core.paths import HubAddress
from quantkit.core.progress import SILENT, Progress
from quantkit.core.receipts import Receipt, finished_receipts
from quantkit.core.units import shown
from quantkit.hub.reading import Hub
from quantkit.llamacpp.ggml import PACKAGE
from quantkit.models.checkpoint_file import CHECKPOINT_FILE
from quantkit.models.choose import artifact_name
from quantkit.release.layout import (
    ALLOCATION,
    ANSWERS,
    MANIFEST,
    SUMS,
    VALIDATION,
    Manifest,
    ReleasedLevel,
    ReleaseSource,
    evidence_folder,
    parse_sums,
)
from quantkit.release.verifying.files import FolderFiles, HubFiles, ReleaseFiles

RECEIPTS = "receipts"
BUILD_ONLY = frozenset({RECEIPTS, ".work", "checkpoint", "study", "release"})
"""Folders of a build that hold no outputs of its stages."""
_MODEL = re.compile(r"[\w.-]{1,200}")
"""As recipes name levels, and short: a file system gives a file's whole name 255 bytes."""


@dataclass(frozen=True)
class Description:
    """What is verified.

    Attributes:
        hashed_by: what `hashes` are from, for messages.
        hashes: name → SHA-256.
        manifest: release.json; of a build what its receipts say, which know no architecture.
        stale: levels of a build that were made from what is no longer there; they are left out.
        unvalidated: levels of a build whose retrieval check is not done, or of another artifact.
    """

    kind: Literal["release", "build"]
    hashed_by: str
    hashes: Mapping[str, str]
    manifest: Manifest
    stale: tuple[str, ...] = ()
    unvalidated: frozenset[str] = frozenset()


def open_release(
    name: str, workers: int, progress: Progress = SILENT, *, full: bool = False
) -> tuple[ReleaseFiles, Description]:
    """The files of a release in a folder, of a build or of OWNER/NAME[@REVISION], and what it says.

    Args:
        full: whether all rows are going to be read, which takes a folder.

    Raises:
        InputError: it is none of these, or what describes it is broken.
        EnvironmentFault: the network or the Hub failed.
    """
    folder = Path(name).expanduser()
    if (folder / SUMS).is_file():
        local = FolderFiles(folder, workers=workers)
        return local, describe_release(local)
    if (folder / RECEIPTS).is_dir():
        return FolderFiles(folder, BUILD_ONLY, workers), describe_build(folder)
    if folder.is_dir():
        raise InputError(
            f"{folder} is neither a release ({SUMS}, {MANIFEST}) nor the folder of a build "
            f"({RECEIPTS}/); give one, or OWNER/NAME on the Hub"
        )
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
        InputError: one of them is missing, damaged or contradicts the other.
    """
    for name in (SUMS, MANIFEST):
        if name not in files.sizes:
            raise InputError(
                f"{files.where} has no {name}, so it is not a release of quantkit, or only a part "
                f"of one: download {name} too"
            )
    try:
        hashes = parse_sums(files.content(SUMS).decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{files.where}: {SUMS} is not text") from None
    manifest = Manifest.parse(files.content(MANIFEST), MANIFEST)
    _check_names(manifest, hashes)
    if CHECKPOINT_FILE not in hashes:
        raise InputError(f"{SUMS} has no {CHECKPOINT_FILE}: it does not say what it was made from")
    return Description("release", SUMS, hashes, manifest)


def _check_names(manifest: Manifest, hashes: Mapping[str, str]) -> None:
    """Check that names in release.json are such as a build gives, and that files have hashes."""
    if not _MODEL.fullmatch(manifest.model):
        raise InputError(f"{MANIFEST}: invalid model name '{shown(manifest.model)}'")
    if not manifest.levels:
        raise InputError(f"{MANIFEST}: levels is empty")
    named = [("imatrix", manifest.imatrix)]
    for level, claims in manifest.levels.items():
        if not re.fullmatch(LEVEL_NAME, level):
            raise InputError(
                f"{MANIFEST}: invalid level name '{shown(level)}': expected letters, digits, '.', "
                "'_' and '-', 96 characters at most"
            )
        evidence = [f"{claims.evidence}/{file}" for file in (ALLOCATION, VALIDATION, ANSWERS)]
        named += [(f"levels.{level}.files", file) for file in claims.files]
        named += [(f"levels.{level}.evidence", file) for file in evidence]
    for key, name in named:
        if name not in hashes:
            raise InputError(f"{MANIFEST}: {key} names {shown(name)}, which is not in {SUMS}")


def describe_build(folder: Path) -> Description:
    """What the receipts of a build say; levels are those that were quantized from what is there.

    Raises:
        InputError: the build has not come so far, or a receipt is damaged.
    """
    receipts = {receipt.stage: receipt for receipt in finished_receipts(folder, "")}
    names = [s.partition(":")[2] for s in receipts if s.startswith("quantize:")]
    try:
        checkpoint, imatrix = receipts["checkpoint"], receipts["imatrix"]
        parameters, settings = int(checkpoint.facts["parameters"]), checkpoint.parts["settings"]
        model = HubAddress.parse(str(settings["model"])).repository
        # of the library whose kernels made the artifacts
        made_by = [str(receipts[f"quantize:{n}"].parts[PACKAGE]) for n in names]
        current = [n for n in names if _is_current(f"quantize:{n}", receipts)]
        validated = [n for n in current if _is_current(f"validate:{n}", receipts)]
        manifest = Manifest(
            model=artifact_name(model.partition("/")[2] or model),
            architecture="",
            parameters=parameters,
            source=ReleaseSource(),
            mtp=settings["mtp"],
            imatrix=imatrix.outputs[0].path,
            versions={PACKAGE: made_by[-1]} if names else {},
            levels={n: _level(n, receipts, parameters, n in validated) for n in current},
        )
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"the receipts in {folder / RECEIPTS} are of no build that has come to its importance "
            f"matrix ({type(error).__name__}: {error}); run the build again, it goes on from there"
        ) from None
    return Description(
        kind="build",
        hashed_by="the receipts",
        hashes={o.path: o.sha256 for r in receipts.values() for o in r.outputs},
        manifest=manifest,
        stale=tuple(name for name in names if name not in current),
        unvalidated=frozenset(current) - {*validated},
    )


def _is_current(stage: str, receipts: Mapping[str, Receipt]) -> bool:
    """Whether a stage is done, and was given what the stages before it have written last."""
    return stage in receipts and all(
        receipts[before].output_hashes == hashes
        for before, hashes in receipts[stage].parts.items()
        if before in receipts
    )


def _level(
    name: str, receipts: Mapping[str, Receipt], parameters: int, is_validated: bool
) -> ReleasedLevel:
    outputs = receipts[f"quantize:{name}"].outputs
    size = sum(output.size_bytes for output in outputs)
    known = receipts[f"validate:{name}"] if is_validated else None
    return ReleasedLevel(
        files=tuple(output.path for output in outputs),
        evidence=evidence_folder(name),
        passed=bool(known and known.facts["passed"]),
        baseline=bool(known and known.parts["settings"]["baseline"]),
        size_bytes=size,
        bits_per_weight=8 * size / parameters,
    )
