"""Our compiled kernels give ggml's bytes, or are not used."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize.kernels import simd

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")


def found_anew() -> simd.Finding:
    """What `find` finds in another process."""
    return simd._load(again=False)[1]


@needs_compiler
@pytest.mark.parametrize("name", simd.KINDS)
def test_bytes_equal_ggml(name: str) -> None:
    fast, kind = simd.simd_kernels(), BY_NAME[name]
    assert fast is not None, simd.finding()
    random = np.random.default_rng([5, *name.encode()])
    for rows_count, blocks in ((1, 1), (1, 2), (3, 5), (7, 1), (16, 3), (33, 2), (40, 9)):
        width = blocks * kind.block_elements
        for scale in (1e-30, 1e-3, 1.0, 300.0):
            rows = scale * random.standard_t(3, (rows_count, width)).astype(np.float32)
            rows[random.random(rows.shape) < 0.05] = 0
            importance = np.exp(random.normal(0, 3, width)).astype(np.float32)
            ours = fast.quantize(kind, rows, importance)
            theirs = ggml_kernels.ggml_blocks(kind, rows, importance)
            assert np.array_equal(ours, theirs), (rows_count, blocks, scale)
            assert np.array_equal(ggml_kernels.quantize(kind, rows, importance), theirs)


@needs_compiler
def test_odd_rows_and_importances() -> None:
    fast = simd.simd_kernels()
    assert fast is not None
    assert simd.differences(fast.quantize, ggml_kernels.ggml_blocks) == []


def test_the_samples_would_show_a_kernel_that_is_a_little_off() -> None:
    """Importance that is 1 % wrong in one column."""

    def a_little_off(kind: object, rows: np.ndarray, importance: np.ndarray) -> np.ndarray:
        changed = importance.copy()
        changed[40] *= 1.01
        return ggml_kernels.ggml_blocks(kind, rows, changed)

    assert simd.differences(a_little_off, ggml_kernels.ggml_blocks) == list(simd.KINDS)


def changed_source(folder: Path, changes: Mapping[str, str]) -> Path:
    """A copy of the sources with `changes`, old text → new."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (simd.SOURCE, simd.SEARCH)}
    for old, new in changes.items():
        assert any(old in text for text in texts.values())
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / simd.SOURCE.name


