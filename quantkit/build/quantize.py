"""One artifact outside a build: a model and the types of its tensors → a GGUF file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.core.files import check_writable, content_id, identity
from quantkit.core.progress import SILENT, Progress
from quantkit.core.work_folders import resumable, work_folder
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp.presets import Fallback
from quantkit.llamacpp.shared_libraries import library_version
from quantkit.models.choose import choose_local, model_files, open_source
from quantkit.plan.type_choice import check_importance, choose_types
from quantkit.quantize.quantize import (
    PRESET_FILE_TYPES,
    artifact_metadata,
    artifact_names,
    quantize,
)
from quantkit.report.results import fallback_text
from quantkit.study.imatrix_import import check_ready


@dataclass(frozen=True)
class Artifact:
    """A quantized model.

    Attributes:
        files: its shards, the one that llama.cpp opens first.
        types: tensor → type.
        preset: llama.cpp's stock preset that the types are of; None: they are of none.
        fallbacks: of a preset, tensor → the type that llama.cpp gives it instead.
    """

    files: tuple[Path, ...]
    size_bytes: int
    bits_per_weight: float
    types: Mapping[str, str]
    preset: str | None
    fallbacks: Mapping[str, Fallback]

    @property
    def file_type(self) -> int | None:
        """llama.cpp's number of the preset, `general.file_type`."""
        return PRESET_FILE_TYPES.get(self.preset or "")

    @property
    def type_counts(self) -> dict[str, int]:
        """Type → how many tensors have it, the most frequent first."""
        return dict(Counter(self.types.values()).most_common())


def quantize_file(
    model: str,
    types: str | Mapping[str, str],
    out: Path,
    imatrix: Path | None,
    workers: int,
    progress: Progress = SILENT,
    *,
    keep_prediction: bool = False,
) -> Artifact:
    """Write `model` with each tensor in its type.

    A run that was interrupted resumes: unfinished work is kept beside `out`.

    Args:
        model: on this disk.
        types: an allocation.json, the name of a stock preset, or tensor → type.
        keep_prediction: of a checkpoint, the multi-token prediction layers too.

    Raises:
        InputError: a broken model or importance matrix, types that are not of this model or need
            an importance matrix, or `out` cannot be written.
        EnvironmentFault: the disk is full, or native code failed.
    """
    if out.suffix != ".gguf":
        raise InputError(f"--out names a GGUF file, so it ends in .gguf; {out} does not")
    choice, path = choose_local(model)
    source = open_source(choice, keep_prediction=keep_prediction)
    ready = None if imatrix is None else check_ready(imatrix, source.tensors)
    found = None if ready is None else ready.imatrix
    entries = {} if found is None else found.entries
    chosen = choose_types(types, source.metadata, source.tensors, has_imatrix=found is not None)
    check_importance(chosen, entries)
    file = None if imatrix is None else imatrix.name
    metadata = artifact_metadata(source.metadata, found, file, chosen.preset)
    files = model_files(choice, path)
    named = Path(types) if isinstance(types, str) else None
    read = [file for file in (*files, imatrix, named) if file is not None]
    for name in artifact_names(out.stem, metadata, source.tensors, chosen.types):
        check_writable(out.with_name(name), read)
    for sentence in () if ready is None else ready.notes:
        progress.note(sentence)
    fallbacks = {} if chosen.stock is None else chosen.stock.fallbacks
    stored = [info.name for info in source.tensors if BY_NAME[info.type_name].is_quantized]
    if stored:
        progress.note(
            f"{model} is quantized already, {len(stored)} of its tensors: what that lost is not "
            "brought back; quantize the BF16 model where you can"
        )
    progress.note(f"{chosen.preset or named or 'types'}: {_mixture(chosen.types)}")
    if fallbacks:
        progress.note(fallback_text(fallbacks))
    parts = {
        "files": identity(files),
        "types": dict(chosen.types),
        "imatrix": None if imatrix is None else content_id(imatrix),
        "llama-cpp-python": library_version(),
    }
    importance = {name: entry.importance() for name, entry in entries.items()}
    with resumable(work_folder(out), parts) as work:
        paths = quantize(
            source, metadata, chosen.types, importance, out.parent, work, out.stem, workers,
            progress,
        )  # fmt: skip
    size = sum(path.stat().st_size for path in paths)
    bits = 8 * size / sum(info.elements for info in source.tensors)
    return Artifact(tuple(paths), size, bits, chosen.types, chosen.preset, fallbacks)


def _mixture(types: Mapping[str, str]) -> str:
    """`211 × Q5_0, 61 × F32`: how many tensors have each type."""
    return ", ".join(f"{count} × {kind}" for kind, count in Counter(types.values()).most_common())
