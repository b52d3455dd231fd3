"""GGUF files: gguf's own reader and writer as oracle, and hostile bytes."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CPU, llama_arrays, llama_metadata, write_gguf, write_llama

from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import SPLIT_KEYS, GGUFFile, shard_paths
from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.llamacpp.llama import Model
from quantkit.models.gguf_source import GGUFSource


def test_reads_what_gguf_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("text", "α\nb")
    writer.add_array("words", ["a", "", "ü"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_float32("f", 0.25)
    writer.add_bool("b", True)
    writer.add_int64("i", -5)
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("t.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert file.metadata["text"] == MetaValue("str", "α\nb")
    assert file.metadata["words"].value == ("a", "", "ü")
    assert file.metadata["numbers"].value == (1, 2, 3)
    assert file.metadata["f"].value == 0.25
    assert file.metadata["b"].value is True
    assert file.metadata["i"].value == -5
    source = GGUFSource(path)
    assert source.tensors == (TensorInfo("t.weight", (2, 32), "F32"),)
    assert np.array_equal(source.read_rows("t.weight", 1, 2), values[1:])


def test_gguf_reads_what_we_write(tmp_path: Path) -> None:
    arrays = llama_arrays()
    types = {"blk.0.attn_q.weight": "Q4_K", "output.weight": "Q8_0", "token_embd.weight": "BF16"}
    metadata = llama_metadata() | {
        "list": MetaValue("str", ("x", "y")),
        "floats": MetaValue("f32", (0.5, 1.5)),
        "flag": MetaValue("bool", False),
    }
    reader = gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", metadata, arrays, types))
    for key, value in metadata.items():
        theirs = reader.fields[key].contents()
        assert theirs == (
            list(value.value) if isinstance(value.value, tuple) else pytest.approx(value.value)
        )
    ours = GGUFSource(tmp_path / "m.gguf")
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == types.get(tensor.name, "F32")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        rows = ours.read_rows(tensor.name, 0, arrays[tensor.name].size // tensor.shape[0])
        assert np.array_equal(rows.reshape(values.shape), values)


def test_shards_are_named_and_numbered_as_llama_cpp_does(tmp_path: Path) -> None:
    infos = [TensorInfo(f"t{i}.weight", (4, 32), "F32") for i in range(5)]
    layouts = lay_out("m", llama_metadata(), infos, max_shard_bytes=1024)
    assert [x.file_name for x in layouts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for layout in layouts:
        with open_shard(tmp_path / layout.file_name, layout) as writer:
            for info in layout.tensors:
                writer.write(info.name, np.full(512, int(info.name[1]), np.uint8))
    source = GGUFSource(tmp_path / layouts[0].file_name)
    assert [info.name for info in source.tensors] == [info.name for info in infos]
    assert {k: v.kind for k, v in source.metadata.items()} == {
        k: v.kind for k, v in llama_metadata().items()
    }
    last = GGUFFile(tmp_path / layouts[2].file_name)
    assert {k: v.value for k, v in last.metadata.items()} == {
        "split.no": 2,
        "split.count": 3,
        "split.tensors.count": 5,
    }
    stored = source.read_stored("t4.weight", 0, 1)
    assert set(stored.flatten()) == {4}
    (tmp_path / layouts[1].file_name).unlink()
    with pytest.raises(InputError, match="m-00002-of-00003"):
        shard_paths(tmp_path / layouts[0].file_name)
    with pytest.raises(InputError, match="00001"):
        shard_paths(tmp_path / layouts[2].file_name)


def split(no: int, count: int, tensors: int) -> Metadata:
    """What a shard says of itself."""
    values = zip(SPLIT_KEYS, (no, count, tensors), strict=True)
    return {key: MetaValue("i32" if "tensors" in key else "u16", v) for key, v in values}


Files = dict[str, tuple[Metadata, slice]]
"""Name → what the file says of itself, and which of the 12 tensors it has."""
A, B = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
HEAD, TAIL, ALL = slice(7), slice(7, 12), slice(12)
WHOLE: dict[str, Files] = {
    "one file": {"m.gguf": ({}, ALL)},
    "two shards": {A: (split(0, 2, 12), HEAD), B: (split(1, 2, 12), TAIL)},
    "merged by llama-gguf-split": {"m.gguf": (split(0, 0, 12), ALL)},
    "one shard of one": {"m-00001-of-00001.gguf": (split(0, 1, 12), ALL)},
    "one shard under another name": {"m.gguf": (split(0, 1, 12), ALL)},
}
PARTS: dict[str, Files] = {
    "the first renamed": {"m.gguf": (split(0, 2, 12), HEAD)},
    "the second renamed": {"m.gguf": (split(1, 2, 12), TAIL)},
    "the second is the first": {A: (split(0, 2, 12), HEAD), B: (split(0, 2, 12), TAIL)},
    "swapped": {A: (split(1, 2, 12), TAIL), B: (split(0, 2, 12), HEAD)},
    "of three": {A: (split(0, 3, 12), HEAD), B: (split(1, 3, 12), TAIL)},
    "too few tensors": {A: (split(0, 2, 12), HEAD), B: (split(1, 2, 12), slice(8, 12))},
    "a tensor twice": {A: (split(0, 2, 13), HEAD), B: (split(1, 2, 13), slice(6, 12))},
}
SAYS_NOTHING: dict[str, Files] = {  # of these llama.cpp reads the first file only
    "shards by name alone": {A: ({}, HEAD), B: ({}, TAIL)},
    "one file named as a shard": {A: ({}, ALL), B: (split(1, 2, 12), TAIL)},
    "tensors removed": {"m.gguf": (split(0, 0, 12), HEAD)},
    "a count that is none": {"m.gguf": ({"split.count": MetaValue("str", "2")}, ALL)},
    "a count of another type": {"m.gguf": ({"split.count": MetaValue("f32", 1.0)}, ALL)},
    "a count that is a truth": {"m.gguf": ({"split.count": MetaValue("bool", True)}, ALL)},
}


def written(folder: Path, files: Files) -> Path:
    """The first of the files."""
    arrays = list(llama_arrays().items())
    for number, (file, (says, part)) in enumerate(files.items()):
        keys = says if number else llama_metadata() | says
        write_gguf(folder / "x.gguf", keys, dict(arrays[part])).rename(folder / file)
    return folder / next(iter(files))


@pytest.mark.parametrize("kind", [*WHOLE, *PARTS])
def test_a_model_is_whole_where_llama_cpp_says_so(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, (WHOLE | PARTS)[kind])
    refused = nullcontext() if kind in WHOLE else pytest.raises(InputError)
    with refused:
        assert len(GGUFSource(path).tensors) == 12
    with refused:
        Model(path, CPU, weightless=True).close()


@pytest.mark.parametrize("kind", SAYS_NOTHING)
def test_names_and_metadata_that_disagree(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        GGUFSource(written(tmp_path, SAYS_NOTHING[kind]))


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00000-of-00002.gguf"])
def test_numbers_that_no_shard_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        shard_paths(write_llama(tmp_path / "x.gguf").rename(tmp_path / name))


@pytest.mark.parametrize("size", [1024, 1 << 40])
def test_no_file_is_laid_out_under_the_name_of_a_shard(size: int) -> None:
    infos = [TensorInfo(f"t{i}.weight", (4, 32), "F32") for i in range(5)]
    with pytest.raises(InputError, match="m-00001-of-00002"):
        lay_out("m-00001-of-00002", llama_metadata(), infos, max_shard_bytes=size)


def crafted(*, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, keys: bytes = b"",
            n_keys: int = 0, table: bytes = b"") -> bytes:  # fmt: skip
    return magic + struct.pack("<IQQ", version, tensors, n_keys) + keys + table


def name(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


HUGE = (1 << 63) - 1
ONE = struct.pack("<IQIQ", 1, 1, 0, 0) + b"\0" * 64  # the rest of a table of one F32, and data
HOSTILE = {
    "empty": b"",
    "magic": crafted(magic=b"GGML"),
    "version": crafted(version=7),
    "big endian": crafted(version=3 << 24),
    "tensor count": crafted(tensors=HUGE),
    "key count": crafted(n_keys=HUGE),
    "string length": crafted(n_keys=1, keys=struct.pack("<Q", HUGE) + b"x" * 32),
    "array length": crafted(n_keys=1, keys=name("k") + struct.pack("<IIQ", 9, 4, HUGE)),
    "string array": crafted(n_keys=1, keys=name("k") + struct.pack("<IIQ", 9, 8, 1 << 40)),
    "value type": crafted(n_keys=1, keys=name("k") + struct.pack("<I", 77) + b"\0" * 8),
    "nested array": crafted(n_keys=1, keys=name("k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 16),
    "alignment": crafted(n_keys=1, keys=name("general.alignment") + struct.pack("<II", 4, 3)),
    "dimensions": crafted(tensors=1, table=name("t") + struct.pack("<I", 9) + b"\0" * 64),
    "tensor type": crafted(tensors=1, table=name("t") + struct.pack("<IQIQ", 1, 32, 200, 0)),
    "blocks": crafted(tensors=1, table=name("t") + struct.pack("<IQIQ", 1, 33, 8, 0)),
    "overflow": crafted(tensors=1, table=name("t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)),
    "no data": crafted(tensors=1, table=name("t") + struct.pack("<IQIQ", 1, 4096, 0, 0)),
    "key not UTF-8": crafted(n_keys=1, keys=struct.pack("<Q", 1) + b"\xff" + name("v")),
    "name not UTF-8": crafted(tensors=1, table=struct.pack("<Q", 1) + b"\xff" + ONE),
    "name of two lines": crafted(tensors=1, table=name("a\nb") + ONE),
    "offset": crafted(tensors=1, table=name("t") + struct.pack("<IQIQ", 1, 1, 0, HUGE)),
}  # fmt: skip


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        GGUFFile(tmp_path)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_get_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "h.gguf"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(InputError, match=r"h\.gguf") as refused:
        GGUFFile(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("key", ["general.architecture", "tokenizer.chat_template"])
def test_a_text_that_is_read_must_be_one(key: str, tmp_path: Path) -> None:
    """Other values are copied with the bytes that they have."""
    odd = MetaValue("str", "caf\udce9")
    path = write_gguf(tmp_path / "m.gguf", llama_metadata() | {"general.author": odd}, {})
    assert GGUFSource(path).metadata["general.author"] == odd
    path = write_gguf(tmp_path / "n.gguf", llama_metadata() | {key: odd}, {})
    with pytest.raises(InputError, match=key):
        GGUFSource(path)


@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000), value=st.integers(0, 255))
@settings(max_examples=150)
def test_cut_and_flipped_files_never_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("f")
    good = write_llama(folder / "good.gguf").read_bytes()
    bad = bytearray(good[:-cut] if cut % 2 else good)
    bad[flip % len(bad)] = value
    (folder / "bad.gguf").write_bytes(bytes(bad))
    try:
        GGUFSource(folder / "bad.gguf")
    except InputError:
        pass  # any other exception is a bug
