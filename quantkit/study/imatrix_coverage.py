"""How well an importance matrix covers a model: tokens per layer, tokens per expert, outliers.

Tensors without statistics (the output, the token embedding, multi-token prediction layers) are no
part of it: they are quantized without weights, to types that need no imatrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry

if TYPE_CHECKING:
    from quantkit.llamacpp.activations import Sums

ENOUGH_TOKENS = 100
"""An expert with fewer saw only a few sentences of the text."""
TOP_SHARE = 0.01
_ACTIVE = 1e-5
_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class WeightStatistics:
    """Statistics of one weight, over the column means of the matrices that were reached.

    Attributes:
        tokens: seen per matrix: least, median, most.
        total: Σ of the means; `least`, `most`, `mean`, `deviation` are of single columns.
        active: share of columns with a mean above 1e-5.
        entropy: of the columns' shares, 1 if uniform: median matrix, worst matrix.
        top_share: share of the importance held by the top 1 % of the columns.
        cosine: similarity to the same tensor in the nearest layer before; None for the first.
    """

    name: str
    matrices: int
    columns: int
    tokens: tuple[int, float, int]
    unseen: int
    below_enough: int
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    entropy: tuple[float, float]
    top_share: float
    cosine: float | None


@dataclass(frozen=True)
class LayerCoverage:
    """One layer; `name` is its number, or the name of a weight outside the layers.

    Attributes:
        weights: number of weights with statistics.
        tokens: seen by the layer's dense weights; None without any.
        experts: tokens by expert id; empty for a dense layer.
    """

    name: str
    weights: int
    tokens: int | None
    experts: tuple[int, ...]

    @property
    def unseen(self) -> tuple[int, ...]:
        """Ids of the experts that no token reached."""
        return tuple(i for i, tokens in enumerate(self.experts) if tokens <= 0)

    def share(self, at_least: int = 1) -> float:
        """Share of the experts with `at_least` tokens; 1 for a dense layer."""
        return Coverage((self,)).share(at_least)


@dataclass(frozen=True)
class Coverage:
    """The layers in the model's order."""

    layers: tuple[LayerCoverage, ...]

    @property
    def expert_layers(self) -> tuple[LayerCoverage, ...]:
        return tuple(layer for layer in self.layers if layer.experts)

    @property
    def experts(self) -> int:
        """Experts of all layers together."""
        return sum(len(layer.experts) for layer in self.layers)

    @property
    def unseen(self) -> tuple[tuple[str, int], ...]:
        """(layer, expert id) of all experts that no token reached."""
        return tuple((layer.name, i) for layer in self.layers for i in layer.unseen)

    @property
    def tokens(self) -> int:
        """Calibration tokens, as the dense weights saw them."""
        return max((layer.tokens or 0 for layer in self.layers), default=0)

    def reached(self, at_least: int = 1) -> int:
        """Experts with `at_least` tokens."""
        return sum(tokens >= at_least for layer in self.layers for tokens in layer.experts)

    def missed(self, at_least: int) -> int:
        """Experts with fewer tokens."""
        return self.experts - self.reached(at_least)

    def share(self, at_least: int = 1) -> float:
        """Share of the model's experts with `at_least` tokens; 1 for a dense model."""
        return self.reached(at_least) / self.experts if self.experts else 1.0

    def rarest(self) -> tuple[str, int, int] | None:
        """(layer, expert id, tokens) of the reached expert with the fewest tokens."""
        experts = ((la.name, i, n) for la in self.layers for i, n in enumerate(la.experts) if n > 0)
        return min(experts, key=lambda found: found[2], default=None)  # the first of equal ones


def layer_of(weight: str) -> str:
    """`blk.3.ffn_up.weight` → `3`; a weight outside the layers → its name without `.weight`."""
    match = _LAYER.fullmatch(weight)
    return match[1] if match else weight.removesuffix(".weight")


def _order(layer: str) -> tuple[bool, int, str]:
    number = re.fullmatch("[0-9]{1,6}", layer)
    return (False, int(layer), "") if number else (True, 0, layer)


