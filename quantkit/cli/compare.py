"""`quantkit compare`: artifacts of one base side by side, on the same text and questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.units import bytes_text
from quantkit.plan.machine import worker_count

if TYPE_CHECKING:
    from quantkit.config.recipe import RetrievalRecipe
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.report.comparison.comparison import Comparison

LENGTHS = (2048, 8192)
"""Context tokens that are asked by default, as far as all artifacts were trained for them."""
SHORTEST_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        base: what divergence is measured from; None: the largest artifact.
        context_tokens: lengths of the retrieval check; empty: `LENGTHS`.
        retrieval: whether to check it at all.
        out: folder; None: named by the base, where the command is run.
    """

    artifacts: tuple[Path, ...]
    base: Path | None
    text: Path | None
    chunks: int
    chunk_tokens: int
    retrieval: bool
    context_tokens: tuple[int, ...]
    needles: int
    seeds: tuple[int, ...]
    kv_type: str
    haystack: Path | None
    workers: int | None
    out: Path | None
    quiet: bool
    as_json: bool


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
                f"{self.path.name} has no {key}, so nobody knows at what lengths it can be asked; "
                "leave the questions out with --no-retrieval"
            )
        return found.value


def compare(asked: Asked) -> None:
    """Measure every artifact, print what tells them apart, and write it into a folder."""
    from quantkit.cli.compare_table import print_comparison
    from quantkit.core.work_folders import build_folder
    from quantkit.report.comparison.facts import comparison_facts
    from quantkit.report.comparison.writers import write_comparison

    files, base = _opened(asked)
    _check_alike(files, base, asked.retrieval)
    recipe = _retrieval_recipe(asked, files) if asked.retrieval else None
    console = Console(quiet=asked.quiet or asked.as_json)
    if asked.base is None:
        console.note(f"no --base: {base.path.name}, the largest, is what KLD is measured from")
    folder = asked.out or Path(f"{base.path.stem}-compare")
    with build_folder(folder):
        found = _measured(asked, files, base, recipe, folder / "kept", console)
        written = write_comparison(found, folder)
    if asked.as_json:
        console.json(comparison_facts(found))
    print_comparison(console, found)
    console.line(f"Written to {folder}: {', '.join(path.name for path in written)}")
    size = sum(file.stat().st_size for file in (folder / "kept").rglob("*") if file.is_file())
    console.line(
        f"Kept for further artifacts, and may be deleted: {folder / 'kept'} ({bytes_text(size)})"
    )


def _opened(asked: Asked) -> tuple[list[_File], _File]:
    """The artifacts, each once, and the base, which may be one of them."""
    from quantkit.models.gguf_source import GGUFSource

    paths = list({path.resolve(): path for path in asked.artifacts}.values())
    if len(paths) < 2 and asked.base is None:
        raise InputError(
            f"{paths[0].name} alone has nothing to be compared with; give a second artifact, or "
            "the file that it was made from with --base"
        )
    files = [_File(path, GGUFSource(path)) for path in paths]
    if asked.base is None:
        return files, max(files, key=lambda file: file.size_bytes)
    same = [file for file in files if file.path.resolve() == asked.base.resolve()]
    return files, same[0] if same else _File(asked.base, GGUFSource(asked.base))


def _check_alike(files: Sequence[_File], base: _File, retrieval: bool) -> None:
    """Raise InputError unless all see the same tokens and, if asked, the same prompts."""
    from quantkit.formats.logits_file import check_vocabulary, vocabulary_id

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
                    "get different prompts; give both the same one, or leave the questions out "
                    "with --no-retrieval"
                )


def _retrieval_recipe(asked: Asked, files: Sequence[_File]) -> RetrievalRecipe:
    """What every artifact is asked, at lengths that all of them were trained for."""
    from pydantic import ValidationError

    from quantkit.config.recipe import RetrievalRecipe
    from quantkit.core.haystack import haystack_text

    haystack_text(asked.haystack)
    shortest = min(files, key=lambda file: file.trained_context_tokens)
    limit = shortest.trained_context_tokens
    lengths = asked.context_tokens or tuple(n for n in LENGTHS if n <= limit) or (limit,)
    if max(lengths) > limit or limit < SHORTEST_TOKENS:
        raise InputError(
            f"--context {max(lengths)}: {shortest.path.name} was trained for {limit} tokens; ask "
            "at shorter contexts, or leave the questions out with --no-retrieval"
        )
    try:
        return RetrievalRecipe(
            context_tokens=tuple(sorted(set(lengths))),
            needles=asked.needles,
            seeds=asked.seeds,
            kv_type=asked.kv_type,
            minimum_lower_bound=None,
            near_misses=0,
        )
    except ValidationError as error:
        options = {"context_tokens": "context", "seeds": "seed", "kv_type": "kv"}
        problems = [
            f"--{options.get(str(e['loc'][0]), e['loc'][0])}: {e['msg']}" if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        raise InputError("; ".join(problems)) from None


def _measured(
    asked: Asked,
    files: Sequence[_File],
    base: _File,
    recipe: RetrievalRecipe | None,
    kept: Path,
    console: Console,
) -> Comparison:
    """Run what is not kept of an earlier run, one artifact after the other."""
    from quantkit.cli.compare_work import (
        base_logits,
        base_positions,
        positions_of,
        retrieval_of,
    )
    from quantkit.config.recipe import DivergenceRecipe
    from quantkit.formats.logits_file import LogitsFile
    from quantkit.llamacpp.selftest import device_settings
    from quantkit.report.comparison.comparison import Conditions, compared
    from quantkit.report.comparison.measured import Measured, names_of
    from quantkit.study.base_logits import held_out_text

    held_out_text(asked.text)
    divergence = DivergenceRecipe(chunks=asked.chunks, chunk_tokens=asked.chunk_tokens)
    devices = device_settings(worker_count(asked.workers))
    logits = base_logits(
        console, base.path, base.source.paths, divergence, asked.text, kept, devices
    )
    opened = LogitsFile(logits)
    found = []
    names = names_of([file.path for file in files])
    for file, name in zip(files, names, strict=True):
        positions = (
            base_positions(opened)
            if file is base
            else positions_of(console, logits, file.path, name, devices)
        )
        retrieval = None
        if recipe is not None:
            retrieval = retrieval_of(
                console, file.path, file.source.paths, name, recipe, asked.kv_type, asked.haystack,
                kept, devices,
            )  # fmt: skip
        found.append(
            Measured(
                path=file.path,
                name=name,
                size_bytes=file.size_bytes,
                parameters=sum(info.elements for info in file.source.tensors),
                positions=positions,
                chunks=opened.header.chunks,
                divergence=positions.summary(),
                is_base=file is base,
                retrieval=retrieval,
            )
        )
    header = opened.header
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
        kv_type=asked.kv_type,
        haystack="State of the Union" if asked.haystack is None else asked.haystack.name,
    )
    return compared(found, conditions)
