"""`quantkit inspect` and `quantkit doctor`: what a GGUF file holds, and this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.units import bytes_text, gb_text, gib_text


def inspect(
    file: Annotated[Path, Argument(help="GGUF file; the first one of several shards.")],
    as_json: options.Json = False,
) -> None:
    from quantkit.formats.tensor_types import BY_NAME
    from quantkit.models.geometry import geometry_of
    from quantkit.models.gguf_source import GGUFSource

    source = GGUFSource(file)
    geometry = geometry_of(source.metadata)
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for info in source.tensors:
        sizes[info.type_name] += BY_NAME[info.type_name].size_bytes(info.elements)
        counts[info.type_name] += 1
    elements = sum(info.elements for info in source.tensors)
    total = sum(path.stat().st_size for path in source.paths)
    facts = {
        "architecture": geometry.architecture,
        "parameters": elements,
        "files": len(source.paths),
        "size_bytes": total,
        "bits_per_weight": 8 * total / elements if elements else 0.0,
        "trained_context_tokens": geometry.trained_context_tokens,
        "types": {name: {"tensors": counts[name], "bytes": sizes[name]} for name in sizes},
    }
    console = Console(quiet=as_json)
    if as_json:
        console.json(facts)
    console.heading(
        f"{file.name}: {geometry.architecture}, {elements / 1e6:,.1f} M parameters, "
        f"{gib_text(total)} ({gb_text(total)}), trained for "
        f"{geometry.trained_context_tokens:,} tokens"
    )
    rows = [
        (name, str(counts[name]), bytes_text(sizes[name]), f"{BY_NAME[name].bits_per_weight:g}")
        for name, _ in sizes.most_common()
    ]
    console.table(("type", "tensors", "size", "bits/weight"), rows)


def doctor(
    again: Annotated[
        bool, Option("--again", help="Run the self-test now, even if its result is cached.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.llamacpp.selftest import run_selftest, working_settings
    from quantkit.plan.machine import describe_machine
    from quantkit.quantize.kernels import simd

    tested = run_selftest() if again else working_settings()
    compiled = simd.finding(again=again)
    facts = describe_machine() | {
        "use_extra_buffers": tested.use_extra_buffers,
        "finding": tested.finding,
        "compiled_kernels": compiled.usable,
        "kernels_finding": compiled.finding,
    }
    console = Console(quiet=as_json)
    if as_json:
        console.json(facts)
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        console.line(f"{name.replace('_', ' '):<20} {shown}")
