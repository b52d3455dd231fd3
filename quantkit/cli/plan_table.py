"""What `quantkit plan` prints: the GPUs of each artifact, budgets, alternatives, verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.console import Console, marked
from quantkit.core.errors import InputError
from quantkit.core.files import check_writable
from quantkit.core.units import MIB, bytes_text, gb_text, gib_text, tokens_text, unit_of
from quantkit.plan.allocation_file import fallback_text
from quantkit.plan.alternatives import Alternatives, alternatives
from quantkit.plan.launch.files import MODELFILE, write_launch_files
from quantkit.plan.launch.llama_cpp import server_command
from quantkit.plan.plan import Entry, ModelPlan
from quantkit.plan.verify import Verification, Where, verify
from quantkit.plan.what_if import level_sizes, sweep
from quantkit.report.pictures import draw_what_if

if TYPE_CHECKING:
    from quantkit.core.console import Cell

WIDEST_NAME = 16
"""Characters of a GPU's name in a table."""
BESIDE_BAR = 88
"""Columns of the table of GPUs, at most, without the bar that shows how full each is."""
DEVICES = {
    "fake": "fake GPUs",
    "present": "this machine's GPUs",
    "rpc": "RPC servers in place of the GPUs",
}


def show_plan(found: ModelPlan, console: Console) -> dict[str, Any]:
    """Print the artifacts and what else would fit; returns their facts."""
    target, said = found.plan.memory.target, found.metadata_context_tokens
    described = f" ({target.description})" if target.description else ""
    console.heading(f"{found.name} on {target.name}{described}")
    if found.model.geometry.trained_context_tokens > said:
        console.note(
            f"--context is {target.context_tokens:,} tokens, the model's metadata says {said:,}: "
            "the commands override it, and set no RoPE scaling"
        )
    facts: dict[str, Any] = {"model": found.name, "target": target.name}
    facts["levels"] = [_show_entry(entry, console) for entry in found.entries]
    for sentence in found.plan.notes:
        console.note(sentence)
    return facts | _show_budget(found, console)


def _show_entry(entry: Entry, console: Console) -> dict[str, Any]:
    """Print one artifact's GPUs; returns its facts."""
    placement, run = entry.placement, entry.placement.run
    console.line("")
    console.heading(
        f"{entry.name}: {gib_text(entry.total_bytes)} ({gb_text(entry.total_bytes)}), "
        f"{entry.bits_per_weight:.2f} bits per weight"
    )
    console.note(
        f"{run.context_tokens:,} tokens of {run.kv_type} context"
        + (f" for {run.sequences} sequences" if run.sequences > 1 else "")
        + f", batches of {run.ubatch_tokens}"
        + (", tokens drafted by prediction layers (MTP)" if run.drafted_tokens else "")
    )
    if entry.fallbacks:
        console.note(fallback_text(entry.fallbacks))
    unit, scale = unit_of(gpu.weights_bytes for gpu in placement.gpus)
    digits = 2 if unit == "GiB" else 1
    bar = min(16, console.width - BESIDE_BAR) if console.width > BESIDE_BAR + 4 else 0
    rows: list[Sequence[Cell]] = [
        (
            f"{index} {_short(gpu.name)}",
            str(gpu.layers),
            *(
                f"{getattr(gpu, f'{part}_bytes') / scale:.{digits}f}"
                for part in ("weights", "context", "compute", "reserve", "free")
            ),
            console.bar(gpu.total_bytes / gpu.capacity_bytes, bar),
        )
        for index, gpu in enumerate(placement.gpus)
    ]
    columns = ("layers", "weights", "context", "compute", "reserve", "free", "filled")
    console.table((f"GPU, {unit}", *columns), rows)
    host = placement.host_bytes + placement.host_compute_bytes
    console.note(f"in the memory of the computer: {bytes_text(host)}")
    command = server_command(entry.launch)
    console.line(f"Run it:  {command}")
    return {
        "level": entry.name,
        "total_bytes": entry.total_bytes,
        "bits_per_weight": entry.bits_per_weight,
        "command": command,
        "placement": placement.model_dump(mode="json"),
    }


def _short(name: str) -> str:
    """A GPU's name without the words that all have, and no wider than a table's column."""
    for word in ("NVIDIA ", "GeForce "):
        name = name.removeprefix(word)
    return name if len(name) <= WIDEST_NAME else f"{name[: WIDEST_NAME - 1].rstrip()}…"


def _show_budget(found: ModelPlan, console: Console) -> dict[str, Any]:
    """Print what the target allows, what its GPUs leave, and what would fit into the rest."""
    memory, room = found.plan.memory, found.plan.room_bytes
    fixed = memory.target.weight_budget_bytes
    console.line("")
    own = f"the target sets {gib_text(fixed)}; " if fixed is not None else ""
    console.line(
        f"Budget for weights: {own}the GPUs have room for {gib_text(room)} ({gb_text(room)})"
    )
    facts = {"budget": {"target_bytes": fixed, "gpus_leave_bytes": room}}
    if not found.entries:
        return facts
    entry = max(found.entries, key=lambda one: one.total_bytes)
    rest = alternatives(entry.model, entry.types, found.costs, memory)
    words = _alternatives_words(rest, entry)
    if words:
        console.line(f"Room left by {entry.name}: {words}")
    largest = rest.largest
    return {
        **facts,
        "alternatives": {
            "beside": entry.name,
            "largest_bytes": None if largest is None else largest.total_bytes,
            "context_tokens": rest.context_tokens,
            "ubatch_tokens": rest.ubatch_tokens,
        },
    }


