"""A Hugging Face checkpoint folder as a TensorSource: GGUF names and layout, rows on demand."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.safetensors_files import (
    DTYPE_BYTES,
    SafetensorsFile,
    SafetensorsFolder,
    as_f32,
    no_weights,
)
from quantkit.formats.tensor_types import FILE_TYPES
from quantkit.formats.tensors import Metadata, TensorInfo, main_type
from quantkit.models.families.base import (
    ABSENT,
    Config,
    StoredTensor,
    TensorRule,
    meta,
    without_prediction,
)
from quantkit.models.families.config_keys import check_biases
from quantkit.models.families.registry import check_not_quantized, described
from quantkit.models.general_metadata import general_metadata
from quantkit.models.json_files import read_json
from quantkit.models.tokenizers.vocabulary import tokenizer_metadata
from quantkit.models.transformers_reader import config_defaults

_EMBEDDINGS = ("model.embed_tokens.weight", "backbone.embeddings.weight", "model.embeddings.weight")
_OUTPUT = "lm_head.weight"
_COMPARED_AT_ONCE = 8 << 20  # elements
_BELIEVED = (
    "config.json ties the output to the embeddings and the checkpoint stores both; they are "
    "assumed equal, because the weights are not here: if they differ, the model has one more tensor"
)

OnShape = Callable[[Metadata, Sequence[TensorInfo]], object]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without garbage collection: it would scan a million small values again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collection()
def open_checkpoint(
    folder: Path,
    name: str | None = None,
    *,
    keep_prediction: bool = False,
    shards: Iterable[SafetensorsFile] | None = None,
    on_shape: OnShape | None = None,
) -> CheckpointSource:
    """The checkpoint in `folder`, fully checked; its weights are not read, but see `_is_tied`.

    Args:
        folder: config.json, tokenizer files and safetensors.
        name: `general.name`; by default from the model card or the folder's name, which in the Hub
            cache is a commit.
        keep_prediction: convert the multi-token prediction (MTP) layers too, which speculative
            decoding uses.
        shards: its safetensors files, if they are not in `folder`. With headers alone, names,
            shapes and metadata are complete and reading rows raises.
        on_shape: gets the architecture's metadata and the tensors before the tokenizer is read.

    Raises:
        InputError: a file is missing or broken, the architecture is not supported, or weights and
            configuration contradict each other.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a folder with a checkpoint, or a GGUF file")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise no_weights(str(folder), (path.name for path in folder.iterdir()))
    raw: Config = read_json(folder / "config.json")
    raw = raw if keep_prediction else without_prediction(raw)
    found = described(raw)
    family, config = found.family, found.config
    files = SafetensorsFolder(folder, shards)
    entries = files.entries
    dtypes = {entry.dtype for entry in entries.values()}
    check_not_quantized(config, str(folder / "config.json"), dtypes)
    tied = _is_tied(files) if config.get("tie_word_embeddings") else True
    if tied is False:
        config = {**config, "tie_word_embeddings": False}
    same = functools.cache(StoredTensor)  # thousands of experts share one description
    stored = {name: same(entry.shape, entry.dtype) for name, entry in entries.items()}
    check_biases(config, config_defaults(raw), stored)
    stored |= dict.fromkeys(files.absent, ABSENT)
    architecture = family.metadata(config)  # first: it refuses configurations
    rules = family.rules(config, stored)
    tensors = [rule.info for rule in rules]
    architecture["general.file_type"] = meta("u32", FILE_TYPES[main_type(tensors)])
    if on_shape is not None:
        on_shape(architecture, tensors)
    general = general_metadata(folder, tensors, name)
    # Readers expect the architecture first.
    metadata = {"general.architecture": architecture["general.architecture"]} | general
    notes = [_BELIEVED] if tied is None else []
    metadata |= architecture | tokenizer_metadata(folder, config, notes.append)
    if found.unknown:
        notes.append(
            f"config.json has keys that transformers does not know for this architecture: "
            f"{', '.join(found.unknown)}; they count for nothing here"
        )
    return CheckpointSource(files, rules, metadata, notes)


