"""The table of GGUF tensor types: block size, bytes a block, what they need.

Numbers are ggml's own (`ggml-common.h`); a test holds them equal to `gguf.GGML_QUANT_SIZES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.core.errors import InputError


@dataclass(frozen=True)
class QuantType:
    """One tensor type of GGUF.

    Attributes:
        name: ggml's name, as llama.cpp prints it in upper case.
        ggml_id: value of `enum ggml_type`, as stored in files.
        block_elements: consecutive elements of a row that share a scale; rows must divide by it.
        needs_imatrix: ggml or llama.cpp refuses, or ruins, the type without an importance matrix.
    """

    name: str
    ggml_id: int
    block_elements: int
    block_bytes: int
    needs_imatrix: bool = False

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_elements

    @property
    def is_quantized(self) -> bool:
        return self.block_elements > 1

    def fits_row(self, row_elements: int) -> bool:
        """Whether a row of `row_elements` is a whole number of blocks."""
        return row_elements % self.block_elements == 0

    def size_bytes(self, elements: int) -> int:
        """Bytes of `elements` weights; rows must already be known to divide into blocks."""
        return elements // self.block_elements * self.block_bytes


_TABLE = (
    QuantType("F32", 0, 1, 4),
    QuantType("F16", 1, 1, 2),
    QuantType("BF16", 30, 1, 2),
    QuantType("Q8_0", 8, 32, 34),
    QuantType("Q6_K", 14, 256, 210),
    QuantType("Q5_1", 7, 32, 24),
    QuantType("Q5_0", 6, 32, 22),
    QuantType("Q5_K", 13, 256, 176),
    QuantType("Q4_1", 3, 32, 20),
    QuantType("Q4_0", 2, 32, 18),
    QuantType("Q4_K", 12, 256, 144),
    QuantType("IQ4_NL", 20, 32, 18),
    QuantType("IQ4_XS", 23, 256, 136),
    QuantType("MXFP4", 39, 32, 17),
    QuantType("NVFP4", 40, 64, 36),
    QuantType("Q3_K", 11, 256, 110),
    QuantType("IQ3_S", 21, 256, 110),
    QuantType("IQ3_XXS", 18, 256, 98),
    QuantType("Q2_K", 10, 256, 84),
    QuantType("IQ2_S", 22, 256, 82, needs_imatrix=True),
    QuantType("IQ2_XS", 17, 256, 74, needs_imatrix=True),
    QuantType("IQ2_XXS", 16, 256, 66, needs_imatrix=True),
    QuantType("IQ1_M", 29, 256, 56, needs_imatrix=True),
    QuantType("IQ1_S", 19, 256, 50, needs_imatrix=True),
    QuantType("TQ1_0", 34, 256, 54),
    QuantType("TQ2_0", 35, 256, 66),
    QuantType("Q1_0", 41, 128, 18),
    # Never chosen, but met in GGUF files that are read.
    QuantType("I8", 24, 1, 1),
    QuantType("I16", 25, 1, 2),
    QuantType("I32", 26, 1, 4),
    QuantType("I64", 27, 1, 8),
    QuantType("F64", 28, 1, 8),
)
BY_NAME = {t.name: t for t in _TABLE}
BY_ID = {t.ggml_id: t for t in _TABLE}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""llama_ftype of llama.h, `general.file_type`, for the main types of converted files."""


def quant_type(name: str) -> QuantType:
    """The type called `name` in any case.

    Raises:
        InputError: no such type; the message lists the known ones.
    """
    found = BY_NAME.get(name.upper())
    if found is None:
        raise InputError(f"unknown tensor type {name!r}; known types: {', '.join(BY_NAME)}")
    return found
