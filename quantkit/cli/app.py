"""Assembles the commands, and turns quantkit's own errors into a line and an exit code.

Only this room imports typer. A command's module imports what is heavy inside its functions, so
that `quantkit --help` answers at once.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from quantkit.cli.build import build
from quantkit.cli.compare import compare
from quantkit.cli.download import download
from quantkit.cli.inspect import doctor, inspect
from quantkit.cli.niah import niah
from quantkit.cli.plan import plan
from quantkit.cli.publish import publish
from quantkit.cli.quantize import convert, quantize
from quantkit.cli.study import imatrix, measure
from quantkit.cli.targets import targets
from quantkit.cli.verify import verify
from quantkit.core.errors import MACHINE_ERRORS, EnvironmentFault, QuantkitError

INTERRUPTED = 130  # what typer exits with on ctrl-C

app = typer.Typer(
    help="Quantize a model into GGUF files that fit your GPUs, and check that they retrieve.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    build, download, plan, convert, imatrix, measure, quantize, niah, compare, publish, inspect,
    verify, doctor, targets,
):  # fmt: skip
    app.command()(command)


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
