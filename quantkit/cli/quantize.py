"""`quantkit quantize`: one artifact from an allocation or a stock preset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from quantkit.cli.output_files import check_writable, work_folder
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.units import bytes_text
from quantkit.formats.tensor_types import BY_NAME
from quantkit.plan.machine import worker_count


def quantize(
    model: str,
    types: str,
    imatrix: Path | None,
    out: Path,
    mtp: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a model with each tensor in the type that an allocation or a preset gives it."""
    from quantkit.core.files import content_id, identity
    from quantkit.core.work_folders import resumable
    from quantkit.llamacpp.ggml import library_version
    from quantkit.models.choose import choose_model, model_files, open_source
    from quantkit.plan.type_choice import check_importance, choose_types
    from quantkit.quantize.quantize import PRESET_FILE_TYPES, artifact_metadata, artifact_names
    from quantkit.quantize.quantize import quantize as run
    from quantkit.report.results import fallback_text
    from quantkit.study.imatrix_import import check_imatrix

    if mtp not in ("drop", "keep"):
        raise InputError(f"--mtp is drop or keep, not {mtp!r}")
    if out.suffix != ".gguf":
        raise InputError(f"--out is the name of a GGUF file, so it ends in .gguf; {out} does not")
    choice = choose_model(model)
    if choice.kind == "repository":
        raise InputError(
            f"quantize reads models on this disk: 'quantkit download {model}', then give its folder"
        )
    assert choice.path is not None
    source = open_source(choice, keep_prediction=mtp == "keep")
    ready = None if imatrix is None else check_imatrix(imatrix, source.tensors)
    found = None if ready is None else ready.imatrix
    chosen = choose_types(types, source.metadata, source.tensors, has_imatrix=found is not None)
    entries = {} if found is None else found.entries
    check_importance(chosen, entries)
    file = None if imatrix is None else imatrix.name
    metadata = artifact_metadata(source.metadata, found, file, chosen.preset)
    names = artifact_names(out.stem, metadata, source.tensors, chosen.types)
    files = model_files(choice, choice.path)
    read = [path for path in (*files, imatrix, Path(types)) if path is not None]
    for name in names:
        check_writable(out.with_name(name), read)
    console = Console(quiet=quiet or as_json)
    for sentence in () if ready is None else ready.notes:
        console.note(sentence)
    stored = [info.name for info in source.tensors if BY_NAME[info.type_name].is_quantized]
    if stored:
        console.note(
            f"{model} is quantized already, {len(stored)} of its tensors: what that lost is not "
            "brought back; quantize the BF16 model where you can"
        )
    console.note(f"{chosen.preset or types}: {_mixture(chosen.types)}")
    if chosen.stock is not None and chosen.stock.fallbacks:
        console.note(fallback_text(chosen.stock.fallbacks))
    parts = {
        "files": identity(files),
        "types": dict(chosen.types),
        "imatrix": None if imatrix is None else content_id(imatrix),
        "llama-cpp-python": library_version(),
    }
    importance = {name: entry.importance() for name, entry in entries.items()}
    with resumable(work_folder(out), parts) as work, console.stage("quantize") as progress:
        paths = run(
            source, metadata, chosen.types, importance, out.parent, work, out.stem,
            worker_count(workers), progress,
        )  # fmt: skip
    size = sum(path.stat().st_size for path in paths)
    bits = 8 * size / sum(info.elements for info in source.tensors)
    fallbacks = {} if chosen.stock is None else chosen.stock.fallbacks
    if as_json:
        console.json(
            {
                "files": [str(path) for path in paths],
                "size_bytes": size,
                "bits_per_weight": bits,
                "preset": chosen.preset,
                "file_type": PRESET_FILE_TYPES.get(chosen.preset or ""),
                "types": dict(Counter(chosen.types.values()).most_common()),
                "fallbacks": {n: asdict(f) for n, f in fallbacks.items()},
            }
        )
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    console.line(f"{paths[0]}{more}: {bytes_text(size)}, {bits:.2f} bits a weight")


def _mixture(types: Mapping[str, str]) -> str:
    """`211 × Q5_0, 61 × F32`: how many tensors have each type."""
    return ", ".join(f"{count} × {kind}" for kind, count in Counter(types.values()).most_common())
