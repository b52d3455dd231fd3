"""What a build looks like in a terminal: bars, one line a stage, a closing table.

Plain lines when the output is not a terminal, nothing but errors when quiet. The only importer of
rich.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantkit.core.units import bytes_text, seconds_text

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_WIDTH = 132
"""Columns of tables that go to a file or a pipe."""
BAR_AFTER_SECONDS = 0.4
"""A stage shorter than this shows no bar: it would only flicker."""


def rate_text(rate: float, unit: str) -> str:
    """Units a second in a form that fits the unit."""
    if unit == "B":
        return f"{bytes_text(rate)}/s"
    if rate >= 1e4:
        return f"{rate / 1e3:.0f}k {unit}/s"
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def escape(text: str) -> str:
    """`text` with what rich would take for markup made harmless."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


class StageView:
    """The live line of one stage; implements `progress.Progress`."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self.name = console, name
        self._began = time.monotonic()
        self._total, self._done, self._unit, self._what = 0.0, 0.0, "", ""
        self._before = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self._total, self._done, self._unit, self._what = total, done, unit, what
        self._before = done
        self._began = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, total=total, completed=int(done), description=self._label())

    def advance(self, amount: float) -> None:
        self._done += amount
        elapsed = time.monotonic() - self._began
        if self._bar is None and elapsed >= BAR_AFTER_SECONDS:
            self._bar = self._console.new_bar()
            if self._bar is not None:
                self._task = self._bar.add_task(self._label(), total=self._total, rate="")
                self._bar.start()
        if self._bar is not None and self._task is not None:
            rate = rate_text((self._done - self._before) / max(elapsed, 1e-6), self._unit)
            self._bar.update(self._task, completed=self._done, rate=rate)

    def note(self, sentence: str) -> None:
        self._console.note(sentence)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _label(self) -> str:
        return f"{self.name} {self._what}".strip()


class Console:
    """Prints what a person should see; `quiet` prints only errors and asked-for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.quiet = quiet
        self._out = RichConsole(highlight=False, soft_wrap=True)
        if not self._out.is_terminal:
            self._out.width = PLAIN_WIDTH
        self._error = RichConsole(stderr=True, highlight=False)
        self._error.soft_wrap = (
            not self._error.is_terminal
        )  # one line for programs, words for people

    @property
    def interactive(self) -> bool:
        return self._out.is_terminal and not self.quiet

    @property
    def width(self) -> int:
        """Columns of a table."""
        return self._out.width

    def new_bar(self) -> RichProgress | None:
        """A progress bar with rate and time left, or None where nobody watches."""
        if not self.interactive:
            return None
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("[bold cyan]▸[/] {task.description:<18}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("[dim]{task.fields[rate]}[/]"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]left[/]"),
            console=self._out,
            transient=True,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[StageView]:
        """A stage's live line while the block runs."""
        view = StageView(self, name)
        try:
            yield view
        finally:
            view.close()

    def done(self, name: str, detail: str, seconds: float) -> None:
        self._line("[green]✓[/]", escape(name), escape(detail), seconds_text(seconds))

    def failed(self, name: str, detail: str, seconds: float) -> None:
        """A step that found what should not be."""
        self._line("[red]✗[/]", escape(name), escape(detail), seconds_text(seconds))

    def skipped(self, name: str, reason: str) -> None:
        words = f"[dim]skipped: {escape(reason)}[/]"
        self._line("[dim]·[/]", f"[dim]{escape(name):<18}[/]", words, "")

    def _line(self, mark: str, name: str, detail: str, end: str) -> None:
        if not self.quiet:
            self._out.print(f"{mark} {name:<18} {detail}" + (f"  [dim]{end}[/]" if end else ""))

    def note(self, sentence: str) -> None:
        if not self.quiet:
            self._out.print(f"  [dim]{escape(sentence)}[/]")

    def heading(self, text: str) -> None:
        if not self.quiet:
            self._out.print(f"[bold]{escape(text)}[/]")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose first column is left-aligned and whose cells may carry rich markup."""
        if self.quiet:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
        for index, column in enumerate(columns):
            last = index == len(columns) - 1
            justify: JustifyMethod = "left" if index == 0 or last else "right"
            table.add_column(column, justify=justify, no_wrap=not last, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._out.print(table)

    def bar(self, share: float, width: int = 16) -> str:
        """A bar of `width` characters with its percentage, for a table cell."""
        full = min(round(share * width), width)
        color = "red" if share > 1 else "yellow" if share > 0.95 else "green"
        return f"[{color}]{'█' * full}[/][dim]{'░' * (width - full)}[/] {share:>4.0%}"

    def line(self, text: str) -> None:
        """One plain line, unless quiet."""
        if not self.quiet:
            self._out.print(text, markup=False)

    def json(self, value: Any) -> None:  # noqa: ANN401
        """The facts that were asked for: printed even when quiet."""
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def error(self, message: str) -> None:
        self._error.print(f"[bold red]error:[/] {escape(message)}")
