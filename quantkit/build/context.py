"""The work of one build: its job, its ordered stages and their state, shared by all stages.

A stage runs when it is stale. Its fingerprint covers its version, the settings it depends on, the
native library where it matters, and the hashes of the outputs of every stage that it needs.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.config.recipe import Recipe, RetrievalRecipe
from quantkit.config.target import Target
from quantkit.core.console import Console
from quantkit.core.errors import InputError, QuantkitError
from quantkit.core.files import content_id, identity
from quantkit.core.progress import Progress
from quantkit.core.receipts import (
    Receipt,
    finished_receipts,
    read_receipt,
    stale_reason,
    write_receipt,
)
from quantkit.core.work_folders import resumable
from quantkit.formats.gguf_file import FinishedFile
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.formats.tensors import TensorSource
from quantkit.hub.downloads import is_whole
from quantkit.hub.reading import Hub
from quantkit.llamacpp.ggml import library_version
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile
from quantkit.models.choose import ModelChoice, imatrix_name, model_files, open_source
from quantkit.models.model import Model
from quantkit.models.remote import RemoteCheckpoint, look_up
from quantkit.plan import level_plans
from quantkit.plan.allocation_file import AllocationFile
from quantkit.plan.gpu_memory import GPUMemory
from quantkit.plan.level_plans import LevelPlan
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.machine import nvidia_gpus
from quantkit.plan.placement import PLACEMENT_FILE, PlacementFile
from quantkit.quantize.quantize import artifact_metadata
from quantkit.retrieval import gate
from quantkit.study.sensitivity import Sensitivity

if TYPE_CHECKING:
    from quantkit.llamacpp.settings import DeviceSettings

STUDY = "study"
IMATRIX, SENSITIVITY, BASE_LOGITS = "imatrix.gguf", "sensitivity.json", "base.logits"


@dataclass(frozen=True)
class StudyJob:
    """What to study and where.

    Attributes:
        home: the model's folder: `checkpoint` in it, what is downloaded; `study`, what is measured.
            Builds for all targets share them.
        imatrix: a ready importance matrix, taken instead of collecting one.
    """

    model: ModelChoice
    recipe: Recipe
    home: Path
    workers: int
    imatrix: Path | None = None

    @property
    def study(self) -> Path:
        """The folder of imatrix.gguf, sensitivity.json and base.logits."""
        return self.home / STUDY


@dataclass(frozen=True)
class Job(StudyJob):
    """What to build and where: all that a person chooses.

    Attributes:
        out: the build's own folder; its study may be that of other targets too.
        haystack: text of the retrieval check; None: the one that ships.
        for_release: it will be published: a model that cannot be is refused at once.
    """

    out: Path = field(kw_only=True)
    target: Target = field(kw_only=True)
    haystack: Path | None = field(default=None, kw_only=True)
    for_release: bool = field(default=False, kw_only=True)


class StudyContext:
    """A job and what the stages of a study read, each read once; nothing here writes."""

    def __init__(self, job: StudyJob, console: Console) -> None:
        self.job, self.studying = job, Pipeline(job.study, console, self.check_source)
        self.choice = job.model
        self._remote: RemoteCheckpoint | None = None
        self._identities: dict[str, list[int]] = {}
        if job.model.kind == "repository":
            return
        try:
            self._identities = self.identities()
        except InputError:
            _ = self.source  # says first what more files would not help, as the architecture
            raise

    @functools.cached_property
    def checkpoint(self) -> Path:
        return self.choice.path or self.job.home / "checkpoint"

    @functools.cached_property
    def hub(self) -> Hub:
        return Hub()

    def look_up(self, progress: Progress) -> RemoteCheckpoint:
        """The repository, found fit to be converted; the Hub is asked once."""
        if self._remote is None:
            choice = self.choice
            assert choice.repository is not None
            self._remote = look_up(
                self.hub, choice.repository, choice.revision, self.checkpoint, progress
            )
        return self._remote

    @functools.cached_property
    def source(self) -> TensorSource:
        keep = self.job.recipe.convert.mtp == "keep"
        note = self.studying.console.note
        return open_source(self.choice, self.checkpoint, keep_prediction=keep, note=note)

    @functools.cached_property
    def devices(self) -> DeviceSettings:
        from quantkit.llamacpp.selftest import device_settings

        return device_settings(self.job.workers)

    @functools.cached_property
    def model(self) -> Model:
        return Model.of(self.choice.name, self.source)

    def files(self) -> list[Path]:
        """The model's files that the build depends on."""
        return model_files(self.choice, self.checkpoint)

    def named_files(self) -> dict[str, Path]:
        """`files` by their names in checkpoint.json: with the folder where one has its own."""
        return {path.relative_to(self._files_folder).as_posix(): path for path in self.files()}

    @property
    def _files_folder(self) -> Path:
        return self.checkpoint.parent if self.choice.kind == "gguf" else self.checkpoint

    def identities(self) -> dict[str, list[int]]:
        """Size and modification time of the model's files, by their names."""
        return {name: identity([path])[path.name] for name, path in self.named_files().items()}

    def check_source(self) -> None:
        """See that the model's files are those that checkpoint.json describes.

        Tensors are read from them until the last level is checked, hours after they were hashed.
        A file is hashed again only where its modification time is another one.

        Raises:
            InputError: one was changed or removed since the build began.
        """
        files = CheckpointFile.read(self.job.study / CHECKPOINT_FILE).files
        paths = {name: self._files_folder / name for name in files}
        now = {n: identity([path])[path.name] for n, path in paths.items() if path.is_file()}
        known = self._identities or now  # a repository's were verified just now
        for name, file in files.items():
            if name not in now:
                why = "it is gone"
            elif now[name][0] != file.size_bytes:
                why = f"it has {now[name][0]:,} bytes instead of {file.size_bytes:,}"
            elif now[name] != known.get(name) and content_id(paths[name]) != file.sha256:
                why = "its content has another hash"
            else:
                continue
            raise InputError(
                f"{name} of the model was changed during the build, {why}: what was made from it "
                "since would not be of one model; leave the files as they are and build again"
            )
        self._identities = now

    def is_whole(self) -> bool:
        """Whether a repository's files are still as they were downloaded."""
        if self.choice.kind != "repository":
            return True
        try:
            found = CheckpointFile.read(self.job.study / CHECKPOINT_FILE)
            return found.model == self.choice.given and is_whole(self.checkpoint, found.files)
        except InputError:
            return False


