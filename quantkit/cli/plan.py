"""`quantkit plan`: what fits a target, GPU by GPU, before a byte is quantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.console import Console
from quantkit.core.errors import GateError, InputError
from quantkit.core.units import MIB, bytes_text, gb_text, gib_text, tokens_text, unit_of

if TYPE_CHECKING:
    from quantkit.config.recipe import Recipe
    from quantkit.config.target import Target
    from quantkit.models.choose import ModelChoice
    from quantkit.plan.allowed_types import Costs
    from quantkit.plan.model import PlannedModel
    from quantkit.plan.plan import Entry, Headroom, Sheet
    from quantkit.plan.verify import Verification, Where

PICTURES = (".png", ".svg", ".pdf")
WIDEST_NAME = 16
"""Characters of a GPU's name in a table."""
BESIDE_BAR = 88
"""Columns of the table of GPUs, at most, without the bar that shows how full each is."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        target_changes: fields of the target with other values; None leaves one as it is.
        where: devices to verify on; None: not to verify.
        picture: of what_if, where to write it.
        launch: folder for the launch files.
    """

    target: str
    model: str
    recipe: str | None
    levels: str | None
    types: str | None
    target_changes: dict[str, float | str | None]
    where: Where | None
    what_if: bool
    picture: Path | None
    launch: Path | None
    as_json: bool


def plan(asked: Asked) -> None:
    """Print GPU by GPU what each level would hold, with nominal types: no weights are read.

    Raises:
        GateError: llama.cpp says something else than the plan.
    """
    from quantkit.cli.opening import open_shapes
    from quantkit.config.recipe import recipe_for
    from quantkit.models.choose import choose_model
    from quantkit.plan.level_plans import nominal_costs
    from quantkit.plan.model import PlannedModel
    from quantkit.plan.plan import ask_early, with_context
    from quantkit.plan.targets import choose_target

    if asked.types is not None and asked.levels is not None:
        raise InputError("--types plans one artifact and --levels several: give one of them")
    _check_outputs(asked)
    target = choose_target(asked.target).changed(**asked.target_changes)
    choice = choose_model(asked.model)
    recipe = recipe_for(asked.model, asked.recipe)
    if asked.levels is not None:
        recipe = recipe.with_levels(asked.levels)
    console = Console(quiet=asked.as_json)
    keep_prediction = recipe.convert.mtp == "keep"
    with ThreadPoolExecutor(1) as pool:  # llama.cpp answers while the tokenizer is read
        source = open_shapes(
            choice,
            console,
            lambda metadata, tensors: pool.submit(ask_early, metadata, tensors, target),
            keep_prediction=keep_prediction,
        )
        model = PlannedModel.of(choice.name, source.metadata, source.tensors)
    said = model.geometry.trained_context_tokens
    context = asked.target_changes["context_tokens"]
    model = with_context(model, None if context is None else int(context))
    costs = nominal_costs(model, recipe.measure)
    described = f" ({target.description})" if target.description else ""
    sheet, file = _planned(asked, choice, recipe, target, model, said, costs)
    console.heading(f"{choice.name} on {target.name}{described}")
    if model.geometry.trained_context_tokens > said:
        console.note(
            f"the model's metadata says {said:,} tokens, {context:,} were asked for: the commands "
            "override it"
        )
    facts: dict[str, Any] = {"model": choice.name, "target": target.name}
    facts["levels"] = [_show(entry, console) for entry in sheet.entries]
    for sentence in sheet.notes:
        console.note(sentence)
    facts |= _show_budget(sheet, costs, console)
    if asked.what_if:
        facts["what_if"] = _what_if(asked, recipe, target, model, costs, console)
    if asked.launch is not None:
        _write_launch(asked.launch, sheet, console)
    agree = True
    if asked.where is not None:
        facts["verified"] = []
        for entry in sheet.entries:
            found = _verify(entry, target, asked.where, file, console)
            facts["verified"].append(found)
            agree = agree and found["agrees"] and found["fits"]
    if asked.as_json:
        console.json(facts)
    if not agree:
        raise GateError(
            "llama.cpp takes something else than was planned, or more than the GPUs have, see "
            "above: do not rely on the plan, and report the model's configuration"
        )


