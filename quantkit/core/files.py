"""Files that are written completely or not at all, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError

HASH_CHUNK_BYTES = 1 << 22


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; `on_bytes` is called with each count read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def check_writable(out: Path, inputs: Sequence[Path] = (), option: str = "--out") -> None:
    """See that the file `out` can be written and is none of `inputs`.

    Args:
        option: the one that named it, for the message.

    Raises:
        InputError: `out` is a folder, an input, or cannot be written.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of the file to write")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"{out} is an input of this command and would be overwritten")
    probe = out.parent / f".{out.name}.probe"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another {option}") from None


def content_id(path: Path) -> str:
    """SHA-256 of an input file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def identity(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Name → (size, modification time) of large inputs, which are not hashed for each use.

    Raises:
        InputError: one cannot be read.
    """
    try:
        return {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a partial path to write to; on success it is fsynced and becomes `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    yield partial
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Fsync the finished file `partial`, rename it to `path`, and fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _fsync(partial)
    os.replace(partial, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def plain_json(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` as it is read back from JSON: tuples as lists, keys as strings, in order."""
    return json.loads(json.dumps(value, sort_keys=True))
