"""What the importance matrix is worth: KLD on held-out text at a recipe's lowest level.

Three artifacts of one size, the level's, or the least that can be had without an importance matrix,
which some types need: measured, allocated and quantized with the importance matrix of
the recipe's calibration; the same types without it, where each of them can do without; and
measured, allocated and quantized without it from the start. The KLD is on prose that is no part of
any calibration.
"""

from __future__ import annotations

from collections.abc import Sequence

from prepared import HELD_OUT, Prepared

from quantkit.config.levels import LevelRecipe
from quantkit.formats.logits_file import scored_positions
from quantkit.formats.tensor_types import BY_NAME
from quantkit.models.model import Model
from quantkit.plan.allocate import allocate
from quantkit.plan.allowed_types import smallest_bytes
from quantkit.quantize.quantize import overhead_bytes
from quantkit.study.kld_statistics import KLDStatistics
from quantkit.study.sensitivity import Sensitivity

ANY = LevelRecipe(name="any")


def importance_table(models: Sequence[Prepared]) -> list[str]:
    """A row a model: KLD with the importance matrix and without."""
    tokens = HELD_OUT.chunks * len(scored_positions(HELD_OUT.chunk_tokens))
    return [
        f"Mean KLD against the base over {tokens:,} tokens of held-out prose, at the recipe's "
        "lowest level, and how often both put the same token first.",
        "",
        "| model, size | calibration | with imatrix | its types without it "
        "| without it from the start |",
        "|---|---|---|---|---|",
        *(_row(model) for model in models),
    ]


def _row(model: Prepared) -> str:
    tensors = model.source.tensors
    blind = model.measured(None, "without")
    overhead = overhead_bytes(Model.of("model", model.source))
    lowest = min(level.bits_per_weight or 99 for level in model.recipe.levels)
    budget = max(
        int(lowest * model.elements / 8),
        overhead + smallest_bytes(tensors, blind.tensor_costs(), ANY),
    )

    def types(found: Sensitivity) -> dict[str, str]:
        return dict(allocate(tensors, found.tensor_costs(), budget, overhead, ANY).types)

    chosen = types(model.sensitivity)
    best, plain = model.kld(chosen), model.kld(types(blind), {})
    needed = {kind for kind in chosen.values() if BY_NAME[kind].needs_imatrix}
    same = f"– ({', '.join(sorted(needed))} need one)"
    if not needed:
        same = _ratio(model.kld(chosen, {}), best)
    return (
        f"| {model.name}, {8 * budget / model.elements:.2f} bits a weight "
        f"| {model.facts.tokens:,} tokens | {best.mean:.4f}, {best.same_top:.1%} | {same} "
        f"| {_ratio(plain, best)} |"
    )


def _ratio(other: KLDStatistics, best: KLDStatistics) -> str:
    return f"{other.mean:.4f} ({other.mean / best.mean:.2f} ×), {other.same_top:.1%}"
