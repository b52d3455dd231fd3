"""A build of a checkpoint that BF16 would round: what it measures, and makes artifacts from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_safetensors
from forked import printed
from loaded_model import LoadedModel
from small_recipes import write_recipe

from quantkit.core.paths import DEMO_MODEL
from quantkit.formats.logits_file import LogitsFile
from quantkit.formats.safetensors_files import SafetensorsFolder, as_f32
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.gguf_source import GGUFSource


@pytest.mark.slow
def test_an_f16_checkpoint_is_measured_with_its_weights_bit_for_bit(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(DEMO_MODEL, model, ignore=shutil.ignore_patterns("*.safetensors"))
    files, random = SafetensorsFolder(DEMO_MODEL), np.random.default_rng(1)
    arrays = {}
    for name, entry in files.entries.items():
        raw = files.file_of(name).read_raw(name, 0, entry.elements)
        values = as_f32(raw, entry.dtype).reshape(entry.shape)
        near = values * random.uniform(0.999, 1.001, entry.shape)  # more bits than BF16 has
        arrays[name] = near.astype(np.float16).astype(np.float32)
    write_safetensors(model / "model.safetensors", arrays, "F16")
    recipe = write_recipe(
        tmp_path / "tiny.yaml",
        measure={"candidates": ["Q8_0", "Q4_0"], "sample_rows": 16, "cost_tokens": 0},
        levels=[{"name": "Q4", "bits_per_weight": 4.7}],
    )
    printed("build", "--target", "4x3090", "--model", model, "--recipe", recipe, "--out", out)
    printed("verify", out, "--source", model)

    whole = tmp_path / "whole.gguf"
    printed("convert", "--model", model, "--out", whole)
    source, base = open_checkpoint(model), GGUFSource(whole)
    assert base.tensors == source.tensors
    assert {info.type_name for info in base.tensors} == {"F16", "F32"}
    assert base.metadata["general.file_type"].value == 1
    for info in base.tensors:
        made, meant = (of.read_rows(info.name, 0, info.rows) for of in (base, source))
        np.testing.assert_array_equal(made, meant)
    measured = LogitsFile(out / "base.logits")
    loaded = LoadedModel(whole, measured.header.bos)
    expected = loaded.logits_file(measured.tokens, measured.header)
    loaded.close()
    assert (out / "base.logits").read_bytes() == expected
