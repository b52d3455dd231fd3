"""TensorSource + imatrix + allocation → NAME.gguf, sharded below 50 GB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantkit.encoding import Importance, write_shards
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.imatrix_file import Imatrix
from quantkit.formats.source import TensorSource
from quantkit.progress import SILENT, Progress
from quantkit.values import Metadata, MetaValue, TensorInfo

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def artifact_metadata(source: Metadata, imatrix: Imatrix, imatrix_file: str) -> Metadata:
    """The artifact's metadata: the source's, and what llama-quantize adds for an imatrix.

    `general.file_type` is left out: no stock name describes the mixture, and llama.cpp then names
    the type that most tensors have.
    """
    metadata = {k: v for k, v in source.items() if k != "general.file_type"}
    metadata["general.quantization_version"] = MetaValue("u32", QUANTIZATION_VERSION)
    metadata["quantize.imatrix.file"] = MetaValue("str", imatrix_file)
    metadata["quantize.imatrix.dataset"] = MetaValue("str", " + ".join(imatrix.dataset_names))
    metadata["quantize.imatrix.entries_count"] = MetaValue("u32", len(imatrix.entries))
    metadata["quantize.imatrix.chunks_count"] = MetaValue("u32", imatrix.chunks)
    return metadata


def artifact_names(
    stem: str, metadata: Metadata, tensors: Sequence[TensorInfo], types: Mapping[str, str]
) -> list[str]:
    """Names of the artifact's files, the one that llama.cpp opens first."""
    infos = [TensorInfo(info.name, info.shape, types[info.name]) for info in tensors]
    return [layout.file_name for layout in lay_out(stem, metadata, infos)]


def overhead_bytes(stem: str, metadata: Metadata, tensors: Sequence[TensorInfo]) -> int:
    """Bytes of the artifact that are not tensors; an upper bound that no type changes."""
    return sum(len(layout.header) for layout in lay_out(stem, metadata, tensors))


def quantize(
    source: TensorSource,
    metadata: Metadata,
    types: Mapping[str, str],
    importance: Importance,
    folder: Path,
    work: Path,
    stem: str,
    workers: int,
    progress: Progress = SILENT,
) -> list[Path]:
    """Write the artifact with each tensor in its type of `types`; returns its files in order.

    The bytes depend on nothing but the arguments' content: not on paths, workers, or whether an
    earlier run was killed (`work` keeps what it had done).
    """
    infos = [TensorInfo(info.name, info.shape, types[info.name]) for info in source.tensors]
    layouts = lay_out(stem, metadata, infos)
    return write_shards(folder, work, layouts, source, importance, progress, workers)
