"""allocation + Target → placement.json: which layers lie on which card, and what each card holds.

llama.cpp gives layer i of n + 1 (the output counts as the last) to the first card whose cumulated
share of `tensor_split` is greater than i / (n + 1) (`llama-model.cpp`, load_tensors). Layer counts
used as shares therefore reproduce any contiguous placement exactly.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.errors import DoesNotFitError
from quantkit.families.geometry import ModelGeometry
from quantkit.quant_types import BY_NAME
from quantkit.sizes import GIB
from quantkit.target import Target
from quantkit.values import TensorInfo

PIPELINE_COPIES = 4
"""GGML_SCHED_MAX_COPIES: graph inputs are held this often when layers lie on several cards."""
_BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class CardPlan:
    """What one card holds, bytes."""

    name: str
    layers: int
    capacity_bytes: int
    weights_bytes: int
    context_bytes: int
    compute_bytes: int
    reserve_bytes: int

    @property
    def total_bytes(self) -> int:
        parts = (self.weights_bytes, self.context_bytes, self.compute_bytes, self.reserve_bytes)
        return sum(parts)

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.total_bytes


@dataclass(frozen=True)
class Placement:
    """The plan for a card set.

    Attributes:
        tensor_split: llama.cpp's `-ts`, one share a card: its number of layers.
        trained_context_tokens: what the model was trained for; the plan never exceeds it.
    """

    context_tokens: int
    trained_context_tokens: int
    kv_type: str
    ubatch_tokens: int
    tensor_split: tuple[int, ...]
    cards: tuple[CardPlan, ...]
    host_bytes: int

    @property
    def fits(self) -> bool:
        return all(card.free_bytes >= 0 for card in self.cards)

    @property
    def overflow_bytes(self) -> int:
        """Bytes by which the cards exceed their memory, all together; 0 when all fit."""
        return sum(max(0, -card.free_bytes) for card in self.cards)

    def command(self, model_file: str) -> str:
        """The llama-server command that runs the plan."""
        shares = ",".join(map(str, self.tensor_split))
        split = f" -sm layer -ts {shares}" if len(self.cards) > 1 else ""
        return (
            f"llama-server -m {shlex.quote(model_file)} -ngl 999{split} -c {self.context_tokens} "
            f"-ctk {self.kv_type} -ctv {self.kv_type} -fa on -ub {self.ubatch_tokens} -np 1"
        )


@dataclass(frozen=True)
class Weights:
    """Bytes of an artifact's weights by where llama.cpp puts them.

    Attributes:
        layers: one entry a layer, the output (with its norm) as the last.
        host: the token embedding, which always stays with the CPU.
    """

    layers: tuple[int, ...]
    host: int


def weights_by_layer(tensors: Sequence[TensorInfo], types: Mapping[str, str]) -> Weights:
    """Sum the tensors' bytes at `types` by layer."""
    sizes: dict[int, int] = {}
    output = host = embedding = 0
    for info in tensors:
        size = BY_NAME[types[info.name]].size_bytes(info.elements)
        match = _BLOCK.match(info.name)
        if match:
            sizes[int(match[1])] = sizes.get(int(match[1]), 0) + size
        elif info.name == "token_embd.weight":
            host = embedding = size
        else:
            output += size
    if "output.weight" not in types:
        output += embedding  # tied: llama.cpp loads the embedding again on the output's card
    count = max(sizes, default=-1) + 1
    return Weights((*(sizes.get(i, 0) for i in range(count)), output), host)


@dataclass(frozen=True)
class ComputeBuffers:
    """Estimate of the compute buffers, bytes.

    Attributes:
        card: on every card that has layers.
        output: more than that on the card that has the output.
    """

    card: int
    output: int


def compute_buffers(
    geometry: ModelGeometry, context_tokens: int, ubatch_tokens: int, cards: int
) -> ComputeBuffers:
    """Estimate the compute buffers of a target with `cards` cards.

    The attention mask is F16 n_ctx × n_ubatch, held once for each pipeline copy of the graph's
    inputs (ggml-backend.cpp); beside it the widest intermediate of a layer in F32, or the logits.
    """
    copies = PIPELINE_COPIES if cards > 1 else 1
    attention = any(layer.key_elements for layer in geometry.layers)
    mask = 2 * copies * context_tokens * ubatch_tokens if attention else 0
    widest = geometry.activation_elements + 2 * geometry.embedding_elements
    activations, logits = 4 * ubatch_tokens * widest, 4 * ubatch_tokens * geometry.vocabulary
    return ComputeBuffers(mask + activations, max(0, logits - activations))


