"""The memory that a sweep takes, window by window, from `SweepSizes` alone.

llama.cpp's part is bounded, not asked for: GRAPH_SHARE is the most that it plans for layers whose
graphs were looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.models.geometry import geometry_of
from quantkit.quantize.candidates import is_quantizable
from quantkit.study.sweep.cuts import Window
from quantkit.study.sweep.estimate import SweepSizes
from quantkit.study.sweep.states import row_bytes

GRAPH_SHARE = 0.65
"""Of a batch's activations as they are counted, what llama.cpp's graph takes at most. It plans 0.15
to 0.38 of them for windows of Nemotron-3-Super, 0.43 to 0.47 for those of the demo model, and 0.61
where chunks are as short as 32 tokens."""
LOGITS_COPIES = 4
"""llama.cpp's, those compared with, their probabilities, and what is read or written."""
STATES_COPIES = 4
"""Of a batch's hidden states: as they are read, llama.cpp's, and as they come and are written."""
PROCESS_BYTES = 128 << 20
"""Python, numpy, llama.cpp and their buffers, and rows that are read ahead or exchanged."""
SAMPLED_BYTES = 20
"""Of an element of the rows that a thread measures: restored in F32, and squared in F64."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a sweep holds while it is at one of its windows.

    Attributes:
        windows: loaded weights, those of windows that will be used again among them.
        contexts: what llama.cpp takes to run them.
        embedding: the first window's, which lies on no GPU.
        ahead: weights of the next windows.
        held: the largest unit that is exchanged, as it was.
        sums: squared activations, and the importance that is made of them.
        batches: hidden states and logits of a batch.
        each_thread: rows that a thread measures the errors of.
    """

    windows: int
    contexts: int
    embedding: int
    ahead: int
    held: int
    sums: int
    batches: int
    each_thread: int

    @property
    def gpu_bytes(self) -> int:
        """On a GPU, if there is one: on the first that there is, and a whole model on all."""
        return self.windows + self.contexts

    def host_bytes(self, threads: int) -> int:
        """In the computer's own memory, if the windows are on a GPU."""
        others = self.embedding + self.ahead + self.held + self.sums + self.batches
        return PROCESS_BYTES + others + threads * self.each_thread

    def ram_bytes(self, threads: int) -> int:
        """The same without a GPU."""
        return self.host_bytes(threads) + self.gpu_bytes


def memory_of(sizes: SweepSizes) -> list[Memory]:
    """What is held at each window."""
    return [_memory_at(sizes, index) for index in range(len(sizes.windows))]


def _memory_at(sizes: SweepSizes, index: int) -> Memory:
    later = set(sizes.shape_of[index:])
    loaded = {
        shape: window
        for shape, window in zip(sizes.shape_of[: index + 1], sizes.windows, strict=False)
        if shape in later
    }.values()
    models = [window for window in loaded if window.kind != "embedding"]
    sums = sum(map(sizes.sums_bytes, range(index + 1)))
    rest = sum(map(sizes.stored_bytes, range(index + 1, len(sizes.windows))))
    return Memory(
        windows=sum(window.size_bytes for window in models),
        contexts=sum(context_bytes(sizes, window) for window in models),
        embedding=sum(window.size_bytes for window in loaded if window.kind == "embedding"),
        ahead=min(sizes.ahead_bytes, rest),
        held=_held_bytes(sizes, index),
        sums=sums + sums // 2,
        batches=sum(_batch_bytes(sizes, window) for window in models),
        each_thread=SAMPLED_BYTES * _sampled_elements(sizes, sizes.windows[index]),
    )


def batches_of(sizes: SweepSizes, window: Window) -> list[tuple[int, int]]:
    """The most sequences of each text that are decoded together, and tokens of each."""
    shapes = []
    for text in sizes.texts.each:
        if text is not None and window.kind == "output":
            shapes.append(sizes.rows_at_once(window, text.tokens))
        elif text is not None:
            shapes.append((sizes.capacity(window, text.tokens), text.tokens))
    return shapes


def context_bytes(sizes: SweepSizes, window: Window) -> int:
    """llama.cpp's cache and states of the sequences, and its graph."""
    layers = geometry_of(window.metadata).layers
    found = [0]
    for sequences, tokens in batches_of(sizes, window):
        kept = sequences * sum(layer.context_bytes(tokens, "f16") for layer in layers)
        rows = sequences * tokens
        graph = int(GRAPH_SHARE * sizes.activation_bytes * rows)
        found.append(kept + graph + _logits_bytes(sizes, window, rows))
    return max(found)


def _batch_bytes(sizes: SweepSizes, window: Window) -> int:
    rows = max((n * tokens for n, tokens in batches_of(sizes, window)), default=0)
    states = STATES_COPIES * row_bytes(sizes.width) * rows
    return states + LOGITS_COPIES * _logits_bytes(sizes, window, rows)


def _logits_bytes(sizes: SweepSizes, window: Window, rows: int) -> int:
    return 4 * sizes.vocabulary * rows if window.kind in ("output", "whole") else 0


def _held_bytes(sizes: SweepSizes, index: int) -> int:
    """The largest unit of a window, which is held aside while it is exchanged."""
    window, touching = sizes.windows[index], sizes.touches.get(index, [])
    if window.kind == "embedding":
        return 0
    if window.kind == "output":  # what is exchanged last is not restored
        touching = touching[:-1]
    inside = set(window.stored.values())
    units = [inside.intersection(sizes.branches[number].unit) for number in touching]
    return max((sum(map(sizes.tensor_bytes, unit)) for unit in units), default=0)


def _sampled_elements(sizes: SweepSizes, window: Window) -> int:
    """Of the largest sample of one matrix."""
    if sizes.recipe is None:
        return 0
    limit = sizes.recipe.sample_rows
    infos = [info for info in window.tensors if is_quantizable(info)]
    rows = [min(limit or info.rows, info.rows // info.matrices) for info in infos]
    return max((n * info.row_elements for n, info in zip(rows, infos, strict=True)), default=0)
