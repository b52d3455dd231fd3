"""GGUF files of one base → a comparison: each measured on the same text and questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.recipe import DivergenceRecipe, RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.haystack import haystack_text
from quantkit.core.threads import worker_count
from quantkit.core.work_folders import build_folder
from quantkit.core.yaml import validated
from quantkit.formats.logits_file import LogitsFile, check_vocabulary, vocabulary_id
from quantkit.llamacpp.selftest import device_settings
from quantkit.models.gguf_source import GGUFSource
from quantkit.report.comparison.comparison import Comparison, Conditions, compared
from quantkit.report.comparison.kept import Kept, base_positions
from quantkit.report.comparison.measured import Measured, names_of
from quantkit.report.comparison.writers import write_comparison
from quantkit.study.base_logits import held_out_text

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
    _check_alike(files, measured_from, retrieval=bool(retrieval))
    recipe = _at_lengths(retrieval, needle_text, files) if retrieval else None
    held_out_text(kld_text)
    if base is None:
        console.note(f"no --base: KLD is measured from {measured_from.path.name}, the largest file")
    folder = Path(f"{measured_from.path.stem}-compare" if out is None else out)
    kept = folder / "kept"
    with build_folder(folder):
        measuring = Kept(kept, device_settings(worker_count(workers)), console)
        logits = measuring.base_logits(
            measured_from.path, measured_from.source.paths, divergence, kld_text
        )
        found = _measured(files, measured_from, logits, recipe, needle_text, measuring)
        written = write_comparison(found, folder)
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    return ComparisonFiles(found, folder, written, kept, size)


def _opened(artifacts: Iterable[Path], base: Path | None) -> tuple[list[_File], _File]:
    """The artifacts, each once, and the base, which may be one of them."""
    paths = list({path.resolve(): path for path in artifacts}.values())
    if len(paths) < 1 + (base is None):
        raise InputError(
            "there is nothing to compare: give two artifacts or more, or one and the file that "
            "it was made from with --base"
        )
    files = [_File(path, GGUFSource(path)) for path in paths]
    if base is None:
        return files, max(files, key=lambda file: file.size_bytes)
    same = [file for file in files if file.path.resolve() == base.resolve()]
    return files, same[0] if same else _File(base, GGUFSource(base))


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
    found = {"context_tokens": tuple(sorted(set(lengths))), "kv_type": recipe.kv_type or "q8_0"}
    return recipe.model_copy(update=found)


def _measured(
    files: Sequence[_File],
    base: _File,
    logits: Path,
    recipe: RetrievalRecipe | None,
    haystack: Path | None,
    measuring: Kept,
) -> Comparison:
    """Measure one artifact after the other, as far as no earlier run did."""
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
            retrieval = measuring.retrieval(file.path, paths, name, recipe, haystack)
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
        haystack="State of the Union" if haystack is None else haystack.name,
    )
    return compared(found, conditions)
