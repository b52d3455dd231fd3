"""What a comparison measures of each file, kept for further artifacts and after interruptions."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from quantkit import __version__
from quantkit.config.recipe import DivergenceRecipe, RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.files import content_id, identity, write_text
from quantkit.core.units import bytes_text
from quantkit.core.work_folders import resumable
from quantkit.formats.logits_file import VERSION, LogitsFile
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.settings import DeviceSettings, device_parts
from quantkit.report.results import read_answers
from quantkit.retrieval.results import MAIN_TASKS, Retrieval
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.study.artifact_kld import measure_kld
from quantkit.study.base_logits import collect_base_logits
from quantkit.study.kld_statistics import PositionStatistics, kld_text


@dataclass(frozen=True)
class Kept:
    """Measures one file after the other, into `folder`; what is there already is not repeated."""

    folder: Path
    devices: DeviceSettings
    console: Console

    def base_logits(
        self, base: Path, base_paths: Sequence[Path], recipe: DivergenceRecipe, text: Path | None
    ) -> Path:
        """The file with the base's logits on the text, or on the one that ships."""
        parts = {
            "base": identity(base_paths),
            "text": None if text is None else content_id(text),
            "recipe": recipe.model_dump(mode="json"),
            "format": VERSION,
            "devices": device_parts(self.devices),
            "llama-cpp-python": library_version(),
        }
        folder = self.folder / f"kld-{_short_hash(parts)}"
        logits, growing = folder / "base.logits", folder / ".growing"
        began = time.monotonic()
        if logits.exists():
            size = bytes_text(logits.stat().st_size)
            self.console.skipped(base.stem, f"up to date ({size})")
            return logits
        growing.mkdir(parents=True, exist_ok=True)
        with self.console.stage(base.stem) as progress:
            header = collect_base_logits(
                base, recipe, text, logits, growing, self.devices, progress
            )
        growing.rmdir()
        detail = f"{header.positions:,} tokens, {bytes_text(logits.stat().st_size)}"
        self.console.done(base.stem, detail, time.monotonic() - began)
        return logits

    def positions(self, logits: Path, artifact: Path, name: str) -> PositionStatistics:
        """An artifact's probabilities at every position, beside the base's."""
        began = time.monotonic()
        kept = logits.parent / f"{_kept_name(artifact)}.jsonl"
        with self.console.stage(name) as progress:
            found = measure_kld(logits, artifact, kept, self.devices, progress)
        mean = kld_text(float(found.kld.mean()))
        self.console.done(name, f"KLD {mean}", time.monotonic() - began)
        return found

    def retrieval(
        self,
        artifact: Path,
        paths: Sequence[Path],
        name: str,
        recipe: RetrievalRecipe,
        haystack: Path | None,
    ) -> Retrieval:
        """An artifact's retrieval check, from an earlier run where that finished it.

        Args:
            paths: all files of the artifact.
            recipe: with a KV cache type of its own.
        """
        kv_type = str(recipe.kv_type)
        parts = {
            "model": identity(paths),
            "recipe": recipe.model_dump(mode="json"),
            "kv_type": kv_type,
            "haystack": None if haystack is None else content_id(haystack),
            "devices": device_parts(self.devices),
            "quantkit": __version__,
            "llama-cpp-python": library_version(),
        }
        folder, which = self.folder / f"retrieval-{_kept_name(artifact)}", _short_hash(parts)
        result, answers = folder / f"{which}.json", folder / f"{which}.jsonl"
        if result.exists():
            shutil.rmtree(folder / ".work", ignore_errors=True)  # of a run killed as it ended
            with suppress(
                ValidationError, InputError
            ):  # written by another version: measured again
                found = Retrieval.model_validate_json(result.read_bytes()).model_copy(
                    update={"answers": read_answers(answers)}
                )
                self.console.skipped(name, f"retrieval is up to date ({_hits_text(found)})")
                return found
        began = time.monotonic()
        settings = CheckSettings(self.devices, kv_type)
        with resumable(folder / ".work", parts) as work, self.console.stage(name) as progress:
            found = check_retrieval(artifact, recipe, settings, answers, work, haystack, progress)
            write_text(result, found.model_dump_json())
        self.console.done(name, f"retrieval {_hits_text(found)}", time.monotonic() - began)
        return found


def base_positions(logits: LogitsFile) -> PositionStatistics:
    """The base's own probabilities at every position, which diverge nowhere."""
    header = logits.header
    rows = [logits.read_rows(index, 0, header.rows)["nll"] for index in range(header.chunks)]
    nll = np.concatenate(rows).astype(np.float64)
    return PositionStatistics(np.zeros_like(nll), nll, nll, np.ones(len(nll), bool))


def _hits_text(found: Retrieval) -> str:
    main = [score for score in found.scores if score.task in MAIN_TASKS]
    return f"{sum(s.hits for s in main)}/{sum(s.trials for s in main)}"


def _kept_name(artifact: Path) -> str:
    return f"{artifact.stem}-{_short_hash({'path': str(artifact.resolve())})}"


def _short_hash(parts: Mapping[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
