"""Model: a model without its weights, passed as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata, MetaValue, ModelHeader, TensorInfo
from quantkit.models.geometry import ModelGeometry, geometry_of


@dataclass(frozen=True)
class Model:
    """The stem of its files' names, and a GGUF header as far as it is known already."""

    name: str
    metadata: Metadata
    tensors: Sequence[TensorInfo]

    @staticmethod
    def of(name: str, header: ModelHeader) -> Model:
        return Model(name, header.metadata, header.tensors)

    @cached_property
    def geometry(self) -> ModelGeometry:
        """What each layer keeps in memory; raises InputError if the metadata does not say."""
        return geometry_of(self.metadata)

    @property
    def elements(self) -> int:
        """Number of weights."""
        return sum(info.elements for info in self.tensors)

    @property
    def types(self) -> dict[str, str]:
        return {info.name: info.type_name for info in self.tensors}

    def named(self, name: str) -> Model:
        """The same model in files of another name."""
        return replace(self, name=name)

    def quantized(self, types: Mapping[str, str]) -> Model:
        """The model with each tensor in its type of `types`."""
        typed = [info.with_type(types[info.name]) for info in self.tensors]
        return replace(self, tensors=typed)

    def with_context(self, context_tokens: int) -> Model:
        """The model as if it had been trained for at least `context_tokens`."""
        if context_tokens <= self.geometry.trained_context_tokens:
            return self
        key = f"{self.geometry.architecture}.context_length"
        return replace(self, metadata={**self.metadata, key: MetaValue("u32", context_tokens)})


def check_context(
    name: str, context_tokens: int, trained_context_tokens: int, *, beyond_training: bool
) -> None:
    """Refuse a context that the model was not trained for, unless that is meant.

    Raises:
        InputError: it is longer, and not `beyond_training`.
    """
    if context_tokens > trained_context_tokens and not beyond_training:
        raise InputError(
            f"--context is {context_tokens:,} tokens, and {name} was trained for "
            f"{trained_context_tokens:,}: answers beyond that are not to be trusted, and no RoPE "
            "scaling is set; give a shorter --context, or --beyond-training where the model is "
            "known to hold"
        )
