"""scripts/make_shape.py: published counts to the last parameter, and files that are only holes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flagship
import make_shape
import numpy as np
import pytest
from checkpoints import NEMOTRON, nemotron_arrays
from memory import cost_of_quantkit

from quantkit.core.errors import InputError
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.tensor_types import BY_NAME
from quantkit.models.checkpoint import CheckpointSource, open_checkpoint
from quantkit.models.geometry import geometry_of
from quantkit.models.gguf_source import GGUFSource
from quantkit.plan.allocate import Allocation
from quantkit.plan.allocation_file import AllocationFile
from quantkit.study.sensitivity import Sensitivity

NAME = "NVIDIA-Nemotron-3-Super-120B-A12B"
SUPER, NANO = make_shape.model_config(), make_shape.model_config("nemotron-3-nano")
# Sizes that give Ultra's published counts exactly; the order of its layers does not change them.
ULTRA = SUPER | {
    "hidden_size": 8192,
    "hybrid_override_pattern": 48 * "ME" + 12 * "*",
    "mamba_num_heads": 256,
    "moe_intermediate_size": 5120,
    "moe_latent_size": 2048,
    "moe_shared_expert_intermediate_size": 10240,
    "num_attention_heads": 64,
}
TINY = NEMOTRON | {"num_nextn_predict_layers": 0, "vocab_size": 2048}
MEGABYTE, GIB = 10**6, 1 << 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_shape.write_checkpoint(tmp_path_factory.mktemp("hole") / f"{NAME}-BF16", SUPER)
    yield folder
    for file in folder.iterdir():  # pytest keeps folders, and these look 247 GB large
        file.unlink()


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> CheckpointSource:
    return open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [
        # Audits of the exports in NVIDIA-NeMo/Megatron-Bridge, pull requests 5801, 5293 and 5809:
        # Nano 30B-A3B, 3.5 Lightning 30B-A3B (Nano with a prediction head), and Ultra 550B-A55B.
        (NANO, 6_243, 31_577_940_288),
        (make_shape.model_config("nemotron-3-nano", mtp=True), 6_513, 32_913_266_240),
        (ULTRA, 51_023, 560_524_603_904),
        # llama.cpp counts the same parameters in GGUFs of these shapes.
        (flagship.CONFIG, 41_643, 120_668_707_840),
        (SUPER, 42_683, 123_611_033_088),
    ],
)
def test_counts_are_the_published_ones(
    config: dict[str, Any], tensors: int, parameters: int
) -> None:
    stored = make_shape.checkpoint_tensors(config)
    assert len(stored) == tensors
    assert sum(map(make_shape.stored_elements, stored.values())) == parameters


def test_bytes_are_the_published_ones() -> None:
    """Of Ultra, in the same audit: two bytes an element, and two more for each F32 one, which are
    just as many as there are correction biases (49 layers of 512 experts)."""
    stored = make_shape.checkpoint_tensors(ULTRA).values()
    assert sum(map(make_shape.stored_bytes, stored)) == 1_121_049_257_984


def test_tensors_are_those_of_a_checkpoint() -> None:
    stored = make_shape.checkpoint_tensors(TINY)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: values.shape for name, values in nemotron_arrays(TINY).items()
    }


def test_a_checkpoint_takes_megabytes(checkpoint: Path) -> None:
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert [shards[0].name, shards[-1].name] == [
        "model-00001-of-00050.safetensors",
        "model-00050-of-00050.safetensors",
    ]
    sizes = [shard.stat().st_size for shard in shards]
    assert max(sizes) < 5.001e9
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == pytest.approx(247.22e9, abs=0.01e9)
    assert 0 < sum(sizes) - index["metadata"]["total_size"] < 10 * MEGABYTE
    assert sum(512 * file.stat().st_blocks for file in checkpoint.iterdir()) < 20 * MEGABYTE


def test_a_checkpoint_opens(source: CheckpointSource) -> None:
    assert list(source.tensors) == flagship.tensors()
    assert len(source.tensors) == 763
    assert sum(info.elements for info in source.tensors) == 120_668_707_840
    (layout,) = lay_out(NAME, source.metadata, source.tensors, 1 << 62)
    assert round(layout.size_bytes / 1e9, 2) == 241.51
    assert not source.read_rows("blk.1.ffn_down_exps.weight", 1023, 1025).any()


def test_the_prediction_head_converts() -> None:
    tensors = make_shape.gguf_tensors(SUPER)
    assert sum(info.elements for info in tensors) == 123_611_033_088
    assert tensors[: len(flagship.tensors()) - 2] == flagship.tensors()[:-2]


def test_geometry(source: CheckpointSource) -> None:
    geometry = geometry_of(source.metadata)
    attention = [layer for layer in geometry.layers if layer.key_elements]
    recurrent = [layer for layer in geometry.layers if layer.recurrent_elements]
    assert {(layer.key_elements, layer.value_elements) for layer in attention} == {(256, 256)}
    assert (len(geometry.layers), len(attention), len(recurrent)) == (88, 8, 40)
    assert (geometry.vocabulary, geometry.trained_context_tokens) == (131072, 1048576)


def test_a_gguf_is_what_the_checkpoint_converts_to(
    source: CheckpointSource, tmp_path: Path
) -> None:
    (path,) = make_shape.write_gguf(tmp_path / f"{NAME}-BF16.gguf", flagship.CONFIG)
    (layout,) = lay_out(path.stem, source.metadata, source.tensors, 1 << 62)
    with path.open("rb") as file:
        assert file.read(len(layout.header)) == layout.header
    assert path.stat().st_size == layout.size_bytes
    assert 512 * path.stat().st_blocks < 5 * MEGABYTE
    assert GGUFSource(path).tensors == source.tensors
    path.unlink()


def test_planning_takes_little_memory(checkpoint: Path) -> None:
    """The checkpoint's 42,683 headers, the vocabulary and the solver: below 1 GiB together."""
    cost = cost_of_quantkit("plan", "--target", "4x3090", "--model", checkpoint, "--json")
    assert cost.peak_bytes < GIB
    planned = json.loads(cost.stdout)
    assert planned["model"] == NAME
    for level in planned["levels"]:
        assert level["total_bytes"] <= 71 * GIB
        assert sum(gpu["layers"] for gpu in level["placement"]["gpus"]) == 89


