"""The legacy .dat: crafted bytes, each lie refused; what the form cannot say is said."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from quantkit.core.errors import InputError
from quantkit.formats.imatrix_file import read_imatrix

STACK = "blk.0.ffn_up_exps.weight"


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<i", len(value) if length is None else length) + value


def entry(
    name: bytes,
    calls: int,
    values: list[float],
    length: int | None = None,
    count: int | None = None,
) -> bytes:
    size = len(values) if count is None else count
    floats = struct.pack(f"<{len(values)}f", *values)
    return text(name, length) + struct.pack("<ii", calls, size) + floats


Q = entry(b"blk.0.attn_q.weight", 3, [3, 6, 9, 12])
UP = entry(STACK.encode(), 2, [4, 8, 2, 2, 2, 6])
END = struct.pack("<i", 3) + text(b"a.txt")
WHOLE = struct.pack("<i", 2) + Q + UP + END


def written(folder: Path, content: bytes) -> Path:
    path = folder / "i.dat"
    path.write_bytes(content)
    return path


def test_means_are_exact_and_unseen_experts_known_from_the_rows(tmp_path: Path) -> None:
    found = read_imatrix(written(tmp_path, WHOLE), {STACK: 2})
    assert (found.chunks, found.chunk_tokens, found.datasets) == (3, 512, ("a.txt",))
    assert not found.counts_are_exact
    assert found.entries["blk.0.attn_q.weight"].importance().tolist() == [[1, 2, 3, 4]]
    stack = found.entries[STACK]
    assert stack.counts.tolist() == [1024, 0, 1024]
    assert stack.importance().tolist() == [[2, 4], [1.5, 3.5], [1, 3]]
    assert len(found.unknown) == 2


def test_without_the_model_a_stack_is_one_matrix_and_that_is_said(tmp_path: Path) -> None:
    found = read_imatrix(written(tmp_path, WHOLE))
    assert found.entries[STACK].sums.shape == (1, 6)
    assert "1 stacks" in found.unknown[2]


def test_rows_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"6 values, .* 4"):
        read_imatrix(written(tmp_path, WHOLE), {STACK: 4})


def test_an_old_file_ends_after_its_entries(tmp_path: Path) -> None:
    found = read_imatrix(written(tmp_path, WHOLE[: -len(END)]))
    assert (found.chunks, found.datasets) == (0, ())
    assert len(found.unknown) == 4


def test_cut_anywhere_else_it_is_refused(tmp_path: Path) -> None:
    for size in range(len(WHOLE)):
        if size != len(WHOLE) - len(END):
            with pytest.raises(InputError, match="legacy"):
                read_imatrix(written(tmp_path, WHOLE[:size]))


ONE = struct.pack("<i", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE + b"\0", "1 bytes after"),
        (struct.pack("<i", 0) + END, "entries is 0"),
        (struct.pack("<i", -5) + Q, "entries is -5"),
        (struct.pack("<i", 2**31 - 1) + Q, "2147483647"),
        (ONE + entry(b"w", 1, [1], length=-1), "a name's length is -1"),
        (ONE + entry(b"", 1, [1]) + END, "a name's length is 0"),
        (ONE + entry(b"w", 1, [1], length=2**30), "1073741824"),
        (ONE + entry(b"w\0", 1, [1]), "not printable"),
        (ONE + entry(b"\xff", 1, [1]), "not printable"),
        (ONE + entry(b"w", 0, [1]), "calls of w is 0"),
        (ONE + entry(b"w", -1, [1]), "calls of w is -1"),
        (ONE + entry(b"w", 1, [1], count=-1), "values of w is -1"),
        (ONE + entry(b"w", 1, [], count=0) + END, "values of w is 0"),
        (ONE + entry(b"w", 1, [1], count=2**29), "536870912"),
        (ONE + entry(b"w", 1, [float("nan")]), "not finite"),
        (ONE + entry(b"w", 1, [float("inf")]), "not finite"),
        (ONE + entry(b"w", 1, [-1]), "not finite"),
        (struct.pack("<i", 2) + Q + Q + END, "attn_q.weight is listed twice"),
        (ONE + Q + struct.pack("<i", -1) + text(b""), "number of chunks is -1"),
        (ONE + Q + struct.pack("<i", 1) + text(b"a", -2), "dataset's name is -2"),
        (b"", "number of entries"),
    ],
)
def test_lies_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"legacy.*{re.escape(message)}"):
        read_imatrix(written(tmp_path, content))


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for size in (1, 4, 50, 4000):
        with pytest.raises(InputError):
            read_imatrix(written(tmp_path, random.bytes(size)))
