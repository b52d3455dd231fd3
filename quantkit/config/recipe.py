"""Recipe: what to build from a model. One YAML in `recipes/`; each stage takes its own section.

docs/recipes.md says what each field means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quantkit.config.levels import MOST_LEVELS, LevelRecipe, Pattern, chosen_levels
from quantkit.config.target import KVType
from quantkit.core.documents import Strict, read_yaml, validated
from quantkit.core.errors import InputError
from quantkit.core.paths import HubAddress, resource
from quantkit.formats.tensor_types import BY_NAME

STOCK_CANDIDATES = (
    "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip

PLAIN_TEXT = (".txt", ".md")
_WEIGHT_TYPES = ("F32", "F16", "BF16")

Probe = Literal["near-miss", "absent", "updated", "multi-value", "two-hop", "paraphrased"]
Task = Literal[
    "multikey", "single", "near-miss", "absent", "updated", "multi-value", "two-hop", "paraphrased"
]
THINKING_TOKENS = 256
"""Smallest limit of an answer that begins with thinking, tokens."""
CLUSTERS = 3
"""Fewest seeds from which the difference between haystacks is estimated."""


class ConvertRecipe(Strict):
    """What of a checkpoint is used."""

    mtp: Literal["drop", "keep"] = "drop"


class ImatrixRecipe(Strict):
    """How the importance matrix is collected."""

    texts: tuple[str, ...] = ("english-prose.txt",)
    mixture: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    chunk_tokens: int = Field(default=512, ge=32)
    chunks: int = Field(default=64, ge=1)
    until_covered: int = Field(default=0, ge=0)
    spread: bool = False
    seed: int = 1

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of what is read: the mixture's domains, or the texts."""
        return tuple(self.mixture) or self.texts

    def calibrated_on(self, names: Sequence[str]) -> ImatrixRecipe:
        """This recipe with other sources: one text as it is, or equal shares of several."""
        first = names[0]
        if len(names) == 1 and first.endswith(PLAIN_TEXT) and "://" not in first:
            return self.model_copy(update={"texts": tuple(names), "mixture": {}})
        return self.model_copy(update={"mixture": dict.fromkeys(names, 1.0)})


