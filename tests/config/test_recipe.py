"""Recipes: what their fields refuse, and what the shipped ones say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from quantkit.config.recipe import MeasureRecipe, Recipe, known_recipes, load_recipe


@pytest.mark.parametrize(
    ("fields", "measures"),
    [
        ({}, True),  # so many tokens as are right for the model
        ({"cost_tokens": 0}, False),
        ({"cost_tokens": 128}, True),
        ({"cost_tokens": 32, "cost_chunk_tokens": 32}, True),
    ],
)
def test_costs_are_left_out_only_by_0(fields: dict[str, Any], measures: bool) -> None:
    assert MeasureRecipe(**fields).measures_costs is measures


@pytest.mark.parametrize(
    "fields",
    [
        {"cost_tokens": 127},  # less than a chunk
        {"cost_tokens": 64, "cost_chunk_tokens": 65},
        {"cost_tokens": -128},
        {"cost_chunk_tokens": 31},
        {"cost_chunks": 4},
        {"candidates": ["Q8_0", "Q8_0"]},
        {"candidates": ["Q9_0"]},
    ],
)
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MeasureRecipe(**fields)


def test_shipped_recipes_measure_costs_and_divergence() -> None:
    recipes = {name: load_recipe(path) for name, path in known_recipes().items()}
    assert all(recipe.measure.measures_costs for recipe in recipes.values())
    assert all(recipe.divergence.chunks for recipe in recipes.values())
    assert recipes["nemotron-3-super"].measure.cost_tokens == 4096


def test_a_converted_file_s_type_is_no_part_of_a_recipe() -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(
            {"name": "r", "levels": [{"name": "all"}], "convert": {"base_type": "Q8_0"}}
        )
