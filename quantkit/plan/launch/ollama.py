"""An Ollama Modelfile, and in its comments what a Modelfile cannot say.

Read in Ollama's source of August 2026 (api/types.go, llm/llama_server.go, server/sched.go): since
0.30 it starts llama-server itself, and hands its own environment on to it.
"""

from __future__ import annotations

import shlex

from quantkit.plan.launch.llama_cpp import ALL_LAYERS, DRAFT_TYPE, NO_PIPELINE, environment
from quantkit.plan.launch.settings import Launch

DOCUMENTED_KV_TYPES = ("f16", "q8_0", "q4_0")


def modelfile(launch: Launch) -> str:
    """FROM the file, or from what its shards are merged into, and the parameters there are."""
    parts = (_use(launch), _shards(launch), _server(launch), _sequences(launch), _context(launch))
    comments = "\n#\n".join("\n".join(f"# {line}" for line in part) for part in parts if part)
    lines = [
        comments,
        # a folder before it also keeps Ollama from reading ~ or a quote at the beginning
        f"FROM {launch.path_to(launch.merged_file)}",
        f"PARAMETER num_ctx {launch.context_tokens}",
        f"PARAMETER num_gpu {ALL_LAYERS}",
        "# Ollama takes num_batch for the logical and the physical batch.",
        f"PARAMETER num_batch {launch.ubatch_tokens}",
    ]
    return "\n".join(lines) + "\n"


def server_environment(launch: Launch) -> dict[str, str]:
    """What `ollama serve` needs to run the plan; it holds for all models of that server."""
    variables = {
        "OLLAMA_FLASH_ATTENTION": "1" if launch.flash_attention else "0",
        "OLLAMA_KV_CACHE_TYPE": launch.kv_type,
        "OLLAMA_NUM_PARALLEL": "1",  # it makes room for num_ctx tokens for each
        **environment(launch),
        "LLAMA_ARG_FIT": "off",
    }
    if launch.drafted_tokens:
        variables["LLAMA_ARG_SPEC_TYPE"] = DRAFT_TYPE
        variables["LLAMA_ARG_SPEC_DRAFT_N_MAX"] = str(launch.drafted_tokens)
        for cache in ("K", "V"):
            variables[f"LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_{cache}"] = launch.draft_kv_type
    if len(launch.shares) > 1:
        variables["OLLAMA_SCHED_SPREAD"] = "1"
        variables["LLAMA_ARG_SPLIT_MODE"] = "layer"
        variables["LLAMA_ARG_TENSOR_SPLIT"] = ",".join(map(str, launch.shares))
        if not launch.pipeline:
            variables["LLAMA_ARG_OVERRIDE_TENSOR"] = NO_PIPELINE
    return variables


def _use(launch: Launch) -> list[str]:
    return [
        f"{launch.model_name}, for Ollama: ollama create NAME -f Modelfile",
        "That copies the model into Ollama's own folder.",
    ]


def _shards(launch: Launch) -> list[str]:
    if len(launch.files) < 2:
        return []
    files = (launch.path_to(launch.model_file), launch.path_to(launch.merged_file))
    merge = ("llama-gguf-split", "--merge", *files)
    return [
        f"Ollama opens one file, and this model has {len(launch.files)}. Merge them first:",
        f"  {shlex.join(merge)}",
    ]


def _server(launch: Launch) -> list[str]:
    lines = [
        "A Modelfile cannot set the type of the KV cache, flash attention, or what lies on which",
        "GPU. Set these in the environment of `ollama serve`; they hold for all of its models:",
        *(f"  {name}={value}" for name, value in server_environment(launch).items()),
        "LLAMA_ARG_... need Ollama 0.30 or newer. Older versions divide the layers by an estimate",
        "of their own, and the plan does not hold. `ollama ps` must say 100% GPU, and the context",
        "below.",
    ]
    if launch.kv_type not in DOCUMENTED_KV_TYPES:
        known = ", ".join(DOCUMENTED_KV_TYPES)
        lines.append(f"Ollama documents the types {known}; {launch.kv_type} may not work.")
    return lines


def _sequences(launch: Launch) -> list[str]:
    if launch.sequences == 1:
        return []
    return [
        f"The plan serves {launch.sequences} requests at once, and they share the context. Ollama",
        "gives each a context of its own, so this is one at a time. For more, set",
        "OLLAMA_NUM_PARALLEL, and divide num_ctx by it. Some architectures, nemotron_h_moe among",
        "them, it always serves one at a time.",
    ]


def _context(launch: Launch) -> list[str]:
    if not launch.needs_longer_context:
        return []
    key = f"{launch.architecture}.context_length"
    tokens = str(launch.trained_context_tokens)
    change = ("gguf-set-metadata", launch.path_to(launch.merged_file), key, tokens)
    return [
        f"Ollama cuts num_ctx to the file's {key}, {launch.gguf_context_tokens},",
        "and cannot override it. Change the file before `ollama create`, with a program of the",
        "Python package gguf:",
        f"  {shlex.join(change)}",
    ]
