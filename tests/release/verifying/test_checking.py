"""Headers against themselves, each other and allocation.json, each wrong in one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from small_release import SmallRelease, verified

from quantkit.core.progress import SILENT
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_header import GGUFHeader, StoredAt
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.plan.allocation_file import AllocatedTensor, AllocationFile
from quantkit.release.verifying import checking
from quantkit.release.verifying.checking import (
    Artifact,
    Job,
    layout_faults,
    shard_faults,
    type_faults,
)
from quantkit.release.verifying.description import open_release


def stored(*places: tuple[int, int]) -> Mapping[str, StoredAt]:
    """F32 vectors at (offset, elements), called t0, t1, …"""
    found = {}
    for number, (offset, elements) in enumerate(places):
        name = f"t{number}"
        found[name] = StoredAt(TensorInfo(name, (elements,), "F32"), offset, 4 * elements)
    return found


def header(*places: tuple[int, int], size: int, metadata: Metadata | None = None) -> GGUFHeader:
    """A header whose data begins at byte 64."""
    return GGUFHeader(metadata or {}, stored(*places), 32, 64, size)


def test_tensors_one_after_another_with_padding_to_the_end() -> None:
    assert layout_faults("f", header((64, 8), (96, 3), (128, 9), size=192)) == []
    assert layout_faults("f", header(size=64)) == []


@pytest.mark.parametrize(
    ("made", "faults"),
    [
        (header((64, 8), (128, 8), size=160), ["f: 32 bytes before t1 belong to no tensor"]),
        (header((96, 8), size=128), ["f: 32 bytes before t0 belong to no tensor"]),
        (header((64, 16), (96, 8), size=128), ["f: t1 overlaps the tensor before it by 32 bytes"]),
        (header((64, 64), (96, 8), (320, 8), size=352),
         ["f: t1 overlaps the tensor before it by 224 bytes"]),
        (header((64, 8), size=97), ["f: 1 bytes after the last tensor belong to none"]),
        (header((64, 8), size=96 + 4096), ["f: 4096 bytes after the last tensor belong to none"]),
        (header((64, 3), size=76), ["f: ends 20 bytes before its last tensor does, with its "
                                    "padding"]),
        (header((64, 4), (80, 4), size=96),
         ["f: t1 begins at byte 80, not aligned",
          "f: t1 overlaps the tensor before it by 16 bytes"]),
    ],
    ids=["gap", "first gap", "overlap", "inside another", "one byte", "more", "cut", "unaligned"],
)  # fmt: skip
def test_what_is_wrong_with_a_layout(made: GGUFHeader, faults: list[str]) -> None:
    assert layout_faults("f", made) == faults


def split(number: int, count: int, tensors: int) -> Metadata:
    return {
        "split.no": MetaValue("u16", number),
        "split.count": MetaValue("u16", count),
        "split.tensors.count": MetaValue("i32", tensors),
    }


def shards(**changes: Any) -> Artifact:  # noqa: ANN401 - of a header's fields, by shard
    """Two shards, t0 in `one` and u0 in the `other`."""
    one = header((64, 8), size=96, metadata=split(0, 2, 2))
    other = replace(one, stored={"u0": one.stored["t0"]}, metadata=split(1, 2, 2))
    one, other = replace(one, **changes.get("one", {})), replace(other, **changes.get("other", {}))
    return Artifact({"m-00001-of-00002.gguf": one, "m-00002-of-00002.gguf": other})


def test_shards_that_agree() -> None:
    assert shard_faults("Q4", shards()) == []
    assert shard_faults("Q4", Artifact({"m.gguf": header((64, 8), size=96)})) == []


@pytest.mark.parametrize(
    ("artifact", "fault"),
    [
        (shards(other={"metadata": split(0, 2, 2)}), "split.no is 0, not 1"),
        (shards(other={"metadata": split(1, 3, 2)}), "split.count is 3, not 2"),
        (shards(one={"metadata": split(0, 2, 9)}), "split.tensors.count is 9, not 2"),
        (shards(one={"metadata": {}}), "m-00001-of-00002.gguf: split.no is missing, not 0"),
        (shards(other={"stored": stored((64, 8))}), "Q4: tensor t0 is in 2 files"),
        (Artifact({"m-00001-of-00003.gguf": header(size=64, metadata=split(0, 3, 0))}),
         "Q4: file 1 of 1 is m-00001-of-00003.gguf, not m-00001-of-00001.gguf"),
        (Artifact(dict(reversed(shards().headers.items()))),
         "Q4: file 1 of 2 is m-00002-of-00002.gguf, not m-00001-of-00002.gguf"),
        (Artifact({"a.gguf": header(size=64), "b.gguf": header(size=64)}),
         "Q4: file 1 of 2 is a.gguf"),
        (Artifact({"m.gguf": header(size=64, metadata=split(0, 1, 0))}),
         "m.gguf: has split.no, but is no shard"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_shards(artifact: Artifact, fault: str) -> None:
    assert fault in "\n".join(shard_faults("Q4", artifact))


def allocation(artifact: Artifact, **changes: object) -> AllocationFile:
    """What agrees with `artifact`, but for `changes`."""
    tensors = {
        name: AllocatedTensor(type=at.info.type_name, bytes=at.size_bytes)
        for name, (_, at) in artifact.tensors.items()
    }
    made = AllocationFile(total_bytes=artifact.size_bytes, preset=None, tensors=tensors)
    return made.model_copy(update=changes)


@pytest.fixture(scope="module")
def sharded(whole_release: SmallRelease) -> Artifact:
    files = whole_release.files("Q8")
    assert len(files) > 2
    return Artifact({file: GGUFFile(whole_release.path(file)).header for file in files})


def test_types_and_bytes_that_agree(sharded: Artifact, whole_release: SmallRelease) -> None:
    assert type_faults(sharded, allocation(sharded)) == []
    content = whole_release.path("levels/Q8/allocation.json").read_bytes()
    planned = AllocationFile.model_validate_json(content)
    assert planned.total_bytes < sharded.size_bytes  # of one file: types were not known yet
    assert type_faults(sharded, planned) == []


def test_types_and_bytes_that_differ(sharded: Artifact) -> None:
    good = allocation(sharded)
    name = "blk.0.attn_q.weight"
    kind = good.tensors[name].type
    wrong_type = good.tensors | {name: AllocatedTensor(type="Q6_K", bytes=good.tensors[name].bytes)}
    wrong_size = good.tensors | {name: AllocatedTensor(type=kind, bytes=7)}
    without = {k: v for k, v in good.tensors.items() if k != name}
    more = good.tensors | {"blk.9.x\x1b[2J": AllocatedTensor(type="F32", bytes=4)}

    def faults(**changes: object) -> str:
        (fault,) = type_faults(sharded, allocation(sharded, **changes))
        return fault

    assert faults(tensors=wrong_type) == f"{name} is {kind}, allocation.json says Q6_K"
    assert "allocation.json says 7" in faults(tensors=wrong_size)
    assert faults(tensors=without) == f"{name} is not in allocation.json"
    assert faults(tensors=more) == "blk.9.x\\u001b[2J of allocation.json is in no file"
    assert f"{sharded.size_bytes} bytes together" in faults(total_bytes=sharded.size_bytes - 32)


def test_headers_are_bounded_together(
    release: SmallRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(*open_release(str(release.folder), 1), 1, SILENT, lambda _: None)
    shards = release.files("Q8")
    one, other = job.header("tiny-Q4.gguf"), job.header(shards[0])
    assert one == GGUFFile(release.path("tiny-Q4.gguf")).header
    key = "tokenizer.chat_template"
    assert one.metadata[key] is other.metadata[key]
    for name, limit in (
        ("MOST_HEADER_BYTES", one.data_start + 1),
        ("MOST_HELD_ITEMS", 20 * (len(one.metadata) + len(one.stored)) + 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checking, name, limit)
            found = verified(release.folder).faults
        assert any(f"{shards[1]} was not read: the headers before it take" in f for f in found)
        assert not any(shards[0] in fault for fault in found)
