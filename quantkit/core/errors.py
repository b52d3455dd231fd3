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

MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ENOMEM, errno.EMFILE}
)
"""OSErrors that are faults of the machine and not bugs: disk full, read-only, no memory."""


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
