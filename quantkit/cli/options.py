"""Options that several commands have, declared once, and recipes made from options.

An option without a name of its own has that of its parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from quantkit.core.errors import InputError

if TYPE_CHECKING:
    from quantkit.config.recipe import RetrievalRecipe

Model = Annotated[
    str, Option(help="A Hub repository (OWNER/NAME[@REVISION]), a folder, a GGUF file, or 'demo'.")
]
LocalModel = Annotated[
    str, Option(help="A folder, a GGUF file, or 'demo'. 'quantkit download' fetches other models.")
]
Source = Annotated[
    str | None,
    Option(
        help="Also compare the weights with the model that they were made from: a folder, a GGUF "
        "file, or 'demo'."
    ),
]
Target = Annotated[
    str,
    Option(
        help="GPUs to fit: a name that 'quantkit targets' lists, a YAML file, or 'auto' for the "
        "GPUs of this machine."
    ),
]
Recipe = Annotated[
    str | None,
    Option(help="Recipe: a name or a YAML file. Default: the model's own, else 'default'."),
]
StudyRecipe = Annotated[
    str | None, Option(help="Recipe with the settings to use. Default: 'default'.")
]
Levels = Annotated[
    str | None,
    Option(
        help="Levels to make, instead of all of the recipe: its level names, llama.cpp presets, "
        "bits per weight, sizes, or 'max', as in Q6,Q4_K_M,4.5,71GiB."
    ),
]
Calibration = Annotated[
    list[str] | None,
    Option(
        help="Calibration text instead of the recipe's: a text file, a folder, a domain, or "
        "hf://datasets/OWNER/NAME. May be repeated."
    ),
]
Imatrix = Annotated[
    Path | None, Option(help="Importance matrix to use: a GGUF or a legacy .dat file.")
]
Haystack = Annotated[
    Path | None, Option(help="Text file to hide the needles in. Default: the one that ships.")
]
KV = Annotated[str, Option(help="Type of the KV cache: f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0.")]
BeyondTraining = Annotated[
    bool,
    Option(
        "--beyond-training",
        help="Allow a --context that is longer than the model was trained for. No RoPE scaling is "
        "set.",
    ),
]
MTP = Annotated[
    str, Option(help="Whether to keep the multi-token prediction layers: drop or keep.")
]
OutFile = Annotated[Path, Option(help="GGUF file to write.")]
Workers = Annotated[
    int | None, Option(min=1, help="Number of CPU threads. Default: one for each core.")
]
Quiet = Annotated[bool, Option("--quiet", help="Print errors only.")]
Json = Annotated[bool, Option("--json", help="Print the results as JSON.")]

RETRIEVAL_OPTIONS = {
    "kv_type": "kv", "context_tokens": "context", "minimum_lower_bound": "minimum",
    "probes": "probe", "depths": "depth", "seeds": "seed", "answer_tokens": "answer-tokens",
}  # fmt: skip
"""Fields of the retrieval recipe whose option has another name."""


def given(**values: int | None) -> dict[str, int]:
    """The fields of a recipe whose options were given."""
    return {name: value for name, value in values.items() if value is not None}


def check_mtp(mtp: str) -> None:
    """Raise InputError unless `mtp` is a choice of `--mtp`."""
    if mtp not in ("drop", "keep"):
        raise InputError(f"--mtp is drop or keep, not {mtp!r}")


def retrieval_recipe(values: Mapping[str, Any]) -> RetrievalRecipe:
    """The retrieval check that the options ask for.

    Raises:
        InputError: a value that its field cannot have; names the option.
    """
    from pydantic import ValidationError

    from quantkit.config.recipe import RetrievalRecipe

    try:
        return RetrievalRecipe.model_validate(values)
    except ValidationError as error:
        problems = []
        for found in error.errors():
            field = str(found["loc"][0]) if found["loc"] else ""
            option = f"--{RETRIEVAL_OPTIONS.get(field, field)}: " if field else ""
            problems.append(option + found["msg"].removeprefix("Value error, "))
        raise InputError("; ".join(problems)) from None
