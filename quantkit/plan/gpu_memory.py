"""How much of each GPU a model takes; allocation, placement and budgets all count by it.

llama.cpp puts whole layers on GPUs, in order, and counts the output as one more layer after them.
The token embedding stays with the CPU; where the output has no matrix of its own, the embedding is
loaded a second time on the output's GPU. What a layer keeps of the context lies where its weights
do. Every GPU that has layers also has a compute buffer. Layers of a prediction head (MTP) are
counted, and not loaded unless they draft tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantkit.config.target import DRAFT_KV_TYPE, RunSettings, Target
from quantkit.core.errors import InputError
from quantkit.core.units import GIB
from quantkit.formats.gguf_header import DEFAULT_ALIGNMENT
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.models.geometry import ModelGeometry

PIPELINE_COPIES = 4
"""GGML_SCHED_MAX_COPIES: graph inputs are held this often when layers lie on several GPUs."""
HOST = -1
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class ComputeBuffers:
    """What llama.cpp's scheduler needs beside weights and context, bytes.

    Attributes:
        gpu: on every GPU that has layers.
        output: more than that on the GPU that has the output.
        host: in the computer's own memory.
        estimated: by `estimated_buffers`, because llama.cpp could not be asked.
    """

    gpu: int
    output: int
    host: int = 0
    estimated: bool = True


@dataclass(frozen=True)
class GPUMemory:
    """A target's memory as a model needs it, bytes; layers include the output as the last.

    Attributes:
        capacity: of each GPU.
        reserve: of each GPU, what is kept free.
        context: of each layer.
        unloaded: layers whose weights are on no GPU: those of a prediction head that is not used.
    """

    target: Target
    trained_context_tokens: int
    capacity: tuple[int, ...]
    reserve: tuple[int, ...]
    context: tuple[int, ...]
    compute: ComputeBuffers
    unloaded: range = range(0)

    @property
    def run(self) -> RunSettings:
        """How the model is run; its context is no longer than the model was trained for."""
        return self.target.run.within(self.trained_context_tokens)

    @property
    def cut_text(self) -> str | None:
        """That the target's context is longer than the model was trained for, if it is."""
        asked, trained = self.target.context_tokens, self.trained_context_tokens
        if asked <= trained:
            return None
        return (
            f"{self.target.name} has a context of {asked:,} tokens, and the model was trained for "
            f"{trained:,}: it is planned and started with {trained:,}"
        )

    @property
    def rooms(self) -> tuple[int, ...]:
        """What each GPU has for layers: its memory without reserve and compute buffer."""
        parts = zip(self.capacity, self.reserve, strict=True)
        return tuple(capacity - reserve - self.compute.gpu for capacity, reserve in parts)

    @property
    def kept(self) -> tuple[int, ...]:
        """What each layer needs of its GPU beside its weights."""
        return (*self.context[:-1], self.context[-1] + self.compute.output)

    def with_more_compute(self, more: int) -> GPUMemory:
        """The same with compute buffers that are larger by `more` bytes on every GPU."""
        return replace(self, compute=replace(self.compute, gpu=self.compute.gpu + more))

    @property
    def weights_room(self) -> int:
        return max(sum(max(room, 0) for room in self.rooms) - sum(self.kept), 0)


def gpu_memory(
    geometry: ModelGeometry, target: Target, compute: ComputeBuffers | None = None
) -> GPUMemory:
    """The memory of `target` for the model.

    Args:
        compute: as llama.cpp plans them; by default they are estimated.
    """
    run = target.run.within(geometry.trained_context_tokens)
    head = range(geometry.trunk_layers, len(geometry.layers))
    return GPUMemory(
        target=target,
        trained_context_tokens=geometry.trained_context_tokens,
        capacity=target.gpu_bytes,
        reserve=tuple(int(gpu.reserve_gib * GIB) for gpu in target.each_gpu),
        context=(*context_by_layer(geometry, run), 0),
        compute=compute or estimated_buffers(geometry, run, len(target.gpu_bytes)),
        # llama.cpp leaves a prediction head that does not draft in the file (`load_mtp`)
        unloaded=range(0) if run.drafted_tokens else head,
    )


def context_by_layer(geometry: ModelGeometry, run: RunSettings) -> list[int]:
    """Bytes of context of each layer, those of a prediction head included where it drafts."""
    tokens, sequences, drafted = run.context_tokens, run.sequences, run.drafted_tokens
    snapshots = drafted if geometry.rolls_back else 0
    found = [
        layer.context_bytes(tokens, run.kv_type, sequences, snapshots) for layer in geometry.layers
    ]
    if drafted:
        for index, layer in enumerate(geometry.prediction, geometry.trunk_layers):
            found[index] += layer.context_bytes(tokens, DRAFT_KV_TYPE, sequences)
    return found


