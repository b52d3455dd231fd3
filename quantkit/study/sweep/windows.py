"""The windows of a cut model, one after the other: loaded once for each shape, read ahead.

For use in a child process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp.activations import Collector
from quantkit.llamacpp.ggml_kernels import dequantize
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.llamacpp.windows import LoadedWindow
from quantkit.quantize.encode import encode_rows, row_blocks
from quantkit.study.sweep.cuts import CutModel, Window

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Inputs

Raw = NDArray[np.uint8]


class OpenWindow:
    """A window whose weights are in memory, as a TensorSource under the model's names.

    Rows are read from the window itself: the checkpoint is read once. What is exchanged is held
    aside until it is restored.
    """

    def __init__(
        self, window: Window, loaded: LoadedWindow | Embedding, infos: Mapping[str, TensorInfo]
    ) -> None:
        self.window, self.metadata = window, window.metadata
        self._loaded = loaded
        self._own = {of: own for own, of in window.stored.items() if own in loaded.names}
        self._held: dict[str, Raw] = {}
        self.tensors: Sequence[TensorInfo] = [i for n, i in infos.items() if n in self._own]

    @property
    def names(self) -> frozenset[str]:
        """The model's tensors that the window's graph uses."""
        return frozenset(self._own)

    def run(
        self,
        inputs: Inputs,
        sequences: int,
        collector: Collector | None = None,
    ) -> NDArray[np.float32]:
        """Hidden states or logits, a row for each token of up to `sequences` of equal length.

        The sums of a `collector` are under the window's own names. Valid until the next call.
        """
        return self._loaded.context(sequences, len(inputs[0])).run(inputs, collector)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource`; of an exchanged tensor the rows that were exchanged."""
        info = self._info(name)
        return dequantize(
            BY_NAME[info.type_name], self.read_stored(name, start, stop), info.row_elements
        )

    def read_stored(self, name: str, start: int, stop: int) -> Raw:
        """As `TensorSource`; of an exchanged tensor the rows that were exchanged."""
        info = self._info(name)
        size = BY_NAME[info.type_name].size_bytes(info.row_elements)
        held = self._held.get(name)
        if held is None:
            raw = self._loaded.get(self._own[name], start * size, stop * size)
        else:
            raw = held[start * size : stop * size]
        return raw.reshape(stop - start, size)

    def exchange(self, name: str, data: Raw, at: int) -> None:
        """Put `data` in place of a held tensor's bytes from `at` on."""
        assert name in self._held
        self._loaded.set(self._own[name], data, at)

    def hold(self, names: Sequence[str]) -> None:
        """Keep the tensors' bytes, to be exchanged."""
        for name in names:
            info = self._info(name)
            size = BY_NAME[info.type_name].size_bytes(info.elements)
            self._held[name] = self._loaded.get(self._own[name], 0, size)

    def restore(self) -> None:
        """Put what is held back."""
        for name, raw in self._held.items():
            self._loaded.set(self._own[name], raw)
        self._held.clear()

    def source_name(self, own: str) -> str:
        """The model's name of a tensor of the window."""
        return self.window.stored[own]

    def _info(self, name: str) -> TensorInfo:
        return next(info for info in self.tensors if info.name == name)


class Embedding:
    """The embedding as a window: looks up rows, as llama.cpp's GET_ROWS does."""

    def __init__(self, info: TensorInfo, scale: float) -> None:
        self._info, self._scale = info, np.float32(scale)
        kind = BY_NAME[info.type_name]
        self._raw = np.zeros((info.rows, kind.size_bytes(info.row_elements)), np.uint8)
        self.names = frozenset([info.name])

    def set(self, name: str, data: Raw, at: int = 0) -> None:
        self._raw.reshape(-1)[at : at + data.nbytes] = data.reshape(-1)

    def get(self, name: str, start: int, stop: int) -> Raw:
        return self._raw.reshape(-1)[start:stop].copy()

    def context(self, sequences: int, tokens: int) -> Embedding:
        return self

    def run(self, inputs: Inputs, collector: Collector | None = None) -> NDArray[np.float32]:
        tokens = np.concatenate(list(inputs))
        rows = dequantize(BY_NAME[self._info.type_name], self._raw[tokens], self._info.row_elements)
        return rows if self._scale == 1 else rows * self._scale

    def close(self) -> None:
        self._raw = np.zeros((0, 0), np.uint8)


def open_windows(
    cut: CutModel,
    source: TensorSource,
    folder: Path,
    devices: DeviceSettings,
    first: int = 0,
) -> Iterator[OpenWindow]:
    """The windows from number `first` on, each valid until the next.

    While one is used, the weights of the next are read.

    Raises:
        InputError: llama.cpp refuses a window.
    """
    infos = {info.name: info for info in source.tensors}
    windows = cut.windows[first:]
    loaded: dict[tuple[object, ...], LoadedWindow | Embedding] = {}
    with ThreadPoolExecutor(1) as reader:

        def ahead(at: int) -> Future[dict[str, Raw]] | None:
            return reader.submit(_read, windows[at], source) if at < len(windows) else None

        reading = ahead(0)
        for index, window in enumerate(windows):
            if window.shape not in loaded:
                loaded[window.shape] = _load(window, cut, folder, devices)
            opened = loaded[window.shape]
            assert reading is not None
            weights = reading.result()
            while weights:
                name, raw = weights.popitem()
                if name in opened.names:
                    opened.set(name, raw)
            reading = ahead(index + 1)
            yield OpenWindow(window, opened, infos)
            if all(later.shape != window.shape for later in windows[index + 1 :]):
                loaded.pop(window.shape).close()


def _load(
    window: Window, cut: CutModel, folder: Path, devices: DeviceSettings
) -> LoadedWindow | Embedding:
    if window.kind == "embedding":
        return Embedding(window.tensors[0], cut.embedding_scale)
    header = write_shape(folder, single_file_layout("window", window.metadata, window.tensors))
    width = 0 if window.kind == "whole" else cut.width
    try:
        names = {info.name for info in window.tensors}
        return LoadedWindow(header, devices, names, width, window.layers)
    finally:
        header.unlink()


def _read(window: Window, source: TensorSource) -> dict[str, Raw]:
    """The weights of a window, under its own names."""
    infos, found = {info.name: info for info in source.tensors}, {}
    for own, name in window.stored.items():
        info = infos[name]
        row_bytes = BY_NAME[info.type_name].size_bytes(info.row_elements)
        raw = np.empty((info.rows, row_bytes), np.uint8)
        for matrix, start, stop in row_blocks(info):
            raw[start:stop] = encode_rows(
                source, info, matrix, (start, stop), {}, info.type_name
            ).reshape(stop - start, row_bytes)
        found[own] = raw
    return found
