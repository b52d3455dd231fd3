"""What a command prints: one line per stage, notes, tables; progress bars while it works.

Plain lines when the output is not a terminal, only errors when quiet. The only importer of rich;
tqdm draws the bars (bars.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.disk import FULL, disk_full
from quantkit.core.errors import DiskFullError
from quantkit.core.progress import Progress
from quantkit.core.units import seconds_text

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType

    from quantkit.core.bars import Bar

PLAIN_WIDTH = 132
"""Columns of tables that go to a file or a pipe."""


def escape(text: str) -> str:
    """`text` without markup of rich."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


class StageView(Progress):
    """The live bar of one stage."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._bar: Bar | None = None
        self.left_bytes: float | None = None
        """Still to be done, where that is counted in bytes."""

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self.close()
        self.left_bytes = total - done if unit == "B" else None
        if self._console.interactive:
            from quantkit.core.bars import Bar

            self._bar = Bar(f"{self._name} {what}".strip(), total, unit, done)

    def advance(self, amount: float) -> None:
        if self.left_bytes is not None:
            self.left_bytes -= amount
        if self._bar is not None:
            self._bar.update(amount)

    def note(self, sentence: str) -> None:
        self._console.note(sentence)

    def close(self) -> None:
        """Remove the bar; `start` brings the next one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Console:
    """Prints for a person; with `quiet` only errors and results that were asked for."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.quiet = quiet
        self._out = RichConsole(highlight=False, soft_wrap=True)
        if not self._out.is_terminal:
            self._out.width = PLAIN_WIDTH
        self._error = RichConsole(stderr=True, highlight=False)
        # one line for programs, words for people
        self._error.soft_wrap = not self._error.is_terminal

    @property
    def interactive(self) -> bool:
        """Whether somebody watches, in a terminal or a notebook."""
        return (self._out.is_terminal or self._out.is_jupyter) and not self.quiet

    @property
    def width(self) -> int:
        """Columns of a table."""
        return self._out.width

    def _print(self, content: RenderableType, *, markup: bool = True, wrap: bool = False) -> None:
        """Print, unless quiet, above the bars that are on the screen."""
        if self.quiet:
            return
        bars = sys.modules.get("quantkit.core.bars")
        with bars.Bar.external_write_mode(sys.stdout) if bars else nullcontext():
            self._out.print(content, markup=markup, soft_wrap=not wrap)

    @contextmanager
    def stage(self, name: str, place: Path | None = None) -> Iterator[StageView]:
        """A stage's live line while the block runs.

        Args:
            place: the file that it writes, or the folder.

        Raises:
            DiskFullError: for an OSError of a full disk.
        """
        view = StageView(self, name)
        try:
            yield view
        except DiskFullError as error:
            if place is None or error.stage is not None:
                raise
            raise disk_full(name, place, error.needed_bytes) from None
        except OSError as error:
            if place is None or error.errno not in FULL:
                raise
            left = int(view.left_bytes or 0) or None
            raise disk_full(name, place, left) from error
        finally:
            view.close()

    def done(self, name: str, detail: str, seconds: float) -> None:
        self._line("[green]✓[/]", escape(name), escape(detail), seconds_text(seconds))

    def failed(self, name: str, detail: str, seconds: float) -> None:
        """A step that found a fault."""
        self._line("[red]✗[/]", escape(name), escape(detail), seconds_text(seconds))

    def skipped(self, name: str, reason: str) -> None:
        words = f"[dim]skipped: {escape(reason)}[/]"
        self._line("[dim]·[/]", f"[dim]{escape(name):<18}[/]", words, "")

    def _line(self, mark: str, name: str, detail: str, end: str) -> None:
        self._print(f"{mark} {name:<18} {detail}" + (f"  [dim]{end}[/]" if end else ""))

    def note(self, sentence: str) -> None:
        """Print a sentence, wrapped at words in a terminal."""
        from rich.padding import Padding

        words = f"[dim]{escape(sentence)}[/]"
        wrapped = Padding(words, (0, 0, 0, 2), expand=False)
        self._print(wrapped if self.interactive else f"  {words}", wrap=self.interactive)

    def heading(self, text: str) -> None:
        self._print(f"[bold]{escape(text)}[/]")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose first column is left-aligned and whose cells may carry rich markup."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
        for index, column in enumerate(columns):
            last = index == len(columns) - 1
            justify: JustifyMethod = "left" if index == 0 or last else "right"
            table.add_column(column, justify=justify, no_wrap=not last, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._print(table)

    def bar(self, share: float, width: int = 16) -> str:
        """A bar of `width` characters with its percentage, for a table cell."""
        full = min(round(share * width), width)
        color = "red" if share > 1 else "yellow" if share > 0.95 else "green"
        return f"[{color}]{'█' * full}[/][dim]{'░' * (width - full)}[/] {share:>4.0%}"

    def line(self, text: str) -> None:
        """One plain line, unless quiet."""
        self._print(text, markup=False)

    def json(self, value: Any) -> None:  # noqa: ANN401
        """Facts that were asked for; printed even when quiet."""
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def error(self, message: str) -> None:
        self._error.print(f"[bold red]error:[/] {escape(message)}")