def program(path: Path, script: str) -> Path:
    """A shell script that stands for a compiler; OUT is the file that it is to write."""
    text = f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; OUT=$2\n{script}\n'
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def copier(folder: Path, library: Path) -> Path:
    """A compiler that takes no time: it "makes" `library`, and writes a line to `made`."""
    return program(folder / "cc", f'echo >> "{folder}/made"; cp "{library}" "$OUT"')


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (  # each shows in types of its own
            {
                "step <= 36": "step <= 35",  # Q5_1, Q5_K, Q4_1, Q4_K, Q2_K
                "step <= 9;": "step <= 8;",  # Q6_K, Q5_0, Q4_0, Q3_K
                "first_of[m] = above": "first_of[m] = 1 + above",  # IQ4_NL, IQ4_XS
            },
            f"differ from ggml's in {', '.join(simd.KINDS)}; ",
        ),
        (
            {"turn <= 9;": "turn <= 8;", "is <= 4;": "is <= 3;"},  # Q3_K; Q5_K, Q4_K, Q2_K
            "differ from ggml's in Q5_K, Q4_K, Q3_K, Q2_K; ",
        ),
        ({"fifth |= low": "__builtin_trap(); fifth |= low"}, "crash"),
        ({"#include <math.h>": "#error no"}, "cannot compile simd.c"),
    ],
)
def test_a_library_that_is_not_ggml_s_equal_is_not_kept(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    assert COMPILER is not None
    kept = tmp_path / "kept.so"
    found = simd.make(changed_source(tmp_path, changes), [COMPILER], kept)
    assert not found.usable
    assert words in found.finding
    assert found.lasting is ("differ" in words)
    assert not kept.exists()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the compiler makes of the sources."""
    assert COMPILER is not None
    library = tmp_path_factory.mktemp("ready") / "simd.so"
    found = simd.make(simd.SOURCE, [COMPILER], library)
    assert found.usable, found.finding
    return library


@needs_compiler
def test_it_is_made_once_for_a_machine(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times_made() -> int:
        return len((tmp_path / "made").read_text().splitlines())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", shlex.quote(str(copier(tmp_path, ready))))
    first = found_anew()
    assert first.usable, first.finding
    (library,) = (tmp_path / "quantkit").glob("simd-*.so")
    made_at = library.stat().st_mtime_ns
    assert found_anew() == first
    assert library.stat().st_mtime_ns == made_at
    assert times_made() == 1
    library.unlink()
    assert found_anew() == first
    assert library.is_file()
    assert times_made() == 2
    library.with_suffix(".json").write_text("{")
    assert found_anew() == first
    assert times_made() == 3


def test_without_a_compiler_or_on_request_ggml_s_own_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-compiler-of-this-name")
    found = found_anew()
    assert not found.usable
    assert "no-compiler-of-this-name" in found.finding
    monkeypatch.setenv(simd.SWITCH, "ggml")
    assert found_anew() == simd.Finding(False, f"{simd.SWITCH}=ggml selects ggml's own kernels")
    assert not list(tmp_path.iterdir())


@needs_compiler
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('echo garbage > "$OUT"', r"file too short|invalid ELF"),
        (":", "No such file"),
        (f'echo "int x;" | {COMPILER} -shared -xc - -o "$OUT"', "quantkit_Q6_K"),
        ("echo no room >&2; exit 4", r"cannot compile simd\.c: no room"),
        ("kill -9 $$", r"cannot compile simd\.c"),
    ],
)
def test_a_compiler_that_makes_no_library_is_tried_again_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(program(tmp_path / "broken cc", script)).replace(" ", "\\ "))
    fast, found = simd._load(again=False)
    assert fast is None
    assert not found.usable
    assert re.search(words, found.finding)
    assert "broken cc" in found.finding
    assert not list((tmp_path / "cache").rglob("simd-*"))


def test_a_compiler_that_is_no_program_is_told(tmp_path: Path) -> None:
    text = tmp_path / "cc"
    text.write_bytes(b"\x7fELF of another machine")
    text.chmod(0o755)
    found = simd.make(simd.SOURCE, [str(text)], tmp_path / "made.so")
    assert (found.usable, found.lasting) == (False, False)
    assert "Exec format error" in found.finding


@needs_compiler
def test_a_library_that_cannot_be_loaded_any_more_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache lies on a disk that is noexec now: what loading says then is what it says here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = simd._library(tmp_path / "quantkit")
    library.parent.mkdir()
    library.write_bytes(b"not a library")
    record = {"usable": True, "finding": "agree", "compiler": []}
    library.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    assert simd.find().usable
    fast, found = simd._load(again=False)
    assert fast is None
    assert not found.usable
    assert "loaded" in found.finding
    again = simd.finding(again=True)
    assert again.usable, again.finding
    assert simd._load(again=False)[0] is not None


@needs_compiler
def test_bytes_that_differ_are_remembered_of_their_compiler_only(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COMPILER is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "simd.so"
    compiler = shlex.quote(str(copier(tmp_path, made)))
    # a kernel that writes nothing, before all of the ready library's
    options = f"-shared -fPIC -o {made} -xc - -xnone -Wl,--no-as-needed {ready}".split()
    subprocess.run([COMPILER, *options], input="void quantkit_Q3_K(void) {}", text=True, check=True)
    monkeypatch.setenv("CC", f"{compiler} -O1")
    first = found_anew()
    assert "differ from ggml's in Q3_K; " in first.finding
    assert f"{compiler} -O1" in first.finding
    shutil.copy(ready, made)
    assert found_anew() == first
    assert simd.find(again=True).usable  # and what was found then is remembered
    assert found_anew().usable
    library = simd._library(simd.cache_folder())
    library.unlink()
    identity = simd._identity([*shlex.split(compiler), "-O1"])
    record = {"usable": False, "finding": "differ", "compiler": identity}
    library.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    assert found_anew().finding == "differ"
    monkeypatch.setenv("CC", f"{compiler} -O2")
    assert found_anew().usable
