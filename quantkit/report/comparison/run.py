"""GGUF files of one base → a comparison: each measured on the same text and questions."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from quantkit import __version__
from quantkit.config.recipe import DivergenceRecipe, RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.documents import validated
from quantkit.core.errors import InputError
from quantkit.core.files import (
    chosen_folder,
    content_id,
    identity,
    refuse_links_in,
    write_text,
)
from quantkit.core.parsing import MOST_JSON_BYTES, read_bounded
from quantkit.core.paths import haystack_text
from quantkit.core.threads import worker_count
from quantkit.core.units import bytes_text
from quantkit.core.work_folders import build_folder, resumable
from quantkit.formats.logits_file import VERSION, LogitsFile, check_vocabulary, vocabulary_id
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.selftest import device_settings
from quantkit.llamacpp.settings import DeviceSettings, device_parts
from quantkit.models.gguf_source import GGUFSource
from quantkit.report.comparison.comparison import Comparison, Conditions, compared
from quantkit.report.comparison.measured import Measured, names_of
from quantkit.report.comparison.writers import write_comparison
from quantkit.report.results import read_answers
from quantkit.retrieval.results import MAIN_TASKS, Retrieval
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.study.divergence import held_out_text, measure_kld
from quantkit.study.kld_statistics import PositionStatistics, kld_text
from quantkit.study.run import collect_base_logits

LENGTHS = (2048, 8192)
"""Context tokens that are checked by default, as far as all artifacts were trained for them."""
SHORTEST_TOKENS = 256
DEFAULTS = {
    "needles": 32, "seeds": (1, 2, 3), "kv_type": "q8_0", "minimum_lower_bound": None,
    "near_misses": 0,
}  # fmt: skip
"""Of the retrieval check: no gate, and what tells artifacts apart."""


@dataclass(frozen=True)
class ComparisonFiles:
    """A comparison and where it was written.

    Attributes:
        written: page, tables, picture and JSON, in `folder`.
        kept: folder with what was measured; it makes a further run quick, and may be deleted.
        kept_bytes: its size.
    """

    comparison: Comparison
    folder: Path
    written: tuple[Path, ...]
    kept: Path
    kept_bytes: int


def compare(
    artifacts: Iterable[str | Path],
    out: str | Path | None = None,
    *,
    base: str | Path | None = None,
    text: str | Path | None = None,
    chunks: int = 16,
    chunk_tokens: int = 512,
    retrieval: RetrievalRecipe | bool = True,
    haystack: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
    **settings: object,
) -> ComparisonFiles:
    """Artifacts of one base side by side: size, KL divergence, retrieval, speed, and which differ.

    What an earlier run into the same folder measured is not repeated.

    Args:
        artifacts: GGUF files, the first shard of each.
        out: folder for page, tables and picture; None: BASE-compare in the current one.
        base: file that the KL divergence is measured from; None: the largest artifact.
        text: that it is measured on, `chunks` chunks of `chunk_tokens`; None: the one that ships.
        retrieval: the retrieval check, without lengths at `LENGTHS`; True: 32 needles for each of
            the seeds 1, 2 and 3; False: none.
        haystack: text to hide the needles in; None: the one that ships.
        workers: CPU threads; None: one for each core.
        settings: fields of `retrieval` where that is True, as in context_tokens=(2048,).

    Raises:
        InputError: fewer than two artifacts, broken files, other tokenizers or chat templates, a
            context that one was not trained for, or a folder that cannot be written.
        EnvironmentFault: no memory, or native code failed.
    """
    console, where = Console(quiet=quiet), Path("settings")
    chunking = {"chunks": chunks, "chunk_tokens": chunk_tokens}
    divergence = validated(DivergenceRecipe, chunking, where)
    if retrieval is True:
        retrieval = validated(RetrievalRecipe, DEFAULTS | settings, where)
    kld_text, needle_text = (None if given is None else Path(given) for given in (text, haystack))
    files, measured_from = _opened(map(Path, artifacts), None if base is None else Path(base))
    base_path = measured_from.paths[0]
    _check_alike(files, measured_from, retrieval=bool(retrieval))
    recipe = _at_lengths(retrieval, needle_text, files) if retrieval else None
    held_out_text(kld_text)
    if base is None:
        console.note(f"no --base: KLD is measured from {base_path.name}, the largest file")
    folder = chosen_folder(out, f"{base_path.stem}-compare")
    kept = folder / "kept"
    with build_folder(folder):
        refuse_links_in(kept)
        measuring = Kept(kept, device_settings(worker_count(workers)), console)
        logits = measuring.base_logits(measured_from.paths, divergence, kld_text)
        found = _measured(files, measured_from, logits, recipe, needle_text, measuring)
        written = write_comparison(found, folder)
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    return ComparisonFiles(found, folder, written, kept, size)


def _opened(artifacts: Iterable[Path], base: Path | None) -> tuple[list[GGUFSource], GGUFSource]:
    """The artifacts, each once, and the base, which may be one of them."""
    paths = list({path.resolve(): path for path in artifacts}.values())
    if len(paths) < 1 + (base is None):
        raise InputError(
            "there is nothing to compare: give two artifacts or more, or one and the file that "
            "it was made from with --base"
        )
    files = [GGUFSource(path) for path in paths]
    if base is None:
        return files, max(files, key=_size_bytes)
    same = [file for file in files if file.paths[0].resolve() == base.resolve()]
    return files, same[0] if same else GGUFSource(base)


def _size_bytes(file: GGUFSource) -> int:
    return sum(path.stat().st_size for path in file.paths)


def _trained_tokens(file: GGUFSource) -> int:
    """Raises InputError where the file does not say its context length."""
    key = f"{file.metadata['general.architecture'].value}.context_length"
    found = file.metadata.get(key)
    if found is None or not isinstance(found.value, int):
        raise InputError(
            f"{file.paths[0].name} has no {key}, so the lengths for its retrieval check are not "
            "known; leave the check out with --no-retrieval"
        )
    return found.value


def _check_alike(files: Sequence[GGUFSource], base: GGUFSource, *, retrieval: bool) -> None:
    """Raise InputError unless all see the same tokens and, if asked, the same prompts."""
    vocabulary = vocabulary_id(base.metadata)
    for file in files:
        found = vocabulary_id(file.metadata)
        check_vocabulary(file.paths[0].name, found, base.paths[0].name, vocabulary)
    if not retrieval:
        return
    for key in ("tokenizer.chat_template", "tokenizer.ggml.add_bos_token"):
        for file in files[1:]:
            if file.metadata.get(key) != files[0].metadata.get(key):
                raise InputError(
                    f"{file.paths[0].name} has another {key} than {files[0].paths[0].name}, so "
                    "they would get different prompts; give both the same one, or leave the "
                    "retrieval check out with --no-retrieval"
                )


def _at_lengths(
    recipe: RetrievalRecipe, haystack: Path | None, files: Sequence[GGUFSource]
) -> RetrievalRecipe:
    """`recipe` at lengths that all of `files` were trained for."""
    haystack_text(haystack)
    shortest = min(files, key=_trained_tokens)
    limit = _trained_tokens(shortest)
    lengths = recipe.context_tokens or tuple(n for n in LENGTHS if n <= limit) or (limit,)
    if max(lengths) > limit or limit < SHORTEST_TOKENS:
        raise InputError(
            f"{shortest.paths[0].name} was trained for {limit} tokens, and --context is "
            f"{max(lengths)}: check shorter contexts, or leave the retrieval check out with "
            "--no-retrieval"
        )
    found = {"context_tokens": tuple(sorted(set(lengths))), "kv_type": recipe.kv_type or "q8_0"}
    return recipe.model_copy(update=found)


def _measured(
    files: Sequence[GGUFSource],
    base: GGUFSource,
    logits: Path,
    recipe: RetrievalRecipe | None,
    haystack: Path | None,
    measuring: Kept,
) -> Comparison:
    """Measure one artifact after the other, as far as no earlier run did."""
    opened = LogitsFile(logits)
    header, found = opened.header, []
    names = names_of([file.paths[0] for file in files])
    for file, name in zip(files, names, strict=True):
        path, is_base = file.paths[0], file is base
        positions = base_positions(opened) if is_base else measuring.positions(logits, path, name)
        retrieval = None
        if recipe is not None:
            retrieval = measuring.retrieval(file.paths, name, recipe, haystack)
        found.append(
            Measured(
                path=path,
                name=name,
                size_bytes=_size_bytes(file),
                parameters=sum(info.elements for info in file.tensors),
                positions=positions,
                chunks=header.chunks,
                divergence=positions.summary(),
                is_base=is_base,
                retrieval=retrieval,
            )
        )
    asked = recipe or RetrievalRecipe()
    conditions = Conditions(
        base=base.paths[0].name,
        text=header.text,
        chunks=header.chunks,
        chunk_tokens=header.chunk_tokens,
        tokens=header.positions,
        base_perplexity=found[0].divergence.base_perplexity,
        context_tokens=() if recipe is None else recipe.context_tokens,
        needles=asked.needles,
        seeds=asked.seeds,
        kv_type=str(asked.kv_type),
        haystack="State of the Union" if haystack is None else haystack.name,
    )
    return compared(found, conditions)


@dataclass(frozen=True)
class Kept:
    """Measures one file after the other, into `folder`; what is there already is not repeated."""

    folder: Path
    devices: DeviceSettings
    console: Console

    def base_logits(
        self, base: Sequence[Path], recipe: DivergenceRecipe, text: Path | None
    ) -> Path:
        """The file with the logits of the model in the files `base` on the text, or on the one
        that ships."""
        parts = {
            "base": identity(base),
            "text": None if text is None else content_id(text),
            "recipe": recipe.model_dump(mode="json"),
            "format": VERSION,
            "devices": device_parts(self.devices),
            "llama-cpp-python": library_version(),
        }
        name = base[0].stem
        folder = self.folder / f"kld-{_short_hash(parts)}"
        logits, growing = folder / "base.logits", folder / ".growing"
        began = time.monotonic()
        if logits.exists():
            size = bytes_text(logits.stat().st_size)
            self.console.skipped(name, f"up to date ({size})")
            return logits
        growing.mkdir(parents=True, exist_ok=True)
        with self.console.stage(name, self.folder.parent) as progress:
            header = collect_base_logits(
                base[0], recipe, text, logits, growing, self.devices, progress
            )
        shutil.rmtree(growing)
        detail = f"{header.positions:,} tokens, {bytes_text(logits.stat().st_size)}"
        self.console.done(name, detail, time.monotonic() - began)
        return logits

    def positions(self, logits: Path, artifact: Path, name: str) -> PositionStatistics:
        """An artifact's probabilities at every position, beside the base's."""
        began = time.monotonic()
        kept = logits.parent / f"{_kept_name(artifact)}.jsonl"
        with self.console.stage(name, self.folder.parent) as progress:
            found = measure_kld(logits, artifact, kept, self.devices, progress)
        mean = kld_text(float(found.kld.mean()))
        self.console.done(name, f"KLD {mean}", time.monotonic() - began)
        return found

    def retrieval(
        self, files: Sequence[Path], name: str, recipe: RetrievalRecipe, haystack: Path | None
    ) -> Retrieval:
        """The retrieval check of the artifact in `files`, from an earlier run where that finished
        it.

        Args:
            recipe: with a KV cache type of its own.
        """
        artifact, kv_type = files[0], str(recipe.kv_type)
        parts = {
            "model": identity(files),
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
            # a result of another version is measured again
            with suppress(ValidationError, InputError):
                content = read_bounded(result, MOST_JSON_BYTES)
                found = Retrieval.model_validate_json(content).model_copy(
                    update={"answers": read_answers(answers)}
                )
                self.console.skipped(name, f"retrieval is up to date ({_hits_text(found)})")
                return found
        began = time.monotonic()
        settings = CheckSettings(self.devices, kv_type)
        stage = self.console.stage(name, self.folder.parent)
        with resumable(folder / ".work", parts) as work, stage as progress:
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
