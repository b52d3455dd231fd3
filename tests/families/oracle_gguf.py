"""Run with a Python that has torch and gguf: the logits of transformers on a quantized GGUF file.

usage: oracle_gguf.py FILE.gguf TOKENS.npy OUT.npy

transformers makes config and weights from the file alone, with gguf's own decoding of each type.
TOKENS holds ids (sequences × tokens); OUT gets F32 logits (sequences × tokens × vocabulary).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    path, tokens_path, out_path = map(Path, sys.argv[1:])
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    tokens = torch.from_numpy(np.load(tokens_path).astype(np.int64))
    with torch.no_grad():
        logits = [model(sequence[None], use_cache=False).logits[0] for sequence in tokens]
    np.save(out_path, torch.stack(logits).float().numpy())


if __name__ == "__main__":
    main()
