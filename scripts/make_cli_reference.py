"""Make docs/cli.md, the reference of all commands, from the Typer app itself.

python scripts/make_cli_reference.py           write it
python scripts/make_cli_reference.py --check   exit 1 when it is not up to date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import typer.main
from typer.core import TyperCommand, TyperGroup

from quantkit.cli.app import app

REFERENCE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# Command line

This page is made from the code by `scripts/make_cli_reference.py`; do not edit it.

    quantkit COMMAND [OPTIONS]

Exit codes: 0 done, 1 a level failed its gate, 2 a wrong argument or input, 3 a fault of the
machine, 130 stopped by Ctrl-C. `quantkit --version` prints the version, and every command has
`--help`.
"""


def reference() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    sections = [HEAD]
    for name, command in group.commands.items():
        assert isinstance(command, TyperCommand)
        sections.append(_section(name, command))
    return "\n".join(sections)


def _section(name: str, command: TyperCommand) -> str:
    context = command.context_class(command, info_name=f"quantkit {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f"## quantkit {name}",
        "",
        f"    quantkit {name} {usage}",
        "",
        (command.help or "").strip(),
        "",
        "| option | meaning |",
        "|---|---|",
    ]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            option, meaning = (" ".join(part.split()).replace("|", r"\|") for part in record)
            lines.append(f"| `{option}` | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    if parser.parse_args().check:
        if REFERENCE.read_text(encoding="utf-8") != reference():
            sys.exit(f"{REFERENCE} is not up to date: run python {sys.argv[0]}")
        return
    REFERENCE.write_text(reference(), encoding="utf-8")
    print(f"wrote {REFERENCE}")


if __name__ == "__main__":
    main()