def test_types_follow_the_rows() -> None:
    types = {
        info.name: info.type_name for info in make_shape.with_types(flagship.tensors(), "Q4_K")
    }
    assert types["blk.1.ffn_up_exps.weight"] == "Q4_K"
    # rows of 2688, which no block of 256 divides
    assert BY_NAME[types["blk.1.ffn_down_exps.weight"]].bits_per_weight == 4.5
    assert types["blk.1.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ssm_conv1d.weight"] == "F32"


def test_types_of_an_allocation(tmp_path: Path) -> None:
    tensors = make_shape.gguf_tensors(TINY)
    chosen = {i.name: "Q8_0" if i.name == "output.weight" else i.type_name for i in tensors}
    path = tmp_path / "allocation.json"
    chosen_here = Allocation(0, 0, 0.0, 0.0, chosen, {})
    AllocationFile.of(chosen_here, tensors, Sensitivity(errors={})).write(path)
    (written,) = make_shape.write_gguf(tmp_path / "m.gguf", TINY, str(path))
    read = GGUFSource(written)
    assert {info.name: info.type_name for info in read.tensors} == chosen
    assert "general.file_type" not in read.metadata
    with pytest.raises(InputError, match=r"has no type for blk\.2\.ssm_in.*of this model"):
        make_shape.with_types(flagship.tensors(), str(path))


@pytest.mark.parametrize("mtp", [False, True])
def test_random_values_in_small_shards(tmp_path: Path, mtp: bool) -> None:
    config = TINY | {"num_nextn_predict_layers": int(mtp)}
    folders = [
        make_shape.write_checkpoint(tmp_path / name, config, "random", 100_000) for name in "ab"
    ]
    shards = sorted(folders[0].glob("*.safetensors"))
    assert len(shards) >= 3
    for shard in shards:
        assert shard.read_bytes() == (folders[1] / shard.name).read_bytes()
    first, second = (
        open_checkpoint(folders[0]).read_rows(f"{name}.weight", 0, 2048)
        for name in ("token_embd", "output")
    )
    assert np.std(first) == pytest.approx(0.02, rel=0.02)
    assert abs(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]) < 0.02


def test_a_random_gguf_in_shards(tmp_path: Path) -> None:
    paths = make_shape.write_gguf(tmp_path / "m.gguf", TINY, "Q8_0", "random", 100_000)
    assert len(paths) > 1
    read = GGUFSource(paths[0])
    assert sum(i.elements for i in read.tensors) == sum(
        math.prod(tensor.shape) for tensor in make_shape.checkpoint_tensors(TINY).values()
    )
    assert np.std(read.read_rows("token_embd.weight", 0, 2048)) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("layers", ["M", "E", "*"])
def test_layers_of_true_size(layers: str) -> None:
    """One layer of the kind is one of the whole model's."""
    tensors = make_shape.gguf_tensors(make_shape.model_config(layers=layers))
    index = make_shape.MODELS["nemotron-3-super"]["hybrid_override_pattern"].index(layers)
    whole = {info.name: info for info in flagship.tensors()}
    names = [info.name for info in tensors if info.name.startswith("blk.0.")]
    assert len(names) == {"M": 9, "E": 9, "*": 5}[layers]
    for info in tensors:
        assert whole[info.name.replace("blk.0.", f"blk.{index}.")].shape == info.shape


def test_fewer_experts() -> None:
    config = make_shape.model_config(layers="E", experts=8)
    assert config["num_experts_per_tok"] == 8
    shapes = {info.name: info.shape for info in make_shape.gguf_tensors(config)}
    assert shapes["blk.0.ffn_up_exps.weight"] == (8, 2688, 1024)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"weights")
    with pytest.raises(FileExistsError, match="not empty; give a new folder"):
        make_shape.write_checkpoint(tmp_path, TINY)
    with pytest.raises(FileExistsError, match="give another name"):
        make_shape.write_gguf(tmp_path / "m.gguf", TINY)
    assert (tmp_path / "m.gguf").read_bytes() == b"weights"


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    options = ["--model", "nemotron-3-nano", "--layers", "*", "--types", "q8_0"]
    monkeypatch.setattr(sys, "argv", ["make_shape.py", "gguf", str(path), *options])
    make_shape.main()
    assert "1 files, 0.78 GB, " in capsys.readouterr().out
    assert len(GGUFSource(path).tensors) == 8
    with pytest.raises(SystemExit, match="exists; give another name"):
        make_shape.main()