def coverage_of(entries: Mapping[str, ImatrixEntry | Sums]) -> Coverage:
    """Count tokens by layer and expert; `entries` by weight name.

    The matrices of one expert are reached together; if their counts differ, the least is taken.
    """
    by_layer: dict[str, list[NDArray[Any]]] = {}
    for name, entry in entries.items():
        by_layer.setdefault(layer_of(name), []).append(entry.counts)
    layers = []
    for name in sorted(by_layer, key=_order):
        counts = by_layer[name]
        dense = [int(each[0]) for each in counts if each.size == 1]
        experts = max(each.size for each in counts)
        stacks = [each for each in counts if each.size == experts > 1]
        least = np.min(stacks, axis=0) if stacks else np.zeros(0)
        tokens = max(dense, default=None)
        layers.append(LayerCoverage(name, len(counts), tokens, tuple(map(int, least))))
    return Coverage(tuple(layers))


def weight_statistics(imatrix: Imatrix) -> list[WeightStatistics]:
    """Statistics of every weight, by layer and name."""
    found = []
    before: dict[str, NDArray[np.float64]] = {}  # kind of tensor → its mean columns, layer before
    for name in sorted(imatrix.entries, key=lambda n: (_order(layer_of(n)), n)):
        entry = imatrix.entries[name]
        match = _LAYER.fullmatch(name)
        total = float(entry.tokens.sum(dtype=np.float64))
        columns = np.asarray(entry.sums.sum(axis=0, dtype=np.float64) / max(total, 1.0))
        cosine = None
        if match is not None:
            cosine = _cosine(before.get(match[2]), columns)
            before[match[2]] = columns
        found.append(_statistics(name, entry, cosine))
    return found


def _cosine(a: NDArray[np.float64] | None, b: NDArray[np.float64]) -> float | None:
    if a is None or a.shape != b.shape:
        return None
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else None


def _statistics(name: str, entry: ImatrixEntry, cosine: float | None) -> WeightStatistics:
    tokens = entry.tokens
    seen = tokens > 0
    means = entry.sums[seen].astype(np.float64) / tokens[seen, None]
    if not means.size:
        means = np.zeros((1, entry.sums.shape[1]))
    sums = means.sum(axis=1)
    share = means / np.where(sums > 0, sums, 1)[:, None]
    bits = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    entropy = bits / (np.log2(means.shape[1]) if means.shape[1] > 1 else 1.0)
    return WeightStatistics(
        name=name,
        matrices=len(entry.sums),
        columns=entry.sums.shape[1],
        tokens=(int(tokens.min()), float(np.median(tokens)), int(tokens.max())),
        unseen=entry.unseen,
        below_enough=int((tokens < ENOUGH_TOKENS).sum()),
        total=float(sums.sum()),
        least=float(means.min()),
        most=float(means.max()),
        mean=float(means.mean()),
        deviation=float(means.std()),
        active=float((means > _ACTIVE).mean()),
        entropy=(float(np.median(entropy)), float(entropy.min())),
        top_share=top_share(entry),
        cosine=cosine,
    )


def top_share(entry: ImatrixEntry) -> float:
    """Share of Σ x² held by the top 1 % of the columns of each matrix."""
    columns = entry.sums.shape[1]
    top = max(1, round(TOP_SHARE * columns))
    highest = np.partition(entry.sums, columns - top, axis=1)[:, columns - top :]
    total = float(entry.sums.sum(dtype=np.float64))
    return float(highest.sum(dtype=np.float64)) / total if total else 0.0


def percent_text(share: float) -> str:
    """`95.8 %`, rounded down: only a share of 1 is `100 %`."""
    return "100 %" if share >= 1 else f"{math.floor(1000 * share) / 10:.1f} %"


def unseen_text(unseen: Sequence[tuple[str, int]], most: int = 20) -> str:
    """`expert 4 of layer 1; experts 0, 7 of layer 3; 12 more`, with at most `most` ids."""
    by_layer: dict[str, list[int]] = {}
    for layer, expert in unseen[:most]:
        by_layer.setdefault(layer, []).append(expert)
    parts = [
        f"expert{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))} of layer {layer}"
        for layer, ids in by_layer.items()
    ]
    if len(unseen) > most:
        parts.append(f"{len(unseen) - most:,} more")
    return "; ".join(parts)


def top_weights(imatrix: Imatrix) -> Mapping[str, tuple[str, float]]:
    """Layer → its weight with the largest `top_share`, and that share."""
    found: dict[str, tuple[str, float]] = {}
    for name, entry in imatrix.entries.items():
        layer, share = layer_of(name), top_share(entry)
        if layer not in found or share > found[layer][1]:
            match = _LAYER.fullmatch(name)
            found[layer] = ((match[2] if match else name).removesuffix(".weight"), share)
    return found
