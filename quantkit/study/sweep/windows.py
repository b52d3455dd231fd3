"""The windows of a cut model, one after the other: loaded once for each shape, read ahead.

For use in a child process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp.activations import Collector
from quantkit.llamacpp.ggml_kernels import dequantize
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.llamacpp.windows import LoadedWindow
from quantkit.quantize.encode import encode_rows, row_blocks
from quantkit.study.sweep.cuts import EMBEDDING, CutModel, Window

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Inputs

READ_ROWS_BYTES = 8 << 20
"""Limit for the rows that are read at once, as F32."""
Raw = NDArray[np.uint8]


class OpenWindow:
    """A window whose weights are in memory, as a TensorSource under the model's names.

    Rows are read from the window itself: the checkpoint is read once. What is exchanged is held
    aside until it is restored, if it will be.
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
        tokens: int,
        collector: Collector | None = None,
    ) -> NDArray[np.float32]:
        """Hidden states or logits, a row for each token of at most `sequences` of `tokens`.

        The sums of a `collector` are under the window's own names. Valid until the next call.
        """
        return self._loaded.context(sequences, tokens).run(inputs, collector)

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
        """Put `data` in place of a tensor's bytes from `at` on."""
        self._loaded.exchange(self._own[name], data, at)

    def hold(self, names: Sequence[str]) -> None:
        """Keep the tensors' bytes, which will be exchanged and then restored."""
        if self.window.kind == "embedding":  # it holds them itself
            return
        for name in names:
            info = self._info(name)
            size = BY_NAME[info.type_name].size_bytes(info.elements)
            self._held[name] = self._loaded.get(self._own[name], 0, size)

    def restore(self) -> None:
        """Put what is held back."""
        if isinstance(self._loaded, Embedding):
            self._loaded.restore()
        for name, raw in self._held.items():
            self._loaded.set(self._own[name], raw)
        self._held.clear()

    def source_name(self, own: str) -> str:
        """The model's name of a tensor of the window."""
        return self.window.stored[own]

    def _info(self, name: str) -> TensorInfo:
        return next(info for info in self.tensors if info.name == name)


class Embedding:
    """The embedding as a window: looks up rows, as llama.cpp's GET_ROWS does.

    Of what is exchanged it keeps the rows of tokens that it was asked for before: the tables of
    large vocabularies take gigabytes.
    """

    def __init__(self, info: TensorInfo, scale: float) -> None:
        self._info, self._scale = info, np.float32(scale)
        kind = BY_NAME[info.type_name]
        self._raw = np.zeros((info.rows, kind.size_bytes(info.row_elements)), np.uint8)
        self._asked = np.zeros(info.rows, bool)
        self._exchanged: dict[int, Raw] = {}
        self.names = frozenset([info.name])

    def set(self, name: str, data: Raw, at: int = 0) -> None:
        self._raw.reshape(-1)[at : at + data.nbytes] = data.reshape(-1)

    def exchange(self, name: str, data: Raw, at: int) -> None:
        rows = data.reshape(-1, self._raw.shape[1])
        first = at // self._raw.shape[1]
        for row in np.flatnonzero(self._asked[first : first + len(rows)]):
            self._exchanged[first + int(row)] = rows[row].copy()

    def restore(self) -> None:
        self._exchanged.clear()

    def get(self, name: str, start: int, stop: int) -> Raw:
        return self._raw.reshape(-1)[start:stop].copy()

    def context(self, sequences: int, tokens: int) -> Embedding:
        return self

    def run(self, inputs: Inputs, collector: Collector | None = None) -> NDArray[np.float32]:
        tokens = np.concatenate(list(inputs))
        if self._exchanged:
            raw = np.stack([self._exchanged[int(token)] for token in tokens])
        else:
            raw = self._raw[tokens]
            self._asked[tokens] = True
        rows = dequantize(BY_NAME[self._info.type_name], raw, self._info.row_elements)
        return rows if self._scale == 1 else rows * self._scale

    def close(self) -> None:
        self._raw = np.zeros((0, 0), np.uint8)


Loaded = dict[tuple[object, ...], LoadedWindow | Embedding]
"""Loaded windows by their shapes."""


