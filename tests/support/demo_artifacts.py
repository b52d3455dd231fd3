"""The demo model as GGUF files of given types: made in a second, and the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models import write_gguf

from quantkit.formats.tensors import MetaValue
from quantkit.models.choose import choose_model, open_source

WANTS_BOS = {"tokenizer.ggml.add_bos_token": MetaValue("bool", True)}


def write_demo(
    path: Path, kind: str = "BF16", changes: Mapping[str, MetaValue] | None = None
) -> Path:
    """The demo model with its matrices in `kind`, without an importance matrix.

    Args:
        changes: of its metadata.
    """
    source = open_source(choose_model("demo"))
    metadata = {**source.metadata, **(changes or {})}
    arrays = {
        info.name: source.read_rows(info.name, 0, info.rows).reshape(info.shape)
        for info in source.tensors
    }
    types = {
        info.name: kind if info.type_name == "BF16" else info.type_name for info in source.tensors
    }
    return write_gguf(path, metadata, arrays, types)