class MeasureRecipe(Strict):
    """How a model is measured: each tensor's error at each type, and its effect on the output."""

    candidates: tuple[str, ...] = Field(default=STOCK_CANDIDATES, min_length=1)
    sample_rows: int = Field(default=512, ge=0)
    sample_experts: int = Field(default=8, ge=0)
    seed: int = 1
    cost_tokens: int | None = Field(default=None, ge=0)
    cost_chunk_tokens: int = Field(default=128, ge=32)
    probe_bits: tuple[Annotated[float, Field(gt=0, le=16)], ...] = Field(
        default=(4.5,), min_length=1, max_length=3
    )
    probe_error: float = Field(default=0.02, ge=0, lt=1)
    groups: tuple[Pattern, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> MeasureRecipe:
        known = {n for n, kind in BY_NAME.items() if kind.is_quantized or n in _WEIGHT_TYPES}
        unknown = [name for name in self.candidates if name not in known]
        if unknown:
            raise ValueError(f"not types of weights: {', '.join(unknown)}")
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("candidates has a type twice")
        if self.cost_tokens and self.cost_tokens < self.cost_chunk_tokens:
            raise ValueError(
                f"cost_tokens: {self.cost_tokens} is less than a chunk of cost_chunk_tokens: "
                f"{self.cost_chunk_tokens}; give 0 to leave costs out"
            )
        return self

    @property
    def measures_costs(self) -> bool:
        return self.cost_tokens != 0


class RetrievalRecipe(Strict):
    """The retrieval check, and the bound that releases."""

    mode: Literal["one-pass", "classic"] = "one-pass"
    context_tokens: tuple[Annotated[int, Field(ge=256)], ...] = ()
    needles: int = Field(default=64, ge=1, le=400)
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.1, 0.5, 0.9), min_length=1
    )
    probes: dict[Probe, Annotated[int, Field(ge=1, le=100)]] = Field(default_factory=dict)
    gate: tuple[Task, ...] = ()
    digits: int = Field(default=5, ge=3, le=12)
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    clustered: bool = False
    kv_type: KVType | None = None
    minimum_lower_bound: float | None = Field(default=0.90, ge=0, le=1)
    answer_tokens: int = Field(default=24, ge=1)
    thinking: bool = False
    near_misses: int = Field(default=3, ge=0, le=16)
    forks: int = Field(default=4, ge=1, le=64)

    @model_validator(mode="after")
    def _possible(self) -> RetrievalRecipe:
        if self.mode == "classic" and self.probes:
            raise ValueError("probes are asked in one-pass mode only")
        missing = [task for task in self.gate if task not in self.tasks]
        if missing:
            raise ValueError(
                f"gate: {', '.join(missing)} is not asked; this check asks {', '.join(self.tasks)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has one twice: the same haystack would count twice")
        if self.thinking and self.answer_tokens < THINKING_TOKENS:
            raise ValueError(
                f"answer_tokens: {self.answer_tokens} cut off a model that thinks, because the "
                f"limit counts its thinking too; give {THINKING_TOKENS} or more"
            )
        if self.clustered and len(self.seeds) < CLUSTERS:
            raise ValueError(f"clustered bounds take {CLUSTERS} seeds or more")
        return self

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that are asked, the main one first."""
        return ("single",) if self.mode == "classic" else ("multikey", *self.probes)

    @property
    def gated(self) -> tuple[Task, ...]:
        return self.gate or self.tasks[:1]

    def trials(self, task: Task) -> int:
        """How often `task` is asked at one length, all seeds together."""
        if task == "single":
            return len(self.depths) * len(self.seeds)
        each = self.needles if task == "multikey" else self.probes[task]
        return each * len(self.seeds)


class DivergenceRecipe(Strict):
    """KLD against the base model on text outside the calibration."""

    chunk_tokens: int = Field(default=512, ge=32)
    chunks: int = Field(default=16, ge=0)


class Recipe(Strict):
    """All sections; what a recipe file leaves out has these defaults."""

    name: str
    model: str | None = None
    convert: ConvertRecipe = ConvertRecipe()
    imatrix: ImatrixRecipe = ImatrixRecipe()
    measure: MeasureRecipe = MeasureRecipe()
    levels: tuple[LevelRecipe, ...] = Field(min_length=1, max_length=MOST_LEVELS)
    retrieval: RetrievalRecipe = RetrievalRecipe()
    divergence: DivergenceRecipe = DivergenceRecipe()

    @model_validator(mode="after")
    def _distinct_levels(self) -> Recipe:
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise ValueError(f"two levels have the same name: {', '.join(names)}")
        return self

    def with_levels(self, words: str) -> Recipe:
        """This recipe with the levels that `--levels` asks for: see `chosen_levels`.

        Raises:
            InputError: one of them is neither in the recipe nor a preset, bits or a size.
        """
        have = {level.name: level for level in self.levels}
        return self.model_copy(update={"levels": tuple(chosen_levels(words, self.name, have))})


def known_recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(resource("recipes").glob("*.yaml"))}


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        InputError: the file cannot be read or is not a valid recipe.
    """
    return validated(Recipe, read_yaml(path), path)


def recipe_for(
    model: str | Path,
    chosen: str | Path | Recipe | None = None,
    levels: str | Iterable[str] | None = None,
    calibration: str | Sequence[str] | None = None,
) -> Recipe:
    """The recipe named or filed as `chosen`; else the one written for `model`; else the default.

    Args:
        levels: instead of the recipe's, as in `Q6,Q4_K_M,4.5,71GiB`: see `chosen_levels`.
        calibration: texts instead of the recipe's: files, folders, domains or datasets.

    Raises:
        InputError: `chosen` is neither a known name nor a readable file, or a level is impossible.
    """
    found = chosen if isinstance(chosen, Recipe) else _recipe_for(str(model), chosen)
    if levels is not None:
        found = found.with_levels(levels if isinstance(levels, str) else ",".join(levels))
    if not calibration:
        return found
    texts = [calibration] if isinstance(calibration, str) else calibration
    return found.model_copy(update={"imatrix": found.imatrix.calibrated_on(texts)})


def _recipe_for(model: str, given: str | Path | None) -> Recipe:
    shipped = known_recipes()
    if given is not None:
        chosen = str(given)
        if chosen not in shipped and not Path(chosen).exists():
            raise InputError(
                f"no recipe {chosen!r}: give a YAML file, or one of {', '.join(shipped)}"
            )
        return load_recipe(shipped.get(chosen, Path(chosen)))
    address = HubAddress.of_cached(Path(model).expanduser()) or HubAddress.parse(model)
    for path in shipped.values():
        recipe = load_recipe(path)
        if recipe.model is not None and recipe.model == address.repository:
            return recipe
    return load_recipe(shipped["default"])
