"""A Hugging Face checkpoint folder as a TensorSource: GGUF names and layout, rows on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.families.base import StoredTensor, TensorRule
from quantkit.families.general import general_metadata
from quantkit.families.registry import family_for
from quantkit.families.special_tokens import read_json
from quantkit.families.vocabulary import tokenizer_metadata
from quantkit.formats.safetensors_files import SafetensorsFolder
from quantkit.values import Metadata, TensorInfo


def open_checkpoint(folder: Path, name: str | None = None) -> CheckpointSource:
    """The checkpoint in `folder`, fully checked, nothing but headers read.

    Args:
        folder: config.json, tokenizer files and safetensors.
        name: `general.name`; by default from the model card or the folder's name. Give the
            repository's name for folders of the Hub cache, which are named by commit.

    Raises:
        InputError: a file is missing or broken, the architecture is not supported, or weights and
            configuration contradict each other.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with a checkpoint, or a GGUF file")
    config = read_json(folder / "config.json")
    family = family_for(config)
    if config.get("quantization_config"):
        raise InputError(
            f"{folder / 'config.json'} describes a quantized checkpoint; only BF16, F16 and F32 "
            "are converted: use the model's BF16 release"
        )
    files = SafetensorsFolder(folder)
    stored = {n: StoredTensor(e.shape, e.dtype) for n, e in files.entries.items()}
    rules = family.rules(config, stored)
    architecture = family.metadata(config)
    general = general_metadata(folder, [rule.info for rule in rules], name)
    # Readers expect the architecture first.
    metadata = {"general.architecture": architecture["general.architecture"]} | general
    metadata |= architecture | tokenizer_metadata(folder, config)
    return CheckpointSource(files, rules, metadata)


class CheckpointSource:
    """Implements `TensorSource`; made by `open_checkpoint`."""

    def __init__(
        self,
        files: SafetensorsFolder,
        rules: Sequence[TensorRule],
        metadata: Metadata,
    ) -> None:
        self._files = files
        self._entries = files.entries
        self._metadata = metadata
        self._rules = {rule.info.name: rule for rule in rules}
        self._tensors = tuple(rule.info for rule in rules)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return self._tensors

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as F32; at most these rows are ever in memory.

        Raises:
            IndexError: the range lies outside the tensor.
        """
        rule = self._rules[name]
        info = rule.info
        if not 0 <= start <= stop <= info.rows:
            raise IndexError(f"rows [{start}, {stop}) of {name}, which has {info.rows}")
        rows = self._source_rows(rule, start, stop)
        return rows if rule.values is None else rule.values(rows)

    def _source_rows(self, rule: TensorRule, start: int, stop: int) -> NDArray[np.float32]:
        width = rule.info.row_elements
        if rule.constant is not None:
            return rule.constant.reshape(-1, width)[start:stop].copy()
        if rule.row_order is not None:
            if len(rule.info.shape) == 1:  # One row, whose elements are permuted.
                order = rule.row_order if start < stop else rule.row_order[:0]
                return self._files.gather(rule.parts[0], order, 1).reshape(-1, width)
            return self._files.gather(rule.parts[0], rule.row_order[start:stop], width)
        result = np.empty((stop - start, width), np.float32)
        part_rows = rule.info.rows // len(rule.parts)
        row = start
        while row < stop:
            part, first = divmod(row, part_rows)
            last = min(part_rows, first + stop - row)
            values = self._files.read(rule.parts[part], first * width, last * width)
            result[row - start : row - start + last - first] = values.reshape(-1, width)
            row += last - first
        return result

    def read_stored(self, name: str) -> NDArray[np.uint8] | None:
        """A view of the file where it holds the tensor just as the base GGUF will, else None."""
        rule = self._rules[name]
        if len(rule.parts) != 1 or rule.row_order is not None or rule.values is not None:
            return None
        if self._entries[rule.parts[0]].dtype != rule.info.type_name:
            return None
        return self._files.stored_bytes(rule.parts[0])
