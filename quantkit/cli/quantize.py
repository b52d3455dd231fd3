"""`quantkit quantize`: one artifact from an allocation or a stock preset."""

from __future__ import annotations

from dataclasses import asdict

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.units import bytes_text


def quantize(
    model: options.LocalModel,
    types: options.Types,
    out: options.OutFile,
    imatrix: options.Imatrix = None,
    mtp: options.MTP = "drop",
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Quantize a model with the types of an allocation or a preset."""
    from quantkit.build.quantize import quantize as run

    options.check_mtp(mtp)
    console = Console(quiet=quiet or as_json)
    made = run(
        model, types, out, imatrix=imatrix, keep_prediction=mtp == "keep", workers=workers,
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
            }
        )
    more = f" and {len(made.files) - 1} more" if len(made.files) > 1 else ""
    size = bytes_text(made.size_bytes)
    console.line(f"{made.files[0]}{more}: {size}, {made.bits_per_weight:.2f} bits per weight")
