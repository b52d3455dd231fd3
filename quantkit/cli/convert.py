"""`quantkit convert`: a checkpoint as one GGUF file."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.units import bytes_text


def convert(
    model: options.LocalModel,
    out: options.OutFile,
    base_type: Annotated[
        str, Option("--type", help="Type of the weight matrices: BF16 or Q8_0.")
    ] = "BF16",
    mtp: options.MTP = "drop",
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Convert a checkpoint into one GGUF file."""
    from quantkit.config.recipe import ConvertRecipe
    from quantkit.core.files import check_writable, identity
    from quantkit.core.threads import worker_count
    from quantkit.core.work_folders import resumable, work_folder
    from quantkit.models.choose import choose_local, model_files, open_source
    from quantkit.quantize.quantize import convert as run

    if base_type not in ("BF16", "Q8_0"):
        raise InputError(f"--type is BF16 or Q8_0, not {base_type!r}")
    options.check_mtp(mtp)
    choice, path = choose_local(model)
    source = open_source(choice, keep_prediction=mtp == "keep")
    files = model_files(choice, path)
    check_writable(out, files)
    recipe = ConvertRecipe.model_validate({"base_type": base_type, "mtp": mtp})
    parts = {"files": identity(files), **recipe.model_dump(mode="json")}
    console = Console(quiet=quiet)
    with resumable(work_folder(out), parts) as work, console.stage("convert") as progress:
        run(source, recipe, out, work, worker_count(workers), progress)
    console.line(f"{out}: {bytes_text(out.stat().st_size)}")
