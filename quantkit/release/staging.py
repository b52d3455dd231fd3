"""BUILD_DIR/release/: the release as it will be downloaded, made before anything is uploaded.

Files of the build are linked, not copied; the others are made here. The same build gives the same
bytes each time, so that publishing it again finds nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import atomic, file_sha256
from quantkit.hub.writing import LocalFile, local_file
from quantkit.models.choose import imatrix_name
from quantkit.models.end_tokens import stop_texts, unread_stop_texts
from quantkit.models.geometry import geometry_of
from quantkit.plan.launch.files import PROGRAMS, launch_texts
from quantkit.plan.launch.settings import Launch
from quantkit.release.card.facts import CardFacts
from quantkit.release.card.front_matter import SourceCard
from quantkit.release.card.render import card_text
from quantkit.release.contents import Build, BuiltLevel, published_as
from quantkit.release.documents import (
    public_recipe,
    public_target,
    recipe_document,
    target_document,
)
from quantkit.release.fits import Fits
from quantkit.release.layout import (
    CARD,
    MANIFEST,
    RECIPE,
    REPORT,
    SUMS,
    TARGET,
    Manifest,
    ReleasedLevel,
    ReleaseSource,
    evidence_folder,
    model_folder,
    parse_sums,
    sums_text,
)
from quantkit.release.privacy import find_private, this_machine, words_of
from quantkit.report.report import coverage_values, report_page
from quantkit.report.results import CALIBRATION, report_facts
from quantkit.study.imatrix import Calibration

FOLDER = "release"


def stage(
    build: Build,
    levels: tuple[BuiltLevel, ...],
    source: SourceCard,
    fits: Fits,
    repository: str,
    endpoint: str,
) -> tuple[LocalFile, ...]:
    """Make the release in the build's folder; returns its files by name.

    Files of an earlier release are removed; any others in the folder stay.

    Args:
        repository, endpoint: OWNER/NAME, and the Hub's address, for the card.

    Raises:
        InputError: something that is not an earlier release stands in the way.
        EnvironmentFault: the disk failed.
    """
    folder = build.folder / FOLDER
    linked = published_as(build, levels, imatrix_name(build.model))
    texts = _texts(build, levels, source, fits, repository, endpoint)
    made = {name: text.encode() for name, text in texts.items()}
    for level in levels:
        made |= {name: text.encode() for name, text in _launch_files(build, level).items()}
    hashes = {name: output.sha256 for name, output in linked.items()}
    hashes |= {name: sha256(content).hexdigest() for name, content in made.items()}
    made[SUMS] = sums_text(hashes).encode()
    hashes[SUMS] = sha256(made[SUMS]).hexdigest()
    sizes = {name: output.size_bytes for name, output in linked.items()}
    sizes |= {name: len(content) for name, content in made.items()}
    try:
        for path in _earlier_files(folder, build.folder, hashes):
            path.unlink()
        for name, output in linked.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(build.folder / output.path, path.parent))
        for name, content in made.items():
            with atomic(folder / name, executable=name.endswith(PROGRAMS)) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {error.filename or folder}: {error.strerror}; free some space or move "
            "it away, then run again"
        ) from None
    return tuple(local_file(n, folder / n, sizes[n], hashes[n]) for n in sorted(hashes))


def _texts(
    build: Build,
    levels: tuple[BuiltLevel, ...],
    source: SourceCard,
    fits: Fits,
    repository: str,
    endpoint: str,
) -> dict[str, str]:
    """Name → content of the documents that are made here."""
    folder = build.folder
    calibration = Calibration.read(folder / CALIBRATION)
    recipe, target = public_recipe(build.recipe, calibration), public_target(build.target)
    imatrix = imatrix_name(build.model)
    architecture = geometry_of(levels[0].artifact().metadata).architecture
    results = [level.result for level in levels]
    facts = report_facts(
        folder, build.model, architecture, build.parameters, target, recipe, results
    )
    manifest = Manifest(
        model=build.model,
        architecture=architecture,
        parameters=build.parameters,
        source=ReleaseSource(repository=source.repository, commit=source.commit),
        mtp=build.recipe.convert.mtp,
        imatrix=imatrix,
        versions=dict(build.versions),
        levels={
            level.name: ReleasedLevel(
                files=tuple(level.files),
                evidence=evidence_folder(level.name),
                passed=level.result.passed,
                baseline=level.result.baseline,
                size_bytes=level.result.size_bytes,
                bits_per_weight=level.result.bits_per_weight,
            )
            for level in levels
        },
    )
    first = levels[0].artifact().metadata
    card = CardFacts(
        repository=repository,
        model=build.model,
        architecture=architecture,
        parameters=build.parameters,
        source=source,
        target=target,
        recipe=recipe,
        levels=levels,
        left_out=tuple(level.result for level in build.levels if level not in levels),
        fits=fits,
        calibration=calibration,
        coverage=coverage_values(facts, folder),
        versions=build.versions,
        imatrix_file=imatrix,
        endpoint=endpoint,
        stops=stop_texts(first),
        unread_stops=unread_stop_texts(first),
        is_demo=build.is_demo,
        source_files=tuple(build.source_files),
        licence_files=tuple(output.path.rpartition("/")[2] for output in build.licences),
    )
    model = "demo" if card.is_demo else card.source_repository
    return {
        CARD: card_text(card),
        MANIFEST: manifest.text(),
        RECIPE: recipe_document(build.recipe, calibration, model=model, imatrix=imatrix),
        TARGET: target_document(build.target),
        REPORT: report_page(facts, folder),
    }


def _launch_files(build: Build, level: BuiltLevel) -> dict[str, str]:
    """Launch files that find the level's artifact in the release."""
    folder = evidence_folder(level.name)
    metadata = level.artifact().metadata
    geometry = geometry_of(metadata)
    launch = Launch(  # without devices: UUIDs are the builder's own
        level.result.placed.placement,
        level.names[0].rpartition("/")[2],
        f"{build.model}-{level.name}",
        geometry.architecture,
        geometry.trained_context_tokens,
        model_folder=model_folder(level.names),
        stops=stop_texts(metadata),
    )
    return {f"{folder}/{name}": text for name, text in launch_texts(launch).items()}


def _earlier_files(folder: Path, build: Path, hashes: Mapping[str, str]) -> set[Path]:
    """Files of an earlier release, which the one with these `hashes` replaces.

    They are links into the build, and files whose hash SHA256SUMS or this release has.
    """
    folders = {folder, *(folder / parent for name in hashes for parent in Path(name).parents)}
    for path in sorted(folders):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} must be a folder; move it away, then run again")
    try:
        sums = parse_sums((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, InputError):
        sums = {}
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            if path.resolve().is_relative_to(build.resolve()):
                found.add(path)
        elif path.is_file() and (
            (name == SUMS and MANIFEST in sums)
            or file_sha256(path) in (sums.get(name), hashes.get(name))
        ):
            found.add(path)
    for name in hashes:
        path = folder / name
        if os.path.lexists(path) and path not in found:
            raise InputError(
                f"{path} was changed after it was made, and would be overwritten; move it away, "
                "then run again"
            )
    return found


def check_stage(build: Path, files: Sequence[LocalFile]) -> None:
    """Check that nothing in the release reveals this machine or this person.

    Raises:
        InputError: names what does.
    """
    found = find_private({file.name: file.path for file in files}, this_machine(build))
    if found:
        raise InputError(
            f"nothing was published, because the release would reveal this machine or its user: "
            f"{words_of(found)}; build again with names that may be published"
        )
