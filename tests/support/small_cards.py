"""Facts of a model card, from finished levels that a test makes up."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finished_levels import KEYS, PROBES, answers_of, finish_level

from quantkit.config.recipe import Recipe, RetrievalRecipe, recipe_for
from quantkit.config.target import load_target
from quantkit.release.card.facts import CardFacts
from quantkit.release.card.front_matter import SourceCard
from quantkit.release.contents import BuiltLevel
from quantkit.release.fits import Fits, TargetFits
from quantkit.report.results import LevelResult
from quantkit.study.imatrix import Calibration, SourceRead

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "Some-Model-120B"
REPOSITORY = "someone/Some-Model-120B-GGUF"
SOURCE = SourceCard(
    repository="nvidia/Some-Model-120B",
    commit=COMMIT,
    licence="other",
    licence_name="nvidia-open-model-license",
    licence_link="https://www.nvidia.com/licence",
    languages=("en", "de"),
    tags=("nvidia", "transformers", "reasoning", "region:us", "GGUF"),
    pipeline_tag="text-generation",
    gated="auto",
)
CALIBRATION = Calibration(
    chunks=400,
    tokens=204_800,
    weights=1,
    unseen_experts=80,
    sources=(
        SourceRead("code", "quantkit", "MIT", 4_800),
        SourceRead("hf://datasets/a/b", f"hf://datasets/a/b@{COMMIT}", None, 200_000),
    ),
)
COVERAGE = {
    "experts": 20_480, "reached": 20_400, "reached_share": "99.6 %", "unseen": "80 more",
    "counted": {"enough": 100, "enough_share": "98.0 %"}, "file": "coverage.png",
}  # fmt: skip


UNKNOWN = SourceCard(None, None, None, None, None, (), (), None)


def scripts(card: str) -> list[str]:
    """The commands of each block of a card, as a shell is given them."""
    return re.findall(r"^```sh\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)


def blocks(card: str) -> list[list[list[str]]]:
    """The commands of each block, as a shell divides them into words."""
    joined = [script.replace("\\\n", " ").splitlines() for script in scripts(card)]
    return [[shlex.split(line, comments=True) for line in lines] for lines in joined]


def commands(card: str) -> list[list[str]]:
    """Those of all blocks."""
    return [words for block in blocks(card) for words in block]


def small_recipe(names: Sequence[str], **retrieval: object) -> Recipe:
    """With levels of these names, asked as `finish_level` says."""
    asked: dict[str, object] = {
        "needles": 32,
        "context_tokens": tuple(KEYS),
        "probes": dict.fromkeys(PROBES, 8),
    }
    levels = [{"name": name, "bits_per_weight": 4.6} for name in names]
    recipe = recipe_for("demo").model_dump() | {"model": None, "levels": levels}
    return Recipe.model_validate(
        recipe | {"retrieval": RetrievalRecipe.model_validate(asked | retrieval)}
    )


def card_level(
    build: Path, name: str, missing: float = 0.0, shards: int = 1, **changes: object
) -> BuiltLevel:
    """A finished level with answers of which the share `missing` is wrong."""
    result = finish_level(build, name, answers_of(missing), **changes)  # type: ignore[arg-type]
    stem = f"{MODEL}-{name}"
    files = [f"{name}/{stem}-{n:05}-of-{shards:05}.gguf" for n in range(1, shards + 1)]
    return BuiltLevel(result, dict.fromkeys(files if shards > 1 else [f"{stem}.gguf"], build))


def card_facts(
    levels: Sequence[BuiltLevel], left_out: Sequence[LevelResult] = (), **changes: object
) -> CardFacts:
    """Of a model with experts, whose last target cannot run it, and whose first holds little."""
    names = [level.result.name for level in levels]
    targets = (
        TargetFits(load_target("2x3090"), dict.fromkeys(names) | {names[-1]: 262_144}),
        TargetFits(load_target("4x3090"), dict.fromkeys(names, 1_048_576)),
        TargetFits(load_target("dgx-spark"), dict.fromkeys(names), "no such <card>"),
    )
    content: dict[str, Any] = {
        "repository": REPOSITORY, "model": MODEL, "architecture": "nemotron_h_moe",
        "parameters": 120_670_000_000, "source": SOURCE, "target": load_target("4x3090"),
        "recipe": small_recipe(names), "levels": tuple(levels), "left_out": tuple(left_out),
        "fits": Fits(targets, (32_768, 131_072, 1_048_576)),
        "calibration": CALIBRATION, "coverage": COVERAGE,
        "versions": {"quantkit": "0.1.0", "llama-cpp-python": "0.3.36", "gguf": "0.19.0"},
        "imatrix_file": f"{MODEL}-imatrix.gguf",
    }  # fmt: skip
    return CardFacts(**content | changes)
