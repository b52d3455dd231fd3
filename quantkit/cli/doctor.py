"""`quantkit doctor`: this machine, and the native settings that work on it."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from quantkit.cli import options
from quantkit.core.console import Console


def doctor(
    again: Annotated[
        bool, Option("--again", help="Run the self-test now, even if its result is cached.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show this machine, and which native settings work on it."""
    from quantkit.llamacpp.selftest import run_selftest, working_settings
    from quantkit.plan.machine import describe_machine
    from quantkit.quantize.kernels import simd

    tested = run_selftest() if again else working_settings()
    compiled = simd.finding(again=again)
    facts = describe_machine() | {
        "use_extra_buffers": tested.use_extra_buffers,
        "finding": tested.finding,
        "compiled_kernels": compiled.usable,
        "kernels_finding": compiled.finding,
    }
    console = Console(quiet=as_json)
    if as_json:
        console.json(facts)
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        console.line(f"{name.replace('_', ' '):<20} {shown}")
