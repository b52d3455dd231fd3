"""Converting to each base type: tensors against gguf's own casts of the checkpoint's values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import (
    NEMOTRON,
    Arrays,
    nemotron_arrays,
    write_checkpoint,
    write_nemotron,
)
from granite_checkpoints import write_granite
from models import llama_arrays, llama_metadata, write_gguf
from qwen_checkpoints import QWEN3_MOE, write_qwen
from watched import Killed, Recorder

from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.formats.tensors import MetaValue, TensorSource
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize import encode
from quantkit.quantize.quantize import BaseType, base_tensors, convert

UP = "blk.0.ffn_up.weight"
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
HELD_BITS = {"BF16": 0xFFFF0000, "F16": 0xFFFFE000, "F32": 0xFFFFFFFF}


def precise_arrays(dtype: str) -> Arrays:
    """Weights that use all the bits of `dtype`, from 0.1 to 2: no subnormals in F16."""
    random, arrays = np.random.default_rng(5), {}
    for name, values in nemotron_arrays(NEMOTRON).items():
        wide = random.uniform(0.1, 2, values.shape).astype(np.float32)
        bits = wide.view(np.uint32) & np.uint32(HELD_BITS[dtype])
        arrays[name] = bits.view(np.float32) * random.choice(np.float32([-1, 1]), values.shape)
    return arrays


def converted(
    source: TensorSource, out: Path, base_type: BaseType, progress: Recorder | None = None
) -> GGUFSource:
    work = out.with_suffix(".work")
    work.mkdir(exist_ok=True)
    return GGUFSource(convert(source, base_type, out, work, 1, progress or Recorder()))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_type_has_the_bytes_of_gguf_s_own_casts(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "m", NEMOTRON, precise_arrays(dtype), dtype)
    source = open_checkpoint(folder)
    matrices = {info.name for info in source.tensors if info.type_name == dtype}
    if dtype == "F32":
        bf16 = open_checkpoint(write_nemotron(tmp_path / "bf16"))
        matrices = {info.name for info in bf16.tensors if info.type_name == "BF16"}
    for base_type, number in {**FILE_TYPES, "source": FILE_TYPES[dtype]}.items():
        made = converted(source, tmp_path / f"{base_type}.gguf", base_type)
        assert made.metadata["general.file_type"] == MetaValue("u32", number)
        for info in made.tensors:
            kind = dtype if base_type == "source" else base_type
            if kind == "Q8_0" and info.row_elements % 32:
                kind = dtype  # keeps its own
            assert info.type_name == (kind if info.name in matrices else "F32")
            values = source.read_rows(info.name, 0, info.rows)
            expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[info.type_name])
            stored = made.read_stored(info.name, 0, info.rows)
            np.testing.assert_array_equal(stored, expected.view(np.uint8).reshape(stored.shape))


@pytest.mark.parametrize(
    "write", [write_nemotron, write_granite, lambda path, dtype: write_qwen(path, QWEN3_MOE, dtype)]
)
def test_what_stays_f32_does_not_depend_on_the_checkpoint_s_dtype(
    tmp_path: Path, write: Callable[[Path, str], Path]
) -> None:
    expected = open_checkpoint(write(tmp_path / "BF16", "BF16")).tensors
    for dtype in ("F16", "F32"):
        found = open_checkpoint(write(tmp_path / dtype, dtype)).tensors
        assert base_tensors(found, "BF16") == list(expected)


def test_a_bf16_checkpoint_gives_one_file_by_either_name(tmp_path: Path) -> None:
    source = open_checkpoint(write_nemotron(tmp_path / "m"))
    hashes = set()
    for base_type in ("source", "BF16"):
        (tmp_path / base_type).mkdir()
        made = converted(source, tmp_path / base_type / "m.gguf", base_type)
        hashes.add(file_sha256(made.paths[0]))
    assert len(hashes) == 1


def test_a_gguf_in_f32_is_converted_as_its_checkpoint_is(tmp_path: Path) -> None:
    source = open_checkpoint(
        write_checkpoint(tmp_path / "m", NEMOTRON, precise_arrays("F16"), "F16")
    )
    wide = converted(source, tmp_path / "f32.gguf", "F32")
    for base_type in ("F16", "Q8_0"):
        once = converted(source, tmp_path / f"once-{base_type}.gguf", base_type)
        twice = converted(wide, tmp_path / f"twice-{base_type}.gguf", base_type)
        fitting = [info for info in once.tensors if base_type == "F16" or info.type_name != "F16"]
        assert len(fitting) > 20
        for info in fitting:
            assert info in twice.tensors
            one, two = (made.read_stored(info.name, 0, info.rows) for made in (once, twice))
            np.testing.assert_array_equal(one, two)
        assert once.metadata == twice.metadata


def test_a_quantized_gguf_keeps_its_types_and_their_name(tmp_path: Path) -> None:
    types = {name: "Q8_0" for name, array in llama_arrays().items() if array.ndim == 2}
    metadata = llama_metadata() | {"general.file_type": MetaValue("u32", 7)}
    source = GGUFSource(write_gguf(tmp_path / "q.gguf", metadata, llama_arrays(), types))
    for base_type in ("source", "BF16"):
        made = converted(source, tmp_path / f"{base_type}.gguf", base_type)
        assert made.tensors == source.tensors
        assert made.metadata["general.file_type"].value == 7


def test_rounded_values_are_counted_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SYNC_BYTES", 0)
    monkeypatch.setattr(encode, "ROWS_BYTES", 4096)
    arrays = {
        name: np.ones_like(array) if array.ndim == 2 else array
        for name, array in llama_arrays().items()
    }
    arrays[UP][:3, 5] = 1 + 2**-10  # F16 holds that, BF16 does not
    arrays["blk.0.attn_q.weight"][7, 0] = 1 + 2**-20  # neither does
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), arrays))
    counts = {"BF16": (2, 4), "F16": (1, 1)}
    for kind, (tensors, values) in counts.items():
        told = Recorder()
        converted(source, tmp_path / f"{kind}.gguf", kind, told)
        (note,) = told.notes
        assert str(tensors) in note.split()
        assert str(values) in note.split()
    killed = Recorder(kill_after=source_blocks(source) - 1)
    with pytest.raises(Killed):
        converted(source, tmp_path / "again.gguf", "BF16", killed)
    assert not killed.notes
    resumed = Recorder()
    converted(source, tmp_path / "again.gguf", "BF16", resumed)
    assert resumed.starts[0][0] > 0
    (note,) = resumed.notes
    assert {"2", "4"} <= set(note.split())  # those of the killed run too
    for base_type in ("F32", "source", "Q8_0"):
        exact = Recorder()
        converted(source, tmp_path / f"{base_type}.gguf", base_type, exact)
        assert not exact.notes


def source_blocks(source: TensorSource) -> int:
    """Blocks that a conversion of `source` encodes or copies."""
    return sum(1 for info in source.tensors for _ in encode.row_blocks(info))


@pytest.mark.parametrize(
    ("kind", "value", "limit"), [("F16", 65520.0, "65504"), ("BF16", -3.4e38, "3.38953e+38")]
)
def test_a_value_beyond_the_type_is_named_with_the_limit(
    tmp_path: Path, kind: str, value: float, limit: str
) -> None:
    arrays = llama_arrays()
    arrays[UP][300, 7] = 65519 if kind == "F16" else 3.3895e38
    fits = GGUFSource(write_gguf(tmp_path / "fits.gguf", llama_metadata(), arrays))
    assert np.isfinite(converted(fits, tmp_path / "m.gguf", kind).read_rows(UP, 300, 301)).all()
    arrays[UP][300, 7] = value
    source = GGUFSource(write_gguf(tmp_path / "s.gguf", llama_metadata(), arrays))
    with pytest.raises(InputError) as caught:
        converted(source, tmp_path / "n.gguf", kind)
    for said in (UP, f"{value:.6g}", kind, limit):
        assert said in str(caught.value)
    assert not (tmp_path / "n.gguf").exists()
