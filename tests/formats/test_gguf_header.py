"""Headers of files that are elsewhere: as of files that are here, by few short readings."""

from __future__ import annotations

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
    """A file's bytes, and what was asked for of them."""

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


def test_what_is_wrong_is_told_by_the_true_size(tmp_path: Path, with_vocabulary: Path) -> None:
    content = with_vocabulary.read_bytes()
    with pytest.raises(InputError, match=r"far\.gguf is cut short: tensor .* the file has"):
        Elsewhere(content, len(content) - 5000).header()
    with pytest.raises(InputError, match=r"far\.gguf .* at byte \d+ of 1000000"):
        Elsewhere(content, 1_000_000).header()
    with pytest.raises(InputError, match="does not begin with 'GGUF'"):
        Elsewhere(b"<html>" + content).header()
    with pytest.raises(InputError, match=r"at byte 0 of 0|does not begin"):
        Elsewhere(b"").header()


def test_a_header_that_claims_to_be_huge_is_not_fetched(with_vocabulary: Path) -> None:
    """Of a file that is large enough to hold it."""
    content = bytearray(with_vocabulary.read_bytes())
    token = b"token-7token-7token-7"
    at = content.index(token) - 8
    content[at : at + 8] = (1 << 30).to_bytes(8, "little")
    far = Elsewhere(bytes(content), 80 << 30)
    with pytest.raises(InputError, match=r"its header takes 10737\d+ bytes or more, 67108864 are"):
        far.header()
    assert far.asked[-1][1] < gguf_header.MOST_BYTES


def test_arrays_and_tables_that_memory_would_not_hold_are_refused_unread(tmp_path: Path) -> None:
    """A number of one byte takes eight and more as an object; a tensor of 30 bytes a kilobyte."""
    numbers = MetaValue("u8", (0,) * (gguf_header.MOST_ITEMS // 2 + 1))
    small = tmp_path / "small.gguf"
    write_gguf(small, llama_metadata() | {"a": numbers}, {})
    assert Elsewhere(small.read_bytes()).header() == GGUFFile(small).header
    large = tmp_path / "large.gguf"
    write_gguf(large, llama_metadata() | {"a": numbers, "b": numbers}, {})
    for read in (Elsewhere(large.read_bytes()).header, lambda: GGUFFile(large)):
        with pytest.raises(InputError, match=r"arrays of 4000002 items together \(limit 4000000\)"):
            read()
    for at, what in ((8, "tensor"), (16, "metadata")):
        content = bytearray(small.read_bytes())
        content[at : at + 8] = (100_001).to_bytes(8, "little")
        with pytest.raises(InputError, match=rf"the {what} table has 100001 items \(limit 100000"):
            Elsewhere(bytes(content), 1 << 40).header()
