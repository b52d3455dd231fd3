"""Best bits for the bytes: llama.cpp's stock presets against allocations of the same size.

Every preset is quantized in the types that llama.cpp itself chooses, with the same importance
matrix, and its KLD measured on held-out text. A row's size is that of a preset, or of a level; the
best preset of at most that size stands against the allocation within that size. The files of both
are real and run in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prepared import HELD_OUT, Prepared

from quantkit.config.levels import PRESETS, LevelRecipe
from quantkit.formats.logits_file import scored_positions
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.model import Model
from quantkit.plan.allocate import Allocation, allocate
from quantkit.quantize.quantize import artifact_bytes, overhead_bytes
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.study.kld_statistics import KLDStatistics, kld_text

ANY = LevelRecipe(name="any")
SIZES_OF = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "IQ3_M", "IQ3_XXS",
            "Q2_K", "IQ2_M", "IQ2_XXS", "IQ1_S")  # fmt: skip
LOWER_BITS = (4.5,)
RETRIEVAL_TOKENS = 4096


@dataclass(frozen=True)
class Stock:
    """A preset's file."""

    preset: str
    types: Mapping[str, str]
    size_bytes: int
    divergence: KLDStatistics


def best_bits_table(model: Prepared, *, retrieval: bool) -> list[str]:
    """A row a size, largest first."""
    stock = _presets(model)
    largest_error = max(s.divergence.mean_error / s.divergence.mean for s in stock)
    tokens = HELD_OUT.chunks * len(scored_positions(HELD_OUT.chunk_tokens))
    asked = f" | needles at {RETRIEVAL_TOKENS:,}" if retrieval else ""
    lines = [
        f"{model.name}: mean KLD over {tokens:,} tokens of held-out prose, standard errors up to "
        f"{largest_error:.1%} of it; {len(stock)} presets with the same importance matrix "
        f"({model.facts.tokens:,} tokens).",
        "",
        "| size | bits a weight | best stock preset within it | its KLD | quantkit's KLD "
        f"| ratio{asked} |",
        "|---|---|---|---|---|---" + ("|---|" if retrieval else "|"),
    ]
    sizes = {s.size_bytes for s in stock if s.preset in SIZES_OF}
    smallest = min(s.size_bytes for s in stock)
    sizes |= {size for bits in LOWER_BITS if (size := int(bits * model.elements / 8)) < smallest}
    for size in sorted(sizes, reverse=True):
        within = [s for s in stock if s.size_bytes <= size]
        best = min(within, key=lambda s: s.divergence.mean, default=None)
        lines.append(_row(model, size, best, retrieval=retrieval))
    return lines


def _row(model: Prepared, size: int, best: Stock | None, *, retrieval: bool) -> str:
    ours = _allocation(model, size)
    divergence = model.kld(ours.types)
    cells = [f"{size / 1e6:.1f} MB", f"{8 * size / model.elements:.2f}"]
    if best is None:
        cells += ["none is so small", "–", kld_text(divergence.mean), "–"]
    else:
        ratio = divergence.mean / best.divergence.mean
        theirs = f"{best.preset} ({best.size_bytes / 1e6:.1f} MB)"
        cells += [
            theirs, kld_text(best.divergence.mean), kld_text(divergence.mean), f"**{ratio:.2f}**",
        ]  # fmt: skip
    if retrieval:
        hits = [_hits(model, types) for types in (best.types if best else None, ours.types)]
        cells.append(f"{hits[0]}, quantkit {hits[1]}")
    return "| " + " | ".join(cells) + " |"


def _presets(model: Prepared) -> list[Stock]:
    found: dict[tuple[str, ...], Stock] = {}
    shape = Model.of("model", model.source)
    for preset in PRESETS:
        types = ask_preset(shape, preset, has_imatrix=True).types
        key = tuple(types.values())
        if key not in found:  # two presets of the same types are one file
            size = artifact_bytes(shape, types)
            found[key] = Stock(preset, types, size, model.kld(types))
    return list(found.values())


def _allocation(model: Prepared, size: int) -> Allocation:
    tensors = model.source.tensors
    overhead = overhead_bytes(Model.of("model", model.source))
    return allocate(tensors, model.sensitivity.tensor_costs(), size, overhead, ANY)


def _hits(model: Prepared, types: Mapping[str, str] | None) -> str:
    if types is None:
        return "–"
    path = model.artifact(types, model.importance)
    changes = {"context_tokens": (RETRIEVAL_TOKENS,), "probes": {}}
    recipe = model.recipe.retrieval.model_copy(update=changes)
    settings = CheckSettings(model.devices, recipe.kv_type or "f16")
    out = path.with_name("niah.jsonl")
    (gate,) = check_retrieval(path, recipe, settings, out, path.parent).gated
    path.unlink()
    return f"{gate.hits}/{gate.trials}"
