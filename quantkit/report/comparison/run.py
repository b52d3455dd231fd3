"""GGUF files of one base → a comparison: each measured on the same text and questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.recipe import DivergenceRecipe, RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.haystack import haystack_text
from quantkit.core.work_folders import build_folder
from quantkit.formats.logits_file import LogitsFile, check_vocabulary, vocabulary_id
from quantkit.llamacpp.devices import device_settings
from quantkit.models.gguf_source import GGUFSource
from quantkit.report.comparison.comparison import Comparison, Conditions, compared
from quantkit.report.comparison.kept import Kept, base_positions
from quantkit.report.comparison.measured import Measured, names_of
from quantkit.report.comparison.writers import write_comparison
from quantkit.study.base_logits import held_out_text

LENGTHS = (2048, 8192)
"""Context tokens that are checked by default, as far as all artifacts were trained for them."""
SHORTEST_TOKENS = 256


@dataclass(frozen=True)
class ComparisonJob:
    """What is compared, and on what.

    Attributes:
        artifacts: GGUF files made from one base, the first shard of each.
        base: what the KL divergence is measured from; None: the largest artifact.
        divergence: chunks of the text.
        text: None: the text that ships.
        retrieval: the retrieval check, with a KV cache type; without lengths it is made at
            `LENGTHS`. None: none is made.
        haystack: text of the retrieval check; None: the one that ships.
        out: folder to write to; None: named by the base, in the current folder.
    """

    artifacts: tuple[Path, ...]
    base: Path | None
    divergence: DivergenceRecipe
    text: Path | None
    retrieval: RetrievalRecipe | None
    haystack: Path | None
    out: Path | None
    workers: int


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


@dataclass(frozen=True)
class _File:
    """A GGUF file that was opened."""

    path: Path
    source: GGUFSource

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.source.paths)

    @property
    def trained_context_tokens(self) -> int:
        """Raises InputError where the file does not say it."""
        architecture = self.source.metadata.get("general.architecture")
        key = f"{architecture.value if architecture else 'general'}.context_length"
        found = self.source.metadata.get(key)
        if found is None or not isinstance(found.value, int):
            raise InputError(
                f"{self.path.name} has no {key}, so the lengths for its retrieval check are not "
                "known; leave the check out with --no-retrieval"
            )
        return found.value


def compare(job: ComparisonJob, console: Console) -> ComparisonFiles:
    """Measure every artifact of `job`, and write what tells them apart into a folder.

    What an earlier run into the same folder measured is not repeated.

    Raises:
        InputError: fewer than two artifacts, broken files, other tokenizers or chat templates, a
            context that one was not trained for, or a folder that cannot be written.
        EnvironmentFault: no memory, or native code failed.
    """
    files, base = _opened(job)
    _check_alike(files, base, retrieval=job.retrieval is not None)
    recipe = None if job.retrieval is None else _at_lengths(job.retrieval, job.haystack, files)
    held_out_text(job.text)
    if job.base is None:
        console.note(f"no --base: KLD is measured from {base.path.name}, the largest file")
    folder = job.out or Path(f"{base.path.stem}-compare")
    kept = folder / "kept"
    with build_folder(folder):
        found = _measured(job, files, base, recipe, kept, console)
        written = write_comparison(found, folder)
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    return ComparisonFiles(found, folder, written, kept, size)


def _opened(job: ComparisonJob) -> tuple[list[_File], _File]:
    """The artifacts, each once, and the base, which may be one of them."""
    paths = list({path.resolve(): path for path in job.artifacts}.values())
    if len(paths) < 2 and job.base is None:
        raise InputError(
            f"{paths[0].name} alone has nothing to be compared with; give a second artifact, or "
            "the file that it was made from with --base"
        )
    files = [_File(path, GGUFSource(path)) for path in paths]
    if job.base is None:
        return files, max(files, key=lambda file: file.size_bytes)
    same = [file for file in files if file.path.resolve() == job.base.resolve()]
    return files, same[0] if same else _File(job.base, GGUFSource(job.base))


def _check_alike(files: Sequence[_File], base: _File, *, retrieval: bool) -> None:
    """Raise InputError unless all see the same tokens and, if asked, the same prompts."""
    vocabulary = vocabulary_id(base.source.metadata)
    for file in files:
        found = vocabulary_id(file.source.metadata)
        check_vocabulary(file.path.name, found, base.path.name, vocabulary)
    if not retrieval:
        return
    for key in ("tokenizer.chat_template", "tokenizer.ggml.add_bos_token"):
        for file in files[1:]:
            if file.source.metadata.get(key) != files[0].source.metadata.get(key):
                raise InputError(
                    f"{file.path.name} has another {key} than {files[0].path.name}, so they would "
                    "get different prompts; give both the same one, or leave the retrieval check "
                    "out with --no-retrieval"
                )


def _at_lengths(
    recipe: RetrievalRecipe, haystack: Path | None, files: Sequence[_File]
) -> RetrievalRecipe:
    """`recipe` at lengths that all of `files` were trained for."""
    haystack_text(haystack)
    shortest = min(files, key=lambda file: file.trained_context_tokens)
    limit = shortest.trained_context_tokens
    lengths = recipe.context_tokens or tuple(n for n in LENGTHS if n <= limit) or (limit,)
    if max(lengths) > limit or limit < SHORTEST_TOKENS:
        raise InputError(
            f"{shortest.path.name} was trained for {limit} tokens, and --context is "
            f"{max(lengths)}: check shorter contexts, or leave the retrieval check out with "
            "--no-retrieval"
        )
    return recipe.model_copy(update={"context_tokens": tuple(sorted(set(lengths)))})


def _measured(
    job: ComparisonJob,
    files: Sequence[_File],
    base: _File,
    recipe: RetrievalRecipe | None,
    kept: Path,
    console: Console,
) -> Comparison:
    """Measure one artifact after the other, as far as no earlier run did."""
    measuring = Kept(kept, device_settings(job.workers), console)
    logits = measuring.base_logits(base.path, base.source.paths, job.divergence, job.text)
    opened = LogitsFile(logits)
    header, found = opened.header, []
    names = names_of([file.path for file in files])
    for file, name in zip(files, names, strict=True):
        is_base, paths = file is base, file.source.paths
        positions = (
            base_positions(opened) if is_base else measuring.positions(logits, file.path, name)
        )
        retrieval = None
        if recipe is not None:
            retrieval = measuring.retrieval(file.path, paths, name, recipe, job.haystack)
        found.append(
            Measured(
                path=file.path,
                name=name,
                size_bytes=file.size_bytes,
                parameters=sum(info.elements for info in file.source.tensors),
                positions=positions,
                chunks=header.chunks,
                divergence=positions.summary(),
                is_base=is_base,
                retrieval=retrieval,
            )
        )
    asked = recipe or RetrievalRecipe()
    conditions = Conditions(
        base=base.path.name,
        text=header.text,
        chunks=header.chunks,
        chunk_tokens=header.chunk_tokens,
        tokens=header.positions,
        base_perplexity=found[0].divergence.base_perplexity,
        context_tokens=() if recipe is None else recipe.context_tokens,
        needles=asked.needles,
        seeds=asked.seeds,
        kv_type=str(asked.kv_type),
        haystack="State of the Union" if job.haystack is None else job.haystack.name,
    )
    return compared(found, conditions)
