"""What `quantkit compare` measures, and keeps for a further artifact or after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import __version__
from quantkit.core.console import Console
from quantkit.core.files import content_id, identity, write_json
from quantkit.core.units import bytes_text
from quantkit.core.work_folders import resumable
from quantkit.llamacpp.settings import device_parts
from quantkit.retrieval.results import MAIN_TASKS, Retrieval
from quantkit.study.kld_statistics import PositionStatistics, kld_text

if TYPE_CHECKING:
    from quantkit.config.recipe import DivergenceRecipe, RetrievalRecipe
    from quantkit.formats.logits_file import LogitsFile
    from quantkit.llamacpp.settings import DeviceSettings


def base_logits(
    console: Console,
    base: Path,
    base_paths: Sequence[Path],
    recipe: DivergenceRecipe,
    text: Path | None,
    kept: Path,
    devices: DeviceSettings,
) -> Path:
    """The base's logits on the text, in a folder of `kept` for this base, text and chunking."""
    from quantkit.formats.logits_file import VERSION
    from quantkit.study.base_logits import collect_base_logits

    parts = {
        "base": identity(base_paths),
        "text": None if text is None else content_id(text),
        "recipe": recipe.model_dump(mode="json"),
        "format": VERSION,
        "devices": device_parts(devices),
        **_library(),
    }
    folder = kept / f"kld-{_short_hash(parts)}"
    logits, growing = folder / "base.logits", folder / ".growing"
    began = time.monotonic()
    if logits.exists():
        console.skipped(base.stem, f"up to date ({bytes_text(logits.stat().st_size)})")
        return logits
    growing.mkdir(parents=True, exist_ok=True)
    with console.stage(base.stem) as progress:
        header = collect_base_logits(base, recipe, text, logits, growing, devices, progress)
    growing.rmdir()
    detail = f"{header.positions:,} tokens, {bytes_text(logits.stat().st_size)}"
    console.done(base.stem, detail, time.monotonic() - began)
    return logits


def base_positions(logits: LogitsFile) -> PositionStatistics:
    """What the base itself says at each position: it diverges nowhere."""
    header = logits.header
    rows = [logits.read_rows(index, 0, header.rows)["nll"] for index in range(header.chunks)]
    nll = np.concatenate(rows).astype(np.float64)
    return PositionStatistics(np.zeros_like(nll), nll, nll, np.ones(len(nll), bool))


def positions_of(
    console: Console, logits: Path, artifact: Path, name: str, devices: DeviceSettings
) -> PositionStatistics:
    """An artifact's positions, kept beside the logits."""
    from quantkit.study.artifact_kld import measure_kld

    began = time.monotonic()
    kept = logits.parent / f"{_kept_name(artifact)}.jsonl"
    with console.stage(name) as progress:
        positions = measure_kld(logits, artifact, kept, devices, progress)
    console.done(name, f"KLD {kld_text(float(positions.kld.mean()))}", time.monotonic() - began)
    return positions


def retrieval_of(
    console: Console,
    artifact: Path,
    paths: Sequence[Path],
    name: str,
    recipe: RetrievalRecipe,
    kv_type: str,
    haystack: Path | None,
    kept: Path,
    devices: DeviceSettings,
) -> Retrieval:
    """An artifact's retrieval check, from an earlier run where it is finished."""
    from pydantic import TypeAdapter, ValidationError

    from quantkit.retrieval.run.check import CheckSettings, check_retrieval

    parts = {
        "model": identity(paths),
        "recipe": recipe.model_dump(mode="json"),
        "kv_type": kv_type,
        "haystack": None if haystack is None else content_id(haystack),
        "devices": device_parts(devices),
        "quantkit": __version__,
        **_library(),
    }
    folder, which = kept / f"retrieval-{_kept_name(artifact)}", _short_hash(parts)
    result = folder / f"{which}.json"
    form = TypeAdapter(Retrieval)
    if result.exists():
        shutil.rmtree(folder / ".work", ignore_errors=True)  # of a run killed as it ended
        with suppress(ValidationError):  # else of another version: asked anew
            found = form.validate_json(result.read_bytes())
            console.skipped(name, f"retrieval is up to date ({_hits_text(found)})")
            return found
    began = time.monotonic()
    settings = CheckSettings(devices, kv_type)
    with resumable(folder / ".work", parts) as work, console.stage(name) as progress:
        answers = folder / f"{which}.jsonl"
        found = check_retrieval(artifact, recipe, settings, answers, work, haystack, progress)
        write_json(result, asdict(found))
    console.done(name, f"retrieval {_hits_text(found)}", time.monotonic() - began)
    return found


def _hits_text(found: Retrieval) -> str:
    main = [score for score in found.scores if score.task in MAIN_TASKS]
    return f"{sum(s.hits for s in main)}/{sum(s.trials for s in main)}"


def _library() -> dict[str, str]:
    from quantkit.llamacpp.ggml import library_version

    return {"llama-cpp-python": library_version()}


def _kept_name(artifact: Path) -> str:
    return f"{artifact.stem}-{_short_hash({'path': str(artifact.resolve())})}"


def _short_hash(parts: Mapping[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
