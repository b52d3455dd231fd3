"""`quantkit plan`: what fits a target, GPU by GPU, before a byte is quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import GateError, InputError
from quantkit.core.units import GIB

PICTURES = (".png", ".svg", ".pdf")


def plan(
    target: options.Target,
    model: options.Model,
    recipe: options.Recipe = None,
    levels: options.Levels = None,
    types: Annotated[
        str | None,
        Option(
            help="Plan one artifact with these types instead of levels: an allocation.json or a "
            "llama.cpp preset."
        ),
    ] = None,
    context: Annotated[
        int | None,
        Option(
            min=1,
            help="Context length, in tokens. Default: the target's, as far as the model was "
            "trained for it.",
        ),
    ] = None,
    beyond_training: options.BeyondTraining = False,
    kv: Annotated[
        str | None, Option(help="Type of the KV cache: f16, q8_0, … Default: the target's.")
    ] = None,
    ubatch: Annotated[
        int | None,
        Option(min=1, help="Physical batch, in tokens (llama.cpp's -ub). Default: the target's."),
    ] = None,
    sequences: Annotated[
        int | None,
        Option(min=1, help="Sequences served at once (llama.cpp's -np). Default: the target's."),
    ] = None,
    budget: Annotated[
        str | None,
        Option(
            help="Budget for the weights: a size such as 71GiB, or 'auto' for all that fits. "
            "Default: the target's."
        ),
    ] = None,
    no_pipeline: Annotated[
        bool,
        Option(
            "--no-pipeline",
            help="Switch pipeline parallelism off: slower prompts on several GPUs, smaller "
            "compute buffers.",
        ),
    ] = False,
    draft: Annotated[
        str | None,
        Option(
            help="Speculative decoding: 'mtp' drafts tokens with the model's own prediction "
            "layers. Default: the target's."
        ),
    ] = None,
    what_if: Annotated[
        bool,
        Option("--what-if", help="Show the largest artifact by context length and KV cache type."),
    ] = False,
    picture: Annotated[
        Path | None, Option(help="Draw --what-if into this PNG, SVG or PDF file.")
    ] = None,
    verify: Annotated[
        bool, Option("--verify", help="Compare the plan with the memory that llama.cpp reports.")
    ] = False,
    on: Annotated[
        str,
        Option(
            help="Devices for --verify: 'present' (the GPUs of this machine), 'fake' "
            "(simulated GPUs), 'rpc' (RPC servers on this machine), or 'auto'."
        ),
    ] = "auto",
    launch: Annotated[
        Path | None,
        Option(help="Folder for launch files: scripts, systemd units, compose.yaml, Modelfile."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    from quantkit.cli import plan_table
    from quantkit.llamacpp.memory_plan import asking
    from quantkit.plan.plan import plan as run
    from quantkit.plan.verify import where_of

    devices = where_of(on)
    _check_outputs(picture, launch)
    console = Console(quiet=as_json)
    with asking():
        found = run(
            model, target, recipe=recipe, levels=levels, types=types, quiet=as_json,
            context_tokens=context, kv_type=kv, ubatch_tokens=ubatch, sequences=sequences,
            weight_budget_gib=_budget(budget), pipeline=False if no_pipeline else None,
            draft=draft, beyond_training=beyond_training,
        )  # fmt: skip
        facts = plan_table.show_plan(found, console)
        if what_if or picture is not None:
            facts["what_if"] = plan_table.show_what_if(found, picture, console)
        if launch is not None:
            plan_table.write_launch(launch, found.entries, console)
        if verify:
            facts["verified"] = plan_table.show_verification(found, devices, console)
    if as_json:
        console.json(facts)
    if not all(one["agrees"] and one["fits"] for one in facts.get("verified", [])):
        raise GateError(
            "llama.cpp takes another amount of memory than was planned, or more than the GPUs "
            "have, see above: do not rely on the plan, and report the model's configuration"
        )


def _budget(words: str | None) -> float | str | None:
    """`--budget`: GiB, or "auto"."""
    from quantkit.config.levels import parse_size

    if words is None or words == "auto":
        return words
    size = parse_size(words)
    if size is None:
        raise InputError(f"--budget {words} is neither auto nor a size such as 71GiB or 76GB")
    return size / GIB


def _check_outputs(picture: Path | None, launch: Path | None) -> None:
    """Raise when something cannot be written, before anything is asked or printed."""
    from quantkit.core.files import check_writable

    if picture is not None:
        if picture.suffix.lower() not in PICTURES:
            raise InputError(f"--picture {picture} must end in {', '.join(PICTURES)}")
        check_writable(picture, option="--picture")
    if launch is not None:
        there = next(path for path in (launch, *launch.parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"--launch {launch}: {there} is a file; name a folder")
