"""Receipts: what a stage was made from and what it wrote, so that running again is resuming.

Outputs go to `x.partial`, are fsynced and renamed; the receipt is written last, so its existence
means that the stage is done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import EnvironmentFault, InputError

HASH_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Output:
    """A file that a stage wrote: path relative to the build folder, size, time, SHA-256."""

    path: str
    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """One finished stage.

    Attributes:
        parts: what the result depends on, by name: stage version, recipe section, native library,
            hashes of the outputs of the stages it needs.
        facts: numbers for the closing table and the report.
    """

    stage: str
    parts: Mapping[str, Any]
    outputs: tuple[Output, ...]
    seconds: float
    facts: Mapping[str, Any]

    @property
    def output_hashes(self) -> dict[str, str]:
        return {output.path: output.sha256 for output in self.outputs}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_id(path: Path) -> str:
    """Hash of a text that a stage reads.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def identity(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Name → (size, time of last change) of large inputs, which are not hashed for each use.

    Raises:
        InputError: one cannot be found.
    """
    try:
        return {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from None


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(json.dumps(value, sort_keys=True))


def _receipt_path(folder: Path, stage: str) -> Path:
    return folder / "receipts" / f"{stage.replace(':', '.')}.json"


def read_receipt(folder: Path, stage: str) -> Receipt | None:
    """The receipt of `stage`, or None when there is none that can be read."""
    try:
        raw = json.loads(_receipt_path(folder, stage).read_text(encoding="utf-8"))
        outputs = tuple(Output(**item) for item in raw["outputs"])
        receipt = Receipt(raw["stage"], raw["parts"], outputs, raw["seconds"], raw["facts"])
        return receipt if _is_well_formed(receipt) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_well_formed(receipt: Receipt) -> bool:
    """Whether a receipt has the kinds of values that one has: anybody may have edited it."""
    paths = all(isinstance(output.path, str) for output in receipt.outputs)
    sizes = all(isinstance(output.size_bytes, int) for output in receipt.outputs)
    return paths and sizes and isinstance(receipt.parts, dict) and isinstance(receipt.facts, dict)


def finished_receipts(folder: Path, prefix: str) -> list[Receipt]:
    """The receipts of all stages whose names begin with `prefix`, in the order of their names."""
    some = _receipt_path(folder, f"{prefix}*")
    names = sorted(path.stem for path in some.parent.glob(some.name))
    found = (read_receipt(folder, name) for name in names)
    return [receipt for receipt in found if receipt is not None]


def forget_receipt(folder: Path, stage: str) -> None:
    """Remove the receipt of `stage`, if there is one."""
    _receipt_path(folder, stage).unlink(missing_ok=True)


def write_receipt(
    folder: Path,
    stage: str,
    parts: Mapping[str, Any],
    outputs: Sequence[Path],
    seconds: float,
    facts: Mapping[str, Any],
) -> Receipt:
    """Hash `outputs`, write the receipt of `stage` and return it."""
    records = []
    for path in outputs:
        stat = path.stat()
        relative = path.relative_to(folder).as_posix()
        records.append(Output(relative, stat.st_size, stat.st_mtime_ns, file_sha256(path)))
    receipt = Receipt(stage, _plain(parts), tuple(records), seconds, _plain(facts))
    path = _receipt_path(folder, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(receipt), indent=1) + "\n")
    return receipt


def stale_reason(folder: Path, stage: str, parts: Mapping[str, Any]) -> str | None:
    """None when `stage` is done and still valid; else the sentence that says why it runs."""
    receipt = read_receipt(folder, stage)
    if receipt is None:
        return "not done yet"
    now = _plain(parts)
    for name in sorted(now.keys() | receipt.parts.keys()):
        old, new = receipt.parts.get(name), now.get(name)
        if old != new:
            return _difference(name, old, new)
    for output in receipt.outputs:
        reason = _output_changed(folder / output.path, output)
        if reason:
            return reason
    return None


def _difference(name: str, old: Any, new: Any) -> str:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _difference(f"{name}.{key}", old.get(key), new.get(key))
    if isinstance(old, str) and isinstance(new, str) and len(old) == len(new) == 64:
        return f"{name} has changed"
    before, after = json.dumps(old), json.dumps(new)
    if len(before) + len(after) > 80:
        return f"{name} has changed"
    return f"{name} has changed from {before} to {after}"


def _output_changed(path: Path, output: Output) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return f"its output {output.path} is missing"
    if stat.st_size != output.size_bytes:
        return f"its output {output.path} has {stat.st_size} bytes, it wrote {output.size_bytes}"
    if stat.st_mtime_ns != output.modified_ns and file_sha256(path) != output.sha256:
        return f"its output {output.path} was changed by something else"
    return None


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


@contextmanager
def resumable(work: Path, parts: Mapping[str, Any]) -> Iterator[Path]:
    """A folder for what an unfinished stage keeps; emptied when it was kept for other `parts`.

    It is removed when the block ends without an error, so what is left is always worth resuming.

    Raises:
        InputError: another run is using it.
        EnvironmentFault: the file system does not support locks.
    """
    import shutil

    marker = work / "parts.json"
    with _locked(work / ".lock", f"another run is writing what {work} is for; wait for it"):
        try:
            same = json.loads(marker.read_text(encoding="utf-8")) == _plain(parts)
        except (OSError, ValueError):
            same = False
        if not same:
            for kept in work.iterdir():
                if kept.is_dir():
                    shutil.rmtree(kept)
                elif kept.name != ".lock":
                    kept.unlink()
            write_json(marker, _plain(parts))
        yield work
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`, which the block may remove, in a folder that is made for it.

    Raises:
        InputError: another process holds it; says `refusal`.
        EnvironmentFault: the file system does not support locks.
        OSError: the file cannot be made.
    """
    import fcntl

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(refusal) from None
            except OSError as error:
                raise EnvironmentFault(f"cannot lock {path}: {error.strerror}") from None
            try:
                held = path.stat().st_ino == os.fstat(lock.fileno()).st_ino
            except FileNotFoundError:
                held = False
            if held:  # else its holder removed it as we opened it
                yield
                return


@contextmanager
def build_folder(path: Path, advice: str = "choose another with --out") -> Iterator[Path]:
    """Make the build folder, check that it can be written, and keep other builds out of it.

    Args:
        advice: what a person may do where it cannot be used.

    Raises:
        InputError: it cannot be made or written, or another build is using it.
        EnvironmentFault: the file system does not support locks.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".lock").touch()
    except OSError as error:
        raise InputError(f"cannot write to the folder {path}: {error.strerror}; {advice}") from None
    refusal = f"another run is writing to {path}; wait for it, or {advice}"
    with _locked(path / ".lock", refusal):
        yield path