def _alternatives_words(found: Alternatives, entry: Entry) -> str:
    parts = []
    largest = found.largest
    if largest is not None and largest.total_bytes > 1.005 * entry.total_bytes:
        bits = 8 * largest.total_bytes / entry.model.elements
        parts.append(f"{bits:.2f} bits per weight ({gib_text(largest.total_bytes)})")
    if found.context_tokens is not None:
        parts.append(f"{found.context_tokens:,} tokens of context")
    if found.ubatch_tokens is not None:
        parts.append(f"batches of {found.ubatch_tokens} (-ub), for faster prompts")
    return ", or ".join(parts)


def show_what_if(found: ModelPlan, picture: Path | None, console: Console) -> list[dict[str, Any]]:
    """Print the largest artifact for each context and KV cache type; returns the cells' facts.

    Args:
        picture: where to draw it.
    """
    model, target = found.model, found.plan.memory.target
    levels = level_sizes(found.recipe.levels, model)
    cells, why = sweep(model, found.costs, target, levels)
    kinds = list(dict.fromkeys(cell.kv_type for cell in cells))
    by_place = {(cell.context_tokens, cell.kv_type): cell for cell in cells}
    unit, scale = unit_of(c.largest.total_bytes if c.largest is not None else 0 for c in cells)
    rows = []
    for tokens in sorted({cell.context_tokens for cell in cells}):
        row: list[Cell] = [tokens_text(tokens)]
        for kind in kinds:
            cell = by_place[tokens, kind]
            if cell.largest is None:
                row.append(marked("[red]nothing[/]"))
                continue
            size = cell.largest.total_bytes
            figures = f"{size / scale:,.2f}  {8 * size / model.elements:.2f}"
            row.append(marked("{} [bold]{}[/]", figures, cell.level) if cell.level else figures)
        rows.append([*row, ""])
    console.line("")
    console.heading(
        f"What would fit {target.name}: the largest artifact in {unit}, bits per weight, level"
    )
    console.table(("context", *(f"{kind} KV" for kind in kinds), ""), rows)
    if why:
        console.note(why)
    if picture is not None:
        title = f"{model.name} on {target.name}, batches of {target.ubatch_tokens}"
        draw_what_if(cells, levels, model.elements, title, picture)
        console.note(f"picture: {picture}")
    return [
        {
            "context_tokens": cell.context_tokens,
            "kv_type": cell.kv_type,
            "largest_bytes": None if cell.largest is None else cell.largest.total_bytes,
            "level": cell.level,
        }
        for cell in cells
    ]


def write_launch(folder: Path, entries: Sequence[Entry], console: Console) -> None:
    """Write the launch files of the one artifact that is planned.

    Raises:
        InputError: there are several.
    """
    if len(entries) != 1:
        raise InputError(
            f"--launch writes the files of one artifact, and {len(entries)} are planned: "
            "choose one with --levels or --types"
        )
    check_writable(folder / MODELFILE, option="--launch")
    files = write_launch_files(entries[0].launch, folder)
    console.note(f"written: {', '.join(str(path) for path in files)}")


def show_verification(found: ModelPlan, where: Where, console: Console) -> list[dict[str, Any]]:
    """Print the plan of each artifact beside llama.cpp's own numbers; returns both."""
    return [_verified(found, entry, where, console) for entry in found.entries]


def _verified(found: ModelPlan, entry: Entry, where: Where, console: Console) -> dict[str, Any]:
    result = verify(entry, found.plan.memory.target, where, found.file)
    console.line("")
    console.heading(
        f"{entry.name} loaded by llama.cpp on {DEVICES[result.where]}, without weights: planned / "
        "found, MiB"
    )
    console.table(
        ("gpu", "weights", "context", "compute", "off by"),
        [_verified_row(index, result) for index in range(len(entry.placement.gpus))],
    )
    verdict = "the plan agrees" if result.agrees else "THE PLAN DIFFERS"
    fits = "and fits" if result.fits else "AND DOES NOT FIT"
    console.line(f"{verdict} {fits}")
    return {
        "level": entry.name,
        "devices": result.where,
        "agrees": result.agrees,
        "fits": result.fits,
        "host_bytes": result.host,
        "gpus": [
            {
                "gpu": one.gpu,
                "part": one.part,
                "planned_bytes": one.planned,
                "llama_cpp_bytes": one.found,
            }
            for one in result.compared
        ],
    }


def _verified_row(gpu: int, found: Verification) -> Sequence[Cell]:
    ours = [one for one in found.compared if one.gpu == gpu]
    cells = [f"{one.planned / MIB:,.1f} / {one.found / MIB:,.1f}" for one in ours]
    worst = max(one.difference for one in ours)
    colour = "green" if all(one.agrees for one in ours) else "red"
    return (str(gpu), *cells, marked(f"[{colour}]{{}}[/]", f"{worst:.2%}"))
