"""Names of repositories and files, and SHA256SUMS with coreutils as oracle."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.core.errors import InputError
from quantkit.release.layout import (
    artifact_names,
    model_folder,
    parse_sums,
    repository_name,
    sums_text,
    unsafe_name,
)

A, B = "a" * 64, "0123456789abcdef" * 4
PARTS = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda part: part not in (".", ".."))
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join).filter(lambda n: n[1:2] != ":")
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("someone", "someone/Model-120B-GGUF"),
        ("someone/mine", "someone/mine-GGUF"),
        ("someone/mine-GGUF", "someone/mine-GGUF"),
        ("someone/mine-gguf", "someone/mine-gguf"),
    ],
)
def test_the_suffix_is_added_once(to: str, name: str) -> None:
    assert repository_name(to, "Model-120B") == name
    assert repository_name("someone/mine", "m", exact=True) == "someone/mine"


@pytest.mark.parametrize(
    "to",
    ["", "/", "a/b/c", "a b/m", "a/", "-a/m", "a/m..n", "a/m--n", "a/../b", "a/" + 96 * "x"],
)
def test_names_that_the_hub_refuses_are_told(to: str) -> None:
    with pytest.raises(InputError, match="repository"):
        repository_name(to, "model" if to else "", exact=True)


def test_shards_lie_in_a_folder_of_the_level() -> None:
    assert artifact_names("Q4", ["m-Q4.gguf"]) == ("m-Q4.gguf",)
    shards = ["m-Q4-00001-of-00002.gguf", "m-Q4-00002-of-00002.gguf"]
    assert artifact_names("Q4", shards) == tuple(f"Q4/{name}" for name in shards)
    assert model_folder(["m-Q4.gguf"]) == "../.."
    assert model_folder(artifact_names("Q4", shards)) == "../../Q4"


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


def test_lines_are_sorted_by_name_and_capitals_are_read() -> None:
    text = sums_text({"b": A, "a/z": B, "B": A})
    assert text == f"{A}  B\n{B}  a/z\n{A}  b\n"
    assert parse_sums(f"{B.upper()}  f\n") == {"f": B}


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
        (f"{A}  good", "listed twice"),
    ],
)
def test_what_a_stranger_wrote(line: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        parse_sums(f"{B}  good\n{line}\n")
    assert "line 2" in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "../a", "/a", ""])
def test_names_that_are_never_written(name: str) -> None:
    with pytest.raises(InputError, match="cannot be published"):
        sums_text({name: A})
