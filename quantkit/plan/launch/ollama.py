"""An Ollama Modelfile; its comments say what a Modelfile cannot set.

From Ollama's source of August 2026 (api/types.go, llm/llama_server.go, server/sched.go): since
0.30 it starts llama-server itself and passes its own environment on.
"""

from __future__ import annotations

import shlex

from quantkit.config.run_settings import DRAFT_KV_TYPE
from quantkit.plan.launch.llama_cpp import ALL_LAYERS, DRAFT_TYPE, NO_PIPELINE, environment
from quantkit.plan.launch.settings import Launch

DOCUMENTED_KV_TYPES = ("f16", "q8_0", "q4_0")


def modelfile(launch: Launch) -> str:
    """FROM the file, or from the file that its shards are merged into, and the parameters."""
    parts = (_use(launch), _shards(launch), _server(launch), _sequences(launch), _context(launch))
    comments = "\n#\n".join("\n".join(f"# {line}" for line in part) for part in parts if part)
    lines = [
        comments,
        # the path begins with a folder, so Ollama does not interpret a leading ~ or quote
        f"FROM {launch.path_to(launch.merged_file)}",
        f"PARAMETER num_ctx {launch.run.context_tokens}",
        f"PARAMETER num_gpu {ALL_LAYERS}",
        "# Ollama uses num_batch for both the logical and the physical batch.",
        f"PARAMETER num_batch {launch.run.ubatch_tokens}",
    ]
    return "\n".join(lines) + "\n"


def server_environment(launch: Launch) -> dict[str, str]:
    """The environment of `ollama serve` that the plan needs; it applies to all its models."""
    variables = {
        "OLLAMA_FLASH_ATTENTION": "1" if launch.run.flash_attention else "0",
        "OLLAMA_KV_CACHE_TYPE": launch.run.kv_type,
        "OLLAMA_NUM_PARALLEL": "1",  # each sequence would get num_ctx tokens
        **environment(launch),
        "LLAMA_ARG_FIT": "off",
    }
    if launch.run.drafted_tokens:
        variables["LLAMA_ARG_SPEC_TYPE"] = DRAFT_TYPE
        variables["LLAMA_ARG_SPEC_DRAFT_N_MAX"] = str(launch.run.drafted_tokens)
        for cache in ("K", "V"):
            variables[f"LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_{cache}"] = DRAFT_KV_TYPE
    if len(launch.shares) > 1:
        variables["OLLAMA_SCHED_SPREAD"] = "1"
        variables["LLAMA_ARG_SPLIT_MODE"] = "layer"
        variables["LLAMA_ARG_TENSOR_SPLIT"] = ",".join(map(str, launch.shares))
        if not launch.run.pipeline:
            variables["LLAMA_ARG_OVERRIDE_TENSOR"] = NO_PIPELINE
    return variables


def _use(launch: Launch) -> list[str]:
    return [
        f"{launch.model_name}, for Ollama: ollama create NAME -f Modelfile",
        "The command copies the model into Ollama's own folder.",
    ]


def _shards(launch: Launch) -> list[str]:
    if len(launch.files) < 2:
        return []
    files = (launch.path_to(launch.model_file), launch.path_to(launch.merged_file))
    merge = ("llama-gguf-split", "--merge", *files)
    return [
        f"Ollama opens a single file, and this model has {len(launch.files)}. Merge them first:",
        f"  {shlex.join(merge)}",
    ]


def _server(launch: Launch) -> list[str]:
    lines = [
        "A Modelfile cannot set the type of the KV cache, flash attention, or the layers of each",
        "GPU. Set them in the environment of `ollama serve`; they apply to all of its models:",
        *(f"  {name}={value}" for name, value in server_environment(launch).items()),
        "LLAMA_ARG_... need Ollama 0.30 or newer. Older versions place the layers by their own",
        "estimate, and the plan does not hold. `ollama ps` must show 100% GPU, and the context",
        "below.",
    ]
    if launch.run.kv_type not in DOCUMENTED_KV_TYPES:
        known = ", ".join(DOCUMENTED_KV_TYPES)
        lines.append(f"Ollama documents the types {known}; {launch.run.kv_type} may not work.")
    return lines


def _sequences(launch: Launch) -> list[str]:
    if launch.run.sequences == 1:
        return []
    return [
        f"The plan serves {launch.run.sequences} requests at once, which share the context. Ollama",
        "gives each request a context of its own, so this file serves one at a time. For more, set",
        "OLLAMA_NUM_PARALLEL and divide num_ctx by it. Ollama serves some architectures one at a",
        "time in any case, nemotron_h_moe among them.",
    ]


def _context(launch: Launch) -> list[str]:
    if not launch.needs_longer_context:
        return []
    key = f"{launch.architecture}.context_length"
    tokens = str(launch.placement.trained_context_tokens)
    change = ("gguf-set-metadata", launch.path_to(launch.merged_file), key, tokens)
    return [
        f"Ollama limits num_ctx to the file's {key}, {launch.gguf_context_tokens}.",
        "Change the file before `ollama create`, with a program of the Python package gguf:",
        f"  {shlex.join(change)}",
    ]
