"""Tensors and metadata in GGUF terms, and the interface of whatever they are read from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MetaScalar = str | int | float | bool
MetaKind = Literal[
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "u64", "i64", "f64"
]


@dataclass(frozen=True)
class MetaValue:
    """One GGUF metadata value with its stored type; `value` is a tuple for arrays."""

    kind: MetaKind
    value: MetaScalar | tuple[MetaScalar, ...]


Metadata = dict[str, MetaValue]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor under its GGUF name.

    Attributes:
        name: GGUF name, `blk.3.ffn_up_exps.weight`.
        shape: row-major (numpy order, the reverse of ggml's `ne`); the last axis is the row.
        type_name: name in `tensor_types` of the type that it is stored in.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str

    def with_type(self, type_name: str) -> TensorInfo:
        """The same tensor stored in another type."""
        return TensorInfo(self.name, self.shape, type_name)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row_elements(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return self.elements // self.shape[-1] if self.shape[-1] else 0

    @property
    def matrices(self) -> int:
        """Stacked matrices: the number of experts of a 3-D tensor, else 1."""
        return self.shape[0] if len(self.shape) == 3 else 1


def main_type(tensors: Sequence[TensorInfo]) -> str:
    """The type that most weights are stored in, after which llama.cpp names a file's type."""
    weights = Counter[str]()
    for info in tensors:
        weights[info.type_name] += info.elements
    return weights.most_common(1)[0][0]


class ModelHeader(Protocol):
    """A model without its weights, as a GGUF header describes it."""

    @property
    def metadata(self) -> Metadata:
        """GGUF metadata as it will be written, `general.architecture` included."""

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        """All tensors in the order in which they are written."""


class TensorSource(ModelHeader, Protocol):
    """A model's tensors under GGUF names, read lazily by rows: a checkpoint or a GGUF file.

    Rows are those of the GGUF tensor flattened to two axes: expert `e` of a tensor of shape
    (experts, rows, row elements) begins at row `e * rows`. Reading is thread-safe.
    """

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of tensor `name` as F32, shape (stop - start, row elements)."""

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8] | None:
        """The stored bytes of rows [start, stop), shape (stop - start, bytes per row).

        None if the source does not hold them in the tensor's own type.
        """
