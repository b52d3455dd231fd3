"""BUILD_DIR/release/: the release as it will be downloaded, made before anything is uploaded.

Files of the build are linked, not copied; the others are made here. The same build gives the same
bytes each time, so that publishing it again finds nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import atomic, file_sha256
from quantkit.hub.writing import LocalFile, local_file
from quantkit.models.choose import imatrix_name
from quantkit.models.geometry import geometry_of
from quantkit.plan.launch.files import launch_texts
from quantkit.plan.launch.settings import Launch
from quantkit.plan.placement import PLACEMENT_FILE, PlacementFile
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
from quantkit.release.privacy import find_private, this_machine
from quantkit.report.facts import CALIBRATION, report_facts
from quantkit.report.report import coverage_values, report_page
from quantkit.study.imatrix import Calibration

FOLDER = "release"


@dataclass(frozen=True)
class Release:
    """All that a release is made from.

    Attributes:
        source: what the model's own card says.
        repository: OWNER/NAME, which the card's commands name.
        endpoint: address of the Hub, which the card's links begin with.
    """

    build: Build
    levels: tuple[BuiltLevel, ...]
    source: SourceCard
    fits: Fits
    repository: str
    endpoint: str


def stage(release: Release) -> tuple[LocalFile, ...]:
    """Make the release in the build's folder; returns its files by name.

    Files of an earlier release are removed; any others in the folder stay.

    Raises:
        InputError: something that is not an earlier release stands in the way.
        EnvironmentFault: the disk failed.
    """
    build = release.build
    folder = build.folder / FOLDER
    linked = published_as(build, release.levels, imatrix_name(build.model))
    made = {name: (text.encode(), program) for name, (text, program) in _texts(release).items()}
    hashes = {name: output.sha256 for name, output in linked.items()}
    hashes |= {name: sha256(content).hexdigest() for name, (content, _) in made.items()}
    made[SUMS] = (sums_text(hashes).encode(), False)
    hashes[SUMS] = sha256(made[SUMS][0]).hexdigest()
    sizes = {name: output.size_bytes for name, output in linked.items()}
    sizes |= {name: len(content) for name, (content, _) in made.items()}
    try:
        for path in _earlier_files(folder, build.folder, hashes):
            path.unlink()
        for name, output in linked.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(build.folder / output.path, path.parent))
        for name, (content, program) in made.items():
            with atomic(folder / name) as partial:
                partial.write_bytes(content)
                partial.chmod(0o755 if program else 0o644)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {error.filename or folder}: {error.strerror}; free some space or move "
            "it away, then run again"
        ) from None
    return tuple(local_file(n, folder / n, sizes[n], hashes[n]) for n in sorted(hashes))


def _texts(release: Release) -> dict[str, tuple[str, bool]]:
    """Name → the content of a file that is made here, and whether it is executable."""
    build, levels, source, fits = release.build, release.levels, release.source, release.fits
    folder = build.folder
    calibration = Calibration.read(folder / CALIBRATION)
    recipe, target = public_recipe(build.recipe, calibration), public_target(build.target)
    imatrix, versions = imatrix_name(build.model), build.versions
    metadata, _tensors = build.header(levels[0])
    geometry = geometry_of(metadata)
    results = [level.result for level in levels]
    facts = report_facts(
        folder, build.model, geometry.architecture, build.parameters, target, recipe, results
    )
    manifest = Manifest(
        model=build.model,
        architecture=geometry.architecture,
        parameters=build.parameters,
        source=ReleaseSource(repository=source.repository, commit=source.commit),
        mtp=build.recipe.convert.mtp,
        imatrix=imatrix,
        versions=dict(versions),
        levels={level.name: _released(level) for level in levels},
    )
    card = CardFacts(
        repository=release.repository,
        model=build.model,
        architecture=geometry.architecture,
        parameters=build.parameters,
        source=source,
        target=target,
        recipe=recipe,
        levels=levels,
        left_out=tuple(level.result for level in build.levels if level not in levels),
        fits=fits,
        calibration=calibration,
        coverage=coverage_values(facts, folder),
        versions=versions,
        imatrix_file=imatrix,
        endpoint=release.endpoint,
        is_demo=build.is_demo,
        source_files=tuple(build.source_files),
        licence_files=tuple(output.path.rpartition("/")[2] for output in build.licences),
    )
    texts = {
        CARD: card_text(card),
        MANIFEST: manifest.text(),
        RECIPE: recipe_document(
            build.recipe,
            calibration,
            model="demo" if card.is_demo else card.source_repository,
            imatrix=imatrix,
        ),
        TARGET: target_document(build.target),
        REPORT: report_page(facts, folder),
    }
    made = {name: (text, False) for name, text in texts.items()}
    for level in levels:
        made |= _launch_files(build, level, geometry.trained_context_tokens)
    return made


def _released(level: BuiltLevel) -> ReleasedLevel:
    result = level.result
    return ReleasedLevel(
        files=tuple(level.files),
        evidence=evidence_folder(level.name),
        passed=result.passed,
        baseline=result.baseline,
        size_bytes=result.size_bytes,
        bits_per_weight=result.bits_per_weight,
    )


def _launch_files(
    build: Build, level: BuiltLevel, gguf_context_tokens: int
) -> dict[str, tuple[str, bool]]:
    """Launch files that find the level's artifact in the release."""
    evidence = build.folder / evidence_folder(level.name)
    metadata, _tensors = build.header(level)
    names = tuple(level.files)
    launch = Launch(  # without devices: UUIDs are the builder's own
        PlacementFile.read(evidence / PLACEMENT_FILE).placement,
        names[0].rpartition("/")[2],
        f"{build.model}-{level.name}",
        geometry_of(metadata).architecture,
        gguf_context_tokens,
        model_folder=model_folder(names),
    )
    return {
        f"{evidence_folder(level.name)}/{name}": (text.text, text.executable)
        for name, text in launch_texts(launch).items()
    }


def _earlier_files(folder: Path, build: Path, hashes: Mapping[str, str]) -> set[Path]:
    """Files of an earlier release, which the one with these `hashes` replaces.

    They are links into the build, and files as SHA256SUMS has them. A run that was killed left
    none, but files that are made the same again.

    Raises:
        InputError: names what else stands where the release goes.
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
    for path in (folder / name for name in hashes):
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
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        shown = "; ".join(f"{one.file}, {one.where}: {one.what}" for one in found[:3])
        raise InputError(
            f"nothing was published, because the release would reveal this machine or its user: "
            f"{shown}{more}; build again with names that may be published"
        )
