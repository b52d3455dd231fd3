"""State that the stages of one build share: the job, the model, and results so far."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.build.pipeline import Pipeline, Stage
from quantkit.config.recipe import Recipe, RetrievalRecipe
from quantkit.config.target import Target
from quantkit.core.errors import InputError
from quantkit.core.progress import Progress
from quantkit.core.receipts import finished_receipts
from quantkit.formats.gguf_file import FinishedFile
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.formats.tensors import TensorSource
from quantkit.hub.downloads import is_whole
from quantkit.hub.reading import Hub
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


@dataclass(frozen=True)
class StudyJob:
    """What to study and where.

    Attributes:
        imatrix: a ready importance matrix, taken instead of collecting one.
    """

    model: ModelChoice
    recipe: Recipe
    out: Path
    workers: int
    imatrix: Path | None = None


@dataclass(frozen=True)
class Job(StudyJob):
    """What to build and where: all that a person chooses.

    Attributes:
        haystack: text of the retrieval check; None: the one that ships.
    """

    target: Target = field(kw_only=True)
    haystack: Path | None = field(default=None, kw_only=True)


class StudyContext:
    """A job and what the stages of a study read, each read once; nothing here writes."""

    def __init__(self, job: StudyJob, pipeline: Pipeline) -> None:
        self.job, self.pipeline = job, pipeline
        self.choice = job.model
        self._remote: RemoteCheckpoint | None = None

    @functools.cached_property
    def checkpoint(self) -> Path:
        return self.choice.path or self.job.out / "checkpoint"

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
        return open_source(self.choice, self.checkpoint, keep_prediction=keep)

    @functools.cached_property
    def devices(self) -> DeviceSettings:
        from quantkit.llamacpp.selftest import device_settings

        return device_settings(self.job.workers)

    @property
    def base(self) -> Path:
        """The GGUF that statistics are collected on: the model itself where it is one."""
        return self.checkpoint if self.choice.kind == "gguf" else self.job.out / "base.gguf"

    @functools.cached_property
    def imatrix(self) -> Imatrix:
        return read_imatrix(self.job.out / "imatrix.gguf")

    @functools.cached_property
    def importance(self) -> dict[str, NDArray[np.float32]]:
        return self.imatrix.importance()

    @functools.cached_property
    def model(self) -> Model:
        return Model.of(self.choice.name, self.source)

    @property
    def base_stage(self) -> str:
        """The stage whose output is `base`."""
        return "checkpoint" if self.choice.kind == "gguf" else "convert"

    def files(self) -> list[Path]:
        """The model's files that the build depends on."""
        return model_files(self.choice, self.checkpoint)

    def is_whole(self) -> bool:
        """Whether a repository's files are still as they were downloaded."""
        if self.choice.kind != "repository":
            return True
        try:
            found = CheckpointFile.read(self.job.out / CHECKPOINT_FILE)
            return found.model == self.choice.given and is_whole(self.checkpoint, found.files)
        except InputError:
            return False


class BuildContext(StudyContext):
    """A build's job and what its stages read."""

    job: Job

    def __init__(self, job: Job, pipeline: Pipeline) -> None:
        super().__init__(job, pipeline)

    @property
    def logits(self) -> Path:
        """The base's logits, which the levels' KLD is measured against."""
        return self.job.out / "base.logits"

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
        return plans, [*notes, why] if why else notes

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
        return Sensitivity.read(self.job.out / "sensitivity.json")

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

        Those of all levels whose receipt says that they were made from the same source with the
        same importance matrix, by the same version of everything; the level's own last one too.
        """

        def made_from(parts: Mapping[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in parts.items() if not k.startswith("allocate:")}

        step, _, _ = stage.name.partition(":")
        now = made_from(self.pipeline.parts(stage))
        receipts = finished_receipts(self.job.out, f"{step}:")
        return [
            FinishedFile(self.job.out / output.path, output.size_bytes, output.modified_ns)
            for receipt in receipts
            if made_from(receipt.parts) == now
            for output in receipt.outputs
        ]

    def placed_devices(self, plan: LevelPlan) -> DeviceSettings:
        """The plan's own tensor split where this machine has the target's number of GPUs."""
        split = PlacementFile.read(self.folder(plan) / PLACEMENT_FILE).placement.tensor_split
        if self.devices.gpu_layers == 0 or len(nvidia_gpus()) != len(split):
            return self.devices
        return dataclasses.replace(self.devices, tensor_split=tuple(map(float, split)))
