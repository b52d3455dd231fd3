"""TensorSource → GGUF files: quantized by an allocation, or converted to one base type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from quantkit.config.levels import PRESETS
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.gguf_file import FinishedFile
from quantkit.formats.gguf_writer import ShardLayout, lay_out, single_file_layout
from quantkit.formats.imatrix_file import Imatrix
from quantkit.formats.tensor_types import BY_NAME, FILE_TYPES
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo, TensorSource
from quantkit.models.model import Model
from quantkit.quantize.candidates import is_quantizable
from quantkit.quantize.encode import Importance, write_shards

BaseType = Literal["source", "BF16", "F16", "F32", "Q8_0"]
"""Type of a converted file's matrices; `source`: each keeps its own."""
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


def preset_file_type(preset: str | None) -> int | None:
    """llama_ftype of a stock preset; None where it is none."""
    import gguf

    return int(gguf.LlamaFileType[f"MOSTLY_{preset}"]) if preset in PRESETS else None


def artifact_metadata(
    source: Metadata,
    imatrix: Imatrix | None,
    imatrix_file: str | None = None,
    preset: str | None = None,
) -> Metadata:
    """The source's metadata with the keys that llama-quantize adds.

    `general.file_type` is that of the stock `preset`, if given. A mixture of types has none;
    llama.cpp then shows the most frequent type.
    """
    metadata = {k: v for k, v in source.items() if k != "general.file_type"}
    metadata["general.quantization_version"] = MetaValue("u32", QUANTIZATION_VERSION)
    if (file_type := preset_file_type(preset)) is not None:
        metadata["general.file_type"] = MetaValue("u32", file_type)
    if imatrix is not None:
        metadata["quantize.imatrix.file"] = MetaValue("str", imatrix_file or "")
        datasets = " + ".join(imatrix.dataset_names)
        metadata["quantize.imatrix.dataset"] = MetaValue("str", datasets)
        metadata["quantize.imatrix.entries_count"] = MetaValue("u32", len(imatrix.entries))
        metadata["quantize.imatrix.chunks_count"] = MetaValue("u32", imatrix.chunks)
    return metadata


def artifact_names(model: Model, types: Mapping[str, str]) -> list[str]:
    """Names of the artifact's files, the one that llama.cpp opens first."""
    return [layout.file_name for layout in _layouts(model, types)]


def overhead_bytes(model: Model) -> int:
    """Bytes of the artifact that are not tensors; an upper bound, of shards as many as in F32."""
    largest = {info.name: "F32" for info in model.tensors}
    return sum(len(layout.header) for layout in _layouts(model, largest))


def artifact_bytes(model: Model, types: Mapping[str, str]) -> int:
    """Bytes of the artifact's files together, headers and alignment included."""
    return sum(layout.size_bytes for layout in _layouts(model, types))


def _layouts(model: Model, types: Mapping[str, str]) -> list[ShardLayout]:
    return lay_out(model.name, model.metadata, model.quantized(types).tensors)


def quantize(
    source: TensorSource,
    artifact: Model,
    types: Mapping[str, str],
    importance: Importance,
    folder: Path,
    work: Path,
    workers: int,
    progress: Progress = SILENT,
    finished: Sequence[FinishedFile] = (),
) -> list[Path]:
    """Write `artifact` with each tensor of `source` in its type of `types`; returns its files.

    The bytes depend on nothing but the arguments' content: not on paths, workers, whether an
    earlier run was killed (`work` keeps what it had done), or on `finished`: artifacts of the same
    source and importance, whose tensors are copied where they have the same type.

    Args:
        artifact: its name and metadata.
    """
    layouts = _layouts(artifact, types)
    return write_shards(folder, work, layouts, source, importance, progress, workers, finished)


def base_tensors(tensors: Sequence[TensorInfo], base_type: BaseType) -> list[TensorInfo]:
    """The tensors of a converted file: its weights in `base_type`.

    What llama.cpp takes in F32 alone stays so, and a tensor whose rows do not fit the base type
    keeps its own, as one does that is quantized already.
    """
    if base_type == "source":
        return list(tensors)
    kind = BY_NAME[base_type]

    def is_converted(info: TensorInfo) -> bool:
        is_weight = info.type_name in ("BF16", "F16")
        is_weight |= info.type_name == "F32" and is_quantizable(info)
        return is_weight and kind.fits_row(info.row_elements)

    return [info.with_type(kind.name) if is_converted(info) else info for info in tensors]


def convert(
    source: TensorSource,
    base_type: BaseType,
    out: Path,
    work: Path,
    workers: int,
    progress: Progress = SILENT,
) -> Path:
    """Write `source` to one GGUF file, its tensors as `base_tensors` says.

    `work` keeps what an interrupted run has done.

    Raises:
        InputError: a weight is not finite, or too large for its type.
    """
    metadata = source.metadata
    quantized = any(BY_NAME[info.type_name].is_quantized for info in source.tensors)
    if base_type != "source" and not quantized:
        file_type = MetaValue("u32", FILE_TYPES[base_type])
        metadata = metadata | {"general.file_type": file_type}
    infos = base_tensors(source.tensors, base_type)
    layout = single_file_layout(out.stem, metadata, infos)
    layout = dataclasses.replace(layout, file_name=out.name)
    (path,) = write_shards(out.parent, work, [layout], source, {}, progress, workers)
    return path
