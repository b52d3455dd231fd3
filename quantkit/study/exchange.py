"""Replaces tensors of a window by lossy versions: quantized, decoded, and in their own type."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensor_types import BY_NAME, QuantType
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize import kernels
from quantkit.quantize.encode import row_blocks
from quantkit.study.errors import column_weights

BLOCKS_AT_ONCE = 16
BLOCK_ROWS_BYTES = 1 << 20
"""Bound the blocks in memory, as F32, whatever the tensor's size."""


class Exchangeable(TensorSource, Protocol):
    """Tensors in memory that a graph reads, and what they were."""

    def exchange(self, name: str, data: NDArray[np.uint8], at: int) -> None:
        """Put `data`, in the tensor's own type, at byte `at` of it."""


@dataclass(frozen=True)
class Exchange:
    """Exchanges tensors of `base`, whose rows are read as they were."""

    base: Exchangeable
    importance: Mapping[str, NDArray[np.float32]]
    pool: ThreadPoolExecutor

    def put(self, types: Mapping[str, str], gains: Mapping[str, float]) -> dict[str, float]:
        """Give tensors the error of their type; returns their relative errors in the model.

        `gains` are factors on an error's amplitude. The base's own type rounds the decoded rows
        once more, which is part of the error.
        """
        errors = {}
        for info in self._infos(types):
            kind = BY_NAME[types[info.name]]
            blocks = list(row_blocks(info, BLOCK_ROWS_BYTES))
            kernels.prepare(kind)
            lossy = functools.partial(self._lossy_block, info, kind, gains[info.name])
            lost = total = 0.0
            for at in range(0, len(blocks), BLOCKS_AT_ONCE):
                for start, raw, a, b in self.pool.map(lossy, blocks[at : at + BLOCKS_AT_ONCE]):
                    self.base.exchange(info.name, raw, start * raw.shape[1])
                    lost, total = lost + a, total + b
            errors[info.name] = lost / total if total > 0 else 0.0
        return errors

    def _infos(self, names: Mapping[str, str]) -> list[TensorInfo]:
        wanted = set(names)
        return [info for info in self.base.tensors if info.name in wanted]

    def _lossy_block(
        self, info: TensorInfo, kind: QuantType, gain: float, block: tuple[int, int, int]
    ) -> tuple[int, NDArray[np.uint8], float, float]:
        """Lossy rows: the first row, their bytes, Σ w·(x − x')² and Σ w·x²."""
        matrix, start, stop = block
        weights = self.importance.get(info.name)
        column = None if weights is None else weights[matrix]
        stored = BY_NAME[info.type_name]
        rows = self.base.read_rows(info.name, start, stop)
        width = rows.shape[1]
        lossy = ggml_kernels.dequantize(kind, kernels.quantize(kind, rows, column), width)
        if gain != 1.0:
            lossy = rows + np.float32(gain) * (lossy - rows)
        raw = kernels.quantize(stored, lossy, column if stored.needs_imatrix else None)
        in_model = ggml_kernels.dequantize(stored, raw, width)
        scale = column_weights(weights, matrix, width)
        lost = np.square(rows - in_model, dtype=np.float64).sum(axis=0) @ scale
        total = np.square(rows, dtype=np.float64).sum(axis=0) @ scale
        return start, raw, float(lost), float(total)