def _check_outputs(asked: Asked) -> None:
    """Raise when something cannot be written, before anything is asked or printed."""
    from quantkit.cli.output_files import check_writable

    picture, launch = asked.picture, asked.launch
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise InputError(f"--picture {picture} must end in {', '.join(PICTURES)}")
    if picture is not None:
        check_writable(picture, [], "--picture")
    if launch is not None:
        there = next(path for path in (launch, *launch.parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"--launch {launch}: {there} is a file; name a folder")


def _planned(
    asked: Asked,
    choice: ModelChoice,
    recipe: Recipe,
    target: Target,
    model: PlannedModel,
    said: int,
    costs: Costs,
) -> tuple[Sheet, Path | None]:
    """The plan, and the GGUF file that it is of, where it is planned as it is."""
    from quantkit.formats.gguf_file import shard_paths
    from quantkit.plan.plan import plan_recipe, plan_types
    from quantkit.plan.type_choice import choose_types

    if asked.types is not None:
        chosen = choose_types(asked.types, model.metadata, model.tensors, has_imatrix=True)
        fallbacks = chosen.stock.fallbacks if chosen.stock is not None else None
        name = chosen.preset or Path(asked.types).stem
        named = dataclasses.replace(model, stem=f"{choice.name}-{name}")
        return plan_types(name, chosen.types, target, named, said, costs, fallbacks), None
    as_it_is = choice.kind == "gguf" and asked.levels is None and asked.recipe is None
    if as_it_is and choice.path is not None:
        types = {info.name: info.type_name for info in model.tensors}
        sheet = plan_types("as it is", types, target, model, said, costs)
        (entry,) = sheet.entries
        size = sum(path.stat().st_size for path in shard_paths(choice.path))
        entry = dataclasses.replace(entry, file=choice.path.name, total_bytes=size)
        return dataclasses.replace(sheet, entries=(entry,)), choice.path
    return plan_recipe(recipe, target, model, said), None


def _show(entry: Entry, console: Console) -> dict[str, Any]:
    """Print one artifact's GPUs; returns its facts."""
    from quantkit.plan.launch.llama_cpp import server_command
    from quantkit.plan.placement_file import placement_json
    from quantkit.report.results import fallback_text

    placement = entry.placement
    console.line("")
    console.heading(
        f"{entry.name}: {gib_text(entry.total_bytes)} ({gb_text(entry.total_bytes)}), "
        f"{entry.bits_per_weight:.2f} bits a weight"
    )
    console.note(
        f"{placement.context_tokens:,} tokens of {placement.kv_type} context"
        + (f" for {placement.sequences} sequences" if placement.sequences > 1 else "")
        + f", batches of {placement.ubatch_tokens}"
        + (", tokens drafted by prediction layers (MTP)" if placement.draft == "mtp" else "")
    )
    if entry.fallbacks:
        console.note(fallback_text(entry.fallbacks))
    unit, scale = unit_of(gpu.weights_bytes for gpu in placement.gpus)
    digits = 2 if unit == "GiB" else 1
    bar = min(16, console.width - BESIDE_BAR) if console.width > BESIDE_BAR + 4 else 0
    rows = [
        (
            f"{index} {_short(gpu.name)}",
            str(gpu.layers),
            *(
                f"{size / scale:.{digits}f}"
                for size in (
                    gpu.weights_bytes,
                    gpu.context_bytes,
                    gpu.compute_bytes,
                    gpu.reserve_bytes,
                    gpu.free_bytes,
                )
            ),
            console.bar(gpu.total_bytes / gpu.capacity_bytes, bar),
        )
        for index, gpu in enumerate(placement.gpus)
    ]
    columns = ("layers", "weights", "context", "compute", "reserve", "free", "filled")
    console.table((f"GPU, {unit}", *columns), rows)
    host = placement.host_bytes + placement.host_compute_bytes
    console.note(f"in the computer's own memory: {bytes_text(host)}")
    command = server_command(entry.launch)
    console.line(f"Run it:  {command}")
    return {
        "level": entry.name,
        "total_bytes": entry.total_bytes,
        "bits_per_weight": entry.bits_per_weight,
        **placement_json(placement, command),
    }


def _short(name: str) -> str:
    """A GPU's name without the words that all have, and no wider than a table's column."""
    for word in ("NVIDIA ", "GeForce "):
        name = name.removeprefix(word)
    return name if len(name) <= WIDEST_NAME else f"{name[: WIDEST_NAME - 1].rstrip()}…"


def _show_budget(sheet: Sheet, costs: Costs, console: Console) -> dict[str, Any]:
    """Print what the target allows, what its GPUs leave, and what the rest would buy."""
    from quantkit.plan.plan import headroom

    target, room = sheet.target, sheet.room_bytes
    fixed = target.weight_budget_bytes
    console.line("")
    own = f"{gib_text(fixed)} are the target's own; " if fixed is not None else ""
    console.line(f"Budget for weights: {own}the GPUs leave {gib_text(room)} ({gb_text(room)})")
    facts = {"budget": {"target_bytes": fixed, "gpus_leave_bytes": room}}
    if not sheet.entries:
        return facts
    entry = max(sheet.entries, key=lambda one: one.total_bytes)
    found = headroom(sheet, entry, costs)
    words = _headroom_words(found, entry)
    if words:
        console.line(f"Beside {entry.name}, the unused memory would hold {words}")
    largest = found.largest
    return {
        **facts,
        "headroom": {
            "beside": entry.name,
            "largest_bytes": None if largest is None else largest.total_bytes,
            "context_tokens": found.context_tokens,
            "ubatch_tokens": found.ubatch_tokens,
        },
    }


def _headroom_words(found: Headroom, entry: Entry) -> str:
    parts = []
    largest = found.largest
    if largest is not None and largest.total_bytes > 1.005 * entry.total_bytes:
        bits = 8 * largest.total_bytes / entry.model.elements
        parts.append(f"{bits:.2f} bits a weight ({gib_text(largest.total_bytes)})")
    if found.context_tokens is not None:
        parts.append(f"{found.context_tokens:,} tokens of context")
    if found.ubatch_tokens is not None:
        parts.append(f"batches of {found.ubatch_tokens} (-ub), which read a prompt faster")
    return ", or ".join(parts)


def _what_if(
    asked: Asked,
    recipe: Recipe,
    target: Target,
    model: PlannedModel,
    costs: Costs,
    console: Console,
) -> list[dict[str, Any]]:
    """Print the largest artifact for each context and KV cache type; returns the cells' facts."""
    from quantkit.plan.what_if import level_sizes, sweep
    from quantkit.report.what_if_picture import draw_what_if

    levels = level_sizes(recipe.levels, model)
    cells, why = sweep(model, costs, target, levels)
    kinds = list(dict.fromkeys(cell.kv_type for cell in cells))
    by_place = {(cell.context_tokens, cell.kv_type): cell for cell in cells}
    unit, scale = unit_of(c.largest.total_bytes if c.largest is not None else 0 for c in cells)
    rows = []
    for tokens in sorted({cell.context_tokens for cell in cells}):
        row = [tokens_text(tokens)]
        for kind in kinds:
            cell = by_place[tokens, kind]
            if cell.largest is None:
                row.append("[red]nothing[/]")
                continue
            size = cell.largest.total_bytes
            level = f" [bold]{cell.level}[/]" if cell.level else ""
            row.append(f"{size / scale:,.2f}  {8 * size / model.elements:.2f}{level}")
        rows.append([*row, ""])
    console.line("")
    console.heading(
        f"What would fit {target.name}: the largest artifact in {unit}, bits a weight, level"
    )
    console.table(("context", *(f"{kind} KV" for kind in kinds), ""), rows)
    if why:
        console.note(why)
    if asked.picture is not None:
        title = f"{model.stem} on {target.name}, batches of {target.ubatch_tokens}"
        draw_what_if(cells, levels, model.elements, title, asked.picture)
        console.note(f"picture: {asked.picture}")
    return [
        {
            "context_tokens": cell.context_tokens,
            "kv_type": cell.kv_type,
            "largest_bytes": None if cell.largest is None else cell.largest.total_bytes,
            "level": cell.level,
        }
        for cell in cells
    ]


def _write_launch(folder: Path, sheet: Sheet, console: Console) -> None:
    from quantkit.cli.output_files import check_writable
    from quantkit.plan.launch.files import MODELFILE, write_launch_files

    if len(sheet.entries) != 1:
        raise InputError(
            f"--launch writes one artifact's files, {len(sheet.entries)} are planned: choose one "
            "with --levels or --types"
        )
    check_writable(folder / MODELFILE, [], "--launch")
    files = write_launch_files(sheet.entries[0].launch, folder)
    console.note(f"written: {', '.join(str(path) for path in files)}")


def _verify(
    entry: Entry, target: Target, where: Where, file: Path | None, console: Console
) -> dict[str, Any]:
    """Print the plan beside llama.cpp's own numbers; returns them."""
    from quantkit.plan.verify import verify

    found = verify(entry, target, where, file)
    devices = {
        "stand-ins": "stand-ins for the GPUs",
        "present": "this machine's GPUs",
        "rpc": "RPC servers in place of the GPUs",
    }[found.where]
    console.line("")
    console.heading(
        f"{entry.name} loaded by llama.cpp on {devices}, without weights: planned / found, MiB"
    )
    console.table(
        ("gpu", "weights", "context", "compute", "off by"),
        [_verified_row(index, found) for index in range(len(entry.placement.gpus))],
    )
    verdict = "the plan agrees" if found.agrees else "THE PLAN DIFFERS"
    fits = "and fits" if found.fits else "AND DOES NOT FIT"
    console.line(f"{verdict} {fits}")
    return {
        "level": entry.name,
        "devices": found.where,
        "agrees": found.agrees,
        "fits": found.fits,
        "host_bytes": found.host,
        "gpus": [
            {
                "gpu": one.gpu,
                "part": one.part,
                "planned_bytes": one.planned,
                "llama_cpp_bytes": one.found,
            }
            for one in found.compared
        ],
    }


def _verified_row(gpu: int, found: Verification) -> Sequence[str]:
    ours = [one for one in found.compared if one.gpu == gpu]
    row = [str(gpu)]
    for one in ours:
        row.append(f"{one.planned / MIB:,.1f} / {one.found / MIB:,.1f}")
    worst = max(one.difference for one in ours)
    colour = "green" if all(one.agrees for one in ours) else "red"
    return (*row, f"[{colour}]{worst:.2%}[/]")
