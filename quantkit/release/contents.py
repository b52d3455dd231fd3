"""The files of a finished build that are published, checked against their receipts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.core.errors import GateError, InputError
from quantkit.core.files import file_sha256
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.progress import Progress
from quantkit.core.receipts import Output, Receipt, read_receipt
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile, SourceFile
from quantkit.models.gguf_source import GGUFSource
from quantkit.plan.placement import PLACEMENT_FILE
from quantkit.release.layout import (
    ALLOCATION,
    ANSWERS,
    HEATMAP,
    VALIDATION,
    artifact_names,
    evidence_folder,
)
from quantkit.report.report import COVERAGE_PICTURE
from quantkit.report.results import BUILT, CALIBRATION, BuildFile, LevelResult, read_level

_SHARED = {
    "checkpoint": (CHECKPOINT_FILE,),
    "imatrix": ("imatrix.gguf",),
    "measure": ("sensitivity.json",),
    "report": (CALIBRATION, BUILT),
}
_OF_A_LEVEL = {
    "allocate": (ALLOCATION,),
    "place": (PLACEMENT_FILE,),
    "quantize": (),
    "validate": (VALIDATION, ANSWERS, HEATMAP),
}
"""Step → the files of these names that a release needs; of `quantize`, whatever it wrote."""
_LICENCE = re.compile(r"(?:LICEN[SC]E|NOTICE)[\w.-]*", re.IGNORECASE)


@dataclass(frozen=True)
class BuiltLevel:
    """A level of a build; `files`: path in the release → the file here, the first shard first."""

    result: LevelResult
    files: Mapping[str, Path]

    @property
    def name(self) -> str:
        return self.result.name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def artifact(self) -> GGUFSource:
        return GGUFSource(next(iter(self.files.values())))


@dataclass(frozen=True)
class Build:
    """A finished build, as its receipts describe it.

    Attributes:
        model: what artifacts are called after.
        source: what `--model` was: OWNER/NAME[@REVISION], or a name.
        commit: of the source, where it came from the Hub.
        receipts: by stage.
        licences: texts of licences and notices, as they came with a source from the Hub.
    """

    folder: Path
    model: str
    source: str
    commit: str | None
    parameters: int
    recipe: Recipe
    target: Target
    versions: Mapping[str, str]
    levels: tuple[BuiltLevel, ...]
    receipts: Mapping[str, Receipt]
    source_files: Mapping[str, SourceFile]
    licences: tuple[Output, ...]

    @property
    def is_demo(self) -> bool:
        """Whether it was made of the model that ships with quantkit, by its weights' hash."""
        weights = DEMO_MODEL / "model.safetensors"
        known = self.source_files.get(weights.name)
        return weights.is_file() and known is not None and known.sha256 == file_sha256(weights)

    def outputs(self, levels: Iterable[BuiltLevel]) -> list[Output]:
        """The files that a release of `levels` is made from, as their receipts have them."""
        stages = [*_SHARED, *(f"{step}:{level.name}" for level in levels for step in _OF_A_LEVEL)]
        written = [output for stage in stages for output in self.receipts[stage].outputs]
        return [*written, *self.licences]


def read_build(folder: Path) -> Build:
    """The finished build in `folder`; its files are not hashed yet.

    Raises:
        InputError: there is no build, or it is unfinished or of another version.
    """
    report = read_receipt(folder, "report")
    if report is None:
        raise InputError(
            f"{folder} has no finished build (receipts/report.json is missing or broken); give a "
            "folder in which 'quantkit build' has finished"
        )
    _check_outputs(folder, {"report": report})
    try:
        built = BuildFile.read(folder / BUILT)
        checkpoint = CheckpointFile.read(folder / CHECKPOINT_FILE)
    except InputError as error:
        raise _unreadable(folder, error) from None
    recipe = built.recipe
    names = [level.name for level in recipe.levels]
    receipts = dict[str, Receipt]()
    for stage in (*_SHARED, *(f"{step}:{name}" for name in names for step in _OF_A_LEVEL)):
        receipt = read_receipt(folder, stage)
        if receipt is None:
            raise _unfinished(folder, f"stage {stage} has no receipt")
        receipts[stage] = receipt
    # a build that was changed and stopped has new artifacts beside the checks of old ones
    for stage, receipt in receipts.items():
        for name, hashes in receipt.parts.items():
            if name in receipts and hashes != receipts[name].output_hashes:
                raise _unfinished(folder, f"{stage} used an older output of {name}")
    _check_outputs(folder, receipts)
    levels = []
    try:
        parameters = int(receipts["checkpoint"].facts["parameters"])
        for level in recipe.levels:
            quantized = receipts[f"quantize:{level.name}"]
            result = read_level(folder, level.name, quantized, parameters, baseline=level.baseline)
            paths = [folder / output.path for output in quantized.outputs]
            names_there = artifact_names(level.name, [path.name for path in paths])
            levels.append(BuiltLevel(result, dict(zip(names_there, paths, strict=True))))
    except (
        InputError, OSError, ValueError, LookupError, TypeError, ArithmeticError,
    ) as error:  # fmt: skip
        raise _unreadable(folder, error) from None
    first = Path(receipts[f"quantize:{names[0]}"].outputs[0].path).name
    model = re.sub(rf"-{re.escape(names[0])}(-\d{{5}}-of-\d{{5}})?\.gguf$", "", first)
    # texts that came with the checkpoint must be passed on with the weights
    licences = tuple(
        Output(f"checkpoint/{name}", file.size_bytes, 0, file.sha256)
        for name, file in checkpoint.files.items()
        if checkpoint.commit is not None and _LICENCE.fullmatch(name)
    )
    return Build(
        folder, model, checkpoint.model, checkpoint.commit, parameters, recipe, built.target,
        built.versions, tuple(levels), receipts, checkpoint.files, licences,
    )  # fmt: skip