def open_windows(
    cut: CutModel,
    source: TensorSource,
    folder: Path,
    devices: DeviceSettings,
    first: int = 0,
    ahead_bytes: int = 1 << 62,
    loaded: Loaded | None = None,
) -> Iterator[OpenWindow]:
    """The windows from number `first` on, each valid until the next.

    While one is used, the weights of the next are read, at most `ahead_bytes` of them.

    Args:
        loaded: windows that are loaded already, which are closed after their last use too.

    Raises:
        InputError: llama.cpp refuses a window.
        EnvironmentFault: a window's graph is not what it should be.
    """
    infos = {info.name: info for info in source.tensors}
    windows = cut.windows[first:]
    loaded = loaded or {}
    with _Reader(windows, source, ahead_bytes) as reader:
        for index, window in enumerate(windows):
            if window.shape not in loaded:
                loaded[window.shape] = load(window, cut, folder, devices)
            opened = loaded[window.shape]
            for name, at, raw in reader.weights():
                if name in opened.names:
                    opened.set(name, raw, at)
            yield OpenWindow(window, opened, infos)
            if all(later.shape != window.shape for later in windows[index + 1 :]):
                loaded.pop(window.shape).close()


def load(
    window: Window, cut: CutModel, folder: Path, devices: DeviceSettings
) -> LoadedWindow | Embedding:
    """A window with zeros for weights.

    Raises:
        InputError: llama.cpp refuses it.
        EnvironmentFault: its graph is not what it should be.
    """
    if window.kind == "embedding":
        return Embedding(window.tensors[0], cut.embedding_scale)
    header = write_shape(folder, single_file_layout("window", window.metadata, window.tensors))
    width = 0 if window.kind == "whole" else cut.width
    try:
        names = {info.name for info in window.tensors}
        loaded = LoadedWindow(header, devices, names, width, window.layers)
    finally:
        header.unlink()
    if window.kind != "whole" and (unset := _needed(window) - loaded.names):
        raise EnvironmentFault(
            f"llama.cpp's graph of {window.name} has no {min(unset)}, which it needs; update "
            "llama-cpp-python"
        )
    return loaded


def _needed(window: Window) -> set[str]:
    """Tensors that the graph of a window has, all but factors of which it may take one kind."""
    own = (name for name in window.stored if name.startswith(("blk.", "output", EMBEDDING)))
    return {name for name in own if not name.endswith(".input_scale")}


class _Reader:
    """Reads the weights of windows in order, in a thread of its own, ahead of who takes them."""

    def __init__(self, windows: Sequence[Window], source: TensorSource, ahead_bytes: int) -> None:
        self._windows, self._source, self._most = windows, source, ahead_bytes
        self._infos = {info.name: info for info in source.tensors}
        self._read = deque[tuple[str, int, Raw] | BaseException | None]()
        self._held, self._stopped = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def weights(self) -> Iterator[tuple[str, int, Raw]]:
        """Of the next window: its tensor, a place in it, and the bytes from there on."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._read)
                found = self._read.popleft()
                if isinstance(found, tuple):
                    self._held -= found[2].nbytes
                self._changed.notify_all()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found

    def _work(self) -> None:
        try:
            for window in self._windows:
                for block in self._blocks(window):
                    if not self._put(block, block[2].nbytes):
                        return
                self._put(None, 0)
        except BaseException as error:  # noqa: BLE001 raised again where the weights are taken
            self._put(error, 0)

    def _put(self, found: tuple[str, int, Raw] | BaseException | None, size: int) -> bool:
        """Hand over; False where nobody takes any more. One block is held whatever its size."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or not self._held or self._held + size <= self._most
            )
            if self._stopped:
                return False
            self._read.append(found)
            self._held += size
            self._changed.notify_all()
            return True

    def _blocks(self, window: Window) -> Iterator[tuple[str, int, Raw]]:
        for own, name in window.stored.items():
            info = self._infos[name]
            row_bytes = BY_NAME[info.type_name].size_bytes(info.row_elements)
            for matrix, start, stop in row_blocks(info, READ_ROWS_BYTES):
                rows = (start, stop)
                raw = encode_rows(self._source, info, matrix, rows, {}, info.type_name)
                yield own, start * row_bytes, raw
