"""`quantkit convert` and `quantkit quantize`: one GGUF file of a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.units import bytes_text


def quantize(
    out: options.OutFile,
    model_given: Annotated[
        str | None, Argument(metavar="[MODEL]", help="A folder, a GGUF file, or 'demo'.")
    ] = None,
    types_given: Annotated[
        str | None,
        Argument(
            metavar="[TYPES]",
            help="An allocation.json, a preset such as Q4_K_M, or with --study bits per weight "
            "(4.5) or a size (71GiB).",
        ),
    ] = None,
    model: Annotated[str | None, Option(help="The same as MODEL.")] = None,
    types: Annotated[str | None, Option(help="The same as TYPES.")] = None,
    imatrix: options.Imatrix = None,
    study: Annotated[
        Path | None,
        Option(
            help="The model's folder with its study ('quantkit study'), which knows the types "
            "that cost least, and has the importance matrix."
        ),
    ] = None,
    mtp: options.MTP = "drop",
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.build.quantize import quantize as run
    from quantkit.study.kld_statistics import kld_with_error

    options.check_mtp(mtp)
    console = Console(quiet=quiet or as_json)
    made = run(
        _one("MODEL", model_given, model), _one("TYPES", types_given, types), out,
        imatrix=imatrix, study=study, keep_prediction=mtp == "keep", workers=workers,
        quiet=console.quiet,
    )  # fmt: skip
    if as_json:
        console.json(
            {
                "files": [str(path) for path in made.files],
                "size_bytes": made.size_bytes,
                "bits_per_weight": made.bits_per_weight,
                "preset": made.preset,
                "file_type": made.file_type,
                "types": made.type_counts,
                "fallbacks": {name: asdict(found) for name, found in made.fallbacks.items()},
                "predicted_kld": None if made.predicted_kld is None else made.predicted_kld.mean,
            }
        )
    more = f" and {len(made.files) - 1} more" if len(made.files) > 1 else ""
    size = bytes_text(made.size_bytes)
    words = f"{size}, {made.bits_per_weight:.2f} bits per weight"
    if made.predicted_kld is not None:
        found = made.predicted_kld
        words += f", predicted KLD {kld_with_error(found.mean, found.known_error)}"
    console.line(f"{made.files[0]}{more}: {words}")


def _one(name: str, argument: str | None, option: str | None) -> str:
    """What was given as an argument, or as the option of that name."""
    if argument is not None and option is not None:
        raise InputError(f"{name} is given twice: {argument} and --{name.lower()} {option}")
    found = option if argument is None else argument
    if found is None:
        raise InputError(f"give {name}: quantkit quantize MODEL TYPES --out FILE.gguf")
    return found


def convert(
    model: options.LocalModel,
    out: options.OutFile,
    base_type: Annotated[
        str,
        Option(
            "--type",
            help="Type of the weight matrices: BF16, F16, F32, Q8_0, or 'source' for the model's "
            "own.",
        ),
    ] = "source",
    mtp: options.MTP = "drop",
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    from typing import cast, get_args

    from quantkit.core.files import check_unchanged, check_writable, identity
    from quantkit.core.threads import worker_count
    from quantkit.core.work_folders import resumable, work_folder
    from quantkit.formats.gguf_writer import check_stem
    from quantkit.models.choose import choose_local, model_files, open_source
    from quantkit.quantize.quantize import BaseType
    from quantkit.quantize.quantize import convert as run

    if base_type not in get_args(BaseType):
        raise InputError(f"--type is one of {', '.join(get_args(BaseType))}, not {base_type!r}")
    options.check_mtp(mtp)
    choice, path = choose_local(model)
    console = Console(quiet=quiet)
    files = model_files(choice, path)
    before = identity(files)  # first: what is read below is of these files, or a change is seen
    source = open_source(choice, keep_prediction=mtp == "keep", note=console.note)
    check_stem(out.stem)
    check_writable(out, files)
    kind = cast(BaseType, base_type)
    parts = {"files": before, "base_type": kind, "mtp": mtp}
    with resumable(work_folder(out), parts) as work, console.stage("convert", out) as progress:
        run(source, kind, out, work, worker_count(workers), progress)
    check_unchanged(files, before, [out])
    console.line(f"{out}: {bytes_text(out.stat().st_size)}")
