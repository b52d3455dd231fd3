"""What is fuzzed, and what counts as a fault of it."""

from __future__ import annotations

import struct
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fuzz_inputs import SPARSE, Mutation

import quantkit
from quantkit.core.errors import as_fault

MOST_HOLE_BYTES = 1 << 42
"""File systems in memory have files of 8 TB."""
PACKAGE = str(Path(quantkit.__file__).parent)


@dataclass(frozen=True)
class Target:
    """A reader as a command calls it.

    Attributes:
        read: takes a file's bytes. It may raise what `as_fault` makes an error of quantkit.
        seeds: files that it reads without an error.
        form: mutates such a file.
        slow: it takes milliseconds, so `make test` gives it few inputs.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    form: Mutation
    slow: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        kind: `read`; `refused`, with an error of quantkit; or a fault.
        where: exception and the innermost line of quantkit that it came through.
        text: the traceback of a fault.
    """

    kind: Literal["read", "refused", "traceback", "memory"]
    where: str = ""
    text: str = ""

    @property
    def is_fault(self) -> bool:
        return self.kind in ("traceback", "memory")


def outcome(target: Target, data: bytes) -> Outcome:
    """Read `data`. A warning is a fault too: users would see it between quantkit's own lines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - what it may raise is the question
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)] or frames[-1:]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        where = f"{type(error).__name__} at {place}"
        if _is_of_memory(error):
            kind: Literal["refused", "traceback", "memory"] = "memory"
        else:
            kind = "traceback" if as_fault(error) is None else "refused"
        text = "" if kind == "refused" else "".join(traceback.format_exception(error))
        return Outcome(kind, where, text)
    return Outcome("read")


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether it is, or was made from, a refused allocation."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def put(path: Path, data: bytes) -> Path:
    """Write an input to `path`; one that ends with SPARSE goes on with a hole."""
    content, mark, size = data.rpartition(SPARSE)
    if not mark or len(size) != 8:
        path.write_bytes(data)
        return path
    with path.open("wb") as file:
        file.write(content)
        file.truncate(max(len(content), struct.unpack("<Q", size)[0] % MOST_HOLE_BYTES))
    return path
