"""TensorSource → base.gguf: what inference needs to collect statistics and to compare with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from quantkit.config.recipe import ConvertRecipe
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.source import TensorSource
from quantkit.formats.tensor_types import quant_type
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.quantize.encode import write_shards

FILE_TYPES = {"BF16": 32, "Q8_0": 7}  # llama_ftype of llama.h


def base_types(source: TensorSource, recipe: ConvertRecipe) -> list[TensorInfo]:
    """The tensors of the base file: matrices in the recipe's base type where their rows fit it."""
    wanted = quant_type(recipe.base_type)
    return [
        TensorInfo(info.name, info.shape, wanted.name)
        if info.type_name in ("BF16", "F16") and wanted.fits_row(info.row_elements)
        else info
        for info in source.tensors
    ]


def convert(
    source: TensorSource,
    recipe: ConvertRecipe,
    out: Path,
    work: Path,
    workers: int,
    progress: Progress = SILENT,
) -> Path:
    """Write the base GGUF to `out` in one file, and return its path.

    One file, because it is never published; memory is bounded by the workers' row blocks. `work`
    keeps what an unfinished run has done.
    """
    metadata: Metadata = dict(source.metadata)
    metadata["general.file_type"] = MetaValue("u32", FILE_TYPES[recipe.base_type])
    types = base_types(source, recipe)
    (layout,) = lay_out(out.stem, metadata, types, max_shard_bytes=1 << 62)
    layouts = [dataclasses.replace(layout, file_name=out.name)]
    (path,) = write_shards(out.parent, work, layouts, source, {}, progress, workers)
    return path
