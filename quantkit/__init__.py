"""quantkit: one command turns a checkpoint into GGUF files that fit a given set of GPUs.

The Python API is that of `quantkit.api`: `quantkit.plan`, `study`, `build`, `quantize`,
`validate`, `compare` and `read_results`. Importing quantkit loads no other module; a call loads
what it needs when it is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.api import (
        DoesNotFitError,
        EnvironmentFault,
        GateError,
        InputError,
        QuantkitError,
        Recipe,
        RetrievalRecipe,
        Target,
        build,
        compare,
        plan,
        quantize,
        read_results,
        study,
        validate,
    )  # fmt: skip

__version__ = "0.1.0"
__all__ = [
    "DoesNotFitError", "EnvironmentFault", "GateError", "InputError", "QuantkitError", "Recipe",
    "RetrievalRecipe", "Target", "__version__", "build", "compare", "plan", "quantize",
    "read_results", "study", "validate",
]  # fmt: skip


class _FrontDoor(ModuleType):
    """This module: it loads the API's names on use, and keeps them.

    Some calls have the name of a subpackage (`build`, `plan`, `quantize`, `study`), and importing
    that would set the attribute to it. So `quantkit.plan` is always the call; modules of the
    subpackage are imported by name: `from quantkit.plan.placement import place`.
    """

    def __getattr__(self, name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from quantkit import api

        found: object = getattr(api, name)
        self.__dict__[name] = found
        return found

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})


sys.modules[__name__].__class__ = _FrontDoor
