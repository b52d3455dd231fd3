"""Every tensor and every key against llama.cpp's own converter, on models of every kind.

`make slow` sets up what this needs: see CONTRIBUTING.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from oracle import LLAMA_CPP, needs_oracle, run_torch

import quantkit
from quantkit.formats.tensors import MetaValue, main_type
from quantkit.models.checkpoint import CheckpointSource, open_checkpoint

DEMO = Path(quantkit.__file__).parent / "data" / "demo-model"

pytestmark = needs_oracle

# Where we differ from the converter on purpose; everything else is equal, or a failure.
#
# | what | theirs | ours | reason |
# |---|---|---|---|
# | tokenizer.ggml.add_bos_token | absent | false | `ONLY_OURS`, only where theirs says nothing: a
#   tokenizer.json that adds no BOS; llama.cpp would add one for some pre-tokenizers |
# | tokenizer.ggml.unknown_token_id | absent | 0 | `NAMED`: without tokenizer.json, theirs takes
#   ids from config.json alone, and not those of the tokens that tokenizer_config.json names |
# | .ssm_a | torch's F32 exponential | the nearest F32 | `SSM_A`: at most the last bit; ours does
#   not depend on the machine, see `minus_exp` |
# | router of the prediction head | BF16 | F32 | `PREDICTION_ROUTER`: the converter looks for it
#   under the block number of the checkpoint's name (1) and so misses that it is a router, which it
#   keeps in F32 in all other blocks; the values are the same |
# | keys of four kinds of Granite models | | | `DIFFERENT`, `PADDED`: llama.cpp refuses theirs, or
#   computes something else than transformers; no released model of them is known to us |
ONLY_OURS = {"tokenizer.ggml.add_bos_token": False}
NAMED = {"llama-sentencepiece": {"tokenizer.ggml.unknown_token_id": MetaValue("u32", 0)}}
SSM_A = ".ssm_a"
PREDICTION_ROUTER = "blk.4.ffn_gate_inp.weight"
# Model: {key: (theirs, ours)}.
DIFFERENT: dict[str, dict[str, tuple[object, object]]] = {
    # Hybrids are rotated where position_embedding_type says so; the converter never does.
    "granite-hybrid-rope": {
        "granitehybrid.rope.scaling.finetuned": (False, True),
        "granitehybrid.context_length": (1 << 20, 16384),
    },
    # Models of attention alone are not rotated where it says so; the converter always does.
    "granite-attention-nope": {
        "granite.rope.scaling.finetuned": (True, False),
        "granite.context_length": (16384, 1 << 20),
    },
    # No experts, but num_experts_per_tok is transformers' default; and intermediate_size is not the
    # width of the shared MLP. llama.cpp asserts the first, and checks the second.
    "granite-hybrid-unused": {
        "granitehybrid.expert_used_count": (2, 0),
        "granitehybrid.feed_forward_length": (160, 96),
    },
}
# The converter pads the tokens of hybrids to a multiple of 8, but not the embeddings, and llama.cpp
# refuses the file. Model: (theirs, ours).
PADDED = {"granite-hybrid-odd": (512, 509)}
NO_MTP = ["--no-mtp"]
MODELS = {
    "moe-latent": NO_MTP,
    "moe-f32-sharded": NO_MTP,
    "NVIDIA-Nemotron-3-Tiny-1K-BF16": NO_MTP,
    "dense-old": [*NO_MTP, "--plain-config"],
    **{f"llama-{kind}": [] for kind in ("tied", "rope3", "old", "sentencepiece")},
    **{f"qwen2-{kind}": [] for kind in ("tied", "yarn", "old")},
    **{name: [] for name in ("qwen3-tied", "qwen3-untied", "qwen3moe", "qwen3moe-merged")},
    **{f"granite-hybrid-{kind}": [] for kind in ("moe", "groups", "dense")},
    **{f"granite-attention-{kind}": [] for kind in ("moe", "dense")},
}
KINDS = {"UINT32": "u32", "INT32": "i32", "UINT64": "u64", "FLOAT32": "f32"}
KINDS |= {"STRING": "str", "BOOL": "bool"}


def _converted(model: Path, out: Path, *options: str) -> gguf.GGUFReader:
    """The model in its own precision, as ours is."""
    outtype = main_type(open_checkpoint(model).tensors).lower()
    options = ("--outtype", outtype, *options)
    run_torch("oracle_convert.py", LLAMA_CPP, model, out, "tekken", *options)
    return gguf.GGUFReader(out)


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_llama_cpps_converter(models: Path, tmp_path: Path, name: str) -> None:
    theirs = _converted(models / name, tmp_path / "theirs.gguf", *MODELS[name])
    ours = open_checkpoint(models / name)
    for key, value in NAMED.get(name, {}).items():
        assert ours.metadata.pop(key) == value
    _compare(ours, theirs)


def test_the_prediction_head_is_kept_as_the_converter_keeps_it(
    models: Path, tmp_path: Path
) -> None:
    name = "NVIDIA-Nemotron-3-Tiny-1K-BF16"
    theirs = _converted(models / name, tmp_path / "theirs.gguf")
    ours = open_checkpoint(models / name, keep_prediction=True)
    assert "blk.4.nextn.eh_proj.weight" in {t.name for t in theirs.tensors}
    _compare(ours, theirs)


def test_a_stored_copy_of_tied_embeddings_is_left_out_in_qwen3(
    models: Path, tmp_path: Path
) -> None:
    """The converter writes it: Qwen3 0.6B gets a quarter larger. llama.cpp needs it for nothing."""
    theirs = _converted(models / "qwen3-twice", tmp_path / "theirs.gguf")
    embedding, output = (
        next(t for t in theirs.tensors if t.name == name)
        for name in ("token_embd.weight", "output.weight")
    )
    np.testing.assert_array_equal(embedding.data, output.data)
    theirs.tensors.remove(output)
    _compare_tensors(open_checkpoint(models / "qwen3-twice"), theirs)


@pytest.mark.parametrize("name", DIFFERENT)
def test_keys_that_the_converter_gets_wrong(models: Path, tmp_path: Path, name: str) -> None:
    theirs = _converted(models / name, tmp_path / "theirs.gguf")
    ours = open_checkpoint(models / name)
    for key, (wrong, right) in DIFFERENT[name].items():
        assert theirs.fields[key].contents() == wrong
        assert ours.metadata[key].value == right
        ours.metadata[key] = MetaValue(ours.metadata[key].kind, wrong)
    _compare(ours, theirs)


@pytest.mark.parametrize("name", PADDED)
def test_tokens_are_as_many_as_embeddings(models: Path, tmp_path: Path, name: str) -> None:
    theirs = _converted(models / name, tmp_path / "theirs.gguf")
    ours = open_checkpoint(models / name)
    padded, rows = PADDED[name]
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        kind, values = ours.metadata[key].kind, theirs.fields[key].contents()
        assert len(values) == padded
        assert ours.metadata[key] == MetaValue(kind, tuple(values[:rows]))
        ours.metadata[key] = MetaValue(kind, tuple(values))
    _compare(ours, theirs)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model is not in this checkout")
def test_the_demo_model_is_equal_too(tmp_path: Path) -> None:
    theirs = _converted(DEMO, tmp_path / "theirs.gguf", *NO_MTP)
    ours = open_checkpoint(DEMO)
    _compare(ours, theirs)


def _compare(ours: CheckpointSource, theirs: gguf.GGUFReader) -> None:
    """Keys, then tensors."""
    expected: dict[str, MetaValue] = {}
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        contents: Any = field.contents()
        value = tuple(contents) if field.types[0] == gguf.GGUFValueType.ARRAY else contents
        expected[key] = MetaValue(KINDS[field.types[-1].name], value)
    for key, value in ONLY_OURS.items():
        expected.setdefault(key, MetaValue("bool", value))
    assert dict(sorted(ours.metadata.items())) == dict(sorted(expected.items()))
    _compare_tensors(ours, theirs)


def _compare_tensors(ours: CheckpointSource, theirs: gguf.GGUFReader) -> None:
    infos = {t.name: (t.shape, t.type_name) for t in ours.tensors}
    expected_infos = {
        t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type.name) for t in theirs.tensors
    }
    if PREDICTION_ROUTER in infos:
        shape, kind = expected_infos[PREDICTION_ROUTER]
        assert kind == "BF16", "the converter has been mended: take the row out of the table"
        expected_infos[PREDICTION_ROUTER] = (shape, "F32")
    assert infos == expected_infos
    for tensor in theirs.tensors:
        expected = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
        rows = next(t.rows for t in ours.tensors if t.name == tensor.name)
        values = ours.read_rows(tensor.name, 0, rows)
        if tensor.name.endswith(SSM_A):
            np.testing.assert_array_max_ulp(values, tensor.data.reshape(values.shape), maxulp=1)
            continue
        written = gguf.quants.quantize(values, tensor.tensor_type)
        np.testing.assert_array_equal(written.view(np.uint8).reshape(-1), expected, tensor.name)
        stored = ours.read_stored(tensor.name, 0, rows)
        if stored is not None and tensor.name != PREDICTION_ROUTER:
            np.testing.assert_array_equal(stored.reshape(-1), expected, tensor.name)
