"""The weights of a loaded model: found in its graph by name, and exchanged in place.

llama.cpp has no function that finds a loaded tensor, but it is `src[0]` of the matrix products and
row lookups of every graph. A weight on two devices (a tied embedding whose rows are looked up on
the CPU) appears once for each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.ggml import GgmlTensor, base_library, op_number, weight_name
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.settings import parallel_sequences

FINDING_TOKENS = 32


class LoadedWeights:
    """Weights of a model that was loaded with `writable`.

    Raises:
        EnvironmentFault: none of `names` is in the graph.
    """

    def __init__(self, model: Model, names: Collection[str]) -> None:
        self._wanted, self._at = frozenset(names), dict[str, set[int]]()
        self._operations = {op_number(name) for name in (b"MUL_MAT", b"MUL_MAT_ID", b"GET_ROWS")}
        context = Context(model, parallel_sequences(1, FINDING_TOKENS), self._look)
        context.decode_together([np.zeros(FINDING_TOKENS, np.int32)])
        context.close()
        if not self._at:
            raise EnvironmentFault(
                "llama.cpp reported none of the model's weights; update llama-cpp-python"
            )

    @property
    def names(self) -> frozenset[str]:
        """Names of the weights found; those of layers that never run are missing."""
        return frozenset(self._at)

    def exchange(self, name: str, data: NDArray[np.uint8], at: int = 0) -> None:
        """Write `data`, in the tensor's own type, at byte `at` of it, on every device."""
        library = base_library()
        raw = np.ascontiguousarray(data)
        for address in self._at[name]:
            size = library.ggml_nbytes(address)
            if at < 0 or at + raw.nbytes > size:
                raise ValueError(f"{name} has {size} bytes, not {at + raw.nbytes}")
            library.ggml_backend_tensor_set(address, raw.ctypes.data, at, raw.nbytes)

    def _look(self, address: int, ask: bool) -> bool:
        tensor = GgmlTensor.from_address(address)
        if tensor.op in self._operations:
            weight = tensor.src[0].contents
            name = weight_name(weight.name)
            if name in self._wanted and not weight.view_src:
                self._at.setdefault(name, set()).add(ctypes.addressof(weight))
        return not ask
