"""The oracle of the sweep: the same measurements on a whole model, loaded by llama.cpp at once.

Everything here runs in the test's own process, and all texts are decoded in one batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from models import CPU
from numpy.typing import NDArray

from quantkit.formats.logits_file import LogitsHeader, encode_rows, next_tokens
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp import ggml_kernels
from quantkit.llamacpp.activations import Collector, Sums
from quantkit.llamacpp.ggml import GgmlTensor, base_library, op_number, weight_name
from quantkit.llamacpp.llama import (
    ChunkLogits,
    Context,
    EvalCallback,
    Logits,
    Model,
    Tokens,
    with_first,
)
from quantkit.llamacpp.settings import parallel_sequences
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.candidates import nearest_type
from quantkit.quantize.encode import Importance
from quantkit.study.errors import column_weights
from quantkit.study.kld_statistics import BaseDistribution
from quantkit.study.sweep.branches import MAX_GAIN, MIN_ERROR_SHARE, Branch, Exchanged

FINDING_TOKENS = 32
Errors = Mapping[str, Mapping[str, float]]
"""Tensor → type → relative error."""


class LoadedWeights:
    """Weights of a model that was loaded with `writable`, by name.

    llama.cpp has no function that finds a loaded tensor, but it is `src[0]` of the matrix products
    and row lookups of every graph. A weight on two devices (a tied embedding whose rows are looked
    up on the CPU) appears once for each.
    """

    def __init__(self, model: Model, names: Collection[str]) -> None:
        self._wanted, self._at = frozenset(names), dict[str, set[int]]()
        self._operations = {op_number(name) for name in (b"MUL_MAT", b"MUL_MAT_ID", b"GET_ROWS")}
        context = Context(model, parallel_sequences(1, FINDING_TOKENS), self._look)
        context.decode_together([np.zeros(FINDING_TOKENS, np.int32)])
        context.close()
        assert self._at

    @property
    def names(self) -> frozenset[str]:
        """Names of the weights found; those of layers that never run are missing."""
        return frozenset(self._at)

    def exchange(self, name: str, data: NDArray[np.uint8]) -> None:
        """Write `data`, in the tensor's own type, over the whole of it, on every device."""
        library, raw = base_library(), np.ascontiguousarray(data)
        for address in self._at[name]:
            assert library.ggml_nbytes(address) == raw.nbytes
            library.ggml_backend_tensor_set(address, raw.ctypes.data, 0, raw.nbytes)

    def _look(self, address: int, ask: bool) -> bool:
        tensor = GgmlTensor.from_address(address)
        if tensor.op in self._operations:
            weight = tensor.src[0].contents
            name = weight_name(weight.name)
            if name in self._wanted and not weight.view_src:
                self._at.setdefault(name, set()).add(ctypes.addressof(weight))
        return not ask


