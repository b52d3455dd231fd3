"""Which tensors are quantized, and to which types."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.formats.tensor_types import BY_NAME, QuantType
from quantkit.formats.tensors import TensorInfo

_KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_", "attn_rel_b.weight", ".position_embd.", ".patch_embd.",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_WEIGHT_KINDS = ("F32", "F16", "BF16")


def is_quantizable(info: TensorInfo) -> bool:
    """Whether llama.cpp supports the tensor in a block type.

    After `tensor_allows_quantization` in llama-quant.cpp: matrices called `*weight`, except norms,
    routers, small convolutions and integer tables. Where that rule depends on the architecture,
    this one is stricter.
    """
    kind = BY_NAME[info.type_name]
    dimensions = len(info.shape) - next((i for i, n in enumerate(info.shape) if n != 1), 0)
    return (
        dimensions >= 2
        and (kind.is_quantized or kind.name in _WEIGHT_KINDS)
        and info.name.endswith("weight")
        and info.name not in _KEPT_NAMES
        and not any(part in info.name for part in _KEPT_PARTS)
    )


def admissible(info: TensorInfo, has_imatrix: bool, candidates: Sequence[str]) -> list[QuantType]:
    """The candidate types that are possible for this tensor, so that none falls back silently."""
    return [
        kind
        for kind in map(BY_NAME.__getitem__, candidates)
        if kind.fits_row(info.row_elements) and (has_imatrix or not kind.needs_imatrix)
    ]


def nearest_type(names: Sequence[str], bits_per_weight: float) -> str:
    """The type of `names` nearest to `bits_per_weight`; of two, the smaller."""
    sizes = {name: BY_NAME[name].bits_per_weight for name in names}
    return min(names, key=lambda name: (abs(sizes[name] - bits_per_weight), sizes[name]))
