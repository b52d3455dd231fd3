"""Folders that one run at a time writes to, and journals of finished work in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from quantkit.core.documents import first_problem
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import (
    plain_json,
    refuse_link,
    refuse_links_in,
    write_json,
    write_text,
)
from quantkit.core.parsing import MOST_JSON_BYTES, bounded_json, own_json, read_bounded

ATTEMPTS = 3
"""At a lock, at once: one attempt fails where the holder removes the lock file meanwhile."""
_Unit = TypeVar("_Unit")


def work_folder(out: Path) -> Path:
    """Where the unfinished work on the file `out` is kept: beside it."""
    return out.with_name(out.name + ".work")


@contextmanager
def resumable(work: Path, parts: Mapping[str, Any]) -> Iterator[Path]:
    """A folder for the work of an unfinished stage; emptied if that was for other `parts`.

    It is removed when the block ends without an error.

    Raises:
        InputError: another run is using it, or it is a link or holds one.
        EnvironmentFault: the file system does not support locks.
    """
    import shutil

    refuse_link(work)

    marker = work / "parts.json"
    with _locked(work / ".lock", f"another run is writing what {work} is for; wait for it"):
        refuse_links_in(work)
        try:
            same = own_json(marker) == plain_json(parts)
        except InputError:
            same = False
        if not same:
            for kept in work.iterdir():
                if kept.name != ".lock":
                    (shutil.rmtree if kept.is_dir() else Path.unlink)(kept)
            write_json(marker, plain_json(parts))
        yield work
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`, which the block may remove; its folder is created.

    Raises:
        InputError: another process holds it; says `refusal`. Or it is a link.
        EnvironmentFault: the file system does not support locks.
        OSError: the file cannot be created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    for _ in range(ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_link(path)
        with suppress(FileNotFoundError):
            path.touch()
        try:
            lock.acquire()
        except (Timeout, FileNotFoundError):
            continue  # held, or its holder removed it with its folder at this moment
        except OSError as error:
            raise EnvironmentFault(f"cannot lock {path}: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()
        return
    raise InputError(refusal)


@contextmanager
def build_folder(path: Path, advice: str = "choose another with --out") -> Iterator[Path]:
    """Create the build folder, check that it can be written, and lock it.

    Args:
        advice: the next step if it cannot be used.

    Raises:
        InputError: it cannot be created or written, another build is using it, or a folder in it
            is a link.
        EnvironmentFault: the file system does not support locks.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        refuse_links_in(path, files=False)
        refuse_link(path / ".lock")
        (path / ".lock").touch()
    except OSError as error:
        raise InputError(f"cannot write to the folder {path}: {error.strerror}; {advice}") from None
    refusal = f"another run is writing to {path}; wait for it, or {advice}"
    with _locked(path / ".lock", refusal):
        yield path


class Journal:
    """Lines that are appended and fsynced, below a first line with their purpose.

    Lines of another `purpose` are discarded, and so is a line that was incomplete at a kill.
    A line is ended by "\\n" and nothing else, and has no meaning but its own: names can be lines.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        self.path, self._purpose = path, purpose
        # a link is replaced; a kill may have cut the last line within a character
        found = path.exists() and not path.is_symlink()
        text = read_bounded(path, MOST_JSON_BYTES).decode("utf-8", "replace") if found else ""
        *whole, cut = text.split("\n")
        self.lines: list[str] = whole[1:]
        if whole[:1] != [purpose]:
            self.forget()
        elif cut:
            self._rewrite()

    def units(
        self, kind: TypeAdapter[_Unit], is_ours: Callable[[_Unit], bool] = lambda _: True
    ) -> list[_Unit]:
        """What the lines hold, each as JSON of one `kind`.

        Args:
            is_ours: whether a unit is one of this work, and complete.

        Raises:
            InputError: a line is damaged, or `is_ours` refuses it.
        """
        found, advice = [], f"delete {self.path} to begin anew"
        for number, line in enumerate(self.lines, 2):
            where = f"{self.path}, line {number}"
            bounded_json(line, where, advice)
            try:
                found.append(kind.validate_json(line, strict=True))
            except ValidationError as error:
                problem = first_problem(error)
                raise InputError(f"{where} is damaged: {problem}; {advice}") from None
            if not is_ours(found[-1]):
                raise InputError(f"{where} is not of this work; {advice}")
        return found

    def forget(self) -> None:
        """Begin anew."""
        self.lines = []
        self._rewrite()

    def append(self, *lines: str) -> None:
        """Add finished units; they are on disk when this returns."""
        if any("\n" in line for line in lines):
            raise ValueError(f"more than a line: {lines!r}")
        self.lines += lines
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        write_text(self.path, "\n".join([self._purpose, *self.lines, ""]))
