"""What a release changes in a repository, and what it refuses to touch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.core.errors import InputError
from quantkit.hub.reading import HubFile
from quantkit.hub.writing import LocalFile, local_file
from quantkit.release.layout import CARD, SUMS
from quantkit.release.sending import Changes, changes_to, is_same

NAMES = [CARD, SUMS, "m-Q4.gguf", "levels/Q4/niah.jsonl", "notes.txt", ".gitattributes"]
CONTENTS = [b"one", b"two", b"---\nlicense: mit\n---\n"]
contents = st.dictionaries(st.sampled_from(NAMES[:5]), st.sampled_from(CONTENTS))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def local(folder: Path, name: str, content: bytes) -> LocalFile:
    path = folder / sha256(content)
    path.write_bytes(content)
    return local_file(name, path, len(content), sha256(content))


def remote(name: str, content: bytes) -> HubFile:
    """As the Hub records it: GGUF files with LFS, others as git has them."""
    if name.endswith(".gguf"):
        return HubFile(name, len(content), sha256(content), None)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return HubFile(name, len(content), None, blob)


def compared(
    folder: Path,
    here: Mapping[str, bytes],
    there: Mapping[str, bytes],
    earlier: Mapping[str, bytes],
    *,
    replace: bool = False,
) -> Changes:
    return changes_to(
        "someone/m-GGUF",
        [local(folder, name, content) for name, content in here.items()],
        {name: remote(name, content) for name, content in there.items()},
        {name: sha256(content) for name, content in earlier.items()},
        lambda file: there[file.name],
        replace=replace,
    )


def test_a_file_is_compared_by_size_and_the_hash_that_there_is(tmp_path: Path) -> None:
    for name in ("m-Q4.gguf", "README.md"):
        assert is_same(local(tmp_path, name, b"abc"), remote(name, b"abc"))
        assert not is_same(local(tmp_path, name, b"abc"), remote(name, b"abd"))
        assert not is_same(local(tmp_path, name, b"abc"), remote(name, b"abcd"))


def test_what_is_there_is_kept_and_what_changed_is_sent(tmp_path: Path) -> None:
    ours = {"m-Q4.gguf": b"one", "levels/Q4/niah.jsonl": b"one"}
    found = compared(
        tmp_path,
        {"m-Q4.gguf": b"one", "levels/Q4/niah.jsonl": b"two", CARD: b"one"},
        ours | {".gitattributes": b"the Hub's"},
        earlier=ours,
    )
    assert [file.name for file in found.sent] == ["levels/Q4/niah.jsonl", CARD]
    assert found.kept == ("m-Q4.gguf",)
    assert not found.removed


@pytest.mark.parametrize("name", [CARD, "m-Q4.gguf"])
def test_somebody_s_file_is_overwritten_only_when_asked(tmp_path: Path, name: str) -> None:
    for earlier in ({}, {name: b"as we left it"}):
        with pytest.raises(InputError, match=rf"{name} .*--replace"):
            compared(tmp_path, {name: b"one"}, {name: b"somebody's"}, earlier)
        found = compared(tmp_path, {name: b"one"}, {name: b"somebody's"}, earlier, replace=True)
        assert [file.name for file in found.sent] == [name]


def test_files_of_an_earlier_release_are_removed_only_when_asked(tmp_path: Path) -> None:
    there = {f"m-Q{n}.gguf": b"one" for n in range(7)}
    with pytest.raises(InputError, match=r"m-Q1.gguf, .* and 2 more are there, of an earlier rele"):
        compared(tmp_path, {"m-Q0.gguf": b"one"}, there, earlier=there)
    found = compared(tmp_path, {"m-Q0.gguf": b"one"}, there, earlier=there, replace=True)
    assert found.removed == tuple(f"m-Q{n}.gguf" for n in range(1, 7))
    # of somebody else: stays
    assert not compared(tmp_path, {"m-Q0.gguf": b"one"}, there, {}, replace=True).removed


@given(here=contents, there=contents, earlier=contents)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_afterwards_all_is_there_and_nothing_of_others_is_lost(
    tmp_path: Path,
    here: dict[str, bytes],
    there: dict[str, bytes],
    earlier: dict[str, bytes],
) -> None:
    def after(changes: Changes) -> dict[str, bytes]:
        sent = {file.name: here[file.name] for file in changes.sent}
        return {n: c for n, c in there.items() if n not in changes.removed} | sent

    forced = after(compared(tmp_path, here, there, earlier, replace=True))
    assert forced | here == forced
    strangers = {name: c for name, c in there.items() if name not in earlier and name not in here}
    assert forced | strangers == forced
    try:
        changes = compared(tmp_path, here, there, earlier)
    except InputError:
        return
    assert after(changes) == forced
    lost = {name for name, c in there.items() if forced.get(name) != c}
    spared = {name for name in lost if earlier.get(name) != there[name]}
    assert all(name == CARD and there[name].startswith(b"---") for name in spared)
    assert not changes.removed
    again = compared(tmp_path, here, after(changes), here)
    assert not again.sent
