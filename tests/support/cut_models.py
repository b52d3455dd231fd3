"""Tiny models of every architecture that the sweep cuts, and of some that it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    LLAMA,
    LLAMA3_ROPE,
    NEMOTRON,
    Arrays,
    llama_arrays,
    nemotron_arrays,
    with_prediction_head,
    write_checkpoint,
)
from demo_artifacts import write_demo
from granite_checkpoints import ATTENTION, DENSE, GRANITE, ROPE, granite_arrays
from memory_kinds import write_gemma, write_kind
from models import write_gguf
from qwen_checkpoints import QWEN2, QWEN3, QWEN3_MOE, qwen_arrays

from quantkit.formats.tensors import MetaValue, TensorSource
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.quantize import convert


def _checkpoint(
    folder: Path,
    arrays_of: Callable[[Mapping[str, Any]], Arrays],
    config: Mapping[str, Any],
    *,
    prediction: bool = False,
    **changes: object,
) -> TensorSource:
    """A checkpoint, with matrices small enough that no distribution is a single token."""
    config = {**config, **changes}
    arrays = arrays_of(config)
    if prediction:
        arrays = with_prediction_head(arrays)
    scaled = {n: a / np.float32(8) if a.ndim > 1 else a for n, a in arrays.items()}
    write_checkpoint(folder, config, scaled)
    return open_checkpoint(folder, keep_prediction=prediction)


def _llama(folder: Path, **changes: object) -> TensorSource:
    return _checkpoint(folder, llama_arrays, LLAMA | {"intermediate_size": 64}, **changes)


def _nemotron(folder: Path, *, prediction: bool = False, **changes: object) -> TensorSource:
    wide = {"moe_intermediate_size": 32, "moe_latent_size": 32, "intermediate_size": 64}
    config = NEMOTRON | wide | {"moe_shared_expert_intermediate_size": 32}
    return _checkpoint(folder, nemotron_arrays, config, prediction=prediction, **changes)


def _granite(folder: Path, **changes: object) -> TensorSource:
    """With logits large enough that their KLD is no rounding."""
    wide = {"intermediate_size": 32, "shared_intermediate_size": 32, "logits_scaling": 0.5}
    return _checkpoint(folder, granite_arrays, GRANITE | wide, **changes)


def _gemma(folder: Path, layers: int, **changes: MetaValue) -> TensorSource:
    return GGUFSource(write_gemma(folder / "gemma.gguf", layers, **changes))


def arrays_of(source: TensorSource) -> Arrays:
    """All tensors of `source` in F32."""
    return {
        info.name: source.read_rows(info.name, 0, info.rows).reshape(info.shape)
        for info in source.tensors
    }


def rewritten(
    source: TensorSource,
    path: Path,
    keys: Mapping[str, MetaValue] | None = None,
    arrays: Arrays | None = None,
    kind: str = "F32",
) -> GGUFSource:
    """`source` as a GGUF file with other `keys` of its architecture, and other `arrays` too.

    Args:
        kind: of the layers' matrices and the output.
    """
    architecture = source.metadata["general.architecture"].value
    metadata = source.metadata | {f"{architecture}.{k}": v for k, v in (keys or {}).items()}
    every = arrays_of(source) | (arrays or {})
    matrices = [n for n, a in every.items() if a.ndim > 1 and n.startswith(("blk.", "output."))]
    return GGUFSource(write_gguf(path, metadata, every, dict.fromkeys(matrices, kind)))


def _with_factors(folder: Path, original_tokens: int) -> TensorSource:
    """A Llama with factors of its frequencies for long contexts and for short ones."""
    keys = {
        "rope.scaling.type": MetaValue("str", "longrope"),
        "rope.scaling.original_context_length": MetaValue("u32", original_tokens),
    }
    factors = {
        "rope_factors_long.weight": np.linspace(1, 4, 4, dtype=np.float32),
        "rope_factors_short.weight": np.linspace(1, 2, 4, dtype=np.float32),
    }
    return rewritten(_llama(folder / "plain"), folder / "factors.gguf", keys, factors)


def _yarn(folder: Path) -> TensorSource:
    keys = {
        "rope.scaling.type": MetaValue("str", "yarn"),
        "rope.scaling.factor": MetaValue("f32", 4.0),
        "rope.scaling.original_context_length": MetaValue("u32", 32),
        "rope.scaling.attn_factor": MetaValue("f32", 1.2),
    }
    return rewritten(_llama(folder / "plain"), folder / "yarn.gguf", keys)


def _scaled(folder: Path) -> TensorSource:
    """A Llama in NVFP4, whose matrices have a scale each."""
    source = _llama(
        folder / "plain", hidden_size=64, intermediate_size=64, tie_word_embeddings=False
    )
    scales = {
        info.name.replace(".weight", f".{kind}"): np.float32([1 + number / 8])
        for number, info in enumerate(source.tensors)
        if len(info.shape) > 1 and info.name.startswith("blk.")
        for kind in ("scale", "input_scale")
    }
    return rewritten(source, folder / "scaled.gguf", arrays=scales, kind="NVFP4")


def _mixtral(folder: Path) -> TensorSource:
    """A Llama with experts."""
    source = _checkpoint(
        folder / "plain", qwen_arrays, QWEN3_MOE, head_dim=8, moe_intermediate_size=32
    )
    metadata = {key.replace("qwen3moe.", "llama."): v for key, v in source.metadata.items()}
    metadata["general.architecture"] = MetaValue("str", "llama")
    metadata["llama.feed_forward_length"] = MetaValue("u32", 32)
    arrays = {n: a for n, a in arrays_of(source).items() if "q_norm" not in n and "k_norm" not in n}
    return GGUFSource(write_gguf(folder / "mixtral.gguf", metadata, arrays))


def _puzzle(folder: Path) -> TensorSource:
    """A Nemotron-H whose layers have experts of other widths and use another number of them."""
    source = _nemotron(folder / "even", hybrid_override_pattern="EM*E")
    every, arrays = arrays_of(source), {}
    for name, axis in (("blk.3.ffn_up_exps.weight", 1), ("blk.3.ffn_down_exps.weight", 2)):
        arrays[name] = np.concatenate([every[name], every[name] * 2], axis)
    widths = MetaValue("u32", (32, 0, 0, 64))
    keys = {
        "feed_forward_length": widths,
        "expert_feed_forward_length": widths,
        "expert_used_count": MetaValue("u32", (1, 0, 0, 3)),
    }
    return rewritten(source, folder / "puzzle.gguf", keys, arrays)


def _ranking(folder: Path) -> TensorSource:
    """A Qwen with a head that ranks, which no text is run through."""
    source = _checkpoint(folder / "plain", qwen_arrays, QWEN3)
    keys = {"classifier.output_labels": MetaValue("str", ("yes", "no"))}
    head = {"cls.output.weight": np.ones((2, 32), np.float32)}
    return rewritten(source, folder / "ranking.gguf", keys, head)


def _uneven(folder: Path) -> TensorSource:
    """A file that says how many experts each layer uses, of which llama.cpp takes the first."""
    source = _checkpoint(folder / "even", qwen_arrays, QWEN3_MOE, moe_intermediate_size=32)
    keys = {"expert_used_count": MetaValue("u32", (2, 1))}
    return rewritten(source, folder / "uneven.gguf", keys)


def _injected(folder: Path) -> TensorSource:
    """A Granite whose second layer takes a part of the input."""
    source = _granite(folder / "plain", layer_types=ATTENTION, **DENSE)
    keys = {"deepstack_mapping": MetaValue("i32", (-1, 0, -1))}
    return rewritten(source, folder / "injected.gguf", keys)


CUT: Mapping[str, Callable[[Path], TensorSource]] = {
    "llama, tied, its frequencies scaled": lambda f: _llama(f, rope_scaling=LLAMA3_ROPE),
    "llama, untied": lambda f: _llama(f, tie_word_embeddings=False),
    "llama, in a long context": lambda f: _with_factors(f, 32),
    "llama, in a short context": lambda f: _with_factors(f, 4096),
    "llama, YaRN": _yarn,
    "llama, NVFP4 with scales": _scaled,
    "llama, of experts": _mixtral,
    "qwen2, with biases": lambda f: _checkpoint(f, qwen_arrays, QWEN2),
    "qwen3": lambda f: _checkpoint(f, qwen_arrays, QWEN3, tie_word_embeddings=False),
    "qwen3, ranking": _ranking,
    "qwen3moe": lambda f: _checkpoint(f, qwen_arrays, QWEN3_MOE, moe_intermediate_size=32),
    "granite": lambda f: _granite(f, layer_types=ATTENTION, **DENSE | ROPE),
    "granitemoe": lambda f: _granite(
        f, layer_types=ATTENTION, tie_word_embeddings=False, **ROPE
    ),
    "granitehybrid": lambda f: _granite(f, **ROPE),
    "granitehybrid, dense, without positions": lambda f: _granite(f, **DENSE),
    "nemotron_h": lambda f: _nemotron(f, hybrid_override_pattern="M-*M"),
    "nemotron_h_moe": _nemotron,
    "nemotron_h_moe, predicting": lambda f: _nemotron(f, prediction=True),
    "nemotron_h_moe, of uneven layers": _puzzle,
    "gemma3": lambda f: _gemma(
        f, 8, rope__freq_base=MetaValue("f32", 1e6), rope__freq_base_swa=MetaValue("f32", 5e3)
    ),
    "gemma3, of period 2": lambda f: _gemma(
        f, 3, attention__sliding_window_pattern=MetaValue("u32", 2)
    ),
    "gemma3, with a stored pattern": lambda f: _gemma(
        f, 3, attention__sliding_window_pattern=MetaValue("bool", (False, True, False))
    ),
    "gemma3, only sliding": lambda f: _gemma(f, 2),
    "gemma3, not sliding, its logits capped": lambda f: _gemma(
        f, 2, attention__sliding_window=MetaValue("u32", 0),
        final_logit_softcapping=MetaValue("f32", 2.0),
    ),
    "the demo, in Q8_0": lambda f: GGUFSource(write_demo(f / "demo.gguf", "Q8_0")),
}  # fmt: skip
"""Models that are cut into windows of one layer."""

WHOLE: Mapping[str, Callable[[Path], TensorSource]] = {
    "mamba": lambda f: GGUFSource(write_kind(f / "mamba.gguf", "recurrent")),
    "deepseek2": lambda f: GGUFSource(write_kind(f / "deepseek.gguf", "mla")),
    "qwen3moe, of uneven layers": _uneven,
    "granite, with a wider input": _injected,
}
"""Models that are one window, as their layers cannot run alone."""


def write_model(name: str, folder: Path) -> TensorSource:
    """The model called so, below `folder`."""
    folder = folder / "model"
    folder.mkdir()
    return (CUT | WHOLE)[name](folder)


def gguf_of(source: TensorSource, folder: Path) -> Path:
    """A GGUF file with the tensors of `source`, each in its own type."""
    if isinstance(source, GGUFSource):
        (path,) = source.paths
        return path
    return convert(source, "source", folder / "converted.gguf", folder, workers=1)