class LoadedModel:
    """A GGUF file in llama.cpp on the CPU, whose weights can be exchanged.

    Args:
        bos: replaces the first token of each chunk that is run, unless None.
    """

    def __init__(self, path: Path, bos: int | None = None) -> None:
        self.source, self._bos = GGUFSource(path), bos
        self._infos = {info.name: info for info in self.source.tensors}
        self._model = Model(path, CPU, writable=True)
        self._weights = LoadedWeights(self._model, self._infos)

    def tokens(self, text: str, count: int) -> Tokens:
        """The first of a text."""
        return self._model.vocab.first_tokens(text, count)

    def close(self) -> None:
        self._model.close()

    def sums(self, chunks: Tokens, group_tokens: int = 16) -> dict[str, Sums]:
        """Σ x² of the weights of its layers over `chunks`, (chunks, chunk tokens)."""
        collector = Collector(group_tokens)
        self._run(chunks, collector)
        assert collector.broken is None
        return collector.sums

    def logits_file(self, chunks: Tokens, header: LogitsHeader) -> bytes:
        """The bytes of base.logits, each chunk run alone."""
        runner, parts = ChunkLogits(self._model, chunks.shape[1], self._bos), []
        for chunk in chunks:
            logits = np.concatenate([rows.copy() for _, rows in runner.of(chunk)])
            parts.append(encode_rows(logits, next_tokens(chunk), header).tobytes())
        runner.close()
        return header.start_bytes(chunks) + b"".join(parts)

    def klds(
        self,
        branches: Sequence[Branch],
        chunks: Tokens,
        errors: Errors,
        importance: Importance,
        probe_error: float,
    ) -> dict[int, tuple[Exchanged, NDArray[np.float64]]]:
        """By a branch's index, what was exchanged for it, and the KLD of every position, nats.

        Args:
            errors, importance: as they were measured.
        """
        base = BaseDistribution.of(self._run(chunks))
        found = {}
        with ThreadPoolExecutor(1) as pool:
            for index, branch in enumerate(branches):
                exchanged = self._put(branch, errors, importance, probe_error)
                found[index] = exchanged, base.divergence(self._run(chunks), pool)
                for name in exchanged.types:
                    rows = self._infos[name].rows
                    self._weights.exchange(name, self.source.read_stored(name, 0, rows))
        return found

    def _run(self, chunks: Tokens, on_tensor: EvalCallback | None = None) -> Logits:
        """The logits of all positions, each chunk a sequence of its own; none for a callback."""
        context = Context(self._model, parallel_sequences(*chunks.shape), on_tensor)
        logits = context.decode_together([with_first(c, self._bos) for c in chunks])
        found = logits.copy() if on_tensor is None else logits[:0].copy()
        context.close()
        return found

    def _put(
        self, branch: Branch, errors: Errors, importance: Importance, probe_error: float
    ) -> Exchanged:
        """Exchange what can be exchanged of the branch's unit."""
        exchanged = Exchanged()
        for name in branch.unit:
            stored = BY_NAME[self._infos[name].type_name]
            if name not in self._weights.names or not errors.get(name):
                continue
            if stored.needs_imatrix and name not in importance:
                continue
            least = min(MIN_ERROR_SHARE * probe_error, max(errors[name].values()))
            large = [kind for kind, error in errors[name].items() if error >= least]
            kind = nearest_type(large, branch.bits)
            error = errors[name][kind]
            gain = (branch.error / error) ** 0.5 if error > 0 else 1.0
            gain = min(max(gain, 0.0 if branch.kind == "floor" else 1.0), MAX_GAIN)
            exchanged.types[name], exchanged.gains[name] = kind, gain
            exchanged.errors[name] = self._exchange(name, kind, gain, importance.get(name))
        return exchanged

    def _exchange(
        self, name: str, kind: str, gain: float, weights: NDArray[np.float32] | None
    ) -> float:
        """Give a tensor the error of `kind`, times `gain`; returns its relative error."""
        info = self._infos[name]
        stored, lossy, width = BY_NAME[info.type_name], BY_NAME[kind], info.row_elements
        raws, lost, total = [], 0.0, 0.0
        rows = self.source.read_rows(name, 0, info.rows).reshape(info.matrices, -1, width)
        for matrix, part in enumerate(rows):
            column = None if weights is None else weights[matrix]
            changed = ggml_kernels.quantize(lossy, part, column)
            changed = ggml_kernels.dequantize(lossy, changed, width)
            if gain != 1.0:
                changed = part + np.float32(gain) * (changed - part)
            needed = column if stored.needs_imatrix else None
            raws.append(ggml_kernels.quantize(stored, changed, needed))
            scale = column_weights(weights, matrix, width)
            kept = ggml_kernels.dequantize(stored, raws[-1], width)
            lost += float(np.square(part - kept, dtype=np.float64).sum(axis=0) @ scale)
            total += float(np.square(part, dtype=np.float64).sum(axis=0) @ scale)
        self._weights.exchange(name, np.concatenate(raws))
        return lost / total if total > 0 else 0.0
