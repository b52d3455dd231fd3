"""What quantkit publishes, read by three readers of GGUF that share no code.

They are quantkit's own, the Python package gguf, and the one that the Hugging Face Hub itself uses,
the npm package @huggingface/gguf, which reads over HTTP with range requests. All three must find
the same keys in the same order with the same types and values, and the same tensors with the same
dimensions, types and places. These differences of representation are removed, and no others:

- Types of values are called as ggml calls them; quantkit has `u32` and `str` for UINT32 and STRING.
- Floats are compared as the bits of a binary64, which has every binary32, and integers of 64 bits
  as decimal strings, because read_gguf.mjs prints JSON.
- Dimensions are in the file's order, innermost first; quantkit has them as numpy has.
- Offsets count from the file's first byte; @huggingface/gguf counts from the tensor data.
- The package gguf forgets the type of an array without items, so there it is not compared.
- Version and counts are no keys; quantkit does not keep them, so two readers are compared.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flagship
import gguf
import make_shape
import numpy as np
import pytest
from demo_artifacts import write_demo
from finished_builds import copied, divide
from forked import quantkit
from loopback_hub import GOOD_TOKEN, LoopbackHub, hub

from quantkit.config.levels import PRESETS
from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_writer import lay_out, single_file_layout, write_shape
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, write_imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaScalar, MetaValue, TensorInfo, TensorSource
from quantkit.models.choose import artifact_name, choose_model, open_source
from quantkit.models.model import Model
from quantkit.quantize.encode import write_shards
from quantkit.quantize.quantize import artifact_metadata, convert, quantize

NodeRun = Callable[..., Any]
"""A script of this folder and its arguments → the JSON that it prints."""
REPOSITORY = "someone/demo-GGUF"
FETCHED_BYTES = 2_000_000
"""What @huggingface/gguf asks for at a time; its HTTP_CHUNK_SIZE."""
SLOW_TABLES = ("IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
"""ggml takes two to fifteen seconds to make their tables; a file of all types has them below."""
VALUE_TYPES: dict[str, str] = {
    "u8": "UINT8", "i8": "INT8", "u16": "UINT16", "i16": "INT16", "u32": "UINT32", "i32": "INT32",
    "u64": "UINT64", "i64": "INT64", "f32": "FLOAT32", "f64": "FLOAT64", "bool": "BOOL",
    "str": "STRING",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A row of the tensor table; dimensions innermost first, offset from the file's first byte."""

    name: str
    dimensions: tuple[int, ...]
    type_name: str
    offset: int


@dataclass(frozen=True)
class Key:
    """A key, its type ("UINT32", "ARRAY of STRING") and its value as read_gguf.mjs prints it."""

    name: str
    type_name: str
    value: object


@dataclass(frozen=True)
class Header:
    keys: list[Key]
    tensors: list[Tensor]


def as_printed(value: Any, type_name: str) -> object:  # noqa: ANN401 - of three readers
    if isinstance(value, tuple | list):
        return [as_printed(item, type_name) for item in value]
    if type_name in ("FLOAT32", "FLOAT64"):
        return struct.pack(">d", value).hex()
    return str(value) if type_name in ("UINT64", "INT64") else value


def by_quantkit(path: Path) -> Header:
    file = GGUFFile(path)
    keys = []
    for name, value in file.metadata.items():
        kind = VALUE_TYPES[value.kind]
        shown = f"ARRAY of {kind}" if isinstance(value.value, tuple) else kind
        keys.append(Key(name, shown, as_printed(value.value, kind)))
    tensors = [
        Tensor(at.info.name, tuple(reversed(at.info.shape)), at.info.type_name, at.offset)
        for at in file.stored.values()
    ]
    return Header(keys, tensors)


def by_gguf(path: Path) -> tuple[Header, dict[str, int]]:
    """The header, and its version and counts."""
    reader = gguf.GGUFReader(path)
    keys, header = [], {}
    for name, field in reader.fields.items():
        first, *inner = (kind.name for kind in field.types)
        kind = inner[0] if inner else first
        value = as_printed(field.contents(), kind)
        if name.startswith("GGUF."):
            header[name.removeprefix("GGUF.")] = int(field.contents())
        elif first == "ARRAY":
            keys.append(Key(name, f"ARRAY of {kind if inner else '?'}", value))
        else:
            keys.append(Key(name, kind, value))
    tensors = [
        Tensor(t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.data_offset))
        for t in reader.tensors
    ]
    return Header(keys, tensors), header


