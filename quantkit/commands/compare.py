"""`quantkit compare`: artifacts of one base side by side."""

from __future__ import annotations

import hashlib
import json
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quantkit.commands.output_files import check_writable
from quantkit.console import Console, escape
from quantkit.machine import worker_count
from quantkit.positions import Positions, kld_text
from quantkit.sizes import bytes_text, gb_text, gib_text
from quantkit.values import Divergence

if TYPE_CHECKING:
    from quantkit.native.settings import DeviceSettings
    from quantkit.recipe import DivergenceRecipe

NAME_COLUMNS = 20
"""Of a file's name in the table, which then fits a terminal of 100 columns."""


@dataclass(frozen=True)
class Compared:
    """An artifact and what was measured of it.

    Attributes:
        name: of its file, without `.gguf`; with the folder where two have the same name.
        positions: paired with those of every other artifact of the table.
    """

    path: Path
    name: str
    size_bytes: int
    parameters: int
    positions: Positions
    divergence: Divergence

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size_bytes / self.parameters

    def facts(self) -> dict[str, Any]:
        """The artifact's entry in the JSON."""
        kld = {**asdict(self.divergence), "perplexity_ratio": self.divergence.perplexity_ratio}
        return {
            "file": str(self.path),
            "size_bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "kld": kld,
        }


class Column(NamedTuple):
    """One column of the table."""

    title: str
    cell: Callable[[Compared], str]


def _two_lines(first: str, second: str) -> str:
    return f"{first}\n[dim]{second}[/]"


def _size(a: Compared) -> str:
    return _two_lines(gib_text(a.size_bytes), gb_text(a.size_bytes))


def _kld(a: Compared) -> str:
    mean = a.divergence.mean
    return _two_lines(kld_text(mean), f"± {kld_text(a.divergence.mean_error, of=mean)}")


def _usual(a: Compared) -> str:
    return _two_lines(kld_text(a.divergence.median), kld_text(a.divergence.p99))


def _worst(a: Compared) -> str:
    return _two_lines(kld_text(a.divergence.p999), kld_text(a.divergence.maximum))


def _same_top(a: Compared) -> str:
    return _two_lines(f"{a.divergence.same_top:.2%}", f"± {a.divergence.same_top_error:.2%}")


def _perplexity(a: Compared) -> str:
    ratio = a.divergence.perplexity_ratio
    return _two_lines(f"{ratio:.4f}", f"± {ratio * a.divergence.ln_ratio_error:.4f}")


COLUMNS = (
    Column("file", lambda a: escape(textwrap.fill(a.name, NAME_COLUMNS))),
    Column("size", _size),
    Column("bits/w", lambda a: f"{a.bits_per_weight:.2f}"),
    Column("KLD", _kld),
    Column("median\n[dim]99 %[/]", _usual),
    Column("99.9 %\n[dim]largest[/]", _worst),
    Column("same top", _same_top),
    Column("PPL ratio", _perplexity),
)


def compare(
    artifacts: Sequence[Path],
    base: Path,
    text: Path | None,
    chunks: int,
    chunk_tokens: int,
    workers: int | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure each artifact's divergence from `base`, and print them by size."""
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.formats.logits_file import LogitsFile, check_vocabulary, vocabulary_id
    from quantkit.native.devices import device_settings
    from quantkit.receipts import build_folder, write_json
    from quantkit.recipe import DivergenceRecipe
    from quantkit.stages.base_logits import held_out_text
    from quantkit.stages.divergence import measure_divergence

    base_source = GGUFSource(base)
    paths = list(dict.fromkeys(artifacts))
    sources = [GGUFSource(path) for path in paths]
    vocabulary = vocabulary_id(base_source.metadata)
    for path, source in zip(paths, sources, strict=True):
        check_vocabulary(path.name, vocabulary_id(source.metadata), base.name, vocabulary)
    held_out_text(text)
    inputs = [file for source in (base_source, *sources) for file in source.paths]
    if out is not None:
        check_writable(out, inputs if text is None else [*inputs, text])
    recipe = DivergenceRecipe(chunks=chunks, chunk_tokens=chunk_tokens)
    devices = device_settings(worker_count(workers))
    console = Console(quiet=quiet or as_json)
    folder = (Path() if out is None else out.parent) / f"{base.stem}-compare"
    found = []
    with build_folder(folder):
        work = folder / _purpose(base_source.paths, text, recipe)
        logits = _base_logits(console, base, recipe, text, work, devices)
        for path, source in zip(paths, sources, strict=True):
            began = time.monotonic()
            kept = work / f"{path.stem}-{_short_hash(str(path.resolve()))}.jsonl"
            with console.stage(path.stem) as progress:
                positions = measure_divergence(logits, path, kept, devices, progress)
            divergence = positions.summary()
            console.done(path.stem, f"KLD {kld_text(divergence.mean)}", time.monotonic() - began)
            twice = sum(other.name == path.name for other in paths) > 1
            name = f"{path.parent.name}/{path.stem}" if twice else path.stem
            size = sum(file.stat().st_size for file in source.paths)
            parameters = sum(info.elements for info in source.tensors)
            found.append(Compared(path, name, size, parameters, positions, divergence))
    found.sort(key=lambda a: -a.size_bytes)
    header = LogitsFile(logits).header
    facts = {
        "base": str(base),
        "text": header.text,
        "chunks": header.chunks,
        "chunk_tokens": header.chunk_tokens,
        "tokens": header.positions,
        "base_perplexity": found[0].divergence.base_perplexity,
        "artifacts": [artifact.facts() for artifact in found],
    }
    if out is not None:
        write_json(out, facts)
    if as_json:
        console.json(facts)
    console.table([c.title for c in COLUMNS], [[c.cell(a) for c in COLUMNS] for a in found])
    console.line(
        f"Against {base.name}, perplexity {facts['base_perplexity']:.4f}: {header.positions:,} "
        f"tokens of {header.text}, from {header.chunks} chunks of {header.chunk_tokens}"
    )
    size = sum(file.stat().st_size for file in work.iterdir())
    console.line(f"Kept for further artifacts, and may be deleted: {work} ({bytes_text(size)})")


def _base_logits(
    console: Console,
    base: Path,
    recipe: DivergenceRecipe,
    text: Path | None,
    work: Path,
    devices: DeviceSettings,
) -> Path:
    """The base's logits, from an earlier run where they are whole."""
    from quantkit.stages.base_logits import collect_base_logits

    logits, growing = work / "base.logits", work / ".growing"
    began = time.monotonic()
    if logits.exists():
        console.skipped(base.name, f"up to date ({bytes_text(logits.stat().st_size)})")
        return logits
    growing.mkdir(parents=True, exist_ok=True)
    with console.stage(base.name) as progress:
        header = collect_base_logits(base, recipe, text, logits, growing, devices, progress)
    growing.rmdir()
    detail = f"{header.positions:,} tokens, {bytes_text(logits.stat().st_size)}"
    console.done(base.name, detail, time.monotonic() - began)
    return logits


def _purpose(base: Sequence[Path], text: Path | None, recipe: DivergenceRecipe) -> str:
    """The folder's name for what belongs to one base, text and chunking."""
    from quantkit.formats.logits_file import VERSION
    from quantkit.native.shared_libraries import library_version
    from quantkit.receipts import content_id, identity

    parts = {
        "base": identity(base),
        "text": None if text is None else content_id(text),
        "recipe": recipe.model_dump(mode="json"),
        "format": VERSION,
        "llama-cpp-python": library_version(),
    }
    return _short_hash(json.dumps(parts, sort_keys=True))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
