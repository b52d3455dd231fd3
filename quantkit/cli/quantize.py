"""`quantkit quantize`: one artifact from an allocation or a stock preset."""

from __future__ import annotations

from dataclasses import asdict

from quantkit.cli.options import (
    ImatrixOption,
    JsonOption,
    LocalModelOption,
    MTPOption,
    OutFileOption,
    QuietOption,
    TypesOption,
    WorkersOption,
    check_mtp,
)
from quantkit.core.console import Console
from quantkit.core.units import bytes_text


def quantize(
    model: LocalModelOption,
    types: TypesOption,
    out: OutFileOption,
    imatrix: ImatrixOption = None,
    mtp: MTPOption = "drop",
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model with the types of an allocation or a preset."""
    from quantkit.build.quantize import quantize_file
    from quantkit.core.threads import worker_count

    check_mtp(mtp)
    console, threads = Console(quiet=quiet or as_json), worker_count(workers)
    with console.stage("quantize") as progress:
        made = quantize_file(
            model, types, out, imatrix, threads, progress, keep_prediction=mtp == "keep"
        )
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
            }
        )
    more = f" and {len(made.files) - 1} more" if len(made.files) > 1 else ""
    size = bytes_text(made.size_bytes)
    console.line(f"{made.files[0]}{more}: {size}, {made.bits_per_weight:.2f} bits per weight")
