"""`quantkit build`: the stages of a whole build, from a model to checked artifacts and a report."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit import planning
from quantkit.console import Console
from quantkit.errors import GateError, InputError
from quantkit.families.geometry import ModelGeometry, geometry_of
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.source import TensorSource
from quantkit.machine import nvidia_cards
from quantkit.models import choose_model, open_source
from quantkit.pipeline import Done, Pipeline, Stage
from quantkit.planning import LevelPlan
from quantkit.progress import Progress
from quantkit.receipts import build_folder, file_sha256, write_json
from quantkit.recipe import Recipe, RetrievalRecipe
from quantkit.results import LevelResult, allocation_json, placement_json
from quantkit.retrieval.heatmap import draw_heatmap
from quantkit.sizes import bytes_text
from quantkit.stages import report as report_stage
from quantkit.stages.convert import convert
from quantkit.stages.divergence import measure_divergence
from quantkit.stages.imatrix import calibration_paths, collect_imatrix
from quantkit.stages.measure import Sensitivity, measure
from quantkit.stages.niah import CheckSettings, check_retrieval
from quantkit.stages.quantize import (
    artifact_metadata,
    artifact_names,
    overhead_bytes,
    quantize,
)
from quantkit.stages.validate import validation_json
from quantkit.target import Target

if TYPE_CHECKING:
    from quantkit.native.settings import DeviceSettings


@dataclass(frozen=True)
class Job:
    """What to build and where: all that a person chooses."""

    model: str
    recipe: Recipe
    target: Target
    out: Path
    workers: int
    haystack: Path | None = None


def build(job: Job, console: Console) -> list[LevelResult]:
    """Run the build of `job` and return its levels' results; the gate is the caller's to check.

    Raises:
        QuantkitError: bad input, a target that nothing fits, or a fault of this machine.
    """
    return _Build(job, console).run()


def check_gate(results: list[LevelResult]) -> None:
    """Raise when a level that is meant for release failed.

    Raises:
        GateError: names the levels.
    """
    failed = [r for r in results if not r.passed and not r.baseline]
    if failed:
        words = "; ".join(
            f"{r.name} found {r.lengths[-1][1]} of {r.lengths[-1][2]} needles at "
            f"{r.lengths[-1][0]} tokens (lower bound {r.lengths[-1][3]:.1%})"
            for r in failed
        )
        raise GateError(
            f"the retrieval gate failed: {words}; do not release it: give it more bits, or mark it "
            "as a baseline in the recipe"
        )


class _Build:
    def __init__(self, job: Job, console: Console) -> None:
        self.job, self.console = job, console
        self.choice = choose_model(job.model)
        self.pipeline = Pipeline(job.out, console)

    def run(self) -> list[LevelResult]:
        if self.choice.kind != "repository":
            self.levels()  # bad input is told before the folder is made
        calibration_paths(self.job.recipe.imatrix)
        planning.check_gate_is_possible(self.job.recipe.retrieval)
        with build_folder(self.job.out):
            self.console.heading(
                f"quantkit build {self.job.model} for {self.job.target.name} → {self.job.out}"
            )
            self.pipeline.run(self._checkpoint())
            levels, notes = self.levels()
            for sentence in notes:
                self.console.note(sentence)
            if self.choice.kind != "gguf":
                self.pipeline.run(self._convert())
            self.pipeline.run(self._imatrix())
            self.pipeline.run(self._measure())
            for plan in levels:
                self.pipeline.run(self._allocate(plan))
                self.pipeline.run(self._quantize(plan))
                self.pipeline.run(self._validate(plan))
            results = [self._result(plan) for plan in levels]
            self.pipeline.run(self._report(levels, results))
        return results

    # What the stages share, read once.

    @functools.cached_property
    def checkpoint(self) -> Path:
        return self.choice.path or self.job.out / "checkpoint"

    @functools.cached_property
    def source(self) -> TensorSource:
        return open_source(self.choice, self.checkpoint)

    @functools.cached_property
    def geometry(self) -> ModelGeometry:
        return geometry_of(self.source.metadata)

    @functools.cached_property
    def devices(self) -> DeviceSettings:
        from quantkit.native.devices import device_settings

        return device_settings(self.job.workers)

    @property
    def base(self) -> Path:
        """The GGUF that statistics are collected on: the model itself where it is one."""
        return self.checkpoint if self.choice.kind == "gguf" else self.job.out / "base.gguf"

    def levels(self) -> tuple[list[LevelPlan], list[str]]:
        job = self.job
        return planning.plan_levels(job.recipe, job.target, self.source.tensors, self.geometry)

    @functools.cached_property
    def importance(self) -> dict[str, NDArray[np.float32]]:
        imatrix = read_imatrix(self.job.out / "imatrix.gguf")
        return {name: entry.importance() for name, entry in imatrix.entries.items()}

    @functools.cached_property
    def sensitivity(self) -> Sensitivity:
        return Sensitivity.load(self.job.out / "sensitivity.json")

    @functools.cached_property
    def retrieval(self) -> tuple[RetrievalRecipe, str | None]:
        return planning.retrieval_for(
            self.job.recipe.retrieval, self.job.target, self.geometry.trained_context_tokens
        )

    def folder(self, plan: LevelPlan) -> Path:
        return self.job.out / "levels" / plan.recipe.name

    def stem(self, plan: LevelPlan) -> str:
        return f"{self.choice.name}-{plan.recipe.name}"

    # The stages, in order.

    def _checkpoint(self) -> Stage:
        settings: dict[str, Any] = {"model": self.choice.repository or self.choice.name}
        if self.choice.kind != "repository":
            stats = {path.name: path.stat() for path in self._files()}
            settings["files"] = {n: [s.st_size, s.st_mtime_ns] for n, s in stats.items()}

        def run(work: Path, progress: Progress) -> Done:
            commit = None
            if self.choice.repository is not None:
                from quantkit.hub import download_checkpoint

                repository, _, revision = self.choice.repository.partition("@")
                commit = download_checkpoint(repository, revision or None, self.checkpoint)
            files = self._files()
            progress.start(sum(path.stat().st_size for path in files), "B")
            manifest = {}
            total = 0
            for path in files:
                size = path.stat().st_size
                manifest[path.name] = {"size_bytes": size, "sha256": file_sha256(path)}
                total += size
                progress.advance(size)
            out = self.job.out / "checkpoint.json"
            write_json(
                out,
                {
                    "model": self.choice.repository or self.choice.name,
                    "commit": commit,
                    "files": manifest,
                },
            )
            elements = sum(info.elements for info in self.source.tensors)
            detail = (
                f"{self.geometry.architecture}, {elements / 1e6:,.1f} M parameters, "
                f"{len(manifest)} files, {bytes_text(total)}"
            )
            return Done((out,), detail, {"parameters": elements, "size_bytes": total})

        return Stage("checkpoint", 1, (), settings, False, run)

    def _files(self) -> list[Path]:
        if self.choice.kind == "gguf":
            from quantkit.formats.gguf_file import shard_paths

            return shard_paths(self.checkpoint)
        suffixes = (".safetensors", ".json", ".jinja", ".model")
        return sorted(p for p in self.checkpoint.iterdir() if p.is_file() and p.suffix in suffixes)

    def _convert(self) -> Stage:
        recipe = self.job.recipe.convert

        def run(work: Path, progress: Progress) -> Done:
            out = convert(self.source, recipe, self.base, work, self.job.workers, progress)
            size = out.stat().st_size
            return Done((out,), f"{recipe.base_type}, {bytes_text(size)}", {"size_bytes": size})

        return Stage("convert", 1, ("checkpoint",), recipe.model_dump(mode="json"), False, run)

    def _imatrix(self) -> Stage:
        recipe = self.job.recipe.imatrix
        texts = {p.name: _content_id(p) for p in calibration_paths(recipe)}

        def run(work: Path, progress: Progress) -> Done:
            out = self.job.out / "imatrix.gguf"
            facts = collect_imatrix(self.base, recipe, out, work, self.devices, progress)
            unseen = f", {facts.unseen_experts} unseen experts" if facts.unseen_experts else ""
            detail = f"{facts.weights} weights, {facts.tokens:,} tokens{unseen}"
            return Done((out,), detail, asdict(facts))

        settings = {**recipe.model_dump(mode="json"), "texts": texts}
        return Stage("imatrix", 1, (self._base_stage(),), settings, True, run)

    def _base_stage(self) -> str:
        return "checkpoint" if self.choice.kind == "gguf" else "convert"

    def _measure(self) -> Stage:
        recipe = self.job.recipe.measure

        def run(work: Path, progress: Progress) -> Done:
            out = self.job.out / "sensitivity.json"
            sensitivity = measure(
                self.source, self.importance, recipe, out, work, self.job.workers, progress
            )
            pairs = sum(len(kinds) for kinds in sensitivity.errors.values())
            detail = f"{len(sensitivity.errors)} tensors, {pairs} (tensor, type) pairs"
            return Done((out,), detail, {"tensors": len(sensitivity.errors), "pairs": pairs})

        settings = recipe.model_dump(mode="json")
        return Stage("measure", 1, ("checkpoint", "imatrix"), settings, True, run)

    def _artifact_metadata(self) -> Any:  # noqa: ANN401 - Metadata
        imatrix = read_imatrix(self.job.out / "imatrix.gguf")
        return artifact_metadata(self.source.metadata, imatrix, "imatrix.gguf")

    def _allocate(self, plan: LevelPlan) -> Stage:
        job = self.job

        def run(work: Path, progress: Progress) -> Done:
            stem, tensors = self.stem(plan), self.source.tensors
            overhead = overhead_bytes(stem, self._artifact_metadata(), tensors)
            errors = self.sensitivity.errors
            fitted = planning.fit(plan, tensors, errors, overhead, self.geometry, job.target)
            allocation, placement = fitted.allocation, fitted.placement
            outputs = (
                self.folder(plan) / "allocation.json",
                self.folder(plan) / "placement.json",
            )
            write_json(outputs[0], allocation_json(allocation, tensors))
            file = artifact_names(stem, self._artifact_metadata(), tensors, allocation.types)[0]
            write_json(outputs[1], placement_json(placement, file))
            detail = (
                f"{bytes_text(allocation.total_bytes)} of {bytes_text(allocation.budget_bytes)}, "
                f"layers {'+'.join(map(str, placement.tensor_split))} on {job.target.name}"
            )
            return Done(outputs, detail, {"total_bytes": allocation.total_bytes})

        settings = {
            "level": plan.recipe.model_dump(mode="json", exclude={"baseline"}),
            "target": job.target.model_dump(mode="json", exclude={"description"}),
        }
        needs = ("checkpoint", "imatrix", "measure")
        return Stage(f"allocate:{plan.recipe.name}", 1, needs, settings, False, run)

    def _quantize(self, plan: LevelPlan) -> Stage:
        def run(work: Path, progress: Progress) -> Done:
            files = quantize(
                self.source,
                self._artifact_metadata(),
                self._types(plan),
                self.importance,
                self.folder(plan),
                work,
                self.stem(plan),
                self.job.workers,
                progress,
            )
            size = sum(path.stat().st_size for path in files)
            elements = sum(info.elements for info in self.source.tensors)
            detail = f"{bytes_text(size)}, {8 * size / elements:.2f} bits a weight"
            return Done(tuple(files), detail, {"size_bytes": size})

        needs = ("checkpoint", "imatrix", f"allocate:{plan.recipe.name}")
        return Stage(f"quantize:{plan.recipe.name}", 1, needs, {}, True, run)

    def _types(self, plan: LevelPlan) -> dict[str, str]:
        import json

        content = json.loads((self.folder(plan) / "allocation.json").read_text(encoding="utf-8"))
        return {name: entry["type"] for name, entry in content["tensors"].items()}

    def _artifact(self, plan: LevelPlan) -> Path:
        outputs = self.pipeline.receipt(f"quantize:{plan.recipe.name}").outputs
        return self.job.out / outputs[0].path

    def _validate(self, plan: LevelPlan) -> Stage:
        job, name = self.job, plan.recipe.name
        recipe, note = self.retrieval
        kv_type = recipe.kv_type or job.target.kv_type

        def run(work: Path, progress: Progress) -> Done:
            if note:
                progress.note(note)
            folder = self.folder(plan)
            outputs = (
                folder / "validation.json",
                folder / "niah.jsonl",
                folder / "heatmap.png",
            )
            artifact = self._artifact(plan)
            settings = CheckSettings(self._placed_devices(plan), kv_type, job.target.ubatch_tokens)
            retrieval = check_retrieval(
                artifact, recipe, settings, outputs[1], work, job.haystack, progress
            )
            divergence = measure_divergence(
                self.base, artifact, job.recipe.divergence, self.devices, progress
            )
            draw_heatmap(retrieval.answers, self.stem(plan), outputs[2])
            write_json(outputs[0], validation_json(retrieval, divergence, recipe, kv_type))
            gate = retrieval.gate
            passed = retrieval.passes(recipe.minimum_lower_bound)
            verdict = "passed" if passed else "FAILED"
            if recipe.minimum_lower_bound is None:
                verdict = "no gate"
            elif not passed and plan.recipe.baseline:
                verdict = "failed, a baseline"
            detail = (
                f"{verdict}: {gate.hits}/{gate.trials} needles at {gate.context_tokens:,} tokens, "
                f"at least {gate.lower_bound:.1%}"
            )
            if divergence is not None:
                detail += f", KLD {divergence.mean:.4f}"
            return Done(outputs, detail, {"passed": passed})

        settings = {
            "baseline": plan.recipe.baseline,
            "retrieval": recipe.model_dump(mode="json"),
            "divergence": job.recipe.divergence.model_dump(mode="json"),
            "kv_type": kv_type,
            "ubatch_tokens": job.target.ubatch_tokens,
            "haystack": None if job.haystack is None else _content_id(job.haystack),
        }
        needs = (self._base_stage(), f"quantize:{name}")
        return Stage(f"validate:{name}", 1, needs, settings, True, run)

    def _placed_devices(self, plan: LevelPlan) -> DeviceSettings:
        """The plan's own tensor split where this machine has the target's number of cards."""
        import dataclasses
        import json

        text = (self.folder(plan) / "placement.json").read_text(encoding="utf-8")
        shares = tuple(float(share) for share in json.loads(text)["tensor_split"])
        if self.devices.gpu_layers == 0 or len(nvidia_cards()) != len(shares):
            return self.devices
        return dataclasses.replace(self.devices, tensor_split=shares)

    def _result(self, plan: LevelPlan) -> LevelResult:
        import json

        folder, name = self.folder(plan), plan.recipe.name
        validation = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
        placement = json.loads((folder / "placement.json").read_text(encoding="utf-8"))
        files = self.pipeline.receipt(f"quantize:{name}").outputs
        size = sum(output.size_bytes for output in files)
        elements = sum(info.elements for info in self.source.tensors)
        kld = validation["kld"] or {}
        return LevelResult(
            name=name,
            baseline=plan.recipe.baseline,
            passed=validation["passed"],
            gated=validation["niah"]["minimum_lower_bound"] is not None,
            files=tuple(output.path for output in files),
            size_bytes=size,
            bits_per_weight=8 * size / elements,
            card_bytes=tuple(card["total_bytes"] for card in placement["cards"]),
            card_capacity_bytes=tuple(card["capacity_bytes"] for card in placement["cards"]),
            context_tokens=placement["context_tokens"],
            command=placement["command"],
            lengths=tuple(
                (s["context_tokens"], s["hits"], s["trials"], s["lower_bound"])
                for s in validation["niah"]["lengths"]
            ),
            kld=kld.get("mean"),
            same_top=kld.get("same_top"),
            types=dict(Counter(self._types(plan).values()).most_common()),
            heatmap=f"levels/{name}/heatmap.png",
        )

    def _report(self, levels: list[LevelPlan], results: list[LevelResult]) -> Stage:
        job = self.job

        def run(work: Path, progress: Progress) -> Done:
            facts = report_stage.ReportFacts(
                model=self.choice.name,
                architecture=self.geometry.architecture,
                parameters=sum(info.elements for info in self.source.tensors),
                target=job.target,
                recipe=job.recipe,
                results=tuple(results),
                imatrix=self.pipeline.receipt("imatrix").facts,
                kv_type=self.retrieval[0].kv_type or job.target.kv_type,
                ruled_out=self._ruled_out(levels),
            )
            outputs = report_stage.write_report(facts, job.out)
            return Done(outputs, "report.html, README.md", {})

        needs = tuple(
            f"{stage}:{plan.recipe.name}"
            for plan in levels
            for stage in ("allocate", "quantize", "validate")
        )
        settings = {
            "recipe": job.recipe.model_dump(mode="json"),
            "target": job.target.model_dump(mode="json"),
        }
        return Stage("report", 1, ("imatrix", *needs), settings, True, run)

    def _ruled_out(self, levels: list[LevelPlan]) -> dict[str, list[str]]:
        import json

        path = self.folder(levels[0]) / "allocation.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        ruled_out: dict[str, list[str]] = content["ruled_out_by_row_length"]
        return ruled_out


def _content_id(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
