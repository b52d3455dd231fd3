"""Nemotron-H: names, layout and metadata, down to the flagship's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flagship
import make_shape
import numpy as np
import pytest
from checkpoints import (
    NEMOTRON,
    block_of,
    nemotron_arrays,
    with_prediction_head,
    write_checkpoint,
    write_nemotron,
)
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.tensors import TensorInfo
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.families.base import without_prediction
from quantkit.models.families.nemotron_h import NemotronH


def _values(name: str) -> NDArray[np.float32]:
    return nemotron_arrays(NEMOTRON)[name]


def test_mamba_tensors(tmp_path: Path) -> None:
    source = open_checkpoint(write_nemotron(tmp_path / "m"))
    infos = {t.name: t for t in source.tensors}
    mixer = "backbone.layers.0.mixer."
    for name, part, shape in (
        ("ssm_in.weight", "in_proj.weight", (132, 32)),
        ("ssm_conv1d.weight", "conv1d.weight", (96, 4)),
        ("ssm_conv1d.bias", "conv1d.bias", (96,)),
        ("ssm_dt.bias", "dt_bias", (4,)),
        ("ssm_d", "D", (4, 1)),
        ("ssm_norm.weight", "norm.weight", (2, 16)),
        ("ssm_out.weight", "out_proj.weight", (32, 32)),
    ):
        info = infos[f"blk.0.{name}"]
        matrix = name in ("ssm_in.weight", "ssm_out.weight")
        assert info == TensorInfo(info.name, shape, "BF16" if matrix else "F32")
        rows = source.read_rows(info.name, 0, info.rows)
        np.testing.assert_array_equal(rows.reshape(-1), _values(mixer + part).reshape(-1))
    decay = source.read_rows("blk.0.ssm_a", 0, 4)
    expected = -np.exp(_values(f"{mixer}A_log").astype(np.float64))
    np.testing.assert_array_equal(decay[:, 0], expected.astype(np.float32))


def test_queries_and_keys_are_interleaved_within_each_head(tmp_path: Path) -> None:
    source = open_checkpoint(write_nemotron(tmp_path / "m"))
    for letter, heads in (("q", 4), ("k", 2)):
        stored = _values(f"backbone.layers.2.mixer.{letter}_proj.weight")
        halves = stored.reshape(heads, 2, 4, 32)
        expected = np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(heads * 8, 32)
        read = source.read_rows(f"blk.2.attn_{letter}.weight", 0, heads * 8)
        np.testing.assert_array_equal(read, expected)


def test_moe_tensors(tmp_path: Path) -> None:
    source = open_checkpoint(write_nemotron(tmp_path / "m"))
    assert block_of(source, 1) == {
        "attn_norm.weight": ((32,), "F32"),
        "ffn_gate_inp.weight": ((4, 32), "F32"),
        "exp_probs_b.bias": ((4,), "F32"),
        "ffn_latent_down.weight": ((16, 32), "BF16"),
        "ffn_latent_up.weight": ((32, 16), "BF16"),
        "ffn_down_exps.weight": ((4, 16, 24), "BF16"),
        "ffn_up_exps.weight": ((4, 24, 16), "BF16"),
        "ffn_down_shexp.weight": ((32, 20), "BF16"),
        "ffn_up_shexp.weight": ((20, 32), "BF16"),
    }


def test_metadata_of_a_mixture() -> None:
    metadata = NemotronH().metadata(NEMOTRON)
    values = {k.removeprefix("nemotron_h_moe."): v.value for k, v in metadata.items()}
    assert values["general.architecture"] == "nemotron_h_moe"
    assert values["feed_forward_length"] == (0, 24, 0, 24)
    assert values["attention.head_count_kv"] == (0, 0, 2, 0)
    assert values["expert_weights_scale"] == 2.5
    assert values["moe_latent_size"] == 16
    assert values["rope.dimension_count"] == 8
    assert "nextn_predict_layers" not in values


@pytest.mark.parametrize(
    "spelling",
    [
        {"hybrid_override_pattern": "ME*E"},
        {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    ],
)
def test_layers_in_every_spelling(spelling: dict[str, Any]) -> None:
    config = {k: v for k, v in NEMOTRON.items() if k != "hybrid_override_pattern"} | spelling
    assert NemotronH().metadata(config) == NemotronH().metadata(NEMOTRON)


def test_dense_layers_are_another_architecture(tmp_path: Path) -> None:
    source = open_checkpoint(write_nemotron(tmp_path / "m", hybrid_override_pattern="M-*-"))
    assert source.metadata["general.architecture"].value == "nemotron_h"
    assert source.metadata["nemotron_h.feed_forward_length"].value == (0, 48, 0, 48)
    # transformers writes expert keys for dense models too; llama.cpp would expect experts.
    assert not [key for key in source.metadata if "expert" in key]
    assert block_of(source, 1)["ffn_up.weight"] == ((48, 32), "BF16")
    assert block_of(source, 1)["ffn_down.weight"] == ((32, 48), "BF16")


def test_names_under_model_and_tied_embeddings(tmp_path: Path) -> None:
    config = NEMOTRON | {"tie_word_embeddings": True}
    arrays = nemotron_arrays(config, root="model")
    arrays["lm_head.weight"] = arrays["model.embeddings.weight"]
    source = open_checkpoint(write_checkpoint(tmp_path / "m", config, arrays))
    names = [t.name for t in source.tensors]
    assert "output.weight" not in names
    assert names[0] == "token_embd.weight"


def test_the_prediction_head_is_dropped(tmp_path: Path) -> None:
    arrays = nemotron_arrays(NEMOTRON)
    arrays["mtp.layers.0.enorm.weight"] = arrays["backbone.norm_f.weight"]
    config = NEMOTRON | {"num_nextn_predict_layers": 1}
    source = open_checkpoint(write_checkpoint(tmp_path / "m", config, arrays))
    assert not [t.name for t in source.tensors if "mtp" in t.name or t.name.startswith("blk.4.")]
    assert not [key for key in source.metadata if "nextn" in key]


def test_the_prediction_head_is_kept_when_asked_for(tmp_path: Path) -> None:
    arrays = with_prediction_head(nemotron_arrays(NEMOTRON))
    config = NEMOTRON | {"num_nextn_predict_layers": 1}
    source = open_checkpoint(write_checkpoint(tmp_path / "m", config, arrays), keep_prediction=True)
    metadata = source.metadata
    assert metadata["nemotron_h_moe.block_count"].value == 5
    assert metadata["nemotron_h_moe.nextn_predict_layers"].value == 1
    assert metadata["nemotron_h_moe.feed_forward_length"].value == (0, 24, 0, 24, 24)
    assert metadata["nemotron_h_moe.attention.head_count_kv"].value == (0, 0, 2, 0, 2)
    head = block_of(source, 4)
    assert head["nextn.eh_proj.weight"] == ((32, 64), "BF16")
    assert head["ffn_up_exps.weight"] == ((4, 24, 16), "BF16")
    assert head["attn_q.weight"] == ((32, 32), "BF16")
    read = source.read_rows("blk.4.ffn_down_exps.weight", 16, 17)
    part = arrays["mtp.layers.1.mixer.experts.1.down_proj.weight"]
    np.testing.assert_array_equal(read, part[:1])


def test_a_prediction_head_that_is_not_there_can_only_be_dropped(tmp_path: Path) -> None:
    config = NEMOTRON | {"num_nextn_predict_layers": 1}
    folder = write_checkpoint(tmp_path / "m", config, nemotron_arrays(NEMOTRON))
    with pytest.raises(InputError, match=r"mtp\.layers\.0\.enorm"):
        open_checkpoint(folder, keep_prediction=True)
    assert open_checkpoint(folder).metadata["nemotron_h_moe.block_count"].value == 4


@pytest.mark.parametrize(
    "change", [{"num_nextn_predict_layers": 2}, {"mtp_hybrid_override_pattern": "*"}]
)
def test_other_prediction_heads_are_refused(change: dict[str, Any]) -> None:
    config = NEMOTRON | {"num_nextn_predict_layers": 1} | change
    with pytest.raises(InputError, match="mtp: drop"):
        NemotronH().metadata(config)


def test_the_flagship() -> None:
    """Sizes known from NVIDIA's model card and from llama.cpp."""
    with_head = make_shape.model_config("nemotron-3-super", mtp=True)
    assert NemotronH().metadata(with_head)["nemotron_h_moe.block_count"].value == 89
    metadata = NemotronH().metadata(without_prediction(with_head))
    assert metadata["nemotron_h_moe.context_length"].value == 1048576
    assert metadata["nemotron_h_moe.block_count"].value == 88
    assert metadata["nemotron_h_moe.ssm.inner_size"].value == 8192
    shapes = {info.name: info.shape for info in flagship.tensors()}
    assert shapes["blk.0.ssm_in.weight"] == (18560, 4096)
    assert shapes["blk.1.ffn_down_exps.weight"] == (512, 1024, 2688)
    assert shapes["blk.1.ffn_up_exps.weight"] == (512, 2688, 1024)