def _is_tied(files: SafetensorsFolder) -> bool | None:
    """Whether an output matrix that is stored beside tied embeddings is a copy of them.

    If it is not, transformers uses it, and so does llama.cpp. None: the weights are not here.
    """
    entries = files.entries
    embedding = next((name for name in _EMBEDDINGS if name in entries), None)
    if _OUTPUT not in entries or embedding is None:
        return True
    output = entries[_OUTPUT]
    if output.dtype not in DTYPE_BYTES:  # refused with its name when the rules are made
        return False
    if (output.shape, output.dtype) != (entries[embedding].shape, entries[embedding].dtype):
        return False
    if not files.file_of(_OUTPUT).has_data:
        return None
    for start in range(0, output.elements, _COMPARED_AT_ONCE):
        stop = min(start + _COMPARED_AT_ONCE, output.elements)
        ours, tied = (files.file_of(n).read_raw(n, start, stop) for n in (_OUTPUT, embedding))
        if not np.array_equal(ours, tied):
            return False
    return True


class CheckpointSource:
    """Implements `TensorSource`; made by `open_checkpoint`.

    Attributes:
        notes: assumptions that only the weights could confirm, and what counts for nothing, in
            sentences.
    """

    def __init__(
        self,
        files: SafetensorsFolder,
        rules: Sequence[TensorRule],
        metadata: Metadata,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = tuple(notes)
        self.metadata = metadata
        self.tensors: Sequence[TensorInfo] = tuple(rule.info for rule in rules)
        self._files = files
        self._rules = {rule.info.name: rule for rule in rules}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as F32. Only these rows are in memory."""
        rule = self._rule(name, start, stop)
        if rule.constant is not None:
            return rule.constant.reshape(-1, rule.info.row_elements)[start:stop].copy()
        parts = [as_f32(*part) for part in self._raw_parts(rule, start, stop)]
        empty = np.empty((0, rule.info.row_elements), np.float32)
        rows = parts[0] if len(parts) == 1 else np.concatenate([empty, *parts])
        return rows if rule.values is None else rule.values(rows)

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8] | None:
        """The rows' bytes if an unquantized GGUF stores them unchanged, else None.

        Stacked and permuted rows count as unchanged: only their order changes.
        """
        rule = self._rule(name, start, stop)
        if rule.constant is not None or rule.values is not None:
            return None
        if any(self._dtype(part) != rule.info.type_name for part in rule.parts):
            return None
        parts = [raw for raw, _ in self._raw_parts(rule, start, stop)]
        row_bytes = rule.info.row_elements * DTYPE_BYTES[rule.info.type_name]
        return (
            parts[0]
            if len(parts) == 1
            else np.concatenate([np.empty((0, row_bytes), np.uint8), *parts])
        )

    def _rule(self, name: str, start: int, stop: int) -> TensorRule:
        rule = self._rules[name]
        if not 0 <= start <= stop <= rule.info.rows:
            raise IndexError(f"rows [{start}, {stop}) of {name}, which has {rule.info.rows}")
        return rule

    def _dtype(self, part: str) -> str:
        return self._files.file_of(part).entries[part].dtype

    def _raw_parts(
        self, rule: TensorRule, start: int, stop: int
    ) -> Iterator[tuple[NDArray[np.uint8], str]]:
        """What the rows' parts hold of them, shape (rows, bytes a row), and their dtypes."""
        width = rule.info.row_elements
        if rule.row_order is not None:
            (part,) = rule.parts
            file = self._files.file_of(part)
            if len(rule.info.shape) > 1:
                raw = file.gather_raw(part, rule.row_order[start:stop], width)
            else:  # elements of one row
                raw = file.gather_raw(part, rule.row_order, 1).reshape(1, -1)[: stop - start]
            yield raw, self._dtype(part)
            return
        part_rows = rule.info.rows // len(rule.parts)
        while start < stop:
            index, first = divmod(start, part_rows)
            count = min(part_rows - first, stop - start)
            part = rule.parts[index]
            raw = self._files.file_of(part).read_raw(part, first * width, (first + count) * width)
            yield raw.reshape(count, -1), self._dtype(part)
            start += count
