"""Files that hold something else than their names promise, told by their first bytes."""

from __future__ import annotations

import codecs

from quantkit.core.errors import InputError

STAND_IN_BYTES = 64
"""As much of a file's beginning tells."""
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
_MARKS = {
    codecs.BOM_UTF8: "a byte order mark (BOM), which JSON does not allow",
    codecs.BOM_UTF16_LE: "the mark of UTF-16, and JSON files are UTF-8",
    codecs.BOM_UTF16_BE: "the mark of UTF-16, and JSON files are UTF-8",
}
"""What some editors and shells of Windows write first."""


def refuse_stand_in(start: bytes, where: str) -> None:
    """Raise InputError if the file `where` begins, with `start`, as another file than it should."""
    found = stand_in(start)
    if found is not None:
        raise InputError(f"{where} is {found}")
    mark = next((mark for mark in _MARKS if start.startswith(mark)), None)
    if mark is not None and where.endswith(".json"):
        raise InputError(
            f"{where} begins with {_MARKS[mark]}: save it as UTF-8 without BOM, or download it "
            "again"
        )


def stand_in(start: bytes) -> str | None:
    """What stands in the place of another file, and what to do; None: nothing that is known."""
    if start.startswith(_LFS):
        return (
            "a git-lfs pointer, and the file itself was not fetched: run 'git lfs pull' in its "
            "folder, or download the model with 'quantkit download'"
        )
    if start[:STAND_IN_BYTES].lstrip().lower().startswith(_PAGES):
        return (
            "a web page that was saved in the file's place: download it again, with 'quantkit "
            "download', or from an address with /resolve/ instead of /blob/"
        )
    return None
