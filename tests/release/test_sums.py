"""SHA256SUMS: coreutils as oracle, properties, and lines that a stranger wrote."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.core.errors import InputError
from quantkit.release.sums import parse_sums, sums_text, unsafe_name

A, B = "a" * 64, "0123456789abcdef" * 4
PARTS = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda part: part not in (".", ".."))
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(lambda n: n[1:2] != ":")
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)


def test_sha256sum_checks_what_is_written_and_writes_what_is_read(tmp_path: Path) -> None:
    contents = {"b.gguf": b"b" * 1000, "levels/Q4 K/ä.json": b"{}", "*star": b"", "README.md": b"#"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    (tmp_path / "SHA256SUMS").write_text(sums_text(hashes), encoding="utf-8")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    for mode in ("--text", "--binary"):
        written = subprocess.run(
            ["sha256sum", mode, *contents], cwd=tmp_path, check=True, capture_output=True
        )
        assert parse_sums(written.stdout.decode()) == hashes


def test_lines_are_sorted_by_name() -> None:
    text = sums_text({"b": A, "a/z": B, "B": A})
    assert text == f"{A}  B\n{B}  a/z\n{A}  b\n"


@given(st.dictionaries(NAMES, HASHES))
def test_what_is_written_is_read(hashes: dict[str, str]) -> None:
    assert parse_sums(sums_text(hashes)) == hashes


@given(st.text())
def test_no_text_fails_otherwise_or_gives_a_name_that_leads_elsewhere(text: str) -> None:
    try:
        found = parse_sums(text)
    except InputError:
        return
    assert all(unsafe_name(name) is None for name in found)


@given(st.text(st.sampled_from("ab./\\:\n\x1b ")))
def test_a_safe_name_stays_below_the_folder(name: str) -> None:
    if unsafe_name(name) is None:
        folder = Path("/release")
        assert Path(folder / name).resolve(strict=False).is_relative_to(folder)
        assert (folder / name).as_posix() == f"/release/{name}"


def test_hashes_in_capitals_are_the_same_hashes() -> None:
    assert parse_sums(f"{B.upper()}  f\n") == {"f": B}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{A}  ../../etc/passwd", "part"),
        (f"{A}  a/../../b", "part"),
        (f"{A}  ./a", "part"),
        (f"{A}  a//b", "part"),
        (f"{A}  /etc/passwd", "not relative"),
        (f"{A}  C:/windows", "not relative"),
        (f"{A}  a\\..\\b", "backslash"),
        (f"{A}  a\x1b[2J", "printable"),
        (f"{A}  a\r", "printable"),
        (f"{A}  a\u202eb", "printable"),
        (f"\\{A}  a\\nb", "escaped"),
        (f"{A[:-1]}  a", "64 hexadecimal digits"),
        (f"{A} a", "64 hexadecimal digits"),
        (f"{A}  ", "64 hexadecimal digits"),
        ("SHA256 (a) = " + A, "64 hexadecimal digits"),
    ],
)
def test_what_a_stranger_wrote(line: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        parse_sums(f"{B}  good\n{line}\n")
    assert "line 2" in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_a_name_that_comes_twice() -> None:
    with pytest.raises(InputError, match="line 2: f is listed twice"):
        parse_sums(f"{A}  f\n{B}  f\n")


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "../a", "/a", ""])
def test_names_that_are_never_written(name: str) -> None:
    with pytest.raises(InputError, match="cannot be published"):
        sums_text({name: A})
