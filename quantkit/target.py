"""Target: the cards, the context and the KV cache that an artifact must run with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from quantkit.errors import InputError
from quantkit.resources import resource
from quantkit.sizes import GIB
from quantkit.yaml_files import Strict, read_yaml, validated

KVType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class CardSpec(Strict):
    """Equal cards.

    Attributes:
        memory_gib: the card's total memory, GiB.
        reserve_gib: kept free for the driver, the desktop and fragmentation, GiB a card.
    """

    name: str
    memory_gib: float = Field(gt=0)
    reserve_gib: float = Field(default=0.5, ge=0)
    count: int = Field(default=1, ge=1, le=64)


class Target(Strict):
    """A card set and how it is used; one YAML in `recipes/targets/`.

    Attributes:
        weight_budget_gib: GiB for the weights, or None for all that the cards leave after context,
            compute buffers and reserve.
        ubatch_tokens: physical batch, llama.cpp's `-ub`; compute buffers grow with it.
    """

    name: str
    description: str = ""
    cards: tuple[CardSpec, ...] = Field(min_length=1)
    context_tokens: int = Field(gt=0)
    kv_type: KVType = "q8_0"
    ubatch_tokens: int = Field(default=512, gt=0)
    weight_budget_gib: float | None = Field(default=None, gt=0)

    @property
    def each_card(self) -> tuple[CardSpec, ...]:
        """One entry a card, counts expanded."""
        return tuple(spec for spec in self.cards for _ in range(spec.count))

    @property
    def weight_budget_bytes(self) -> int | None:
        return None if self.weight_budget_gib is None else int(self.weight_budget_gib * GIB)

    def changed(self, *, context_tokens: int | None, kv_type: str | None) -> Target:
        """This target with another context or KV cache type where they are given.

        Raises:
            InputError: no such KV cache type.
        """
        given = {"context_tokens": context_tokens, "kv_type": kv_type}
        update = {name: value for name, value in given.items() if value is not None}
        return validated(Target, self.model_dump() | update, Path(self.name)) if update else self


def _folder() -> Path:
    return resource("recipes") / "targets"


def known_targets() -> list[str]:
    """Names of the targets that ship with quantkit."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_target(name_or_path: str) -> Target:
    """The target that ships under this name, or the one in this YAML file.

    Raises:
        InputError: no such target, or the file is not a valid one.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _folder() / f"{name_or_path}.yaml"
        if name_or_path not in known_targets():
            raise InputError(
                f"unknown target {name_or_path!r}; known: {', '.join(known_targets())}; or give "
                "a YAML file of your own (docs/targets.md)"
            )
    return validated(Target, read_yaml(path), path)
