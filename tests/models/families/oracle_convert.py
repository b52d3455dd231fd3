"""Run with a Python that has torch: llama.cpp's own converter on one model.

usage: oracle_convert.py LLAMA_CPP MODEL OUT PRE [--plain-config] [converter's options]

Two things are set from outside. The converter knows a pre-tokenizer by a hash of tokens of a known
vocabulary, so a vocabulary trained here needs its name given (PRE). And transformers 5 fills every
config.json with expert settings, from which the converter takes dense models for mixtures:
--plain-config gives it the file as it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    root, model, out, pre, *options = sys.argv[1:]
    sys.path[1:1] = [root, f"{root}/gguf-py"]
    import conversion.base as base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    if "--plain-config" in options:
        options.remove("--plain-config")
        base.ModelBase.load_hparams = staticmethod(
            lambda dir_model, is_mistral_format: json.loads((dir_model / "config.json").read_text())
        )
    sys.argv = [str(Path(root, "convert_hf_to_gguf.py")), model, "--outfile", out, *options]
    import convert_hf_to_gguf

    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
