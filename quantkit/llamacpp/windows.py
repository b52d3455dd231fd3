"""A few layers of a model, loaded without a file of weights: they are set from memory.

llama.cpp loads a header with a hole in place of the weights. Their places are found in the graph of
a first decode: llama.cpp has no function for it. Layers of equal shape use one loaded window in
turn. For use in a child process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.activations import LAST_NORM, Collector
from quantkit.llamacpp.ggml import GgmlTensor, base_library, op_number, tensor_array
from quantkit.llamacpp.llama import Context, Inputs, Model
from quantkit.llamacpp.settings import DeviceSettings, parallel_sequences

FINDING_TOKENS = 32
_SOURCES = 10  # of a tensor, GGML_MAX_SRC


class LoadedWindow:
    """A window in llama.cpp.

    Args:
        header: GGUF whose weights are a hole in the file; it can be removed afterwards.
        names: its tensors.
        width: of the hidden states that it takes; 0: it takes tokens.
        layers: after how many of its layers the hidden states are taken; 0: it gives logits.

    Raises:
        InputError: llama.cpp refuses the header.
        EnvironmentFault: its graph has no weights, or no layers whose output can be taken, or
            takes hidden states of another width.
    """

    def __init__(
        self, header: Path, devices: DeviceSettings, names: Collection[str], width: int, layers: int
    ) -> None:
        self.model = Model(header, devices, writable=True)
        self.width, self._at = width, dict[str, set[int]]()
        self._context: WindowContext | None = None
        self._sizes = (0, 0)
        self.last: bytes | None = None
        if width and (takes := self.model.input_width) != width:
            raise EnvironmentFault(
                f"llama.cpp takes hidden states of {takes} values, not {width}; report this model"
            )
        finding = _Finding(names, self._at)
        context = Context(self.model, parallel_sequences(1, FINDING_TOKENS), finding, width)
        states = np.zeros((FINDING_TOKENS, width), np.float32)
        context.decode_together([states if width else np.zeros(FINDING_TOKENS, np.int32)])
        context.close()
        if not self._at:
            raise EnvironmentFault(
                "llama.cpp reported none of the model's weights; update llama-cpp-python"
            )
        if layers:
            before, dash, index = (finding.before_norm or b"").rpartition(b"-")
            if not dash or not index.isdigit() or int(index) < layers - 1:
                raise EnvironmentFault(
                    "llama.cpp's graph does not name the output of its layers; update "
                    "llama-cpp-python"
                )
            self.last = before + b"-%d" % (layers - 1)

    @property
    def names(self) -> frozenset[str]:
        """The tensors that the graph uses."""
        return frozenset(self._at)

    def set(self, name: str, data: NDArray[np.uint8], at: int = 0) -> None:
        """Write `data`, in the tensor's own type, at byte `at` of it, on every device."""
        library = base_library()
        raw = np.ascontiguousarray(data)
        for address in self._at[name]:
            size = library.ggml_nbytes(address)
            if at < 0 or at + raw.nbytes > size:
                raise ValueError(f"{name} has {size} bytes, not {at + raw.nbytes}")
            library.ggml_backend_tensor_set(address, raw.ctypes.data, at, raw.nbytes)

    exchange = set
    """Weights are exchanged as they are set."""

    def get(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """A copy of bytes [start, stop) of the tensor."""
        raw = np.empty(stop - start, np.uint8)
        address = min(self._at[name])
        base_library().ggml_backend_tensor_get(address, raw.ctypes.data, start, raw.nbytes)
        return raw

    def context(self, sequences: int, tokens: int) -> WindowContext:
        """A context for up to `sequences` of `tokens` each, kept until another is asked for."""
        if self._sizes != (sequences, tokens) or self._context is None:
            self._close_context()
            self._context = WindowContext(self, sequences, tokens)
            self._sizes = (sequences, tokens)
        return self._context

    def close(self) -> None:
        self._close_context()
        self.model.close()

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None


class WindowContext(Context):
    """Runs sequences through a window, each from an empty context."""

    def __init__(self, window: LoadedWindow, sequences: int, tokens: int) -> None:
        self._last = window.last
        self._collector: Collector | None = None
        self._states = np.empty((0, 0), np.float32)
        super().__init__(
            window.model, parallel_sequences(sequences, tokens), self._watch, window.width
        )

    def run(self, inputs: Inputs, collector: Collector | None = None) -> NDArray[np.float32]:
        """What the window gives for `inputs`: hidden states, or logits, a row for each token.

        Valid until the next call. With a `collector` a window that gives logits gives none.
        """
        self._collector = collector
        self.clear()
        logits = self.decode_together(inputs)
        return logits if self._last is None else self._states

    def _watch(self, address: int, ask: bool) -> bool:
        if self._last is not None:
            tensor = GgmlTensor.from_address(address)
            if tensor.name == self._last:
                if not ask:
                    found = tensor_array(ctypes.pointer(tensor), np.float32)
                    self._states = np.array(found.reshape(-1, found.shape[-1]), np.float32)
                return ask
        return not ask if self._collector is None else self._collector(address, ask)


class _Finding:
    """Notes the weights of a graph that is computed, and what its last norm is of."""

    def __init__(self, names: Collection[str], at: dict[str, set[int]]) -> None:
        self._names, self._at = frozenset(names), at
        self._none, self._rows = op_number(b"NONE"), op_number(b"GET_ROWS")
        self._norms = (op_number(b"RMS_NORM"), op_number(b"NORM"))
        self._after_norm = (op_number(b"MUL"), op_number(b"ADD"), self._rows)
        self.before_norm: bytes | None = None

    def __call__(self, address: int, ask: bool) -> bool:
        tensor = GgmlTensor.from_address(address)
        for pointer in tensor.src[:_SOURCES]:
            if not pointer:
                continue
            source = pointer.contents
            while source.view_src:
                source = source.view_src.contents
            name = source.name.decode("utf-8", "replace")
            if source.op == self._none and name in self._names:
                self._at.setdefault(name, set()).add(ctypes.addressof(source))
        if tensor.name == LAST_NORM:
            self.before_norm = self._normed(tensor)
        return not ask

    def _normed(self, tensor: GgmlTensor) -> bytes | None:
        while tensor.op in self._after_norm:
            tensor = tensor.src[0].contents
        if tensor.op not in self._norms:
            return None
        tensor = tensor.src[0].contents
        while tensor.op == self._rows:
            tensor = tensor.src[0].contents
        return bytes(tensor.name)
