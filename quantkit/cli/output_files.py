"""Where commands that write one file put it, and their unfinished work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.core.errors import InputError


def work_folder(out: Path) -> Path:
    """Beside the output; what is kept there makes a killed run go on."""
    return out.with_name(out.name + ".work")


def check_writable(out: Path, inputs: Sequence[Path], option: str = "--out") -> None:
    """Refuse an output that cannot be written, or that would replace an input.

    Args:
        option: that named it.
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
