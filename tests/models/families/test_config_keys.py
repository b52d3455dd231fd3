"""Keys of a config.json that change the model are read or refused; real configurations open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import make_shape
import numpy as np
import pytest
from checkpoints import LLAMA, NEMOTRON, llama_arrays, write_checkpoint, write_llama
from granite_checkpoints import GRANITE
from qwen_checkpoints import QWEN2, QWEN3, QWEN3_MOE, write_qwen

from quantkit.core.errors import InputError
from quantkit.core.paths import DEMO_MODEL
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.families.base import Family
from quantkit.models.families.config_keys import CHANGES, is_harmless
from quantkit.models.families.registry import FAMILIES, described

MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": None,
}
FOLDER = Path(__file__).parents[2] / "data" / "configs"
REAL: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
SMALL = [LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, GRANITE, NEMOTRON]


class Recorded(dict[str, Any]):
    """A configuration that knows which of its keys were asked for, and whether all were."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        self.asked.add(key)
        return super().__getitem__(key)


def _configs() -> Iterator[dict[str, Any]]:
    yield from REAL.values()
    yield from SMALL
    yield from (make_shape.model_config(model) for model in make_shape.MODELS)
    yield json.loads((DEMO_MODEL / "config.json").read_text())


@pytest.mark.parametrize("config", [*_configs()], ids=lambda c: f"{c['model_type']}-{len(c)}")
def test_real_configurations_open_and_nothing_is_unknown(config: dict[str, Any]) -> None:
    found = described(config)
    assert found.unknown == ()
    found.family.metadata(found.config)


def test_what_a_family_asks_for_is_in_its_list() -> None:
    for config in _configs():
        found = described(config)
        recorded = Recorded(found.config)
        found.family.metadata(recorded)
        known = found.family.reads | found.family.fixed.keys()
        assert {k for k in recorded.asked - known if not is_harmless(k)} <= {"default"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_each_list_says_a_key_once(family: Family) -> None:
    for key in (*family.reads, *family.fixed, *CHANGES):
        assert not is_harmless(key)
    assert not family.reads & family.fixed.keys()


@pytest.mark.parametrize(
    ("config", "change"),
    [
        # read by nobody: transformers computes another activation, window, mask or rotation
        (LLAMA, {"hidden_act": "relu"}),
        (MISTRAL, {"hidden_act": "gelu_pytorch_tanh"}),
        (QWEN3, {"hidden_act": "relu"}),
        (GRANITE, {"hidden_act": "gelu"}),
        (NEMOTRON, {"mlp_hidden_act": "relu"}),
        (NEMOTRON, {"mamba_hidden_act": "gelu"}),
        (MISTRAL, {"sliding_window": 512}),
        (LLAMA, {"is_causal": False}),
        (LLAMA, {"partial_rotary_factor": 0.5}),
        (QWEN3, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0, "llama_4_scaling_beta": 0.1}}),
        # known to transformers, and not at its default
        (LLAMA, {"is_encoder_decoder": True}),
        (NEMOTRON, {"sliding_window": 1024}),
        (NEMOTRON, {"use_bias": True}),
        (NEMOTRON, {"mamba_conv_bias": False}),
        (NEMOTRON, {"time_step_limit": [0.001, 0.1]}),
        (NEMOTRON, {"time_step_min": 0.05}),
        (GRANITE, {"time_step_limit": [0.001, 0.1]}),
        # of other architectures, or of code beside the checkpoint
        (LLAMA, {"final_logit_softcapping": 30.0}),
        (LLAMA, {"attn_logit_softcapping": 50.0}),
        (LLAMA, {"logit_scale": 0.0625}),
        (LLAMA, {"embedding_multiplier": 12}),
        (LLAMA, {"num_local_experts": 8}),
        (LLAMA, {"no_rope_layers": [1, 0]}),
        (LLAMA, {"sliding_window": 128}),
        (LLAMA, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}),
        (QWEN2, {"use_mrope": True}),
        (QWEN2, {"qkv_bias": False}),
        (QWEN3, {"use_qk_norm": False}),
        (QWEN3_MOE, {"shared_expert_intermediate_size": 512}),
        (GRANITE, {"normalization_function": "layernorm"}),
        # transformers goes by model_type, and takes another model for this one
        (QWEN3, {"model_type": "llama"}),
        (LLAMA, {"model_type": "gemma"}),
        # llama.cpp would end its process
        (NEMOTRON, {"num_experts_per_tok": 5}),
        (NEMOTRON, {"n_group": 3}),
        (NEMOTRON, {"n_group": 4}),
    ],
)
def test_a_key_that_changes_the_model_is_refused_by_name(
    config: dict[str, Any], change: dict[str, Any]
) -> None:
    names = [*change, *(k for v in change.values() if isinstance(v, dict) for k in v)]
    renamed = {"mamba_conv_bias": "use_conv_bias"}
    with pytest.raises(InputError, match="|".join(renamed.get(name, name) for name in names)):
        _metadata(config | change)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (LLAMA, {"hidden_act": "swish"}),
        (LLAMA, {"pretraining_tp": 2, "attention_dropout": 0.1, "initializer_range": 0.5}),
        (LLAMA, {"partial_rotary_factor": 1.0, "sliding_window": None, "n_shared_experts": 0}),
        (MISTRAL, {"layer_types": ["full_attention"] * 2, "norm_type": "rms_norm"}),
        (LLAMA, {"temperature": 0.6, "do_sample": True, "id2label": {"0": "a"}}),
        (LLAMA, {"is_causal": True, "embedding_multiplier": 1, "alibi": False}),
        (MISTRAL, {"sliding_window": 8192}),
        (LLAMA, {"architectures": None}),
        (QWEN3, {"architectures": []}),
        (NEMOTRON, {"n_group": 2, "topk_group": 2}),
        (NEMOTRON, {"layers_block_type": ["mamba", "moe", "attention", "moe"]}),
        (NEMOTRON, {"time_step_limit": [0.0, 1e9]}),
        (NEMOTRON, {"time_step_min": 0.0001, "time_step_limit": [0.0, {"__float__": "Infinity"}]}),
    ],
)
def test_a_key_that_changes_nothing_is_accepted(
    config: dict[str, Any], change: dict[str, Any]
) -> None:
    assert _metadata(config | change) == _metadata(config)


