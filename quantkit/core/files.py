"""Files that are written completely or not at all, and hashes of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.core.errors import InputError
from quantkit.core.units import CONTROLS

HASH_CHUNK_BYTES = 1 << 22
_GIVEN_OPEN = ("/dev/fd/", "/dev/stdin")
"""Where a shell's own pipes are, as of `<(…)`: whoever gives one means to wait for it."""


def open_file(path: Path) -> BinaryIO:
    """The file at `path` for reading, not buffered twice; anything but a file is refused.

    A folder may come from anybody, and a pipe in it would be waited for, a device read without end.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            if not str(path).startswith(_GIVEN_OPEN):
                raise OSError(errno.ESPIPE, "it is a pipe or a device, not a file", str(path))
            os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; `on_bytes` is called with each count read."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def check_writable(out: Path, inputs: Sequence[Path] = (), option: str = "--out") -> None:
    """See that the file `out` can be written and is none of `inputs`.

    Args:
        option: the one that named it, for the message.

    Raises:
        InputError: `out` is a folder, a device, an input, or cannot be written.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of the file to write")
    if out.exists() and not out.is_file():
        raise InputError(f"{out} is a pipe or a device, not a file; choose another {option}")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"{out} is an input of this command and would be overwritten")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
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


def check_unchanged(
    paths: Sequence[Path], before: Mapping[str, list[int]], written: Iterable[Path]
) -> None:
    """See that inputs are what they were when their `identity` was `before`, and remove outputs.

    Raises:
        InputError: one was changed or removed; `written`, made of them, is removed.
    """
    now = identity([path for path in paths if path.exists()])
    changed = [name for name, was in before.items() if now.get(name) != was]
    if changed:
        for path in written:
            path.unlink()
        raise InputError(
            f"{changed[0]} was changed or removed while it was read, so what was written may not "
            "be of one model, and is removed; leave the file as it is and run this again"
        )


def is_inner_path(name: str) -> bool:
    """Whether `name`, which a file says, is a path that stays in the folder it is joined to."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def refuse_link(path: Path) -> None:
    """See that `path`, a name that quantkit chose, is no link to elsewhere.

    A link may come with somebody's repository, and what is written or deleted would be elsewhere.

    Raises:
        InputError: it is one.
    """
    if path.is_symlink():
        raise InputError(
            f"{path} is a link to {os.readlink(path)}, where quantkit would write and delete; "
            "delete the link, or choose another place with --out"
        )


def chosen_folder(given: str | Path | None, own: str | Path) -> Path:
    """The folder that a person gave, which may be a link, or quantkit's `own` name for it.

    Raises:
        InputError: the latter is a link.
    """
    if given is None:
        refuse_link(Path(own))
    return Path(own if given is None else given)


def refuse_links_in(folder: Path, *, files: bool = True) -> None:
    """As `refuse_link`, of each folder in `folder` and, with `files`, of each file."""
    for place, folders, names in os.walk(folder):
        for name in (*folders, *(names if files else ())):
            refuse_link(Path(place, name))


@contextmanager
def atomic(path: Path, *, executable: bool = False) -> Iterator[Path]:
    """Yield a new, empty, partial file to write to; on success it is fsynced and becomes `path`.

    Nothing is written through a link, neither at `path` nor where the partial file is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    mode = 0o777 if executable else 0o666  # less the umask
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    yield partial
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Fsync the finished file `partial`, rename it to `path`, and fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _fsync(partial)
    os.replace(partial, path)
    _fsync(path.parent)


def link_or_copy(source: Path, path: Path) -> None:
    """Have the content of `source` at `path` too: by a hard link, on another disk by a copy."""
    if path.exists() and path.samefile(source):
        return
    with atomic(path) as partial:
        partial.unlink()
        try:
            os.link(source, partial)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, partial)


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
    write_text(path, without_controls(json.dumps(value, indent=1, ensure_ascii=False)) + "\n")


def without_controls(text: str) -> str:
    """JSON with codes in the place of characters that a terminal obeys."""
    return CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], text)


def plain_json(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` as it is read back from JSON: tuples as lists, keys as strings, in order."""
    return json.loads(json.dumps(value, sort_keys=True))
