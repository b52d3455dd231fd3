"""The context of the retrieval check: as many forks side by side as free memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.units import bytes_text
from quantkit.llamacpp.devices import free_memory
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.memory_plan import DeviceMemory, used_memory
from quantkit.llamacpp.prompts import Slots
from quantkit.llamacpp.settings import ContextSettings
from quantkit.retrieval.branches import Branch
from quantkit.retrieval.run.check import CheckSettings

BATCH_TOKENS = 2048
"""llama-server's logical batch: several GPUs work on its physical ones at once."""
_CELLS = 256
"""llama.cpp pads contexts to multiples of it."""


@dataclass(frozen=True)
class Planned:
    """A context for the check.

    Attributes:
        slots: None if each question is asked after a prefill of its own, without forks.
        memory: by device, as llama.cpp plans it.
    """

    slots: Slots | None
    sizes: ContextSettings
    memory: dict[str, DeviceMemory]


def most_slots(
    recipe: RetrievalRecipe, settings: CheckSettings, branches: Sequence[Branch]
) -> Slots | None:
    """What is asked side by side where memory allows it."""
    if settings.fresh:
        return None
    candidates = max(len(branch.candidates) for branch in branches)
    return Slots(1 if recipe.mode == "classic" else recipe.forks, candidates)


def plan_context(
    shape: Model,
    most: Slots | None,
    settings: CheckSettings,
    branches: Sequence[Branch],
    *,
    weights: bool = True,
) -> Planned:
    """The context for as many of `most` as the devices' free memory holds.

    Without forks a sliding window has a cache of its own size, so a model that fills a GPU in
    llama-server can be checked there.

    Args:
        shape: the model without weights.
        weights: whether they count; not if another file of the same shape will be checked.

    Raises:
        EnvironmentFault: there is no memory for a context without forks, or llama.cpp cannot make
            one of this kind.
    """
    free = free_memory()
    for slots in _attempts(most):
        sizes = _sizes(branches, slots, settings)
        context = Context(shape, sizes)
        planned = used_memory(context.handle)
        context.close()
        taken = _taken(planned, free, weights=weights)
        short = {device: size for device, size in taken.items() if size > free[device]}
        if not short:
            return Planned(slots, sizes, planned)
    length = max(branch.question.context_tokens for branch in branches)
    words = "; ".join(
        f"{device} needs {bytes_text(size)} and has {bytes_text(free[device])} free"
        for device, size in short.items()
    )
    raise EnvironmentFault(
        f"no memory for a check at {length:,} tokens, even without forks: {words}; use a smaller "
        "KV cache type, a shorter context or a smaller file"
    )


def _attempts(most: Slots | None) -> Iterator[Slots | None]:
    """From `most` to one fork at a time, then none."""
    while most is not None:
        yield most
        most = most.fewer()
    yield None


def _taken(
    planned: dict[str, DeviceMemory], free: dict[str, int], *, weights: bool
) -> dict[str, int]:
    """Bytes on each device; other buffers are in the computer's own memory (`CPU`).

    Weights that are mapped into that are not counted: they can be read again.
    """
    taken: dict[str, int] = {}
    for name, use in planned.items():
        device = name if name in free else "CPU"
        counted = weights and name != "CPU"
        size = use.context + use.compute + (use.weights if counted else 0)
        taken[device] = taken.get(device, 0) + size
    return {device: size for device, size in taken.items() if device in free}


def _sizes(
    branches: Sequence[Branch], slots: Slots | None, settings: CheckSettings
) -> ContextSettings:
    """Of a context that holds the longest prompt, with the other questions and candidates."""
    whole = max(b.prompt_tokens + b.question.answer_tokens for b in branches)
    own = max(len(b.tokens) + b.question.answer_tokens for b in branches)
    longest = max((len(c) for b in branches for c in b.candidates), default=0)
    cells = whole
    if slots is not None:
        cells += (slots.questions - 1) * own + slots.candidates * longest
    return ContextSettings(
        context_tokens=-(-cells // _CELLS) * _CELLS,
        batch_tokens=max(BATCH_TOKENS, settings.ubatch_tokens),
        ubatch_tokens=settings.ubatch_tokens,
        sequences=1 if slots is None else slots.sequences,
        kv_type=settings.kv_type,
        outputs=1 if slots is None else max(slots.questions, slots.candidates * longest),
    )