def assign_layers(card_shares: Sequence[int], count: int) -> list[int]:
    """Card of each of `count` layers as llama.cpp assigns them, in its own F32 arithmetic."""
    cumulated = np.cumsum(np.asarray(card_shares, np.float32), dtype=np.float32)
    points = cumulated / cumulated[-1]
    layers = np.arange(count, dtype=np.float32) / np.float32(count)
    return [int(card) for card in np.searchsorted(points, layers, side="right")]


def place(
    tensors: Sequence[TensorInfo],
    types: Mapping[str, str],
    geometry: ModelGeometry,
    target: Target,
) -> Placement:
    """Contiguous layers on each card, such that the fullest card has the most left.

    The result may not fit (`fits`); `check_fits` turns that into an error with a way out.
    """
    cards = target.each_card
    context = min(target.context_tokens, geometry.trained_context_tokens)
    weights = weights_by_layer(tensors, types)
    kept = [layer.context_bytes(context, target.kv_type) for layer in geometry.layers]
    kept += [0] * (len(weights.layers) - len(kept))
    compute = compute_buffers(geometry, context, target.ubatch_tokens, len(cards))
    load = [w + c for w, c in zip(weights.layers, kept, strict=True)]
    load[-1] += compute.output
    capacities = [int(card.memory_gib * GIB) for card in cards]
    reserves = [int(card.reserve_gib * GIB) for card in cards]
    room = [c - r - compute.card for c, r in zip(capacities, reserves, strict=True)]
    counts = contiguous_counts(load, room)
    wanted = [card for card, count in enumerate(counts) for _ in range(count)]
    if assign_layers(counts, len(load)) != wanted:
        raise AssertionError(f"llama.cpp would not place {counts} layers as asked")
    plans = []
    at = 0
    for index, (card, count) in enumerate(zip(cards, counts, strict=True)):
        has_output = count > 0 and at + count == len(load)
        plans.append(
            CardPlan(
                name=card.name,
                layers=count,
                capacity_bytes=capacities[index],
                weights_bytes=sum(weights.layers[at : at + count]),
                context_bytes=sum(kept[at : at + count]),
                compute_bytes=(compute.card if count else 0)
                + (compute.output if has_output else 0),
                reserve_bytes=reserves[index],
            )
        )
        at += count
    return Placement(
        context_tokens=context,
        trained_context_tokens=geometry.trained_context_tokens,
        kv_type=target.kv_type,
        ubatch_tokens=target.ubatch_tokens,
        tensor_split=tuple(counts),
        cards=tuple(plans),
        host_bytes=weights.host,
    )


def contiguous_counts(load: Sequence[int], room: Sequence[int]) -> list[int]:
    """Layers for each card, in order, that maximise the smallest remaining room.

    Exact by dynamic programming over (card, first layers given away). The output, as the last
    layer, stays on a card with at least one layer.
    """
    prefix = np.concatenate([[0], np.cumsum(np.asarray(load, np.int64))])
    layers = len(load)
    best = np.full(layers + 1, -(1 << 62), np.int64)
    best[0] = 1 << 62
    choices = []
    for space in room:
        new = np.full(layers + 1, -(1 << 62), np.int64)
        choice = np.zeros(layers + 1, np.int64)
        for stop in range(layers + 1):
            left = space - (prefix[stop] - prefix[: stop + 1])
            left[stop] = 1 << 62  # a card without layers cannot overflow
            scores = np.minimum(best[: stop + 1], left)
            choice[stop] = int(np.argmax(scores))
            new[stop] = scores[choice[stop]]
        best = new
        choices.append(choice)
    counts = []
    stop = layers
    for choice in reversed(choices):
        start = int(choice[stop])
        counts.append(stop - start)
        stop = start
    return counts[::-1]


def check_fits(placement: Placement, target: Target) -> None:
    """Raise when a card overflows.

    Raises:
        DoesNotFitError: says by how much, and what would fit.
    """
    if placement.fits:
        return
    worst = min(placement.cards, key=lambda card: card.free_bytes)
    raise DoesNotFitError(
        f"does not fit {target.name}: {worst.name} would need "
        f"{worst.total_bytes / GIB:.2f} GiB of {worst.capacity_bytes / GIB:.2f} GiB "
        f"({-worst.free_bytes / GIB:.2f} GiB too much: weights {worst.weights_bytes / GIB:.2f}, "
        f"context {worst.context_bytes / GIB:.2f}, compute {worst.compute_bytes / GIB:.2f}, "
        f"reserve {worst.reserve_bytes / GIB:.2f}); shorten the context "
        f"(now {placement.context_tokens} tokens), lower the weight budget, or add a card"
    )