def check_draft(geometry: ModelGeometry, target: Target) -> None:
    """Raise when tokens are to be drafted by a model that cannot.

    Raises:
        InputError: it has no prediction layers, or llama.cpp cannot run them.
    """
    if target.draft == "none":
        return
    if not geometry.prediction:
        raise InputError(
            f"draft: {target.draft} needs a model with prediction layers (MTP), and this one has "
            "none: keep a checkpoint's with convert: {mtp: keep} in the recipe, or plan with "
            "draft: none"
        )
    if not geometry.predicts:
        raise InputError(
            f"llama.cpp cannot draft tokens with {len(geometry.prediction)} prediction layers "
            f"(MTP) of {geometry.architecture}; plan with draft: none"
        )


def estimated_buffers(geometry: ModelGeometry, run: RunSettings, gpus: int) -> ComputeBuffers:
    """Estimate the compute buffers, where llama.cpp cannot be asked.

    A GPU holds once for each pipeline copy of the graph's inputs (ggml-backend.cpp): the attention
    mask, F16 n_ctx × n_ubatch, and the activations that come from the GPU before it. Beside them
    lies the widest of: a layer's intermediates in F32; flash attention's F16 copies of one layer's
    keys and values where the cache has another type (fattn.cu), or without flash attention the
    scores in F32, n_ctx × n_ubatch × heads; the logits. The computer's memory holds the inputs.
    Prediction layers that draft, next to the output, have inputs and scores of their own.
    """
    tokens, batch = run.context_tokens, run.ubatch_tokens
    copies = PIPELINE_COPIES if run.pipeline and gpus > 1 else 1
    attention = [layer for layer in geometry.layers if layer.key_elements]
    mask = 2 * tokens * batch if attention else 0
    hidden = 4 * batch * geometry.embedding_elements
    widest = 4 * batch * geometry.activation_elements + 2 * hidden
    if run.flash_attention and run.kv_type != "f16":
        copied = [2 * tokens * (a.key_elements + a.value_elements) for a in attention]
        widest = max(widest, 3 * hidden + max(copied, default=0))
    elif not run.flash_attention and attention:
        widest = max(widest, 4 * tokens * batch * geometry.attention_heads)
    outputs = min(batch, run.sequences * (1 + run.drafted_tokens))
    logits = 4 * outputs * geometry.vocabulary
    head = copies * (mask + 2 * hidden) if run.drafted_tokens else 0
    scores = 0 if run.flash_attention else 4 * tokens * batch * geometry.attention_heads
    drafting = head + max(4 * hidden, scores) if head else 0
    return ComputeBuffers(
        gpu=copies * (mask + hidden) + widest,
        output=max(0, logits - widest) + drafting,
        host=copies * (mask + hidden) + head,
    )


def padded_bytes(info: TensorInfo, type_name: str) -> int:
    """Bytes of the tensor in this type, with the padding after it in files and on GPUs."""
    size = BY_NAME[type_name].size_bytes(info.elements)
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def layers_of(
    tensors: Sequence[TensorInfo], layers: int, unloaded: range = range(0)
) -> dict[str, int]:
    """Tensor → the layer on whose GPU it lies, or HOST for the computer's own memory.

    Args:
        layers: of the model, the output as the last.
        unloaded: layers that stay in the file.

    Raises:
        InputError: a tensor of a layer that the model does not have.
    """
    tied = all(info.name != OUTPUT for info in tensors)
    found = {}
    for info in tensors:
        match = _BLOCK.match(info.name)
        if match and int(match[1]) >= layers - 1:
            raise InputError(
                f"the tensor {info.name} belongs to layer {match[1]}, but the model's metadata "
                f"says that it has {layers - 1} layers"
            )
        if match:
            found[info.name] = HOST if int(match[1]) in unloaded else int(match[1])
        else:
            found[info.name] = HOST if info.name == EMBEDDING and not tied else layers - 1
    return found


def weights_by_layer(
    tensors: Sequence[TensorInfo],
    types: Mapping[str, str],
    layers: int,
    unloaded: range = range(0),
) -> list[int]:
    """Bytes that the weights of each layer take of its GPU; arguments as of `layers_of`."""
    sizes = [0] * layers
    at = layers_of(tensors, layers, unloaded)
    for info in tensors:
        if at[info.name] != HOST:
            sizes[at[info.name]] += padded_bytes(info, types[info.name])
    return sizes