def _metadata(config: Mapping[str, Any]) -> object:
    found = described(config)
    return found.family.metadata(found.config)


def test_of_several_names_of_a_value_the_one_that_transformers_reads_counts() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    inside = _metadata(LLAMA | {"rope_scaling": yarn | {"original_max_position_embeddings": 512}})
    beside = {"rope_scaling": yarn, "original_max_position_embeddings": 512}
    assert _metadata(LLAMA | beside) == inside
    epsilon = "nemotron_h_moe.attention.layer_norm_rms_epsilon"
    found = described(NEMOTRON | {"rms_norm_eps": 0.01})
    assert found.family.metadata(found.config)[epsilon].value == pytest.approx(1e-5)
    assert _metadata(LLAMA | {"model_type": "mistral"})  # computed by the same graph
    pattern = NEMOTRON | {"layers_block_type": ["mamba", "attention", "mamba", "moe"]}
    assert _metadata(pattern) == _metadata(NEMOTRON | {"hybrid_override_pattern": "M*ME"})


def test_mistral_7b_v01_opens_though_llama_cpp_does_not_apply_its_window() -> None:
    later = REAL["mistral-7b-instruct-v0.3"]
    first = later | {"sliding_window": 4096}
    absent = {k: v for k, v in first.items() if k != "sliding_window"}
    assert _metadata(first) == _metadata(absent) == _metadata(later)


def test_a_key_that_nobody_knows_is_told(tmp_path: Path) -> None:
    source = open_checkpoint(write_llama(tmp_path / "m", vendor_magic=[1], vendor_off=None))
    assert len(source.notes) == 1
    assert "vendor_magic" in source.notes[0]
    assert "vendor_off" not in source.notes[0]
    assert open_checkpoint(write_llama(tmp_path / "n")).notes == ()


@pytest.mark.parametrize(
    ("key", "name", "width"),
    [("attention_bias", "self_attn.q_proj", 32), ("mlp_bias", "mlp.down_proj", 32)],
)
def test_stored_biases_that_are_switched_off_are_refused(
    tmp_path: Path, key: str, name: str, width: int
) -> None:
    biases = {f"model.layers.{i}.{name}.bias": np.ones(width, np.float32) for i in range(2)}
    arrays = llama_arrays(LLAMA) | biases
    with pytest.raises(InputError, match=key):
        open_checkpoint(write_checkpoint(tmp_path / "m", LLAMA, arrays))
    open_checkpoint(write_checkpoint(tmp_path / "n", LLAMA | {key: True}, arrays))


def test_qwen2_has_its_biases_whatever_a_key_of_others_says(tmp_path: Path) -> None:
    source = open_checkpoint(write_qwen(tmp_path / "m", QWEN2, attention_bias=False))
    assert "blk.0.attn_q.bias" in [tensor.name for tensor in source.tensors]
