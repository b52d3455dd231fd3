"""A journal of finished units of one piece of work: its lines survive `kill -9`."""

from __future__ import annotations

import os
from pathlib import Path


class Journal:
    """Lines that are appended and fsynced, below a first line with their purpose.

    Lines of another `purpose` are discarded, and so is a line that was incomplete at a kill.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        self._path, self._purpose = path, purpose
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        self.lines: list[str] = whole[1:]
        if whole and whole[0] == purpose:
            if not text.endswith("\n"):
                self._rewrite()
        else:
            self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.lines = []
        self._rewrite()

    def append(self, *lines: str) -> None:
        """Add finished units; they are on disk when this returns."""
        self.lines += lines
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        growing = self._path.with_name(self._path.name + ".new")
        growing.write_text("\n".join([self._purpose, *self.lines, ""]), encoding="utf-8")
        os.replace(growing, self._path)
