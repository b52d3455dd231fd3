"""BUILD_DIR/release/: a release as it will be downloaded, made before a byte is uploaded.

What a build wrote is linked, not copied; what a release has besides is made here. The same build
gives the same bytes each time, so that publishing again finds nothing to do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import file_sha256
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
from quantkit.release.manifest import Manifest, ReleasedLevel, ReleaseSource
from quantkit.release.names import (
    CARD,
    MANIFEST,
    RECIPE,
    REPORT,
    SUMS,
    TARGET,
    evidence_folder,
    model_folder,
)
from quantkit.release.privacy import find_private, this_machine
from quantkit.release.sums import parse_sums, sums_text
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

    What the last one left there goes, and nothing else.

    Raises:
        EnvironmentFault: the disk failed, or something else stands in the way.
    """
    build = release.build
    model = imatrix_name(build.model)
    place, making = build.folder / FOLDER, build.folder / f"{FOLDER}.partial"
    written = published_as(build, release.levels, model)
    texts = _texts(release)
    try:
        shutil.rmtree(making, ignore_errors=True)
        hashes = {name: output.sha256 for name, output in written.items()}
        sizes = {name: output.size_bytes for name, output in written.items()}
        for name, (text, executable) in texts.items():
            content = text.encode()
            hashes[name], sizes[name] = sha256(content).hexdigest(), len(content)
            _write(making / name, content, executable=executable)
        sums = sums_text(hashes).encode()
        hashes[SUMS], sizes[SUMS] = sha256(sums).hexdigest(), len(sums)
        _write(making / SUMS, sums, executable=False)
        _check_old(place, build.folder, hashes)
        _clear(place, build.folder)
        for name in sorted(hashes):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if name in written:
                target = build.folder / written[name].path
                (place / name).symlink_to(os.path.relpath(target, (place / name).parent))
            else:
                os.replace(making / name, place / name)
        shutil.rmtree(making, ignore_errors=True)
        return tuple(local_file(n, place / n, sizes[n], hashes[n]) for n in sorted(hashes))
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {error.filename or place}: {error.strerror}; make room or move it away, "
            "then run again"
        ) from None


def _texts(release: Release) -> dict[str, tuple[str, bool]]:
    """Name → what is made for the release, and whether it is a program."""
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
            build.recipe, calibration, model=_again(build, source), imatrix=imatrix
        ),
        TARGET: target_document(build.target),
        REPORT: report_page(facts, folder),
    }
    made = {name: (text, False) for name, text in texts.items()}
    for level in levels:
        made |= _launch_files(build, level, geometry.trained_context_tokens)
    return made


def _again(build: Build, source: SourceCard) -> str | None:
    """What `--model` takes to get exactly the source's files; None if that is not known."""
    if build.is_demo:
        return "demo"
    if any(name.endswith(".gguf") for name in build.source_files):
        return None  # the repository that its header names holds another file
    if source.repository is None or source.commit is None:
        return source.repository
    return f"{source.repository}@{source.commit}"


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
    """What starts the level where the release's files lie."""
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


def _check_old(place: Path, build: Path, hashes: Mapping[str, str]) -> None:
    """See that nothing of somebody else stands where the release goes.

    Raises:
        InputError: names it.
    """
    folders = {place, *(place / parent for name in hashes for parent in Path(name).parents)}
    for folder in sorted(folders):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} is no folder of its own; move it away, then run again")
    ours = _ours(place, build)
    for name, expected in hashes.items():
        path = place / name
        if not os.path.lexists(path) or path in ours:
            continue
        # a run that was killed left it without its SHA256SUMS
        if not (path.is_file() and file_sha256(path) == expected):
            raise InputError(
                f"{path} was changed after it was made, and is made anew each time; move it away, "
                "then run again"
            )


def _clear(place: Path, build: Path) -> None:
    """Remove what an earlier release left, and nothing that somebody put there."""
    for path in _ours(place, build):
        path.unlink()


def _ours(place: Path, build: Path) -> set[Path]:
    """What an earlier release made: links into the build, and files as its SHA256SUMS has them."""
    try:
        sums = parse_sums((place / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, InputError):
        sums = {}
    found = set()
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if path.is_symlink():
            if path.resolve().is_relative_to(build.resolve()):
                found.add(path)
        elif path.is_file() and (
            (name == SUMS and MANIFEST in sums)
            or (name in sums and file_sha256(path) == sums[name])
        ):
            found.add(path)
    return found


def _write(path: Path, content: bytes, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if executable else 0o644)


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
