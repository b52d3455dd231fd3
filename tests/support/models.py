"""Tiny GGUF models for tests, written by quantkit's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.formats.tensor_types import quant_type
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.llamacpp import ggml_kernels
from quantkit.llamacpp.llama import Context, Logits, Model
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings

WIDTH, VOCABULARY = 256, 64


def write_gguf(
    path: Path,
    metadata: Metadata,
    arrays: Mapping[str, NDArray[np.float32]],
    types: Mapping[str, str] | None = None,
) -> Path:
    """Write `arrays` to `path`, each in its type of `types` (F32 where none is given)."""
    kinds = types or {}
    infos = [TensorInfo(n, a.shape, kinds.get(n, "F32")) for n, a in arrays.items()]
    (layout,) = lay_out(path.stem, metadata, infos)
    with open_shard(path, layout) as writer:
        for info in infos:
            rows = arrays[info.name].reshape(-1, info.row_elements)
            writer.write(info.name, ggml_kernels.quantize(quant_type(info.type_name), rows, None))
    return path


CPU = DeviceSettings(threads=2, use_extra_buffers=False, gpu_layers=0)


def all_logits(context: Context, tokens: NDArray[np.int32]) -> Logits:
    """Logits of every position of `tokens` in an emptied context, shape (tokens, vocabulary)."""
    context.clear()
    return np.concatenate([part.copy() for part in context.logits_at(tokens, range(len(tokens)))])


def llama_logits(path: Path, sequences: NDArray[np.int32]) -> Logits:
    """llama.cpp's logits, shape (sequences, tokens, vocabulary), with an F32 cache."""
    model = Model(path, CPU)
    settings = ContextSettings(sequences.shape[1], kv_type="f32", all_outputs=True)
    context = Context(model, settings)
    logits = np.stack([all_logits(context, tokens) for tokens in sequences])
    context.close()
    model.close()
    return logits


def llama_metadata() -> Metadata:
    """A one-layer Llama without tokenizer."""
    u32 = {
        "context_length": 512,
        "embedding_length": WIDTH,
        "block_count": 1,
        "feed_forward_length": 2 * WIDTH,
        "attention.head_count": 4,
        "vocab_size": VOCABULARY,
        "rope.dimension_count": WIDTH // 4,
    }
    metadata: Metadata = {"general.architecture": MetaValue("str", "llama")}
    metadata |= {f"llama.{key}": MetaValue("u32", value) for key, value in u32.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = MetaValue("f32", 1e-5)
    metadata["tokenizer.ggml.model"] = MetaValue("str", "no_vocab")
    return metadata


def llama_arrays(seed: int = 1) -> dict[str, NDArray[np.float32]]:
    """Random weights of that Llama."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH, WIDTH),
        "blk.0.attn_v.weight": (WIDTH, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.ffn_gate.weight": (2 * WIDTH, WIDTH),
        "blk.0.ffn_up.weight": (2 * WIDTH, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, 2 * WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (VOCABULARY, WIDTH),
    }
    scale = np.float32(1 / 16)
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else random.standard_normal(shape, np.float32) * scale
        for name, shape in shapes.items()
    }


def write_llama(path: Path, seed: int = 1) -> Path:
    """That Llama in F32."""
    return write_gguf(path, llama_metadata(), llama_arrays(seed))
