"""Rotary position embeddings: config.json's parameters as GGUF keys, factors and row orders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.models.families.base import Config, Keys, Rules, config_float, config_int, refuse_if

ROPE_READS = frozenset(
    ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
)
"""`Family.reads` of the rotary embedding; transformers puts all of them into `rope_parameters`."""
_PARAMETERS = frozenset((
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "finetuned",
    "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor",
    "attn_factor", "extrapolation_factor", "truncate", "mscale", "mscale_all_dim", "mrope_section",
))  # fmt: skip
_WHOLE_HEAD = ("partial_rotary_factor", 1.0)


def rotary_row_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Source row of each row of a query or key matrix in llama.cpp's rotary layout.

    transformers rotates element i of a head with element i + head_dim / 2, ggml's "norm" rope
    rotates neighbours: within each head the two halves are interleaved.
    """
    refuse_if(head_dim % 2 > 0, f"heads of {head_dim} elements cannot be rotated: an odd number")
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


def rope_keys(config: Config) -> Keys:
    """`rope.freq_base` and `rope.scaling.*`."""
    rope = _rope(config)
    keys: Keys = {}
    for key, value in rope.items():
        refuse_if(
            key not in _PARAMETERS and value is not None and (key, value) != _WHOLE_HEAD,
            f"the rope parameters have {key} {value!r}, which llama.cpp does not read for this "
            "architecture: remove it if the model does not depend on it",
        )
    if rope.get("rope_theta") is not None:
        keys["rope.freq_base"] = config_float(rope, "rope_theta")
    kind = _rope_type(rope)
    if kind in ("default", "llama3"):  # llama3 is a tensor of factors instead.
        return keys
    refuse_if(
        kind not in ("linear", "yarn"),
        f"rope scaling of type {kind!r} is not supported; known are linear, yarn and llama3: "
        "convert the model with llama.cpp and give the GGUF to --model",
    )
    keys |= {"rope.scaling.type": kind, "rope.scaling.factor": config_float(rope, "factor")}
    if kind == "yarn":
        original = config_int(rope, "original_max_position_embeddings")
        keys["rope.scaling.original_context_length"] = original
        for key, *sources in (
            ("yarn_ext_factor", "extrapolation_factor"),
            # transformers reads the first only, llama.cpp's converter the second too
            ("yarn_attn_factor", "attention_factor", "attn_factor"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ):
            if any(rope.get(source) is not None for source in sources):
                keys[f"rope.scaling.{key}"] = config_float(rope, *sources)
    return keys


def add_rope_factors(rules: Rules, config: Config, head_dim: int) -> None:
    """`rope_freqs.weight` where the scaling is llama3's: a factor for each frequency."""
    rope = _rope(config)
    if _rope_type(rope) == "llama3":
        largest = max((max(tensor.shape, default=0) for tensor in rules.stored.values()), default=0)
        refuse_if(head_dim > largest, f"head_dim is {head_dim}, and no tensor has so many rows")
        rules.add_constant("rope_freqs.weight", llama3_frequency_factors(rope, head_dim))


def check_no_unread_rope(config: Config, *, reads_factors: bool = False) -> None:
    """For architectures with plain yarn in llama.cpp, and with or without frequency factors.

    llama.cpp's converter writes `yarn_attn_factor`, `yarn_beta_fast` and `yarn_beta_slow`, but for
    most architectures llama.cpp does not read them (`load_hparams` in its llama-model.cpp).
    """
    rope = _rope(config)
    kind, unread = _rope_type(rope), ""
    if kind == "llama3" and not reads_factors:
        unread = "scaling of type 'llama3'"
    elif rope.get("mrope_section"):
        unread = f"mrope_section {rope['mrope_section']}"
    elif kind == "yarn":
        usual = {"beta_fast": 32.0, "beta_slow": 1.0}
        usual["attention_factor"] = 1 + 0.1 * math.log(max(config_float(rope, "factor"), 1.0))
        for key, value in usual.items():
            if rope.get(key) and not math.isclose(config_float(rope, key), value, rel_tol=1e-4):
                unread = f"{key} {rope[key]} instead of {value:.4g}"
        if rope.get("truncate") is False:
            unread = "truncate false"
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            unread = f"mscale {rope['mscale']}"
    refuse_if(
        bool(unread),
        f"the rope parameters have {unread}, which llama.cpp does not read for this architecture: "
        "it would compute another model",
    )


def _rope(config: Config) -> dict[str, Any]:
    """The rotary parameters in one spelling.

    transformers 5 writes `rope_parameters` with `rope_theta` inside; before, `rope_theta` stood
    beside an optional `rope_scaling`, whose `rope_type` was once called `type`.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise InputError(f"config.json: {given!r} are no rope parameters; expected an object")
    rope = dict(given)
    if rope.get("rope_theta") is None and config.get("rope_theta") is not None:
        rope["rope_theta"] = config["rope_theta"]
    # As in transformers, the key beside `rope_scaling` goes before the one in it.
    original = "original_max_position_embeddings"
    if _rope_type(rope) in ("yarn", "llama3") and config.get(original) is not None:
        rope[original] = config[original]
    return rope


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type")) or "default").lower()


def llama3_frequency_factors(rope: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """What llama.cpp divides each rotary frequency by, shape (head_dim / 2,).

    Frequencies with a wavelength beyond the original context are divided by `factor`, short ones
    are kept, and those between are interpolated (Llama 3.1, `ROPE_INIT_FUNCTIONS["llama3"]`).
    """
    base, factor = config_float(rope, "rope_theta"), config_float(rope, "factor")
    low, high = config_float(rope, "low_freq_factor"), config_float(rope, "high_freq_factor")
    original = config_float(rope, "original_max_position_embeddings")
    refuse_if(low >= high, f"low_freq_factor {low} must be below high_freq_factor {high}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength = 2 * math.pi * np.float32(base) ** exponents
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength > original / low, factor, between)
    return np.where(wavelength < original / high, 1.0, factors).astype(np.float32)