def by_the_hub(read: dict[str, Any]) -> tuple[Header, dict[str, int]]:
    """The same, of what read_gguf.mjs printed."""
    assert read["littleEndian"] is True
    keys = [Key(entry["key"], entry["type"], entry["value"]) for entry in read["metadata"]]
    tensors = []
    for tensor in read["tensors"]:
        assert tensor["type"], f"the Hub does not know type {tensor['typeId']} of {tensor['name']}"
        offset = int(read["tensorDataOffset"]) + int(tensor["offset"])
        shape = tuple(map(int, tensor["shape"]))
        tensors.append(Tensor(tensor["name"], shape, tensor["type"], offset))
    header = {name: int(value["value"]) for name, value in read["header"].items()}
    return Header(keys, tensors), header


def assert_the_same(path: Path, read: dict[str, Any]) -> None:
    """`path` to quantkit and to gguf is what the Hub's reader `read`."""
    assert read["url"].endswith(f"/{path.name}")
    ours, (theirs, counts), (hubs, hub_counts) = by_quantkit(path), by_gguf(path), by_the_hub(read)
    assert hub_counts == counts
    assert counts["version"] == 3
    assert counts["tensor_count"] == len(ours.tensors) > 0
    assert counts["kv_count"] == len(ours.keys) > 0
    for mine, other, hub_key in zip(ours.keys, theirs.keys, hubs.keys, strict=True):
        assert hub_key == mine
        if mine.value == []:
            mine = Key(mine.name, "ARRAY of ?", mine.value)
        assert other == mine
    assert ours.tensors == theirs.tensors == hubs.tensors


def read_over_http(
    node: NodeRun, folder: Path, *names: str
) -> tuple[list[dict[str, Any]], LoopbackHub]:
    """What the Hub's reader finds in files of `folder`, and the hub that they came from."""
    with hub({REPOSITORY: folder}) as served:
        urls = [f"{served.address}/{REPOSITORY}/resolve/main/{name}" for name in names]
        found = node("read_gguf.mjs", *urls)
        while served.under_way:  # the last bytes may have come before they were counted
            time.sleep(0.01)
    return found, served


def ranges(served: LoopbackHub, name: str) -> list[tuple[int, int]]:
    """Start and length of each answer with bytes of that file."""
    return [(answer.start, answer.sent_bytes) for answer in served.served if answer.name == name]


def importance_matrix(source: TensorSource) -> Imatrix:
    """One that might have been collected: random, and experts that saw no token."""
    random = np.random.default_rng(1)
    entries = {}
    for info in source.tensors:
        if info.type_name == "BF16":
            matrices = info.shape[0] if len(info.shape) == 3 else 1
            sums = random.uniform(0.1, 9, (matrices, info.row_elements)).astype(np.float32)
            entries[info.name] = ImatrixEntry(sums, np.arange(matrices, dtype=np.float32)[::-1])
    return Imatrix(entries, chunk_tokens=512, chunks=3, datasets=("calibration/ünïted.txt",))


def mixed_types(source: TensorSource) -> dict[str, str]:
    """Tensor → type: every type that quantizing is quick with."""
    kinds = [kind for kind in ("BF16", "F16", *STOCK_CANDIDATES) if kind not in SLOW_TABLES]
    used = dict.fromkeys(kinds, 0)
    types = {info.name: info.type_name for info in source.tensors}
    for info in source.tensors:
        if info.type_name == "BF16":
            fitting = [kind for kind in kinds if BY_NAME[kind].fits_row(info.row_elements)]
            types[info.name] = min(fitting, key=lambda kind: used[kind])
            used[types[info.name]] += 1
    assert all(used.values()), used
    return types


