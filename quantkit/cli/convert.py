"""`quantkit convert`: a checkpoint as one GGUF file."""

from __future__ import annotations

from pathlib import Path

from quantkit.cli.output_files import check_writable, work_folder
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.units import bytes_text
from quantkit.plan.machine import worker_count


def convert(
    model: str, out: Path, base_type: str, mtp: str, workers: int | None, quiet: bool
) -> None:
    """Write a checkpoint as one GGUF file."""
    from quantkit.config.recipe import ConvertRecipe
    from quantkit.core.files import identity
    from quantkit.core.work_folders import resumable
    from quantkit.models.choose import choose_model, model_files, open_source
    from quantkit.quantize.quantize import convert as run

    if base_type not in ("BF16", "Q8_0"):
        raise InputError(f"--type is BF16 or Q8_0, not {base_type!r}")
    if mtp not in ("drop", "keep"):
        raise InputError(f"--mtp is drop or keep, not {mtp!r}")
    choice = choose_model(model)
    if choice.kind == "repository":
        raise InputError(
            f"convert reads models on this disk: 'quantkit download {model}', then give its folder"
        )
    source = open_source(choice, keep_prediction=mtp == "keep")
    console = Console(quiet=quiet)
    assert choice.path is not None
    files = model_files(choice, choice.path)
    check_writable(out, files)
    recipe = ConvertRecipe.model_validate({"base_type": base_type, "mtp": mtp})
    parts = {"files": identity(files), **recipe.model_dump(mode="json")}
    with resumable(work_folder(out), parts) as work, console.stage("convert") as progress:
        run(source, recipe, out, work, worker_count(workers), progress)
    console.line(f"{out}: {bytes_text(out.stat().st_size)}")
