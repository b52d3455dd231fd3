"""What each layer keeps, against the buffer sizes in llama.cpp's own log, and by architecture."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import llama_cpp
import pytest
from checkpoints import (
    NEMOTRON,
    nemotron_arrays,
    with_prediction_head,
    write_checkpoint,
    write_llama,
    write_nemotron,
)
from granite_checkpoints import ATTENTION, DENSE, ROPE, write_granite

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata, MetaScalar, MetaValue
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.geometry import (
    _CHAINS_PREDICTIONS,
    _PREDICTS,
    _ROLLS_BACK,
    MAX_LAYERS,
    ModelGeometry,
    geometry_of,
)
from quantkit.quantize.quantize import convert

LLAMA_CPP = Path(os.environ.get("QUANTKIT_LLAMA_CPP", "") or "/nonexistent")
MIB = 1 << 20
CONTEXT = 65536
SEQUENCES = 64
"""Many of both, because the log rounds to 0.01 MiB and the models are tiny."""

_LOG: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep(_level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    _LOG.append(text.decode(errors="replace"))


def _logged(checkpoint: Path, folder: Path, *, keep_prediction: bool) -> dict[str, str]:
    """Buffer sizes in MiB by kind, as text: "KV" and "RS" (recurrent state)."""
    source = open_checkpoint(checkpoint, keep_prediction=keep_prediction)
    path = convert(source, "source", folder / "m.gguf", folder / "work", workers=1)
    model = Model(path, DeviceSettings(threads=1, use_extra_buffers=False, gpu_layers=0))
    _LOG.clear()
    llama_cpp.llama_log_set(_keep, ctypes.c_void_p(0))  # Until the next Model sets its own.
    settings = ContextSettings(CONTEXT, batch_tokens=64, sequences=SEQUENCES)
    Context(model, settings).close()
    model.close()
    found = re.findall(r"(KV|RS) buffer size = +([0-9.]+) MiB", "".join(_LOG))
    return dict(found)


def _computed(geometry: ModelGeometry) -> dict[str, str]:
    """The same of `geometry`; a kind that no layer has is not logged either."""
    state = sum(4 * layer.recurrent_elements * SEQUENCES for layer in geometry.layers)
    total = sum(layer.context_bytes(CONTEXT, "F16", SEQUENCES) for layer in geometry.layers)
    sizes = {"KV": total - state, "RS": state}
    return {kind: f"{size / MIB:.2f}" for kind, size in sizes.items() if size}


@pytest.mark.parametrize(
    ("write", "changes", "kinds"),
    [
        (write_granite, {}, {"KV", "RS"}),
        (write_granite, DENSE | {"mamba_n_groups": 2, "mamba_d_state": 32}, {"KV", "RS"}),
        (write_granite, ROPE | {"layer_types": ATTENTION}, {"KV"}),
        (write_granite, ROPE | DENSE | {"layer_types": ATTENTION}, {"KV"}),
        (write_nemotron, {"hybrid_override_pattern": "ME*E"}, {"KV", "RS"}),
        (write_nemotron, {"hybrid_override_pattern": "M-*-MM*"}, {"KV", "RS"}),
        (write_llama, {}, {"KV"}),
    ],
)
def test_buffers_as_llama_cpp_logs_them(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, object], kinds: set[str]
) -> None:
    folder = write(tmp_path / "m", **changes)
    computed = _computed(geometry_of(open_checkpoint(folder).metadata))
    assert computed == _logged(folder, tmp_path, keep_prediction=False)
    assert computed.keys() == kinds


def test_a_prediction_head_keeps_nothing_in_llama_cpp_either(tmp_path: Path) -> None:
    arrays = with_prediction_head(nemotron_arrays(NEMOTRON))
    config = NEMOTRON | {"num_nextn_predict_layers": 1}
    folder = write_checkpoint(tmp_path / "m", config, arrays)
    with_head = geometry_of(open_checkpoint(folder, keep_prediction=True).metadata)
    without = geometry_of(open_checkpoint(folder).metadata)
    assert [*without.layers, with_head.layers[-1]] == [*with_head.layers]
    assert with_head.layers[-1].context_bytes(CONTEXT, "F16") == 0
    assert _computed(with_head) == _logged(folder, tmp_path, keep_prediction=True)


def _metadata(
    architecture: str, **values: int | tuple[MetaScalar, ...] | Mapping[str, int]
) -> Metadata:
    """Four blocks of hidden size 64 with 2 KV heads of 16; `__` stands for a dot in the names."""
    described = {
        "block_count": 4,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention__head_count": 4,
        "attention__head_count_kv": 2,
        **values,
    }
    metadata: Metadata = {"general.architecture": MetaValue("str", architecture)}
    for name, value in described.items():
        assert isinstance(value, int | tuple)
        metadata[f"{architecture}.{name.replace('__', '.')}"] = MetaValue("i32", value)
    return metadata


MAMBA = {"ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4}
MAMBA_STATE = 3 * 128 + 16 * 128
SHORT = {"shortconv__l_cache": 3}
KDA = {"kda__head_dim": 16, "ssm__conv_kernel": 4}
NO_HEADS = {"attention__head_count_kv": (0, 2, 0, 2)}
LISTED = {"attention__recurrent_layers": (True, True, False, True)}
SECOND = {"full_attention_interval": 2}


@pytest.mark.parametrize(
    ("architecture", "values", "attends", "recurrent", "state"),
    [
        ("llama", {}, "1111", "0000", 0),
        ("granite", MAMBA, "1111", "0000", 0),
        ("granitehybrid", MAMBA | NO_HEADS, "0101", "1010", MAMBA_STATE),
        ("jamba", MAMBA | NO_HEADS, "0101", "1010", MAMBA_STATE),
        ("lfm2", SHORT | NO_HEADS, "0101", "1010", 64 * 2),
        ("kimi-linear", KDA | NO_HEADS, "0101", "1010", 3 * 3 * 4 * 16 + 16 * 16 * 4),
        ("qwen3next", MAMBA, "0001", "1110", MAMBA_STATE),
        ("qwen35moe", MAMBA | SECOND, "0101", "1010", MAMBA_STATE),
        ("qwen35", MAMBA | LISTED, "0010", "1101", MAMBA_STATE),
        ("minimax-01", SECOND, "0101", "1010", 16 * 16 * 4),
        ("falcon-h1", MAMBA, "1111", "1111", MAMBA_STATE),
        ("mamba2", MAMBA | {"attention__head_count": 0}, "0000", "1111", MAMBA_STATE),
        ("rwkv7", {"wkv__head_size": 16}, "0000", "1111", 64 * 2 + 64 * 16),
    ],
)
def test_the_rule_of_each_architecture(
    architecture: str, values: dict[str, int], attends: str, recurrent: str, state: int
) -> None:
    layers = geometry_of(_metadata(architecture, **values)).layers
    assert "".join(str(int(layer.key_elements > 0)) for layer in layers) == attends
    assert [layer.recurrent_elements for layer in layers] == [
        state if mark == "1" else 0 for mark in recurrent
    ]


def test_prediction_layers_come_last_and_keep_nothing() -> None:
    layers = geometry_of(_metadata("qwen3moe", nextn_predict_layers=1)).layers
    assert [layer.key_elements for layer in layers] == [32, 32, 32, 0]
    mixed = geometry_of(_metadata("qwen35", nextn_predict_layers=1, **MAMBA | SECOND)).layers
    assert [layer.key_elements for layer in mixed] == [0, 32, 0, 0]
    assert [layer.recurrent_elements > 0 for layer in mixed] == [True, False, True, False]


def test_prediction_layers_keep_keys_and_values_in_a_context_of_their_own() -> None:
    geometry = geometry_of(_metadata("qwen35", nextn_predict_layers=1, **MAMBA | SECOND))
    (head,) = geometry.prediction
    assert (head.key_elements, head.value_elements, head.recurrent_elements) == (32, 32, 0)
    assert geometry.predicts
    assert not geometry_of(_metadata("qwen3moe", nextn_predict_layers=1)).predicts
    assert not geometry_of(_metadata("qwen35", **MAMBA | SECOND)).prediction
    two = geometry_of(_metadata("qwen35", nextn_predict_layers=2, **MAMBA | SECOND))
    assert len(two.prediction) == 2
    assert not two.predicts
    assert geometry_of(_metadata("step35", nextn_predict_layers=2)).predicts


def test_snapshots_are_of_the_recurrent_state() -> None:
    recurrent, attention, *_ = geometry_of(_metadata("qwen35", **MAMBA | SECOND)).layers
    state = recurrent.context_bytes(256, "f16", 2)
    assert state == 2 * 4 * recurrent.recurrent_elements > 0
    assert recurrent.context_bytes(256, "f16", 2, snapshots=3) == 4 * state
    kept = attention.context_bytes(256, "f16")
    assert attention.context_bytes(256, "f16", 2, snapshots=3) == kept > 0


def test_who_rolls_back_and_predicts_is_what_llama_cpp_says() -> None:
    """The lists, against its source."""
    if not (LLAMA_CPP / "src" / "llama-arch.cpp").is_file():
        pytest.skip("needs QUANTKIT_LLAMA_CPP: make oracle")
    source = (LLAMA_CPP / "src" / "llama-arch.cpp").read_text()
    names = dict(re.findall(r"\{ (LLM_ARCH_\w+),\s+\"([^\"]+)\"", source))
    body = source[source.index("bool llm_arch_supports_rs_rollback") :].split("return true")[0]
    assert {names[arch] for arch in re.findall(r"case (LLM_ARCH_\w+):", body)} == set(_ROLLS_BACK)
    files = (LLAMA_CPP / "src" / "models").glob("*.cpp")
    texts = {re.sub("[-_]", "", path.stem): path.read_text() for path in files}
    predicts = {name for name, text in texts.items() if "DECODER_MTP" in text}
    one = {name for name in predicts if "n_layer_nextn == 1 &&" in texts[name]}
    assert {re.sub("[-_]", "", name) for name in _PREDICTS} == predicts
    assert {re.sub("[-_]", "", name) for name in _CHAINS_PREDICTIONS} == {
        name for name in predicts - one if "nextn_layer_offset" in texts[name]
    }


def test_a_prediction_head_in_a_file_of_its_own_is_a_model() -> None:
    layers = geometry_of(_metadata("qwen3moe", nextn_predict_layers=4)).layers
    assert [layer.key_elements for layer in layers] == [32] * 4


@pytest.mark.parametrize(
    ("architecture", "values", "words"),
    [
        ("newmodel", {}, "newmodel keeps a recurrent state"),
        ("qwen35", {"full_attention_interval": 0}, "full_attention_interval is 0"),
        ("llama", {"block_count": 513}, "513.*512"),
        ("llama", {"block_count": 10**12}, "block_count"),
        ("llama", {"block_count": (4, 10**12)}, "block_count"),
    ],
)
def test_refused_metadata(architecture: str, values: dict[str, int], words: str) -> None:
    """Before anything is made for each of the layers."""
    with pytest.raises(InputError, match=words):
        geometry_of(_metadata(architecture, **MAMBA, **values))


def test_as_many_layers_as_llama_cpp_loads() -> None:
    assert len(geometry_of(_metadata("llama", block_count=MAX_LAYERS)).layers) == MAX_LAYERS
