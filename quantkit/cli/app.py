"""Assembles the commands, and turns quantkit's own errors into a line and an exit code.

Only this room imports typer. A command's module is imported when the command runs, and imports
what is heavy inside its functions, so that `quantkit --help` answers at once.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections import UserDict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from quantkit.core.errors import MACHINE_ERRORS, EnvironmentFault, QuantkitError

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

INTERRUPTED = 130  # what typer exits with on ctrl-C

COMMANDS = {
    "build": ("build", "Quantize a model for a target, check the results, and report."),
    "download": (
        "download",
        "Download and verify a checkpoint from the Hub. Resumes after an interruption.",
    ),
    "plan": ("plan", "Plan the memory of each GPU before anything is quantized."),
    "convert": ("quantize", "Convert a checkpoint into one GGUF file."),
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # some terminals cannot print "→" or "✓"
    try:
        app()
    except QuantkitError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        _fail(EnvironmentFault(f"{error.strerror}: {error.filename or 'while writing'}"))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            sys.stderr.write("stopped; run the same command again to resume\n")
        raise


def _fail(error: QuantkitError) -> None:
    from quantkit.core.console import Console

    Console().error(str(error))
    sys.exit(error.exit_code)
