"""Assembles the commands, and turns quantkit's own errors into a line and an exit code.

Only this room imports typer. A command's module is imported when the command runs, and imports
what is heavy inside its functions, so that `quantkit --help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from typer.core import TyperCommand, TyperGroup

from quantkit.core.console import Console, EscapedStream
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError, as_fault
from quantkit.core.import_path import start_again_without_local_libraries

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

INTERRUPTED = 130  # what typer exits with on ctrl-C
CLOSED = (
    "standard output was closed before everything was printed; let the program that reads it read "
    "to the end, or write to a file"
)

COMMANDS = {
    "build": ("build", "Quantize a model for a target, check the results, and report."),
    "download": (
        "download",
        "Download and verify a checkpoint from the Hub. Resumes after an interruption.",
    ),
    "plan": ("plan", "Plan the memory of each GPU before anything is quantized."),
    "convert": ("quantize", "Convert a checkpoint into one GGUF file."),
    "study": ("study", "Measure a model in one sweep, or describe a study."),
    "imatrix": ("study", "Collect an importance matrix from a model, or describe one."),
    "measure": ("study", "Measure every tensor's quantization error and its cost in KLD."),
    "quantize": ("quantize", "Quantize a model with the types of an allocation or a preset."),
    "niah": ("niah", "Check retrieval on a GGUF file or a server; exit 1 if it fails."),
    "compare": ("compare", "Compare files of one model by size, KLD, retrieval and speed."),
    "publish": ("publish", "Publish a finished build to the Hub, with its evidence."),
    "inspect": ("inspect", "Show the architecture, tensor types and sizes of a GGUF file."),
    "verify": ("verify", "Verify a release: hashes, tensors, types, verdicts, source."),
    "doctor": ("inspect", "Show this machine, and which native settings work on it."),
    "targets": ("targets", "List the targets, or the largest artifact that each one holds."),
}
"""Name of each command, which is that of its function → the function's module, and its help."""


@contextmanager
def _closed_pipe() -> Iterator[None]:
    """Make a closed pipe, for which typer would exit with 1, a fault of the environment."""
    try:
        yield
    except BrokenPipeError as error:
        raise EnvironmentFault(CLOSED) from error


class _Commands(UserDict[str, Any]):
    """`COMMANDS` as commands, each imported when it is looked up."""

    def __getitem__(self, name: str) -> Command:
        module, summary = self.data[name]
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        function = getattr(importlib.import_module(f"quantkit.cli.{module}"), name)
        single.command(name, help=summary)(function)
        return typer.main.get_command(single)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - Typer's own
        super().__init__(**attributes)
        self.commands = _Commands(COMMANDS)

    def make_context(self, *given: Any, **extra: Any) -> Context:  # noqa: ANN401 - Typer's own
        with _closed_pipe():
            return super().make_context(*given, **extra)

    def invoke(self, ctx: Context) -> Any:  # noqa: ANN401 - Typer's own
        with _closed_pipe():
            return super().invoke(ctx)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """List the commands without importing them."""
        listed = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}
        TyperGroup(commands=dict(listed)).format_commands(ctx, formatter)


app = typer.Typer(
    cls=_Group,
    help="Quantize a model into GGUF files that fit your GPUs, and check that they retrieve.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from quantkit import __version__

        typer.echo(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: our own errors become one line and an exit code, bugs keep their traceback."""
    start_again_without_local_libraries()
    try:
        _open_streams()
        _check_folder()
        if "HF_HUB_DOWNLOAD_TIMEOUT" in os.environ or "HF_HUB_ETAG_TIMEOUT" in os.environ:
            from quantkit.hub.connection import check_timeouts

            check_timeouts()
        try:
            app()
        except SystemExit as stop:
            if stop.code == INTERRUPTED:
                sys.stderr.write("stopped; run the same command again to resume\n")
            sys.stdout.flush()  # at the exit of the interpreter an error would be none of ours
            raise
    except Exception as error:
        fault = EnvironmentFault(CLOSED) if isinstance(error, BrokenPipeError) else as_fault(error)
        if fault is None:
            raise
        _fail(fault)


def _open_streams() -> None:
    """Make the standard streams safe to print to.

    Raises:
        EnvironmentFault: standard output is closed.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for number in closed:  # a file of ours would get the number, and what others print in it
        null = os.open(os.devnull, os.O_RDWR)
        assert null == number
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # some terminals cannot print "→" or "✓"
    if not isinstance(sys.stderr, EscapedStream):
        sys.stderr = cast(TextIO, EscapedStream(sys.stderr))
    if 1 in closed:
        raise EnvironmentFault(CLOSED)


def _check_folder() -> None:
    """See that relative paths mean something, for the libraries too.

    Raises:
        InputError: the current folder was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError(
            "the current folder was deleted; change to another, then run again"
        ) from None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _fail(error: QuantkitError) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # what is left would be written again at the exit, and fail again
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    with suppress(OSError):
        try:
            Console().error(str(error))
        except (OSError, ImportError, MemoryError):  # no file or memory left to load rich
            sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
    sys.exit(error.exit_code)
