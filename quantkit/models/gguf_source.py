"""A GGUF file or its shards as a TensorSource."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import SPLIT_KEYS, open_shards
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.llamacpp.ggml_kernels import dequantize

_READ_AS_TEXT = {"general.architecture", "tokenizer.chat_template"}
"""Other texts are only copied, whatever their bytes are."""


class GGUFSource:
    """TensorSource over a GGUF file or its shards; quantized tensors are dequantized on read."""

    def __init__(self, path: Path) -> None:
        files = open_shards(path)
        self.paths = [file.path for file in files]
        self.metadata: Metadata = {
            key: value for key, value in files[0].metadata.items() if key not in SPLIT_KEYS
        }
        if "general.architecture" not in self.metadata:
            raise InputError(f"{path} has no general.architecture: it is not a model")
        for key in _READ_AS_TEXT & self.metadata.keys():
            try:
                str(self.metadata[key].value).encode()
            except UnicodeEncodeError:
                raise InputError(f"{key} of {path} is not UTF-8 text; convert it again") from None
        self._file_of = {name: file for file in files for name in file.stored}
        self.tensors: Sequence[TensorInfo] = tuple(
            at.info for file in files for at in file.stored.values()
        )

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of tensor `name` as F32, shape (stop - start, row elements)."""
        info = self._file_of[name].stored[name].info
        return dequantize(
            BY_NAME[info.type_name], self.read_stored(name, start, stop), info.row_elements
        )

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of rows [start, stop) as they lie in the file, shape (rows, bytes a row)."""
        file = self._file_of[name]
        info = file.stored[name].info
        row_bytes = BY_NAME[info.type_name].size_bytes(info.row_elements)
        raw = file.tensor_bytes(name, start * row_bytes, stop * row_bytes)
        return raw.reshape(stop - start, row_bytes)
