"""`quantkit measure`: the errors of a model's tensors at each type, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.cli.output_files import check_writable, work_folder
from quantkit.core.console import Console, escape
from quantkit.plan.machine import worker_count
from quantkit.study.kld_statistics import kld_text
from quantkit.study.sensitivity import Sensitivity

SHOWN = 10


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
    from quantkit.config.recipe import recipe_for
    from quantkit.core.files import content_id, identity
    from quantkit.core.work_folders import resumable
    from quantkit.llamacpp.ggml import library_version
    from quantkit.llamacpp.selftest import device_settings
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.study.calibration.sources import local_sources, resolve_sources
    from quantkit.study.costs import CostInputs
    from quantkit.study.imatrix_import import check_imatrix
    from quantkit.study.measure import chunks_of_text
    from quantkit.study.measure import measure as run

    chosen = recipe_for("default", recipe_name)
    recipe = chosen.measure.model_copy(update=dict(changes))
    texts = chosen.imatrix.calibrated_on(calibration) if calibration else chosen.imatrix
    source = GGUFSource(model)  # tells what is wrong with the file before llama.cpp is asked
    ready = check_imatrix(imatrix, source.tensors)
    costs = recipe.cost_chunks > 0
    read = [path for entry in local_sources(texts) for path in entry.files] if costs else []
    named = [Path(recipe_name)] if recipe_name is not None else []
    check_writable(out, [*source.paths, *read, imatrix, *named])
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
    importance = ready.imatrix.importance()
    with resumable(work_folder(out), parts) as work, console.stage("measure") as progress:
        text = None
        if costs:
            sources = resolve_sources(texts, progress)
            used = chunks_of_text(ready.imatrix, sources, texts)
            text = CostInputs(model, imatrix, texts, sources, used)
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
        "kld_of_1_percent_error": dict(found.dearest()),
    }


def _show_costs(console: Console, found: Sensitivity) -> None:
    """The dearest tensors, and how they compare with the others."""
    dearest = found.dearest()
    middle = dearest[len(dearest) // 2][1]
    rows = [
        (escape(name), kld_text(cost), f"{cost / middle:.3g} ×" if middle > 0 else "–")
        for name, cost in dearest[:SHOWN]
    ]
    console.table(("dearest tensors", "KLD of 1 % error", "of the median"), rows)
