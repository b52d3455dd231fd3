"""A document is read by the class that wrote it, and anything else is one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest

from quantkit.core.documents import JsonDocument, Record
from quantkit.core.errors import InputError


class Part(Record):
    name: str
    sizes: tuple[int, ...]


class Example(JsonDocument):
    version: Literal[2] = 2
    ratio: float
    parts: tuple[Part, ...] = ()


EXAMPLE = Example(ratio=0.5, parts=(Part(name="ä", sizes=(1, 2)),))


def changed(**fields: object) -> bytes:
    return json.dumps({**EXAMPLE.model_dump(mode="json"), **fields}).encode()


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path / "folder" / "example.json")
    assert Example.read(tmp_path / "folder" / "example.json") == EXAMPLE
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("ratio", [math.inf, -math.inf])
def test_infinite_values(ratio: float, tmp_path: Path) -> None:
    Example(ratio=ratio).write(tmp_path / "example.json")
    assert Example.read(tmp_path / "example.json").ratio == ratio


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "JSON"),
        (b"[]", "damaged"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (changed(ratio=-(10**3999)), "digits"),
        (changed(**{"a\x1b[2J" + "b" * 200: 1}), r"a\\u001b\[2Jb+…: "),
        (changed(version=1), "version 1, .* older one"),
        (changed(version=3), "version 3, .* newer one"),
        (b'{"ratio": 1.0}', "version none"),
        (changed(ratio="0.5"), "ratio"),
        (changed(ratio=None, more=1), "1 more"),
        (changed(parts=[{"name": "a", "sizes": [1, 2.5]}]), r"parts\.0\.sizes\.1"),
    ],
)
def test_anything_else_is_one_sentence(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "example.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=named) as error:
        Example.read(path)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300 + len(str(path))


class Earlier(Example):
    unversioned = 2


def test_a_file_from_before_there_were_versions() -> None:
    content = EXAMPLE.model_dump(mode="json", exclude={"version"})
    assert Earlier.parse(json.dumps(content).encode(), "it").ratio == EXAMPLE.ratio
    with pytest.raises(InputError, match="version 1"):
        Earlier.parse(changed(version=1), "it")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Example.read(tmp_path / "none.json")
