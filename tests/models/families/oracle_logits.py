"""Run with a Python that has torch: the logits of transformers on given tokens.

usage: oracle_logits.py MODEL TOKENS.npy OUT.npy

MODEL is a checkpoint's folder, or a GGUF file, of which transformers makes config and weights with
gguf's own decoding of each type.
TOKENS holds ids (sequences × tokens); OUT gets F32 logits (sequences × tokens × vocabulary). The
model computes in F32, whatever the dtype of its checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    model_path, tokens_path, out_path = map(Path, sys.argv[1:])
    folder, file = model_path, {}
    if model_path.suffix == ".gguf":
        folder, file = model_path.parent, {"gguf_file": model_path.name}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **file
    )
    model.eval()
    tokens = torch.from_numpy(np.load(tokens_path).astype(np.int64))
    with torch.no_grad():
        logits = [model(sequence[None], use_cache=False).logits[0] for sequence in tokens]
    np.save(out_path, torch.stack(logits).float().numpy())


if __name__ == "__main__":
    main()
