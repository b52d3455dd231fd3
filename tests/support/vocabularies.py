"""llama.cpp's tokenizer on the vocabulary that quantkit makes of a checkpoint."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp

from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.tensors import Metadata


@llama_cpp.llama_log_callback
def _SILENT(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    pass


class Encoder:
    """llama.cpp's tokenizer from a GGUF without tensors, which is written into `folder`."""

    def __init__(self, metadata: Metadata, folder: Path) -> None:
        (layout,) = lay_out("vocabulary", metadata, [])
        path = folder / layout.file_name
        path.write_bytes(layout.header)
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, path
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, add_special: bool) -> list[int]:
        raw = text.encode()
        capacity = 2 * len(raw) + 16
        found = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(
            self.vocab, raw, len(raw), found, capacity, add_special, True
        )
        assert count >= 0, text
        return list(found[:count])

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)
