"""Headers of remote files: equal to those of local ones, with few short reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llama_arrays, llama_metadata, write_gguf, write_llama

from quantkit.core.errors import InputError
from quantkit.formats import gguf_header
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_header import GGUFHeader, read_header
from quantkit.formats.tensors import MetaValue


class Elsewhere:
    """A file's bytes, and the ranges that were read."""

    def __init__(self, content: bytes, size: int | None = None) -> None:
        self.content, self.size = content, len(content) if size is None else size
        self.asked: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= self.size
        self.asked.append((start, stop))
        return self.content[start:stop]

    def header(self) -> GGUFHeader:
        return read_header(self.read, self.size, "far.gguf")


@pytest.fixture(scope="module")
def with_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A header of 2 MB, most of it in two arrays."""
    path = tmp_path_factory.mktemp("v") / "v.gguf"
    tokens = tuple(f"token-{number}" * 3 for number in range(50_000))
    metadata = llama_metadata()
    metadata["tokenizer.ggml.tokens"] = MetaValue("str", tokens)
    metadata["tokenizer.ggml.token_type"] = MetaValue("i32", tuple(range(50_000)))
    return write_gguf(path, metadata, llama_arrays())


def test_a_small_header_takes_one_reading(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf")
    far = Elsewhere(path.read_bytes())
    assert far.header() == GGUFFile(path).header
    assert far.asked == [(0, gguf_header.FIRST_BYTES)]


def test_a_long_header_takes_a_few_and_nothing_twice(with_vocabulary: Path) -> None:
    far = Elsewhere(with_vocabulary.read_bytes())
    found = far.header()
    assert found == GGUFFile(with_vocabulary).header
    assert found.data_start > 1_500_000
    assert 1 < len(far.asked) <= 4
    assert [start for start, _ in far.asked[1:]] == [stop for _, stop in far.asked[:-1]]


@given(first=st.integers(1, 3000))
@settings(max_examples=60)
def test_wherever_a_reading_ends(tmp_path_factory: pytest.TempPathFactory, first: int) -> None:
    path = write_llama(tmp_path_factory.mktemp("m") / "m.gguf")
    far, before = Elsewhere(path.read_bytes()), gguf_header.FIRST_BYTES
    gguf_header.FIRST_BYTES = first
    try:
        assert far.header() == GGUFFile(path).header
    finally:
        gguf_header.FIRST_BYTES = before


def test_errors_name_the_true_size(with_vocabulary: Path) -> None:
    content = with_vocabulary.read_bytes()
    for found, size, words in (
        (content, len(content) - 5000, str(len(content) - 5000)),
        (content, 1_000_000, r"byte \d+ of 1000000"),
        (b"<html>" + content, None, "'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", None, "git-lfs"),
        (b"", None, "GGUF"),
    ):
        with pytest.raises(InputError, match=rf"far\.gguf.*{words}"):
            Elsewhere(found, size).header()


def test_a_header_that_claims_to_be_huge_is_not_fetched(with_vocabulary: Path) -> None:
    """Of a file that is large enough to hold it."""
    content = bytearray(with_vocabulary.read_bytes())
    at = content.index(b"token-7token-7token-7") - 8
    content[at : at + 8] = (1 << 30).to_bytes(8, "little")
    far = Elsewhere(bytes(content), 80 << 30)
    with pytest.raises(InputError, match=r"10737\d+ bytes.*67108864"):
        far.header()
    assert far.asked[-1][1] < gguf_header.MAX_BYTES


@pytest.mark.parametrize("in_array", [False, True])
def test_a_string_of_a_sparse_file_is_not_read(tmp_path: Path, in_array: bool) -> None:
    """The file could hold it, and no disk is needed for that."""
    value = MetaValue("str", ("first", "", "last") if in_array else "first")
    path = write_gguf(tmp_path / "m.gguf", llama_metadata() | {"k": value}, {})
    content = bytearray(path.read_bytes())
    at = content.index(b"first") - 8
    content[at : at + 8] = (20 << 30).to_bytes(8, "little")
    path.write_bytes(content)
    os.truncate(path, 40 << 30)
    with pytest.raises(InputError, match=str(gguf_header.MAX_BYTES)):
        GGUFFile(path)


def test_arrays_and_tables_beyond_the_limits_are_refused_unread(tmp_path: Path) -> None:
    """A number of one byte takes eight and more as an object; a tensor of 30 bytes a kilobyte."""
    numbers = MetaValue("u8", (0,) * (gguf_header.MAX_ITEMS // 2 + 1))
    small = write_gguf(tmp_path / "small.gguf", llama_metadata() | {"a": numbers}, {})
    assert Elsewhere(small.read_bytes()).header() == GGUFFile(small).header
    twice = llama_metadata() | {"a": numbers, "b": numbers}
    large = write_gguf(tmp_path / "large.gguf", twice, {})
    for read in (Elsewhere(large.read_bytes()).header, lambda: GGUFFile(large)):
        with pytest.raises(InputError, match=r"4000002 .*4000000"):
            read()
    for at, what in ((8, "tensor"), (16, "metadata")):
        content = bytearray(small.read_bytes())
        content[at : at + 8] = (100_001).to_bytes(8, "little")
        with pytest.raises(InputError, match=f"{what} table.*100001.*100000"):
            Elsewhere(bytes(content), 1 << 40).header()