class BuildContext(StudyContext):
    """A build's job and what its stages read.

    What was studied is in the build's folder too: another build may replace the study meanwhile.
    """

    job: Job

    def __init__(self, job: Job, console: Console) -> None:
        super().__init__(job, console)
        self.pipeline = Pipeline(job.out, console, self.check_source)

    @functools.cached_property
    def imatrix(self) -> Imatrix:
        return read_imatrix(self.job.out / IMATRIX)

    @functools.cached_property
    def importance(self) -> dict[str, NDArray[np.float32]]:
        return self.imatrix.importance()

    @functools.cached_property
    def gpu_memory(self) -> tuple[GPUMemory, str | None]:
        """The GPUs' memory for the model, and why it is only estimated, if it is."""
        (memory,), why = gpu_memories(self.model, [self.job.target])
        return memory, why

    @functools.cached_property
    def levels(self) -> tuple[list[LevelPlan], list[str]]:
        """Planned once: llama.cpp is asked for each preset in a process of its own."""
        memory, why = self.gpu_memory
        plans, notes = level_plans.plan_levels(self.job.recipe, self.model, memory)
        return plans, [*notes, *(sentence for sentence in (memory.cut_text, why) if sentence)]

    def artifact(self, plan: LevelPlan) -> Model:
        """A level's artifact with all that is known of it before its types."""
        name = f"{self.choice.name}-{plan.recipe.name}"
        imatrix = imatrix_name(self.choice.name)
        metadata = artifact_metadata(
            self.source.metadata, self.imatrix, imatrix, plan.recipe.preset
        )
        return Model(name, metadata, self.source.tensors)

    @functools.cached_property
    def sensitivity(self) -> Sensitivity:
        return Sensitivity.read(self.job.out / SENSITIVITY)

    @functools.cached_property
    def retrieval(self) -> tuple[RetrievalRecipe, str | None]:
        return gate.retrieval_for(
            self.job.recipe.retrieval, self.job.target, self.model.geometry.trained_context_tokens
        )

    def folder(self, plan: LevelPlan) -> Path:
        return self.job.out / "levels" / plan.recipe.name

    def types(self, plan: LevelPlan) -> dict[str, str]:
        """Tensor → type of a level that was allocated."""
        return AllocationFile.read(self.folder(plan) / "allocation.json").types

    def artifact_path(self, plan: LevelPlan) -> Path:
        """The file of a quantized level that llama.cpp opens."""
        outputs = self.pipeline.receipt(f"quantize:{plan.recipe.name}").outputs
        return self.job.out / outputs[0].path

    def finished_artifacts(self, stage: Stage) -> list[FinishedFile]:
        """Artifacts whose tensors `stage`, which quantizes a level, may copy.

        Those of all levels, of this and of the model's other targets, whose receipt says that they
        were made from the same source with the same importance matrix, by the same version of
        everything; the level's own last one too.
        """

        def made_from(parts: Mapping[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in parts.items() if not k.startswith("allocate:")}

        now = made_from(self.pipeline.parts(stage))
        others = sorted(found.parent for found in self.job.home.glob("*/receipts"))
        return [
            FinishedFile(folder / output.path, output.size_bytes, output.modified_ns)
            for folder in dict.fromkeys((self.job.out, *others))
            for receipt in finished_receipts(folder, "quantize:")
            if made_from(receipt.parts) == now
            for output in receipt.outputs
        ]

    def placed_devices(self, plan: LevelPlan) -> DeviceSettings:
        """The plan's own tensor split where this machine has the target's number of GPUs."""
        split = PlacementFile.read(self.folder(plan) / PLACEMENT_FILE).placement.tensor_split
        if self.devices.gpu_layers == 0 or len(nvidia_gpus()) != len(split):
            return self.devices
        return dataclasses.replace(self.devices, tensor_split=tuple(map(float, split)))


@dataclass(frozen=True)
class Done:
    """The files a stage wrote, the text of its line, and numbers for the table and the report."""

    outputs: tuple[Path, ...]
    detail: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """What a part of a build depends on.

    Attributes:
        version: raised when the same input would give other bytes.
        needs: steps whose outputs it reads, all of them and not the previous one alone.
        settings: what it depends on beside those: its part of recipe and target, as plain data.
        native: whether the native library's version matters to its result.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    native: bool


@dataclass(frozen=True)
class Stage(Step):
    """A step with its work.

    Attributes:
        run: does the work; its first argument is a folder that survives a kill.
    """

    run: Callable[[Path, Progress], Done]


RunTogether = Callable[[Path, Progress, Sequence[str]], Mapping[str, Done]]


@dataclass(frozen=True)
class Pipeline:
    """Runs stages in a build folder.

    Attributes:
        check_source: raises where the model's files are no longer those of checkpoint.json.
    """

    folder: Path
    console: Console
    check_source: Callable[[], None]

    def receipt(self, stage: str) -> Receipt:
        """The receipt of a stage that has run."""
        receipt = read_receipt(self.folder, stage)
        if receipt is None:
            raise LookupError(f"stage {stage} has not run in {self.folder}")
        return receipt

    def parts(self, stage: Step) -> dict[str, Any]:
        """All that the stage's result depends on, by name."""
        parts: dict[str, Any] = {"stage version": stage.version, "settings": stage.settings}
        if stage.native:
            parts["llama-cpp-python"] = library_version()
        for name in stage.needs:
            parts[name] = self.receipt(name).output_hashes
        return parts

    def run_together(self, name: str, steps: Sequence[Step], run: RunTogether) -> None:
        """Do those of `steps` whose receipts no longer hold, by one call of `run`.

        They follow each other: one that needs another of them runs again with it.

        Args:
            name: of all together, for people.
            run: as `Stage.run`; gets the names of the steps to do too, and gives what each did.
        """
        self.check_source()
        stale: list[Step] = []
        parts: dict[str, Any] = {}
        for step in steps:
            before = next((s.name for s in stale if s.name in step.needs), None)
            if before is None:
                own = self.parts(step)
                reason = stale_reason(self.folder, step.name, own)
            else:
                own = {"stage version": step.version, "settings": step.settings}
                reason = f"{before} runs again"
            if reason is None:
                detail = self.receipt(step.name).facts.get("detail", "no details")
                self.console.skipped(step.name, f"up to date ({detail})")
                continue
            if read_receipt(self.folder, step.name) is not None:
                self.console.note(f"{step.name} runs again: {reason}")
            stale.append(step)
            parts[step.name] = own
        if not stale:
            return
        began, work = time.monotonic(), self.folder / ".work" / name
        with resumable(work, parts), self.console.stage(name, self.folder) as progress:
            try:
                done = run(work, progress, [step.name for step in stale])
            except QuantkitError:
                self._check_source_of(work)
                raise
            self._check_source_of(work)
            seconds = time.monotonic() - began
            for step in stale:
                found = done[step.name]
                facts = {**found.facts, "detail": found.detail}
                made = self.parts(step)
                write_receipt(self.folder, step.name, made, found.outputs, seconds, facts)
        details = "; ".join(done[step.name].detail for step in stale)
        self.console.done(name, details, seconds)

    def run(self, stage: Stage) -> None:
        """Run `stage` unless its receipt still holds.

        The model's files are compared before and after: a receipt says what the stage read.

        Raises:
            InputError: they were changed since the build began.
        """
        if stage.needs:
            self.check_source()
        parts = self.parts(stage)
        reason = stale_reason(self.folder, stage.name, parts)
        if reason is None:
            detail = self.receipt(stage.name).facts.get("detail", "no details")
            self.console.skipped(stage.name, f"up to date ({detail})")
            return
        if reason != "not done yet":
            self.console.note(f"{stage.name} runs again: {reason}")
        began = time.monotonic()
        work = self.folder / ".work" / stage.name.replace(":", ".")
        with resumable(work, parts), self.console.stage(stage.name, self.folder) as progress:
            try:
                done = stage.run(work, progress)
            except QuantkitError:  # what a file that changes gives may be refused for other reasons
                if stage.needs:
                    self._check_source_of(work)
                raise
            self._check_source_of(work)
            facts = {**done.facts, "detail": done.detail}
            seconds = time.monotonic() - began
            write_receipt(self.folder, stage.name, parts, done.outputs, seconds, facts)
        self.console.done(stage.name, done.detail, seconds)

    def _check_source_of(self, work: Path) -> None:
        try:
            self.check_source()
        except InputError:
            shutil.rmtree(work, ignore_errors=True)  # its finished units are of two models
            raise
