"""`quantkit measure`: the errors of a model's tensors at each type, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.commands.output_files import check_writable, work_folder
from quantkit.console import Console, escape
from quantkit.machine import worker_count
from quantkit.sensitivity import Sensitivity

SHOWN = 10
EXAMPLE_ERROR = 0.01


def measure(
    model: Path,
    imatrix: Path,
    out: Path,
    recipe_name: str | None,
    calibration: Sequence[str] | None,
    changes: Mapping[str, Any],
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a GGUF file and write sensitivity.json."""
    from quantkit.calibration_sources import local_sources, resolve_sources
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.native.devices import device_settings
    from quantkit.native.shared_libraries import library_version
    from quantkit.receipts import content_id, identity, resumable
    from quantkit.recipe import recipe_for
    from quantkit.stages.measure import CostText, chunks_of_text
    from quantkit.stages.measure import measure as run
    from quantkit.stages.ready_imatrix import check_ready

    chosen = recipe_for("default", recipe_name)
    recipe = chosen.measure.model_copy(update=dict(changes))
    texts = chosen.imatrix.calibrated_on(calibration) if calibration else chosen.imatrix
    source = GGUFSource(model)  # tells what is wrong with the file before llama.cpp is asked
    ready = check_ready(imatrix, source.tensors)
    read = [path for entry in local_sources(texts) for path in entry.files]
    check_writable(out, [*source.paths, *read, imatrix])
    console = Console(quiet=quiet or as_json)
    for sentence in ready.notes:
        console.note(sentence)
    devices = device_settings(worker_count(workers))
    parts = {
        "model": identity(source.paths),
        "imatrix": content_id(imatrix),
        "files": [[path.name, content_id(path)] for path in read],
        "recipe": recipe.model_dump(mode="json"),
        "calibration": texts.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    importance = {name: entry.importance() for name, entry in ready.imatrix.entries.items()}
    with resumable(work_folder(out), parts) as work, console.stage("measure") as progress:
        sources = resolve_sources(texts, progress)
        used = chunks_of_text(ready.imatrix, sources, texts)
        text = CostText(model, imatrix, texts, sources, used)
        found = run(source, importance, recipe, text, out, work, devices, progress)
    if as_json:
        console.json(_facts(found, out))
    pairs = sum(len(kinds) for kinds in found.errors.values())
    console.line(f"{out}: {len(found.errors)} tensors, {pairs} (tensor, type) pairs")
    if found.units:
        _show_costs(console, found)


def _facts(found: Sensitivity, out: Path) -> dict[str, Any]:
    return {
        "file": str(out),
        "tensors": len(found.errors),
        "pairs": sum(len(kinds) for kinds in found.errors.values()),
        "kld_of_1_percent_error": {
            ", ".join(unit.tensors): unit.cost(EXAMPLE_ERROR) for unit in found.units
        },
    }


def _show_costs(console: Console, found: Sensitivity) -> None:
    """The dearest units, and how they compare with the others."""
    ordered = sorted(found.units, key=lambda unit: -unit.cost(EXAMPLE_ERROR))
    rows = []
    for unit in ordered[:SHOWN]:
        others = f" and {len(unit.tensors) - 1} more" if len(unit.tensors) > 1 else ""
        probe = unit.probes[0]
        rows.append(
            (
                escape(unit.tensors[0] + others),
                f"{unit.cost(EXAMPLE_ERROR):.2g}",
                f"{probe.kld:.2g} ± {probe.standard_error:.1g} at {probe.error:.2%}",
            )
        )
    middle = ordered[len(ordered) // 2].cost(EXAMPLE_ERROR)
    console.table(("dearest tensors", "KLD of 1 % error", "measured"), rows)
    console.line(f"The median of {len(ordered)} is {middle:.2g}.")
