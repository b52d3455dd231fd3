"""The Mamba-2 mixer, as Nemotron-H and Granite-4 have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.models.families.base import Config, Keys, Rules, refuse_if

HYBRID_KINDS = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
}
"""Kinds of layers in the spellings before transformers 5, and since."""

UNROTATED_CONTEXT_LENGTH = 1 << 20
"""What the GGUF says where nothing is rotated, whatever config.json does, as llama.cpp's converter
writes it: no position limits such a model. llama-server would cap a slot at the 262144 of
Nemotron-3-Super's `max_position_embeddings`, though it was trained to 1M."""

_SHORTEST_STEP = 0.001
_LONGEST_STEP = 1e6


@dataclass(frozen=True)
class Mamba2Sizes:
    """Sizes of the mixer: `heads` heads of `head_dim`, `groups` groups of B and C."""

    heads: int
    head_dim: int
    state: int
    groups: int
    conv_kernel: int

    @property
    def inner(self) -> int:
        """Width of the mixer: heads × head dimension; `expand` plays no part."""
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """x, B and C go through the convolution together."""
        return self.inner + 2 * self.groups * self.state


def check_time_steps(config: Config) -> None:
    """Refuse bounds of the time steps that change a model: llama.cpp's scan has none.

    The usual lower bound of NVIDIA's models, 0.001, counts as none, as in all use of llama.cpp.
    """
    match config.get("time_step_limit"):
        case None:
            low, high = 0.0, _LONGEST_STEP
        case [int() | float() as low, int() | float() as high]:
            pass
        case limit:
            raise InputError(f"config.json: time_step_limit is {limit!r}, expected two numbers")
    shortest = config.get("time_step_min")
    if isinstance(shortest, int | float):
        low = max(low, shortest)
    refuse_if(
        low > _SHORTEST_STEP or high < _LONGEST_STEP,
        f"time_step_limit and time_step_min keep time steps between {low} and {high}, but "
        "llama.cpp computes Mamba-2 without bounds: the GGUF would be another model",
    )


def mamba2_keys(sizes: Mamba2Sizes) -> Keys:
    """`ssm.*`."""
    return {
        "ssm.conv_kernel": sizes.conv_kernel,
        "ssm.state_size": sizes.state,
        "ssm.group_count": sizes.groups,
        "ssm.inner_size": sizes.inner,
        "ssm.time_step_rank": sizes.heads,
    }


def add_mamba2(rules: Rules, sizes: Mamba2Sizes, hidden: int, block: str, mixer: str) -> None:
    """The tensors of one mixer; `block` and `mixer` are prefixes in the GGUF and checkpoint."""
    heads, inner, channels = sizes.heads, sizes.inner, sizes.conv_channels
    refuse_if(
        inner % sizes.groups > 0,
        f"{inner} Mamba-2 channels do not divide into {sizes.groups} groups",
    )
    rules.add(f"{block}ssm_in.weight", f"{mixer}in_proj.weight", (inner + channels + heads, hidden))
    rules.add(
        f"{block}ssm_conv1d.weight",
        f"{mixer}conv1d.weight",
        (channels, sizes.conv_kernel),
        stored_shape=(channels, 1, sizes.conv_kernel),
    )
    # Not optional: llama.cpp (build_mamba2_layer) adds it without asking whether there is one.
    rules.add(f"{block}ssm_conv1d.bias", f"{mixer}conv1d.bias", (channels,))
    rules.add(f"{block}ssm_dt.bias", f"{mixer}dt_bias", (heads,))
    rules.add(f"{block}ssm_a", f"{mixer}A_log", (heads, 1), stored_shape=(heads,), values=minus_exp)
    rules.add(f"{block}ssm_d", f"{mixer}D", (heads, 1), stored_shape=(heads,))
    rules.add(
        f"{block}ssm_norm.weight",
        f"{mixer}norm.weight",
        (sizes.groups, inner // sizes.groups),
        stored_shape=(inner,),
    )
    rules.add(f"{block}ssm_out.weight", f"{mixer}out_proj.weight", (hidden, inner))


def minus_exp(log: NDArray[np.float32]) -> NDArray[np.float32]:
    """A_log → A, through F64 so that the result is the nearest F32 on every machine.

    llama.cpp's converter has torch's F32 exponential, whose last bit is another in 1 % of values.
    """
    return (-np.exp(log.astype(np.float64))).astype(np.float32)
