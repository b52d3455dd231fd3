"""TensorSource: a model's tensors under GGUF names, read lazily, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensors import Metadata, TensorInfo


class TensorSource(Protocol):
    """What conversion, measuring and quantizing read from: a checkpoint or a GGUF, all the same.

    Rows are those of the GGUF tensor flattened to two axes, so expert `e` of a 3-D tensor of
    shape (experts, rows, row) begins at row `e * rows`. Implementations are safe to read from
    several threads.
    """

    @property
    def metadata(self) -> Metadata:
        """GGUF metadata as it will be written, `general.architecture` included."""
        ...

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """All tensors in the order in which they are written."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of tensor `name` as F32, shape (stop - start, row elements)."""
        ...

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8] | None:
        """The bytes of rows [start, stop), where the source holds them in the tensor's own type.

        Shape (stop - start, bytes a row); None where rows must be made from other values first.
        """
        ...