@pytest.fixture(scope="module")
def artifacts(node: NodeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the demo model as quantkit's stages write them.

    It asks for `node` so that none is made for tests that are skipped.
    """
    folder = tmp_path_factory.mktemp("artifacts")
    source = open_source(choose_model("demo"))
    imatrix = importance_matrix(source)
    write_imatrix(folder / "quantkit-demo-imatrix.gguf", imatrix)
    importance = imatrix.importance()
    types = mixed_types(source)
    for preset, stem in ((None, "quantkit-demo-4.5bpw"), ("Q4_K_M", "quantkit-demo-Q4_K_M")):
        metadata = artifact_metadata(source.metadata, imatrix, "imatrix.gguf", preset)
        artifact = Model(stem, metadata, source.tensors)
        quantize(source, artifact, types, importance, folder, folder, workers=1)
    infos = [info.with_type(types[info.name]) for info in source.tensors]
    layouts = lay_out("quantkit-demo-Q4", metadata, infos, max_shard_bytes=1_500_000)
    (folder / "Q4").mkdir()
    write_shards(folder / "Q4", folder, layouts, source, importance, SILENT, workers=1)
    convert(source, "BF16", folder / "base.gguf", folder, workers=1)
    write_demo(folder / "quantkit-demo-F32.gguf", "F32")
    return folder


SINGLE_FILES = (
    "quantkit-demo-4.5bpw.gguf",
    "quantkit-demo-Q4_K_M.gguf",
    "quantkit-demo-imatrix.gguf",
    "quantkit-demo-F32.gguf",
    "base.gguf",
)


def test_three_readers_find_the_same_in_one_file(node: NodeRun, artifacts: Path) -> None:
    found, served = read_over_http(node, artifacts, *SINGLE_FILES)
    for name, read in zip(SINGLE_FILES, found, strict=True):
        path = artifacts / name
        (file,) = read["files"]
        assert_the_same(path, file)
        elements = sum(at.info.elements for at in GGUFFile(path).stored.values())
        assert read["parameterCount"] == elements
        # headers of less than a piece, so no more of the file is asked for, however large it is
        assert ranges(served, name) == [(0, min(path.stat().st_size, FETCHED_BYTES))]
    largest = max(artifacts.glob("*.gguf"), key=lambda path: path.stat().st_size)
    assert largest.stat().st_size > 12 * served.sent_bytes(largest.name)


def test_three_readers_find_the_same_in_a_published_release(
    node: NodeRun, finished_build: Path, tmp_path: Path
) -> None:
    own = copied(finished_build, tmp_path / "own")
    divide(own, "Q4")
    with hub({}, storage=tmp_path / "hub") as served:
        env = dict(os.environ) | {
            "HF_ENDPOINT": served.address, "HF_TOKEN": GOOD_TOKEN, "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        done = quantkit("publish", own, "--to", "someone", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        there = served.commit("someone/quantkit-demo-GGUF")
        assert there is not None
        names = [name for name in there.names() if name.endswith(".gguf")]
        firsts = [name for name in names if "-00002-of-" not in name]
        address = f"{served.address}/someone/quantkit-demo-GGUF/resolve/main"
        found = node("read_gguf.mjs", *(f"{address}/{name}" for name in firsts))
    read = {file["url"].partition("/main/")[2]: file for one in found for file in one["files"]}
    assert read.keys() == set(names) >= {"quantkit-demo-Q8.gguf", "quantkit-demo-imatrix.gguf"}
    for name, file in read.items():
        assert_the_same(there.folder / name, file)


def test_three_readers_find_the_same_in_shards(node: NodeRun, artifacts: Path) -> None:
    paths = sorted((artifacts / "Q4").iterdir())
    assert len(paths) > 2
    (read,), _ = read_over_http(node, artifacts, f"Q4/{paths[0].name}")
    for path, file in zip(paths, read["files"], strict=True):
        assert_the_same(path, file)
    source = open_source(choose_model("demo"))
    names = [tensor["name"] for file in read["files"] for tensor in file["tensors"]]
    assert names == [info.name for info in source.tensors]
    assert read["parameterCount"] == sum(info.elements for info in source.tensors)


def test_the_flagships_shards_are_read_without_their_weights(node: NodeRun, tmp_path: Path) -> None:
    """Its header with 131,072 tokens is longer than the piece that the Hub's reader asks for."""
    metadata = make_shape.gguf_metadata(flagship.CONFIG, "Flagship-120B")
    tensors = make_shape.with_types(flagship.tensors(), "Q4_K")
    layouts = lay_out("Flagship-120B-Q4_K_M", metadata, tensors)
    paths = [write_shape(tmp_path, layout) for layout in layouts]
    assert len(paths) == 2
    assert sum(path.stat().st_size for path in paths) > 60e9
    (read,), served = read_over_http(node, tmp_path, paths[0].name)
    for path, file in zip(paths, read["files"], strict=True):
        assert_the_same(path, file)
    assert read["parameterCount"] == sum(info.elements for info in tensors)
    first = [(0, FETCHED_BYTES), (FETCHED_BYTES, FETCHED_BYTES)]
    assert ranges(served, paths[0].name) == first
    assert ranges(served, paths[1].name) == [(0, FETCHED_BYTES)]


def every_kind() -> Metadata:
    """Values of each kind at their limits, alone, in an array and in an array without items."""
    limits: dict[str, tuple[MetaScalar, ...]] = {
        "f32": (-0.0, 2.0**-149, 0.1, float(np.finfo(np.float32).max), math.inf, math.nan),
        "f64": (-0.0, 5e-324, 0.1, sys.float_info.max, -math.inf, math.nan),
        "bool": (True, False),
        "str": ("Ġthe 漢字 🤗", "", 'two\nlines\t"\\\0', "</s>"),
    }
    for bits in (8, 16, 32, 64):
        limits[f"u{bits}"] = (0, 2**bits - 1)
        limits[f"i{bits}"] = (-(2 ** (bits - 1)), -1, 2 ** (bits - 1) - 1)
    assert set(limits) == set(VALUE_TYPES)
    metadata: Metadata = {"general.architecture": MetaValue("str", "llama")}
    for kind, values in limits.items():
        for number, value in enumerate(values):
            metadata[f"all.{kind}.{number}"] = MetaValue(kind, value)
        metadata[f"all.{kind}.array"] = MetaValue(kind, values)
        metadata[f"all.{kind}.empty"] = MetaValue(kind, ())
    return metadata


def test_three_readers_know_every_type_of_value_and_tensor(node: NodeRun, tmp_path: Path) -> None:
    """Also those that quantkit reads and never writes; names stand for ggml's numbers."""
    shapes = ((256,), (3, 256), (2, 1, 256), (1, 2, 3, 256))
    tensors = [
        TensorInfo(f"{name}.{len(shape)}", shape, name) for name in BY_NAME for shape in shapes
    ]
    path = write_shape(tmp_path, single_file_layout("shape", every_kind(), tensors))
    (read,), _ = read_over_http(node, tmp_path, path.name)
    (file,) = read["files"]
    assert_the_same(path, file)
    known = {(tensor["type"], tensor["typeId"]) for tensor in file["tensors"]}
    assert known == {(kind.name, kind.ggml_id) for kind in BY_NAME.values()}


def test_the_hub_names_levels_by_their_files(node: NodeRun) -> None:
    """Its list of quantizations, and the commands that it offers, have only levels whose names are
    llama.cpp's; of several such names in a path the last counts, a folder's and the model's too."""
    name = artifact_name("NVIDIA-Nemotron-3-Super-120B-A12B-BF16")
    labels: dict[str, str | None] = {}
    for preset in PRESETS:
        labels[f"{name}-{preset}.gguf"] = preset
        labels[f"{preset}/{name}-{preset}-00001-of-00002.gguf"] = preset
    for level in ("Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "4.5bpw", "71GiB", "imatrix"):
        labels[f"{name}-{level}.gguf"] = None  # BF16, had the model's name kept it
    assert node("name_levels.mjs", *labels) == labels


def test_the_package_is_locked_without_addresses() -> None:
    """Any registry that npm is set to may give it; the content is held by its hash."""
    lock = (Path(__file__).parent / "package-lock.json").read_text(encoding="utf-8")
    assert '"integrity": "sha512-' in lock
    assert "resolved" not in lock
    assert "://" not in lock
