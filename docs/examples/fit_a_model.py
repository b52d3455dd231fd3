"""Fit a model on two small GPUs: plan, study, quantize, validate, build, and read the results.

    python docs/examples/fit_a_model.py [FOLDER]

The demo model and the small settings take a minute or less on 2 CPU cores. For a model of your
own, change MODEL and TARGET ("quantkit targets" lists names) and leave the recipe out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import quantkit

MODEL = "demo"  # or a Hub repository, a folder, a GGUF file
TARGET = quantkit.Target.model_validate(
    {
        "name": "two-small-gpus",
        "gpus": [{"name": "small GPU", "count": 2, "memory_gib": 0.5, "reserve_gib": 0.1}],
        "context_tokens": 4096,
    }
)
RECIPE = quantkit.Recipe.model_validate(
    {
        "name": "example",
        "levels": [
            {"name": "Q8", "bits_per_weight": 8.6},
            {"name": "Q4", "bits_per_weight": 4.6},
        ],
        "imatrix": {"chunks": 2, "chunk_tokens": 128},
        "measure": {
            "candidates": ["Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0", "Q2_K"],
            "sample_rows": 16,
            "sample_experts": 2,
            "cost_tokens": 64,
            "cost_chunk_tokens": 32,
        },
        "retrieval": {
            "context_tokens": [384],
            "needles": 4,
            "answer_tokens": 8,
            "minimum_lower_bound": None,
        },
        "divergence": {"chunks": 1, "chunk_tokens": 128},
    }
)


def main(folder: Path) -> None:
    """Run every call once; what is in `folder` already is not made again."""
    # What would fit? No weights are read.
    plan = quantkit.plan(MODEL, TARGET, recipe=RECIPE)
    for entry in plan.entries:
        gpus = " + ".join(f"{gpu.total_bytes / 2**20:.0f}" for gpu in entry.placement.gpus)
        print(f"{entry.name}: {entry.total_bytes / 2**20:.1f} MiB; the GPUs hold {gpus} MiB")

    # The importance matrix, the error of each tensor at each type, and what it costs.
    study = quantkit.study(MODEL, folder / "build", recipe=RECIPE)
    name, kld = study.sensitivity.dearest()[0]
    cost = f"{kld.mean:.2g} ± {kld.standard_error:.1g}"
    print(f"The most sensitive tensor is {name}: an error of 1 % costs a KLD of {cost} nats")

    # One file, with types that are chosen by the measured costs.
    fitted = quantkit.plan(MODEL, TARGET, recipe=RECIPE, levels="Q4", study=study)
    types = fitted.entries[0].types
    made = quantkit.quantize(MODEL, types, folder / "demo-Q4.gguf", imatrix=study.imatrix)
    print(f"{made.files[0].name}: {made.bits_per_weight:.2f} bits per weight, {made.type_counts}")

    # Does it still find what is hidden in a text?
    found = quantkit.validate(
        made.files[0],
        folder / "check",
        source=MODEL,
        context_tokens=(512,),
        needles=4,
        minimum_lower_bound=None,
    )
    score = found.gated[0]
    print(f"{score.hits} of {score.trials} needles found at {score.context_tokens} tokens")

    # All of it for every level, with a report; the study in the folder is used again.
    quantkit.build(MODEL, TARGET, folder / "build", recipe=RECIPE)
    print(f"{'level':<8}{'MiB':>8}{'bits/weight':>14}{'KLD':>12}{'found':>8}")
    for level in quantkit.read_results(folder / "build"):
        gate = level.retrieval.gated[0]
        kld = level.kld.mean if level.kld else float("nan")
        print(
            f"{level.name:<8}{level.size_bytes / 2**20:>8.2f}{level.bits_per_weight:>14.2f}"
            f"{kld:>12.2g}{f'{gate.hits}/{gate.trials}':>8}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "fit-a-model"))
