"""The frozen values that pass between stages: plain data, no behaviour beyond arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
        type_name: name in `quant_types` of how the source stores it.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str

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
