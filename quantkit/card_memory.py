"""What lies on which card: the one account that allocation, placement and budgets share.

llama.cpp puts whole layers on cards, in order, and counts the output as one more layer after them.
The token embedding stays with the CPU; where the output has no matrix of its own, the embedding is
loaded a second time on the output's card. What a layer keeps of the context lies where its weights
do. Every card that has layers also has a compute buffer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.errors import InputError
from quantkit.families.geometry import ModelGeometry
from quantkit.formats.gguf_file import DEFAULT_ALIGNMENT
from quantkit.quant_types import BY_NAME
from quantkit.sizes import GIB
from quantkit.target import Target
from quantkit.values import TensorInfo

PIPELINE_COPIES = 4
"""GGML_SCHED_MAX_COPIES: graph inputs are held this often when layers lie on several cards."""
HOST = -1
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class ComputeBuffers:
    """Estimate of the compute buffers, bytes.

    Attributes:
        card: on every card that has layers.
        output: more than that on the card that has the output.
    """

    card: int
    output: int


@dataclass(frozen=True)
class CardMemory:
    """A target's memory as a model needs it, bytes; layers include the output as the last.

    Attributes:
        capacity: of each card.
        reserve: of each card, what is kept free.
        context: of each layer.
    """

    context_tokens: int
    capacity: tuple[int, ...]
    reserve: tuple[int, ...]
    context: tuple[int, ...]
    compute: ComputeBuffers

    @property
    def rooms(self) -> tuple[int, ...]:
        """What each card has for layers: its memory without reserve and compute buffer."""
        parts = zip(self.capacity, self.reserve, strict=True)
        return tuple(capacity - reserve - self.compute.card for capacity, reserve in parts)

    @property
    def kept(self) -> tuple[int, ...]:
        """What each layer needs of its card beside its weights."""
        return (*self.context[:-1], self.context[-1] + self.compute.output)


def card_memory(geometry: ModelGeometry, target: Target) -> CardMemory:
    """The memory of `target` for the model; the context is never longer than it was trained for."""
    cards = target.each_card
    tokens = min(target.context_tokens, geometry.trained_context_tokens)
    return CardMemory(
        context_tokens=tokens,
        capacity=tuple(int(card.memory_gib * GIB) for card in cards),
        reserve=tuple(int(card.reserve_gib * GIB) for card in cards),
        context=(*(lay.context_bytes(tokens, target.kv_type) for lay in geometry.layers), 0),
        compute=compute_buffers(geometry, tokens, target.ubatch_tokens, len(cards)),
    )


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


def padded_bytes(info: TensorInfo, type_name: str) -> int:
    """Bytes of the tensor in this type, with the padding after it in files and on cards."""
    size = BY_NAME[type_name].size_bytes(info.elements)
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def layers_of(tensors: Sequence[TensorInfo], layers: int) -> dict[str, int]:
    """Tensor → the layer on whose card it lies, or HOST.

    Args:
        layers: of the model, the output as the last.

    Raises:
        InputError: a tensor of a layer that the model does not have.
    """
    tied = all(info.name != OUTPUT for info in tensors)
    found = {}
    for info in tensors:
        match = _BLOCK.match(info.name)
        if match and int(match[1]) >= layers - 1:
            raise InputError(
                f"the tensor {info.name} is of layer {match[1]}, but the model's metadata says "
                f"that it has {layers - 1} layers"
            )
        if match:
            found[info.name] = int(match[1])
        else:
            found[info.name] = HOST if info.name == EMBEDDING and not tied else layers - 1
    return found


def weights_by_layer(
    tensors: Sequence[TensorInfo], types: Mapping[str, str], layers: int
) -> list[int]:
    """Bytes that the weights of each layer take of its card."""
    sizes = [0] * layers
    at = layers_of(tensors, layers)
    for info in tensors:
        if at[info.name] != HOST:
            sizes[at[info.name]] += padded_bytes(info, types[info.name])
    return sizes


def host_bytes(tensors: Sequence[TensorInfo], types: Mapping[str, str]) -> int:
    """Bytes of the weights that stay with the CPU."""
    return sum(padded_bytes(i, types[i.name]) for i in tensors if i.name == EMBEDDING)
