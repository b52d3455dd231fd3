"""The flagship without its weights: `make_shape`, and what most tests want of it."""

from __future__ import annotations

import functools

import make_shape

from quantkit.config.recipe import MeasureRecipe
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.models.families.registry import family_for
from quantkit.models.model import Model
from quantkit.plan.allowed_types import Costs
from quantkit.plan.level_plans import nominal_costs

CONFIG = make_shape.model_config("nemotron-3-super", mtp=False)


@functools.cache
def metadata() -> Metadata:
    """The architecture's keys, without the tokenizer."""
    return family_for(CONFIG).metadata(CONFIG)


@functools.cache
def model() -> Model:
    return Model("super", metadata(), tensors())


@functools.cache
def costs() -> Costs:
    """Nominal ones."""
    return nominal_costs(model(), MeasureRecipe())


@functools.cache
def tensors() -> list[TensorInfo]:
    """Every tensor of the unquantized GGUF."""
    return make_shape.gguf_tensors(CONFIG)
