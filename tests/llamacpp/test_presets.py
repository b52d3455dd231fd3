"""Stock presets: the types of the file that llama.cpp's own quantization really writes."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest

from quantkit.config.levels import PRESETS
from quantkit.core.errors import InputError
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import lay_out
from quantkit.llamacpp.presets import Fallback, ask_preset
from quantkit.models.choose import choose_model, open_source
from quantkit.models.model import Model
from quantkit.quantize.candidates import is_quantizable
from quantkit.quantize.encode import write_shards

SOURCE = open_source(choose_model("demo"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    layouts = lay_out("demo", SOURCE.metadata, SOURCE.tensors)
    (path,) = write_shards(folder, folder, layouts, SOURCE, {}, SILENT, workers=2)
    return path


def quantized(base: Path, out: Path, preset: str, *, has_imatrix: bool) -> dict[str, str]:
    """Types of the file that llama_model_quantize writes."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset}")
    params.nthread = 2
    entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    infos = [info for info in SOURCE.tensors if is_quantizable(info)]
    arrays = [np.ones(info.matrices * info.row_elements, np.float32) for info in infos]
    entries = (entry * (len(infos) + 1))(
        *(
            entry(info.name.encode(), array.ctypes.data_as(pointer), array.size)
            for info, array in zip(infos, arrays, strict=True)
        )
    )
    if has_imatrix:
        params.imatrix = entries
    assert llama_cpp.llama_model_quantize(str(base).encode(), str(out).encode(), params) == 0
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}


@pytest.mark.parametrize(
    ("preset", "has_imatrix"),
    [
        ("Q4_K_S", True),
        ("Q4_K_M", False),
        ("Q3_K_M", True),
        ("Q2_K", True),
        ("Q4_0", True),
        ("Q4_0", False),
        ("MXFP4_MOE", False),
    ],
)
def test_types_are_those_of_the_file_that_llama_cpp_writes(
    base: Path, tmp_path: Path, preset: str, has_imatrix: bool
) -> None:
    found = ask_preset(SOURCE, preset, has_imatrix=has_imatrix).types
    written = quantized(base, tmp_path / "theirs.gguf", preset, has_imatrix=has_imatrix)
    assert found == written
    assert len(set(written.values())) > 1


@pytest.mark.parametrize("preset", ["Q4_K_M", "Q3_K_S", "IQ4_XS", "Q6_K", "Q8_0"])
def test_fallbacks_are_what_rows_of_whole_blocks_would_have_got(preset: str) -> None:
    """The same model with rows of 512 where it has 288: there llama.cpp gives what it wants."""
    wider = [
        dataclasses.replace(info, shape=(*info.shape[:-1], 512))
        if info.row_elements % 256
        else info
        for info in SOURCE.tensors
    ]
    wanted = ask_preset(Model("wider", SOURCE.metadata, wider), preset, has_imatrix=True).types
    found = ask_preset(SOURCE, preset, has_imatrix=True)
    differing = {
        name: Fallback(wanted[name], kind)
        for name, kind in found.types.items()
        if kind != wanted[name]
    }
    assert found.fallbacks == differing
    assert bool(differing) == (preset != "Q8_0")
    assert found.preset == preset
    for name in found.fallbacks:
        assert "ffn_down" in name


def test_every_preset_can_be_asked_for() -> None:
    for preset in PRESETS:
        assert hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset}")
    types = ask_preset(SOURCE, "Q4_K_S", has_imatrix=True).types
    assert types["blk.1.ffn_down_exps.weight"] == "Q5_0"  # 288 columns: no K-quant fits


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="unknown preset 'Q4_K_XL'; known are Q8_0"):
        ask_preset(SOURCE, "Q4_K_XL", has_imatrix=True)
