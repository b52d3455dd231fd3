"""JSON and YAML that anybody may have written: one sentence for each fault, in bounded time."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from quantkit.config.recipe import load_recipe
from quantkit.config.target import load_target
from quantkit.core.documents import Amount, read_yaml
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError, as_fault
from quantkit.core.files import check_writable, content_id, open_file
from quantkit.core.parsing import (
    MOST_JSON_BYTES,
    MOST_TEXT_BYTES,
    MOST_YAML_BYTES,
    bounded_json,
    bounded_yaml,
    read_bounded,
    read_text,
)
from quantkit.core.paths import haystack_text
from quantkit.core.receipts import read_receipt
from quantkit.core.work_folders import Journal, resumable
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.safetensors_files import SafetensorsFile, SafetensorsFolder
from quantkit.models.general_metadata import general_metadata
from quantkit.models.json_files import read_json
from quantkit.study.calibration.rows import read_rows
from quantkit.study.divergence import held_out_text

SECONDS = 20.0
ALIASES = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)
)
MERGES = b"m0: &m0 {k: 1}\n" + b"".join(
    b"m%d: &m%d {<<: [%s]}\n" % (n, n, b", ".join([b"*m%d" % (n - 1)] * 9)) for n in range(1, 30)
)
BAD_YAML = {
    "a date": b"name: !!timestamp soon",
    "a date that is none": b"name: !!timestamp 2024-13-45",
    "a tag of Python": b"name: !!python/object/apply:os.system [true]",
    "an unknown tag": b"name: !secret x",
    "a bool": b"name: !!bool maybe",
    "a number": b"name: !!int x",
    "no number": b"name: !!int ''",
    "a float": b"name: !!float x",
    "bytes": b"name: !!binary 'a'",
    "aliases": ALIASES,
    "merges": MERGES,
    "many aliases": b"a: &a x\nb: [" + b"*a," * 5000 + b"]",
    "itself": b"a: &a [*a]",
    "deep lists": b"a: " + b"[" * 50_000,
    "less deep lists": b"a: " + b"[" * 200 + b"]" * 200,
    "deep mappings": b"{a: " * 200 + b"x" + b"}" * 200,
    "infinity": b"a: .inf",
    "too large": b"a: 1.0e+400",
    "NaN": b"a: .nan",
    "digits": b"a: " + b"9" * 5000,
    "fewer digits": b"a: " + b"9" * 30,
    "a key twice": b"a: 1\nb: 2\na: 3",
    "a key twice, deeper": b"a: {b: 1, b: 2}",
    "a key that is a list": b"? [a]\n: 1",
    "Latin-1": b"a: \xe9",
    "UTF-16": "a: 1".encode("utf-16"),
    "a NUL": b"a: \x00",
    "an escape": b"a: \x1b[2J",
    "size": b"a: " + b"x" * MOST_YAML_BYTES,
    "a list": b"- a",
    "nothing": b"",
    "a quote": b"a: 'x",
}
BAD_JSON = {
    "deep": b"[" * 100_000,
    "less deep": b'{"a":' * 300 + b"1" + b"}" * 300,
    "deep lists": b"[" * 500 + b"]" * 500,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "fewer digits": b'{"a": ' + b"9" * 400 + b"}",
    "a key twice": b'{"a": 1, "a": 2}',
    "a key twice, deeper": b'{"a": [{"b": 1, "b": 2}]}',
    "Latin-1": b'{"a": "\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a mark of byte order": b'\xef\xbb\xbf{"a": 1}',
    "nothing": b"",
    "half": b'{"a": ',
}


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("kind", BAD_YAML)
@pytest.mark.parametrize("read", [read_yaml, load_recipe, lambda path: load_target(str(path))])
def test_bad_yaml(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(BAD_YAML[kind])
    with pytest.raises(InputError, match=r"file\.yaml"):
        read(path)


@pytest.mark.parametrize("memory", ["inf", "nan", "'inf'", "'-inf'"])
def test_the_text_of_an_infinity_is_no_size(memory: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(
        f"name: x\ngpus: [{{name: g, count: 1, memory_gib: {memory}, reserve_gib: 1}}]\n"
        "context_tokens: 4096\nkv_type: f16\n"
    )
    with pytest.raises(InputError, match="memory_gib"):
        load_target(str(path))


def test_good_yaml(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfa: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b}\nday: 2024-01-31\n"
        b"bad_day: 2024-13-45\nlist: [*a, 1.5, yes]\n"
    )
    assert read_yaml(path) == {
        "a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 2}, "day": "2024-01-31",
        "bad_day": "2024-13-45", "list": [{"x": 1, "y": 2}, 1.5, True],
    }  # fmt: skip


LENIENT = ("infinity", "too large", "NaN", "fewer digits", "a key twice", "a key twice, deeper")
SPARED = ("a list", "nothing", "digits", *LENIENT, "UTF-16", "size", "Latin-1")


@pytest.mark.parametrize("kind", sorted(BAD_YAML.keys() - set(SPARED)))
def test_bad_front_matter(kind: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n" + BAD_YAML[kind] + b"\n---\ntext")
    with pytest.raises(InputError, match="README"):
        general_metadata(tmp_path, (), None)


@pytest.mark.parametrize(
    "content",
    ["base_model: 5", "tags: {a: 1}", "license: [a, {b: c}]", "name: 2024-13-45", "a: &x [*x]"],
)
def test_front_matter_of_other_kinds_is_read_or_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{content}\n---\n")
    try:
        general_metadata(tmp_path, (), None)
    except InputError:
        pass


@pytest.mark.parametrize("kind", LENIENT)
def test_cards_of_others_may_have_what_no_recipe_has(kind: str) -> None:
    assert isinstance(bounded_yaml(BAD_YAML[kind], "card", strict=False), dict)


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(BAD_JSON[kind])
    with pytest.raises(InputError, match="index"):
        read_json(path)
    with pytest.raises(InputError, match="index"):
        SafetensorsFolder(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"text": "fine"}\n' + (BAD_JSON[kind] or b"x") + b"\n")
    with pytest.raises(InputError, match="rows"):
        list(read_rows(rows))


@pytest.mark.parametrize(
    "content", [b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"\\uDC00": 1}', b"[]", b"1"]
)
def test_what_only_a_foreign_object_may_not_have(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError):
        read_json(tmp_path / "config.json")


def test_good_json(tmp_path: Path) -> None:
    """What transformers writes: an infinity, no limit as 10^30, and pairs of surrogates."""
    (tmp_path / "config.json").write_text(
        '{"time_step_limit": [0.0, Infinity], "model_max_length": 1000000000000000019884624838656,'
        ' "text": "\\ud83d\\ude00"}'
    )
    found = read_json(tmp_path / "config.json")
    assert found["time_step_limit"] == [0.0, math.inf]
    assert found["text"] == "\U0001f600"
    assert bounded_json("[" * 50 + "]" * 50, "deep")
    vocabulary = {f"token{n}": n for n in range(300_000)}
    assert bounded_json(json.dumps(vocabulary), "large") == vocabulary


WIDE_JSON = {
    "empty lists": b"[" + b"[]," * (MOST_JSON_BYTES // 4) + b"0]",
    "empty objects": b"[" + b"{}," * (MOST_JSON_BYTES // 4) + b"0]",
    "texts": b'[{"a":0},' + '"\u0101",'.encode() * (MOST_JSON_BYTES // 5 - 9) + b"0]",
}


@pytest.mark.parametrize("kind", WIDE_JSON)
def test_the_memory_of_json_is_bounded(kind: str, tmp_path: Path) -> None:
    """In a process that may have a gigabyte in all."""
    (tmp_path / "wide.json").write_bytes(WIDE_JSON[kind])
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from quantkit.core.errors import InputError\n"
        "from quantkit.models.json_files import read_json\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))\n"
        "try: read_json(Path(sys.argv[1]))\n"
        "except InputError: sys.exit(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "wide.json"], check=False)
    assert done.returncode == 2


def test_the_largest_yaml_is_read_in_seconds() -> None:
    began = time.process_time()
    assert bounded_yaml(b"a: [" + b"x," * (MOST_YAML_BYTES // 2 - 4) + b"]", "wide")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", BAD_JSON)
def test_our_own_notes_begin_anew(kind: str, tmp_path: Path) -> None:
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "stage.json").write_bytes(BAD_JSON[kind])
    assert read_receipt(tmp_path, "stage") is None
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "parts.json").write_bytes(BAD_JSON[kind])
    (tmp_path / "work" / "kept").touch()
    with resumable(tmp_path / "work", {"a": 1}) as work:
        assert not (work / "kept").exists()


@pytest.mark.parametrize("kind", sorted(BAD_JSON.keys() - {"nothing", "UTF-16", "Latin-1"}))
def test_a_damaged_journal(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(b"purpose\n" + BAD_JSON[kind] + b"\n")
    with pytest.raises(InputError, match=r"a\.journal, line 2 .*delete"):
        Journal(path, "purpose").units(TypeAdapter(Any))


@pytest.mark.parametrize(
    "line", ["[]", "3", "null", '{"a": "1"}', '{"a": -1}', '{"a": NaN}', '{"a": true}', '{"a": 3}']
)
def test_a_journal_with_lines_of_another_shape(line: str, tmp_path: Path) -> None:
    Journal(tmp_path / "a.journal", "purpose").append('{"a": 2}', line)
    journal = Journal(tmp_path / "a.journal", "purpose")
    with pytest.raises(InputError, match=r"a\.journal, line 3 .*delete"):
        journal.units(TypeAdapter(dict[str, Amount]), lambda unit: unit["a"] != 3)
    journal.forget()
    journal.append('{"a": 2}')
    assert journal.units(TypeAdapter(dict[str, Amount])) == [{"a": 2}]


class TestNamesAndTheMachine:
    """A path that nobody can use is the person's fault; a limit or a disk is the machine's."""

    @pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000 + "x", "a\0b"])
    @pytest.mark.parametrize(
        "use",
        [
            check_writable,
            lambda path: read_bounded(path, 10),
            read_json,
            load_recipe,
            lambda path: read_json(path, optional=False),
        ],
    )
    def test_bad_names(self, use: Callable[[Path], object], path: str, tmp_path: Path) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - as `main` sees it
            use(tmp_path / path)
        assert isinstance(as_fault(caught.value), InputError)

    @pytest.mark.parametrize(
        "name", ["EFBIG", "ENFILE", "EMFILE", "ESTALE", "EIO", "ENOMEM", "ENOSPC", "EDQUOT"]
    )
    def test_the_machine(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def fail(*_given: object, **_named: object) -> Any:  # noqa: ANN401
            raise OSError(getattr(errno, name), "fault", "file")

        monkeypatch.setattr(os, "open", fail)
        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
        for use in (read_yaml, read_json, content_id, check_writable):
            with pytest.raises(InputError) as caught:
                use(tmp_path / "a")
            assert isinstance(as_fault(caught.value), EnvironmentFault)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (MemoryError(), EnvironmentFault),
            (OSError(errno.EFBIG, "File too large"), EnvironmentFault),
            (OSError(errno.ENAMETOOLONG, "File name too long", "x"), InputError),
            (RuntimeError("can't start new thread"), EnvironmentFault),
            (ValueError("embedded null byte"), InputError),
            (ValueError("lstat: embedded null character in path"), InputError),
            (InputError("x"), InputError),
        ],
    )
    def test_what_main_makes_of_it(self, error: Exception, kind: type[QuantkitError]) -> None:
        assert isinstance(as_fault(error), kind)

    @pytest.mark.parametrize(
        "error", [ValueError("x"), OSError(errno.EBADF, "x"), RuntimeError("x"), KeyError("x")]
    )
    def test_bugs_stay_bugs(self, error: Exception) -> None:
        assert as_fault(error) is None


@pytest.fixture(params=["pipe", "socket", "device", "link"])
def endless(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What has the name of a file, and no end or no beginning."""
    path = tmp_path / "config.json"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/zero")
        return Path("/dev/zero") if request.param == "device" else path
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_bounded(path, 100),
        lambda path: read_json(path),
        lambda path: read_text(path),
        lambda path: content_id(path),
        lambda path: GGUFFile(path),
        lambda path: SafetensorsFile(path),
        lambda path: read_imatrix(path),
        lambda path: haystack_text(path),
        lambda path: held_out_text(path),
        lambda path: list(read_rows(path.with_name("rows.jsonl"))),
    ],
)
def test_what_is_no_file_is_not_waited_for(read: Callable[[Path], object], endless: Path) -> None:
    if endless.name == "config.json":
        endless.with_name("rows.jsonl").symlink_to(endless)
    with pytest.raises(InputError):
        read(endless)


def test_what_is_no_file_is_not_replaced(endless: Path) -> None:
    with pytest.raises(InputError):
        check_writable(endless)


def test_a_pipe_of_the_shell_is_read() -> None:
    """As of `--recipe <(…)`."""
    receiving, sending = os.pipe()
    os.write(sending, b"a\r\nb\n")
    os.close(sending)
    assert read_text(Path(f"/dev/fd/{receiving}")) == "a\nb\n"
    os.close(receiving)


def test_a_text_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", MOST_TEXT_BYTES + 1)
    with pytest.raises(InputError, match="limit"):
        read_text(tmp_path / "a.txt")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            open_file(path)
    assert os.listdir("/proc/self/fd") == before
