"""The errors that quantkit raises on purpose.

    QuantkitError            anything that a person can act on; carries the exit code
    ├── InputError           2  a wrong argument, a broken or unsupported file
    │   └── DoesNotFitError  2  the model cannot be made to fit the target
    ├── GateError            1  an artifact was built but failed its release gate
    └── EnvironmentFault     3  this machine: a missing library, a native crash
        └── DiskFullError    3  a disk has too little room

A message names the value, the limit and the next step, in one paragraph without a traceback.
Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno

_MACHINE = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EREMOTEIO, errno.ESTALE,
        errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOLCK,
        errno.ENOBUFS, errno.EPIPE,
    }
)  # fmt: skip
"""Faults of the machine whatever path a person gave: disk, limits, memory, a network's disk."""

MACHINE_ERRORS = _MACHINE | {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENODEV, errno.ETXTBSY,
}  # fmt: skip
"""OSErrors that are faults of the machine and not bugs where nothing else caught them."""

_NEXT = {
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "end other programs, which have too many files open",
    errno.ENOMEM: "end other programs, or allow this one more memory",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.EACCES: "check its permissions, and those of its folder",
    errno.EPERM: "check its permissions, and those of its folder",
    errno.EROFS: "choose a place that can be written to",
}
"""What to do; of any other fault of the machine, to look at the disk."""

_MISNAMED = frozenset(
    {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ESPIPE, errno.ENXIO}
)
"""OSErrors of a path that no machine could open so."""


class QuantkitError(Exception):
    """Base of all errors with a message meant for the person at the terminal."""

    exit_code = 1


class InputError(QuantkitError):
    """A wrong argument, or a file that is missing, broken or unsupported."""

    exit_code = 2


class DoesNotFitError(InputError):
    """No choice of types makes the model fit the target."""


class GateError(QuantkitError):
    """At least one artifact that is meant for release failed its gate."""

    exit_code = 1


class EnvironmentFault(QuantkitError):
    """A fault of this machine: library, disk, memory, or a crash in native code."""

    exit_code = 3


class DiskFullError(EnvironmentFault):
    """A disk has too little room.

    Attributes:
        stage: what was being done; None until `Console.stage` says it.
        needed_bytes: still to be written; None where that is not known.
    """

    def __init__(
        self, message: str, *, stage: str | None = None, needed_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.stage, self.needed_bytes = stage, needed_bytes


def as_fault(error: BaseException) -> QuantkitError | None:
    """`error` as one of ours; None where it is a bug, which keeps its traceback.

    An InputError that a reader or writer raised because the machine failed is an EnvironmentFault:
    no other file would help.
    """
    if isinstance(error, QuantkitError):
        below = error.__cause__ or error.__context__
        failed = isinstance(below, OSError) and below.errno in _MACHINE
        return EnvironmentFault(str(error)) if failed and isinstance(error, InputError) else error
    if isinstance(error, MemoryError):
        return EnvironmentFault(
            f"out of memory ({str(error) or 'an allocation failed'}); end other programs, or allow "
            "this one more, then run again"
        )
    if isinstance(error, OSError):
        named = error.filename or "while reading or writing"
        if error.errno in MACHINE_ERRORS:
            advice = _NEXT.get(error.errno or 0, "check the disk and the machine's log")
            return EnvironmentFault(f"{error.strerror}: {named}; {advice}, then run again")
        if error.errno in _MISNAMED:
            return InputError(f"{error.strerror}: {named}; give another path")
    # What Python itself says, which has no class of its own.
    if isinstance(error, ImportError | OSError) and "shared object" in str(error):
        return EnvironmentFault(f"a library cannot be loaded: {error}")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return EnvironmentFault(f"{error}: raise the limit of processes (ulimit -u)")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return InputError("the path of a file has a NUL character in it; give another path")
    return None
