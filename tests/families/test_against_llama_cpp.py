"""Every tensor and every key against llama.cpp's own converter, on models of every kind.

    QUANTKIT_LLAMA_CPP=…/llama.cpp QUANTKIT_TORCH_PYTHON=…/python pytest -m slow tests/families

The Python needs torch, transformers, tokenizers and sentencepiece; the source tree of llama.cpp is
in the sdist of llama-cpp-python (vendor/llama.cpp).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import quantkit
from quantkit.families.checkpoint import CheckpointSource, open_checkpoint
from quantkit.values import MetaValue

LLAMA_CPP = os.environ.get("QUANTKIT_LLAMA_CPP", "")
TORCH_PYTHON = os.environ.get("QUANTKIT_TORCH_PYTHON", "")
HERE = Path(__file__).parent
DEMO = Path(quantkit.__file__).parent / "data" / "demo-model"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (LLAMA_CPP and TORCH_PYTHON),
        reason="set QUANTKIT_LLAMA_CPP to a source tree of llama.cpp and QUANTKIT_TORCH_PYTHON "
        "to a Python with torch, transformers and sentencepiece",
    ),
]

# What we write and the converter does not: see `tokenizer_metadata`. Only where it says nothing.
ONLY_OURS = {"tokenizer.ggml.add_bos_token": False}
NO_MTP = ["--no-mtp"]
MODELS = {
    "moe-latent": NO_MTP,
    "moe-f32-sharded": NO_MTP,
    "NVIDIA-Nemotron-3-Tiny-1K-BF16": NO_MTP,
    "dense-old": [*NO_MTP, "--plain-config"],
    "llama-tied": [],
    "llama-rope3": [],
    "llama-old": [],
    "llama-sentencepiece": [],
}
KINDS = {
    "UINT32": "u32",
    "INT32": "i32",
    "FLOAT32": "f32",
    "STRING": "str",
    "BOOL": "bool",
    "UINT64": "u64",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle")
    _run(HERE / "oracle_models.py", folder)
    return folder


def _run(*arguments: object) -> None:
    done = subprocess.run(
        [TORCH_PYTHON, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _converted(model: Path, out: Path, *options: str) -> gguf.GGUFReader:
    _run(HERE / "oracle_convert.py", LLAMA_CPP, model, out, "tekken", *options)
    return gguf.GGUFReader(out)


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_llama_cpps_converter(models: Path, tmp_path: Path, name: str) -> None:
    theirs = _converted(models / name, tmp_path / "theirs.gguf", *MODELS[name])
    ours = open_checkpoint(models / name)
    _compare_keys(ours, theirs)
    _compare_tensors(ours, theirs)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model is not in this checkout")
def test_the_demo_model_is_equal_too(tmp_path: Path) -> None:
    theirs = _converted(DEMO, tmp_path / "theirs.gguf", *NO_MTP)
    ours = open_checkpoint(DEMO)
    _compare_keys(ours, theirs)
    _compare_tensors(ours, theirs)


def _compare_keys(ours: CheckpointSource, theirs: gguf.GGUFReader) -> None:
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


def _compare_tensors(ours: CheckpointSource, theirs: gguf.GGUFReader) -> None:
    infos = {t.name: (t.shape, t.type_name) for t in ours.tensors}
    assert infos == {
        t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type.name) for t in theirs.tensors
    }
    for tensor in theirs.tensors:
        expected = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
        rows = next(t.rows for t in ours.tensors if t.name == tensor.name)
        values = ours.read_rows(tensor.name, 0, rows)
        if tensor.name.endswith(".ssm_a"):  # Theirs is torch's exponential: see `_minus_exp`.
            np.testing.assert_array_max_ulp(values, tensor.data.reshape(values.shape), maxulp=1)
            continue
        written = gguf.quants.quantize(values, tensor.tensor_type)
        np.testing.assert_array_equal(written.view(np.uint8).reshape(-1), expected, tensor.name)
        stored = ours.read_stored(tensor.name)
        if stored is not None:
            np.testing.assert_array_equal(stored, expected, tensor.name)
