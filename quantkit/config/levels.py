"""Levels: the part of a recipe that sets the size and the types of one artifact."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from quantkit.core.documents import Strict
from quantkit.core.errors import InputError
from quantkit.core.units import GB, GIB
from quantkit.formats.tensor_types import BY_NAME

PRESETS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS",
    "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
"""llama.cpp's stock mixtures, by the names that llama-quantize takes."""

MOST_LEVELS = 64
"""Of one recipe: each takes seconds to plan, and minutes or hours to build."""
LEVEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"


def _pattern(text: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a set that Python may read otherwise one day
            re.compile(text)
    except (re.error, FutureWarning, DeprecationWarning, RecursionError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression."""

_UNITS = {"gib": GIB, "mib": 1 << 20, "gb": GB, "mb": 10**6}
_SPELLING = {"gib": "GiB", "mib": "MiB", "gb": "GB", "mb": "MB"}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?) ?(GiB|GB|MiB|MB)$", re.IGNORECASE)
_BITS = re.compile(r"^(\d+(?:\.\d+)?)(?: ?bpw)?$", re.IGNORECASE)


class LevelRecipe(Strict):
    """One artifact of the ladder.

    Its size is at most one of `bits_per_weight`, `size` and `preset`; none: all that the target's
    budget allows. docs/recipes.md says what each field means.
    """

    name: str = Field(pattern=LEVEL_NAME)
    bits_per_weight: float | None = Field(default=None, gt=0.5, le=32)
    size: str | None = None
    preset: str | None = None
    baseline: bool = False
    minimum: dict[Pattern, str] = Field(default_factory=dict)
    pin: dict[Pattern, str] = Field(default_factory=dict)

    @property
    def size_bytes(self) -> int | None:
        return None if self.size is None else parse_size(self.size)

    def bits(self, elements: int) -> float | None:
        """Bits per weight that it asks for; None where the target or a preset decides."""
        if self.size_bytes is not None:
            return 8 * self.size_bytes / elements
        return self.bits_per_weight

    @property
    def takes_all(self) -> bool:
        """Whether it gets all that the target's budget allows."""
        return self.bits_per_weight is None and self.size is None and self.preset is None

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str | None) -> str | None:
        if size is not None and parse_size(size) is None:
            raise ValueError(f"{size!r} is not a size like '71 GiB' or '76 GB'")
        return size

    @field_validator("minimum", "pin")
    @classmethod
    def _known_types(cls, rules: Mapping[str, str]) -> Mapping[str, str]:
        unknown = [name for name in rules.values() if name not in BY_NAME]
        if unknown:
            raise ValueError(f"unknown tensor types {', '.join(unknown)}")
        return rules

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> LevelRecipe:
        sized = [n for n in ("bits_per_weight", "size", "preset") if getattr(self, n) is not None]
        if len(sized) > 1:
            raise ValueError(f"{' and '.join(sized)} exclude each other")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; known are {', '.join(PRESETS)}")
        if self.preset is not None and (self.minimum or self.pin):
            raise ValueError("a preset's types are llama.cpp's: leave minimum and pin out")
        return self


def parse_size(text: str) -> int | None:
    """Bytes of `71GiB`, `76 GB`, `900MiB` or `5 MB`; None for anything else, and for nothing."""
    match = _SIZE.match(text)
    return int(float(match[1]) * _UNITS[match[2].lower()]) or None if match else None


def is_amount(word: str) -> bool:
    """Whether it is bits per weight, `4.5`, or a size, `71GiB`."""
    return parse_size(word) is not None or _BITS.match(word) is not None


def chosen_levels(words: str, recipe: str, levels: Mapping[str, LevelRecipe]) -> list[LevelRecipe]:
    """The levels that `--levels` asks for, in its order.

    Each word is the name of one of the recipe's levels, or a stock preset's name, or bits per
    weight (`4.5`), or a size (`71GiB`, `76GB`), or `max`: all that the target's budget allows. The
    recipe's names come first. Presets are baselines.

    Args:
        recipe: its name, for messages.
        levels: its levels, by name.

    Raises:
        InputError: a word is none of these, or two mean the same.
    """
    found: dict[str, LevelRecipe] = {}
    asked = words.split(",")
    if len(asked) > MOST_LEVELS:
        raise InputError(f"--levels names {len(asked)} levels (limit {MOST_LEVELS}); give fewer")
    for word in asked:
        level = levels.get(word.strip()) or _made(word.strip(), recipe, levels)
        if level.name in found:
            raise InputError(f"--levels names {level.name} twice; each is built once")
        found[level.name] = level
    return list(found.values())


def _made(word: str, recipe: str, levels: Mapping[str, LevelRecipe]) -> LevelRecipe:
    if word == "max":
        return LevelRecipe(name=word)
    if word.upper() in PRESETS:
        return LevelRecipe(name=word.upper(), preset=word.upper(), baseline=True)
    if parse_size(word) is not None and (match := _SIZE.match(word)):
        size = match[1] + _SPELLING[match[2].lower()]
        return LevelRecipe(name=size, size=size)
    if (match := _BITS.match(word)) and 0.5 < float(match[1]) <= 32:
        return LevelRecipe(name=f"{float(match[1]):g}bpw", bits_per_weight=float(match[1]))
    raise InputError(
        f"no level {word!r}: recipe {recipe} has {', '.join(levels)}; or give bits per weight "
        f"(4.5), a size (71GiB, 76GB), max, or one of llama.cpp's presets: {', '.join(PRESETS)}"
    )
