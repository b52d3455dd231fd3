"""What a command prints: one line per stage, notes, tables; progress bars while it works.

Plain lines when the output is not a terminal, only errors when quiet. The only importer of rich;
tqdm draws the bars (bars.py).

Names and sentences may come from a file's metadata, a repository or a server. Here, where all text
passes, control characters are written as codes, so that none reaches the terminal, and what is too
long is cut. Text is never read as rich's markup; `marked` makes what has colours.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from quantkit.core.disk import FULL, disk_full
from quantkit.core.errors import DiskFullError
from quantkit.core.progress import Progress
from quantkit.core.units import printable, seconds_text, shown

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.text import Text

    from quantkit.core.bars import Bar

    Cell = str | Text

PLAIN_WIDTH = 132
"""Columns of tables that go to a file or a pipe."""


MOST_MESSAGE = 4000
"""Characters of a message or a line; a command of llama.cpp has up to a thousand."""
MOST_CELL = 256
"""Characters of a cell, which hold the name of any file."""


def message_text(text: str) -> str:
    """`text` as it may be printed: one line; of a long one the begin, and the end with advice."""
    if len(text) > MOST_MESSAGE:
        text = f"{text[: MOST_MESSAGE // 2]}…{text[-MOST_MESSAGE // 4 :]}"
    plain = printable(text)
    if len(plain) > MOST_MESSAGE:  # codes are longer than what they stand for
        plain = f"{plain[: MOST_MESSAGE // 2]}…{plain[-MOST_MESSAGE // 4 :]}"
    return plain


def marked(form: str, *values: object) -> Text:
    """A cell with rich's markup: `form` with `values`, which are plain text, in its braces."""
    from rich.markup import escape
    from rich.text import Text

    plain = (escape(shown(str(value), MOST_CELL)) for value in values)
    return Text.from_markup(form.format(*plain), emoji=False)


class EscapedStream(TextIOBase):
    """Standard error for what others print there: parsers of options, warnings, tracebacks.

    Args:
        plain: the stream below, for text that holds no control characters but its own colours.
    """

    def __init__(self, plain: TextIO) -> None:
        self.plain = plain

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.plain.encoding

    def write(self, text: str, /) -> int:
        self.plain.write("\n".join(message_text(line) for line in text.split("\n")))
        return len(text)

    def flush(self) -> None:
        self.plain.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.plain.isatty()

    def fileno(self) -> int:
        return self.plain.fileno()


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

            self._bar = Bar(shown(f"{self._name} {what}".strip()), total, unit, done)

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

        class Output(RichConsole):
            def on_broken_pipe(self) -> None:
                raise  # rich would exit as if a gate had failed

        self.quiet = quiet
        self._out = Output(highlight=False, soft_wrap=True, emoji=False)
        if not self._out.is_terminal:
            self._out.width = PLAIN_WIDTH
        below = sys.stderr.plain if isinstance(sys.stderr, EscapedStream) else None
        self._error = Output(file=below, stderr=True, highlight=False, emoji=False)
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
                if error.errno is not None:  # a write does not say where
                    error.filename = error.filename or str(place)
                raise
            left = int(view.left_bytes or 0) or None
            raise disk_full(name, place, left) from error
        finally:
            view.close()

    def done(self, name: str, detail: str, seconds: float) -> None:
        self._line("[green]✓[/]", name, detail, seconds_text(seconds))

    def failed(self, name: str, detail: str, seconds: float) -> None:
        """A step that found a fault."""
        self._line("[red]✗[/]", name, detail, seconds_text(seconds))

    def skipped(self, name: str, reason: str) -> None:
        words = f"[dim]skipped: {_escaped(reason)}[/]"
        self._print(f"[dim]· {_escaped(name):<18}[/] {words}")

    def _line(self, mark: str, name: str, detail: str, end: str) -> None:
        self._print(f"{mark} {_escaped(name):<18} {_escaped(detail)}  [dim]{end}[/]")

    def note(self, sentence: str) -> None:
        """Print a sentence, wrapped at words in a terminal."""
        from rich.padding import Padding

        words = f"[dim]{_escaped(sentence)}[/]"
        wrapped = Padding(words, (0, 0, 0, 2), expand=False)
        self._print(wrapped if self.interactive else f"  {words}", wrap=self.interactive)

    def heading(self, text: str) -> None:
        self._print(f"[bold]{_escaped(text)}[/]")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table whose first column is left-aligned.

        Args:
            columns: quantkit's own words, which may carry rich's markup.
            rows: a cell is plain text of one line, or `marked`.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
        for index, column in enumerate(columns):
            last = index == len(columns) - 1
            justify: JustifyMethod = "left" if index == 0 or last else "right"
            table.add_column(column, justify=justify, no_wrap=not last, overflow="fold")
        for row in rows:
            table.add_row(*(marked("{}", cell) if isinstance(cell, str) else cell for cell in row))
        self._print(table)

    def bar(self, share: float, width: int = 16) -> Text:
        """A bar of `width` characters with its percentage, for a table cell."""
        full = min(round(share * width), width)
        color = "red" if share > 1 else "yellow" if share > 0.95 else "green"
        return marked(
            f"[{color}]{'█' * full}[/][dim]{'░' * (width - full)}[/] {{}}", f"{share:>4.0%}"
        )

    def line(self, *lines: str) -> None:
        """Plain lines, unless quiet."""
        for text in lines:
            self._print(message_text(text), markup=False)

    def json(self, value: Any) -> None:  # noqa: ANN401
        """Facts that were asked for; printed even when quiet.

        In ASCII, which holds no control character that a terminal knows. JSON has no infinities,
        so they are null.
        """
        sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")

    def error(self, message: str) -> None:
        self._error.print(f"[bold red]error:[/] {_escaped(message)}")


def _escaped(text: str) -> str:
    """`text` as a part of a line with markup."""
    from rich.markup import escape

    return escape(message_text(text))


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` with null for what is infinite or not a number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
