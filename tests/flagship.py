"""The flagship's shape as metadata and tensors (FACTS of the model card): no weights needed."""

from __future__ import annotations

from quantkit.values import Metadata, MetaValue, TensorInfo

PATTERN = "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
ARCHITECTURE = "nemotron_h_moe"
COUNTS = {
    "block_count": 88,
    "context_length": 1048576,
    "embedding_length": 4096,
    "vocab_size": 131072,
    "expert_used_count": 22,
    "expert_feed_forward_length": 2688,
    "attention.head_count": 32,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "ssm.inner_size": 8192,
    "ssm.state_size": 128,
    "ssm.group_count": 8,
    "ssm.conv_kernel": 4,
    "ssm.time_step_rank": 128,
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "M": {"ssm_in": (18560, 4096), "ssm_out": (4096, 8192)},
    "*": {
        "attn_q": (4096, 4096),
        "attn_k": (256, 4096),
        "attn_v": (256, 4096),
        "attn_output": (4096, 4096),
    },
    "E": {
        "ffn_latent_down": (1024, 4096),
        "ffn_latent_up": (4096, 1024),
        "ffn_down_exps": (512, 1024, 2688),
        "ffn_up_exps": (512, 2688, 1024),
        "ffn_down_shexp": (4096, 5376),
        "ffn_up_shexp": (5376, 4096),
    },
}


def metadata() -> Metadata:
    """Keys that the memory geometry reads."""
    found: Metadata = {"general.architecture": MetaValue("str", ARCHITECTURE)}
    found |= {f"{ARCHITECTURE}.{k}": MetaValue("u32", v) for k, v in COUNTS.items()}
    found[f"{ARCHITECTURE}.attention.head_count_kv"] = MetaValue(
        "u32", tuple(2 if kind == "*" else 0 for kind in PATTERN)
    )
    found[f"{ARCHITECTURE}.feed_forward_length"] = MetaValue(
        "u32", tuple(2688 if kind == "E" else 0 for kind in PATTERN)
    )
    return found


def tensors() -> list[TensorInfo]:
    """All matrices and norms; the small Mamba vectors are left out."""
    infos = [TensorInfo("token_embd.weight", (131072, 4096), "BF16")]
    for index, kind in enumerate(PATTERN):
        infos.append(TensorInfo(f"blk.{index}.attn_norm.weight", (4096,), "F32"))
        infos += [
            TensorInfo(f"blk.{index}.{name}.weight", shape, "BF16")
            for name, shape in SHAPES[kind].items()
        ]
    infos.append(TensorInfo("output_norm.weight", (4096,), "F32"))
    infos.append(TensorInfo("output.weight", (131072, 4096), "BF16"))
    return infos
