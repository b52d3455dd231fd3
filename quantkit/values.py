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


@dataclass(frozen=True)
class Divergence:
    """How far an artifact's next-token distribution is from its base's on a text.

    `mean` to `maximum` are of the Kullback–Leibler divergence, nats; an error is a standard error.

    Attributes:
        tokens: positions that count.
        same_top: share of positions where both put the same token first.
        ln_ratio: ln(perplexity / base_perplexity); its error is of the paired differences.
    """

    tokens: int
    mean: float
    mean_error: float
    median: float
    p99: float
    p999: float
    maximum: float
    same_top: float
    same_top_error: float
    perplexity: float
    base_perplexity: float
    ln_ratio: float
    ln_ratio_error: float

    @property
    def perplexity_ratio(self) -> float:
        """Infinite of a broken model, where it is beyond what a float holds."""
        try:
            return math.exp(self.ln_ratio)
        except OverflowError:
            return math.inf