def _unreadable(folder: Path, error: Exception) -> InputError:
    why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return InputError(
        f"the build in {folder} is not readable by this version of quantkit ({why}); run "
        "'quantkit build' again: what is still right is kept"
    )


def _unfinished(folder: Path, why: str) -> InputError:
    return InputError(
        f"the build in {folder} is not finished: {why}; run 'quantkit build' again to finish it"
    )


def _check_outputs(folder: Path, receipts: Mapping[str, Receipt]) -> None:
    """Check that the stages wrote all files that a release needs."""
    for stage, receipt in receipts.items():
        step = stage.partition(":")[0]
        written = {Path(output.path).name for output in receipt.outputs}
        missing = {*(_SHARED | _OF_A_LEVEL)[step]} - written
        if missing or not written:
            raise InputError(
                f"the build in {folder} was made by an older quantkit: stage {stage} did not "
                f"write {min(missing, default='anything')}; run 'quantkit build' again, which "
                "repeats only the stages that need it"
            )


def chosen(
    build: Build, names: Sequence[str] | None, *, allow_failed: bool = False
) -> tuple[BuiltLevel, ...]:
    """The levels to publish, in the order of `names`; None: all but baselines and failed ones.

    Raises:
        InputError: the build has no level of that name.
        GateError: a named level failed its gate, or no level is left.
    """
    by_name = {level.name: level for level in build.levels}
    unknown = [name for name in names or () if name not in by_name]
    if unknown:
        raise InputError(
            f"the build in {build.folder} has no level {unknown[0]!r}; it has {', '.join(by_name)}"
        )
    if names is None:
        wanted = [level for level in build.levels if not level.result.baseline]
        found = [level for level in wanted if level.result.passed or allow_failed]
    else:
        wanted = found = [by_name[name] for name in dict.fromkeys(names)]
    failures = []
    for result in (level.result for level in wanted if not level.result.passed):
        scores = ", ".join(
            f"{s.hits} of {s.trials} {s.name} at {s.context_tokens:,} tokens, at least "
            f"{s.lower_bound:.1%}"
            for s in result.retrieval.gated
        )
        failures.append(f"{result.name} failed its gate ({scores})")
    if failures and not allow_failed and (names is not None or not found):
        raise GateError(
            f"not published: {'; '.join(failures)}; build it with more bits, or publish it with "
            "--allow-failed, and the card says that it failed"
        )
    if not found:
        raise GateError(
            f"the build in {build.folder} has only baselines, which are not published by default; "
            "name one with --levels"
        )
    return tuple(found)


def check_outputs(build: Build, levels: Iterable[BuiltLevel], progress: Progress) -> None:
    """Compare the hashes of all files that a release of `levels` needs with the receipts.

    Raises:
        InputError: a file is missing or was changed.
    """
    outputs = build.outputs(levels)
    progress.start(sum(output.size_bytes for output in outputs), "B", "compared with receipts")
    for output in outputs:
        path = build.folder / output.path
        try:
            size = path.stat().st_size
            found = file_sha256(path, progress.advance) if size == output.size_bytes else ""
            how = f"its SHA-256 is {found}" if found else f"it has {size} bytes"
        except OSError as error:
            found, how = "", str(error.strerror)
        if found != output.sha256:
            raise InputError(
                f"{path} was changed since it was built ({how}), so nothing was published; run "
                "'quantkit build' again to restore it"
            )


def published_as(build: Build, levels: Iterable[BuiltLevel], imatrix: str) -> dict[str, Output]:
    """Path in the release → the build's file that is published as it is; `imatrix`: such a path."""
    written = {output.path: output for output in build.outputs(levels)}
    names = (CHECKPOINT_FILE, CALIBRATION, "sensitivity.json", COVERAGE_PICTURE)
    found = {name: written[name] for name in names if name in written}
    found[imatrix] = written["imatrix.gguf"]
    found |= {output.path.rpartition("/")[2]: output for output in build.licences}
    for level in levels:
        for name, path in level.files.items():
            found[name] = written[path.relative_to(build.folder).as_posix()]
        for file in chain.from_iterable(_OF_A_LEVEL.values()):
            name = f"{evidence_folder(level.name)}/{file}"
            found[name] = written[name]
    return found
