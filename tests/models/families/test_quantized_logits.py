"""transformers reads a quantized artifact as llama.cpp does, in every type that is chosen from."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from checkpoints import LLAMA, llama_arrays, write_checkpoint
from models import llama_logits
from oracle import f32_gguf, mean_kld, needs_oracle, run_torch

from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import Model
from quantkit.quantize.candidates import is_quantizable
from quantkit.quantize.quantize import artifact_metadata, quantize

pytestmark = needs_oracle

SEQUENCES, TOKENS = 3, 64
WIDE = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_an_artifact_equal_transformers(tmp_path: Path, tied: bool) -> None:
    config = WIDE | {"tie_word_embeddings": tied}
    source = open_checkpoint(write_checkpoint(tmp_path / "m", config, llama_arrays(config)))
    types = {info.name: info.type_name for info in source.tensors}
    weights = [info for info in source.tensors if is_quantizable(info)]
    kinds = itertools.cycle(STOCK_CANDIDATES)
    types |= {info.name: kind for info, kind in zip(weights, kinds, strict=False)}
    assert set(STOCK_CANDIDATES) < set(types.values())
    random = np.random.default_rng(2)
    importance = {
        info.name: random.uniform(0.5, 2.0, (1, info.row_elements)).astype(np.float32)
        for info in weights
    }
    metadata = artifact_metadata(source.metadata, None)
    out = tmp_path / "artifact"
    out.mkdir()
    artifact = Model("m", metadata, source.tensors)
    (path,) = quantize(source, artifact, types, importance, out, out, workers=2)

    tokens = random.integers(5, 300, (SEQUENCES, TOKENS), dtype=np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    run_torch("oracle_logits.py", path, tmp_path / "tokens.npy", tmp_path / "logits.npy")
    theirs = np.load(tmp_path / "logits.npy")
    ours = llama_logits(f32_gguf(GGUFSource(path), tmp_path / "decoded"), tokens)
    whole = llama_logits(f32_gguf(source, tmp_path / "whole"), tokens)
    lost = mean_kld(whole, ours)
    assert mean_kld(theirs, ours) < 1e-3 * lost, "more than rounding lies between the two readers"
    assert lost > 1e-4, "a mixture with one-bit types that loses nothing was not read"
