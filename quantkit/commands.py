"""What each command does and prints; `cli.py` parses, this module calls and shows."""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.console import Console, escape
from quantkit.errors import GateError, InputError
from quantkit.results import LevelResult
from quantkit.sizes import GIB, bytes_text, gb_text, gib_text

if TYPE_CHECKING:
    from quantkit.coverage import LayerCoverage


def _workers(chosen: int | None) -> int:
    return chosen or len(os.sched_getaffinity(0))


def _print_json(console: Console, value: Any) -> None:  # noqa: ANN401
    console.result(json.dumps(value, indent=1, ensure_ascii=False))


def build(
    target: str,
    model: str,
    recipe: str | None,
    out: Path | None,
    levels: str | None,
    haystack: Path | None,
    calibration: Sequence[str] | None,
    imatrix: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the whole pipeline, print the closing table, and raise GateError where a level failed."""
    from quantkit.build import Job, check_gate
    from quantkit.build import build as run
    from quantkit.models import choose_model
    from quantkit.recipe import recipe_for
    from quantkit.target import load_target

    card_set = load_target(target)
    chosen = recipe_for(model, recipe)
    if levels is not None:
        chosen = chosen.with_levels(levels.split(","))
    if calibration and imatrix:
        raise InputError("--calibration is what an imatrix is collected on; leave it or --imatrix")
    if calibration:
        changed = chosen.imatrix.calibrated_on(calibration)
        chosen = chosen.model_copy(update={"imatrix": changed})
    folder = out or Path("build") / f"{choose_model(model).name}-{card_set.name}"
    console = Console(quiet=quiet)
    job = Job(model, chosen, card_set, folder, _workers(workers), haystack, imatrix)
    results = run(job, console)
    if as_json:
        _print_json(console, {"folder": str(folder), "levels": [asdict(r) for r in results]})
    _closing_table(console, results)
    best = next((r for r in results if r.passed), None)
    console.line(f"Report: {folder / 'report.html'}")
    if best is not None:
        path = shlex.quote(str(folder / best.files[0]))
        command = best.command.replace(Path(best.files[0]).name, path, 1)
        console.line(f"Run it:  {command}")
    check_gate(results)


def _closing_table(console: Console, results: Sequence[LevelResult]) -> None:
    columns = ("level", "size", "bits/w", "fullest card", "KLD", "retrieval", "proven", "gate")
    rows = []
    for r in results:
        length, hits, trials, bound = r.lengths[-1]
        color = "green" if r.passed else "yellow" if r.baseline else "bold red"
        used, capacity = max(zip(r.card_bytes, r.card_capacity_bytes, strict=True))
        rows.append(
            (
                r.name,
                f"{gib_text(r.size_bytes)}\n[dim]{gb_text(r.size_bytes)}[/]",
                f"{r.bits_per_weight:.2f}",
                f"{used / GIB:.1f} GiB\n[dim]of {capacity / GIB:g} GiB[/]",
                "–" if r.kld is None else f"{r.kld:.4f}",
                f"{hits}/{trials}\n[dim]at {length:,}[/]",
                f"≥ {bound:.1%}",
                f"[{color}]{r.verdict}[/]",
            )
        )
    console.table(columns, rows)


def download(model: str, out: Path | None, quiet: bool, as_json: bool) -> None:
    """Bring a checkpoint here, verified, and say what a build of it needs and how to begin it."""
    import time

    from quantkit.downloads.remote import look_up
    from quantkit.downloads.space import SpaceNeeded, check_space, space_needed
    from quantkit.downloads.survey import survey
    from quantkit.hub import Hub
    from quantkit.recipe import recipe_for
    from quantkit.stages.download import download as run

    repository, _, revision = model.partition("@")
    folder = out or Path(repository.rpartition("/")[2] or "model")
    console, hub = Console(quiet=quiet), Hub()
    with console.stage("look up") as progress:
        remote = look_up(hub, repository, revision or None, folder, progress)
    repository = remote.listing.repository  # as the Hub spells it
    found = survey(remote, folder)
    check_space(SpaceNeeded(found.fetch_bytes), found.free_bytes, folder)
    console.heading(f"quantkit download {repository} at {remote.listing.commit[:12]} → {folder}")
    here = remote.size_bytes - found.fetch_bytes
    console.line(
        f"{len(remote.files)} files, {gib_text(remote.size_bytes)} ({gb_text(remote.size_bytes)}): "
        + (f"{bytes_text(here)} here already, " if here else "")
        + f"{bytes_text(found.fetch_bytes)} to fetch, {bytes_text(found.free_bytes)} free"
    )
    recipe = recipe_for(repository)
    build_takes = space_needed(
        found.fetch_bytes,
        remote.elements,
        recipe.convert.base_type,
        [level.bits_per_weight for level in recipe.levels],
    )
    if build_takes.total_bytes > found.free_bytes:
        console.note(
            f"this disk will not hold a build as well: recipe {recipe.name} takes another "
            f"{bytes_text(build_takes.base_bytes)} for base.gguf ({recipe.convert.base_type}) and "
            f"at least {bytes_text(build_takes.level_bytes)} for its levels; build with --out on "
            "another disk"
        )
    began = time.monotonic()
    with console.stage("download") as progress:
        done = run(remote, hub, folder, progress)
    seconds = time.monotonic() - began
    if as_json:
        files = {f.name: {"size_bytes": f.size_bytes, "sha256": f.sha256} for f in done.files}
        facts = {
            "repository": repository,
            "commit": done.commit,
            "folder": str(folder),
            "size_bytes": done.size_bytes,
            "fetched_bytes": done.fetched_bytes,
            "files": files,
        }
        _print_json(console, facts)
    came = f"{bytes_text(done.fetched_bytes)} fetched" if done.fetched_bytes else "nothing to fetch"
    console.done("download", f"{len(done.files)} files verified, {came}", seconds)
    options = "" if recipe.name == "default" else f" --recipe {recipe.name}"
    console.line(
        f"Next:  quantkit build --target 4x3090 --model {shlex.quote(str(folder))}{options}"
    )


def plan(
    target: str,
    model: str,
    recipe: str | None,
    context: int | None,
    kv: str | None,
    as_json: bool,
) -> None:
    """Print card by card what each level would hold, with nominal types: no weights are read."""
    from quantkit import planning
    from quantkit.families.geometry import geometry_of
    from quantkit.models import choose_model, open_source
    from quantkit.recipe import recipe_for
    from quantkit.results import placement_json
    from quantkit.stages.quantize import overhead_bytes
    from quantkit.target import load_target

    card_set = load_target(target).changed(context_tokens=context, kv_type=kv)
    choice = choose_model(model)
    if choice.kind == "repository":
        raise InputError(
            f"plan reads models on this disk: 'quantkit download {model}', then give its folder"
        )
    chosen = recipe_for(model, recipe)
    source = open_source(choice, keep_prediction=chosen.convert.mtp == "keep")
    geometry, tensors = geometry_of(source.metadata), source.tensors
    levels, notes = planning.plan_levels(chosen, card_set, tensors, geometry)
    errors = planning.nominal_errors(tensors, chosen.measure)
    overhead = overhead_bytes(choice.name, source.metadata, tensors)
    elements = sum(info.elements for info in tensors)
    console = Console(quiet=as_json)
    console.heading(f"{choice.name} on {card_set.name} ({card_set.description})")
    plans = []
    for level in levels:
        fitted = planning.fit(level, tensors, errors, overhead, geometry, card_set)
        placement, total = fitted.placement, fitted.allocation.total_bytes
        file = f"{choice.name}-{level.recipe.name}.gguf"
        plans.append(
            {"level": level.recipe.name, "total_bytes": total, **placement_json(placement, file)}
        )
        console.line(
            f"\n{level.recipe.name}: {gib_text(total)} ({gb_text(total)}), "
            f"{8 * total / elements:.2f} bits a weight, {placement.context_tokens:,} tokens of "
            f"{placement.kv_type} context"
        )
        rows = [
            (
                f"{index} {card.name}",
                str(card.layers),
                bytes_text(card.weights_bytes),
                bytes_text(card.context_bytes),
                bytes_text(card.compute_bytes),
                bytes_text(card.reserve_bytes),
                bytes_text(card.free_bytes),
                console.bar(card.total_bytes / card.capacity_bytes),
            )
            for index, card in enumerate(placement.cards)
        ]
        columns = ("card", "layers", "weights", "context", "compute", "reserve", "free", "filled")
        console.table(columns, rows)
        console.line(f"Run it:  {placement.command(file)}")
    for sentence in notes:
        console.note(sentence)
    if as_json:
        _print_json(console, {"model": choice.name, "target": card_set.name, "levels": plans})


def convert(
    model: str, out: Path, base_type: str, mtp: str, workers: int | None, quiet: bool
) -> None:
    """Write a checkpoint as one GGUF file."""
    from quantkit.models import choose_model, model_files, open_source
    from quantkit.receipts import identity, resumable
    from quantkit.recipe import ConvertRecipe
    from quantkit.stages.convert import convert as run

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
    _check_writable(out, files)
    recipe = ConvertRecipe.model_validate({"base_type": base_type, "mtp": mtp})
    parts = {"files": identity(files), **recipe.model_dump(mode="json")}
    with resumable(_work(out), parts) as work, console.stage("convert") as progress:
        run(source, recipe, out, work, _workers(workers), progress)
    console.line(f"{out}: {bytes_text(out.stat().st_size)}")


def imatrix(
    model: Path | None,
    out: Path,
    recipe_name: str | None,
    calibration: Sequence[str] | None,
    changes: Mapping[str, int],
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Collect an importance matrix on a GGUF file."""
    from quantkit.calibration_sources import local_sources, resolve_sources
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.native.devices import device_settings
    from quantkit.native.shared_libraries import library_version
    from quantkit.receipts import content_id, identity, resumable
    from quantkit.recipe import recipe_for
    from quantkit.stages.imatrix import collect_imatrix

    if model is None:
        raise InputError("give the GGUF file to collect on, or --show FILE to describe an imatrix")
    recipe = recipe_for("default", recipe_name).imatrix.model_copy(update=changes)
    if calibration:
        recipe = recipe.calibrated_on(calibration)
    source = GGUFSource(model)  # tells what is wrong with the file before llama.cpp is asked
    read = [path for source in local_sources(recipe) for path in source.files]
    _check_writable(out, [*source.paths, *read])
    devices = device_settings(_workers(workers))
    console = Console(quiet=quiet or as_json)
    parts = {
        "model": identity(source.paths),
        "files": [[path.name, content_id(path)] for path in read],
        "recipe": recipe.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    with resumable(_work(out), parts) as work, console.stage("imatrix") as progress:
        sources = resolve_sources(recipe, progress)
        facts = collect_imatrix(model, recipe, sources, out, work, devices, progress)
    if as_json:
        _print_json(console, asdict(facts))
    console.line(f"{out}: {facts.weights} weights, {facts.tokens:,} tokens")


def show_imatrix(path: Path, model: Path | None, as_json: bool) -> None:
    """Describe an imatrix file: layers and weights, how well the experts were reached."""
    from quantkit.coverage import ENOUGH_TOKENS as ENOUGH
    from quantkit.coverage import coverage_of, layer_of, top_weights, unseen_text, weight_statistics
    from quantkit.coverage import percent_text as percent
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.formats.imatrix_file import read_imatrix

    tensors = () if model is None else GGUFSource(model).tensors
    found = read_imatrix(path, {info.name: info.row_elements for info in tensors})
    coverage, exact = coverage_of(found), found.counts_are_exact
    console = Console(quiet=as_json)
    if as_json:
        unseen = {name: entry.unseen for name, entry in found.entries.items() if entry.unseen}
        facts = {
            "weights": len(found.entries),
            "chunks": found.chunks,
            "chunk_tokens": found.chunk_tokens,
            "datasets": list(found.datasets),
            "counts_are_exact": exact,
            "unknown": list(found.unknown),
            "unseen_experts": unseen,
            "coverage": {
                "experts": coverage.experts,
                "reached": coverage.reached(),
                "reached_share": coverage.share(),
                "enough_tokens": ENOUGH,
                "enough_share": coverage.share(ENOUGH) if exact else None,
            },
            "layers": [
                {**asdict(layer), "unseen": layer.unseen, "reached_share": layer.share()}
                for layer in coverage.layers
            ],
            "statistics": [
                {"layer": layer_of(entry.name), **asdict(entry)}
                for entry in weight_statistics(found)
            ],
        }
        _print_json(console, facts)
        return
    console.line(
        f"{path}: {len(found.entries)} weights, {found.chunks} chunks of {found.chunk_tokens} "
        f"tokens from {', '.join(found.datasets) or 'an unnamed text'}"
    )
    top = top_weights(found)
    rows = []
    for layer in coverage.layers:
        weight, share = top[layer.name]
        tokens = f"{layer.tokens:,}" if exact and layer.tokens is not None else "–"
        cells = [escape(layer.name), str(layer.weights), tokens, *_expert_cells(layer, exact)]
        rows.append((*cells, f"{100 * share:3.0f} % {escape(weight)}"))
    columns = (
        "layer", "weights", "tokens", "experts", f"≥ {ENOUGH}", "least", "median", "most",
        "top 1 %",
    )  # fmt: skip
    shown = len(columns) - 1 if exact and coverage.experts else 4 if coverage.experts else 3
    console.table((*columns[:shown], columns[-1]), [(*row[:shown], row[-1]) for row in rows])
    if exact and coverage.experts:
        console.note(f"experts: reached of all; ≥ {ENOUGH} to most: the tokens of an expert")
    console.note(
        "top 1 %: importance in the highest 1 % of columns, for the layer's most uneven weight"
    )
    for sentence in found.unknown:
        console.note(sentence)
    if coverage.unseen:
        listed = textwrap.wrap(unseen_text(coverage.unseen), 86)
        console.line("Unseen:  " + f"\n{' ' * 9}".join(listed))
    rarest = coverage.rarest()
    if exact and rarest is not None and rarest[2] < ENOUGH:
        where, expert, count = rarest
        console.line(
            f"Rarest:  expert {expert} of layer {where} with {count} token{'s' * (count > 1)}; it "
            f"would have {ENOUGH} with about {-(-ENOUGH // count)} times the text"
        )
    if coverage.experts:
        words = (
            f"{coverage.reached():,} of {coverage.experts:,} reached ({percent(coverage.share())})"
        )
        if exact:
            enough = percent(coverage.share(ENOUGH))
            words += f", {coverage.reached(ENOUGH):,} by {ENOUGH} tokens or more ({enough})"
        console.line(f"Experts: {words}")
    elif not found.unknown:
        console.line(f"No experts: every weight saw the whole text, {coverage.tokens:,} tokens")


def _expert_cells(layer: LayerCoverage, exact: bool) -> list[str]:
    """Seen, share with enough tokens, least, median and most tokens of a layer's experts."""
    from quantkit.coverage import ENOUGH_TOKENS, percent_text

    experts = sorted(layer.experts)
    if not experts:
        return [""] * 5
    seen = f"{len(experts) - len(layer.unseen)}/{len(experts)}"
    cells = [f"[bold red]{seen}[/]" if layer.unseen else seen]
    if not exact:
        return [*cells, *[""] * 4]
    enough = layer.share(ENOUGH_TOKENS)
    cells.append(f"[yellow]{percent_text(enough)}[/]" if enough < 1 else "100 %")
    middle = (experts[(len(experts) - 1) // 2] + experts[len(experts) // 2]) / 2
    return [*cells, f"{experts[0]:,}", f"{middle:,.0f}", f"{experts[-1]:,}"]


def niah(
    model: Path,
    settings: dict[str, Any],
    haystack: Path | None,
    out: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """The retrieval check on one GGUF file."""
    from pydantic import ValidationError

    from quantkit import planning
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.native.devices import device_settings
    from quantkit.native.shared_libraries import library_version
    from quantkit.receipts import content_id, identity, resumable, write_json
    from quantkit.recipe import RetrievalRecipe
    from quantkit.retrieval.heatmap import draw_heatmap
    from quantkit.retrieval.statistics import needed_hits
    from quantkit.stages.niah import CheckSettings, check_retrieval
    from quantkit.stages.validate import validation_json

    try:
        recipe = RetrievalRecipe.model_validate(settings)
    except ValidationError as error:
        names = {"kv_type": "kv", "context_tokens": "context", "minimum_lower_bound": "minimum"}
        problems = "; ".join(
            f"--{names.get(str(e['loc'][0]), e['loc'][0])}: {e['msg']}" for e in error.errors()
        )
        raise InputError(problems) from None
    source = GGUFSource(model)  # tells what is wrong with the file before llama.cpp is asked
    folder = out or Path(f"{model.stem}-niah")
    _check_writable(folder / "niah.jsonl", source.paths)
    console = Console(quiet=quiet)
    planning.check_gate_is_possible(recipe)
    kv_type = recipe.kv_type or "q8_0"
    trials = recipe.needles * len(recipe.seeds)
    bound = recipe.minimum_lower_bound or 0.0
    console.note(
        f"passes with {needed_hits(trials, bound)} of {trials} needles at "
        f"{max(recipe.context_tokens):,} tokens"
    )
    devices = device_settings(_workers(workers))
    parts = {
        "model": identity(source.paths),
        "recipe": recipe.model_dump(mode="json"),
        "haystack": None if haystack is None else content_id(haystack),
        "llama-cpp-python": library_version(),
    }
    with resumable(folder / ".work", parts) as work:
        with console.stage("niah") as progress:
            settings_here = CheckSettings(devices, kv_type)
            answers = folder / "niah.jsonl"
            found = check_retrieval(model, recipe, settings_here, answers, work, haystack, progress)
        draw_heatmap(found.answers, model.stem, folder / "heatmap.png")
        facts = validation_json(found, None, recipe, kv_type)
        write_json(folder / "validation.json", facts)
    if as_json:
        _print_json(console, facts)
    for score in found.lengths:
        console.line(
            f"{score.context_tokens:>9,} tokens  multikey-{recipe.needles}  "
            f"{score.hits}/{score.trials}  at least {score.lower_bound:.1%}"
        )
    console.line(f"Answers and heatmap: {folder}")
    if not facts["passed"]:
        raise GateError(
            f"{model.name}: lower bound {found.gate.lower_bound:.1%} at "
            f"{found.gate.context_tokens} tokens, {bound:.1%} is needed"
        )


def inspect(file: Path, as_json: bool) -> None:
    """Architecture, types and sizes of a GGUF file."""
    from quantkit.families.geometry import geometry_of
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.quant_types import BY_NAME

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
        _print_json(console, facts)
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


def doctor(again: bool, as_json: bool) -> None:
    """Describe this machine and the native settings that work on it."""
    from quantkit.machine import describe_machine
    from quantkit.native.selftest import run_selftest, working_settings

    tested = run_selftest() if again else working_settings()
    facts = describe_machine() | {
        "use_extra_buffers": tested.use_extra_buffers,
        "finding": tested.finding,
    }
    console = Console(quiet=as_json)
    if as_json:
        _print_json(console, facts)
    for name, value in facts.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        console.line(f"{name.replace('_', ' '):<20} {shown}")


def targets(as_json: bool) -> None:
    """List the targets that ship with quantkit."""
    from quantkit.target import known_targets, load_target

    console = Console(quiet=as_json)
    found = [load_target(name) for name in known_targets()]
    if as_json:
        _print_json(console, [target.model_dump(mode="json") for target in found])
    rows = [
        (
            target.name,
            f"{sum(card.memory_gib for card in target.each_card):g} GiB",
            f"{target.context_tokens:,}",
            target.kv_type,
            "all that fits"
            if target.weight_budget_gib is None
            else f"{target.weight_budget_gib:g} GiB",
            target.description,
        )
        for target in found
    ]
    console.table(("target", "memory", "context", "KV", "weights", "description"), rows)


def _work(out: Path) -> Path:
    return out.with_name(out.name + ".work")


def _check_writable(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output that cannot be written, or that would replace an input."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of the file to write")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"{out} is an input of this command and would be overwritten")
    probe = out.parent / f".{out.name}.probe"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another --out") from None
