"""`--target auto`: the cards of this machine as a target.

Sizes, and what is taken of them, come from the driver. What llama.cpp needs of a card beside the
buffers that are planned is added; docs/targets.md says where it comes from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from quantkit.config.target import CardSpec, Target
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.units import GIB, MIB, bytes_text
from quantkit.plan.nvidia import (
    UUID_PREFIXES,
    VISIBLE,
    Card,
    NoDriver,
    read_cards,
    visible_cards,
    visible_entries,
)
from quantkit.plan.nvml import NVML

RUNTIME_BYTES, RUNTIME_BYTES_EACH_MULTIPROCESSOR = 320 * MIB, 3 * MIB
"""CUDA's context, which grows with the multiprocessors; kernels and workspaces of llama.cpp and
cuBLAS; ggml's pools."""
MOST_MULTIPROCESSORS = 192
"""Of a card whose driver does not tell: a whole GB202 has these, and no card has more."""
RESERVE_STEP = GIB // 8
"""Reserves are rounded up to this, so that most small changes of a desktop change no plan."""
SHARED_MEMORY = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0), (12, 1)})
"""Compute capabilities of the chips that use the processor's memory: Jetson, Drive, GB10."""
CONTEXTS = ((20, 32_768), (40, 131_072), (90, 262_144))
"""(GiB, tokens): the context for cards with less than this in all, as the shipped targets do."""
LONGEST_CONTEXT = 516_096
_OTHERWISE = (
    "Choose a target by name ('quantkit targets'), or write the cards into a YAML file "
    "(docs/targets.md)"
)


def present_target(nvml: NVML | None = None, environment: Mapping[str, str] = os.environ) -> Target:
    """The NVIDIA cards that CUDA would show a program started now, and what they have left.

    Args:
        nvml: pynvml, or a module with the same functions.
        environment: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say which cards, in which order.

    Raises:
        EnvironmentFault: there is no driver or no card, or the driver does not tell the memory.
        InputError: the environment does not say which cards are meant.
    """
    try:
        every = read_cards(nvml)
    except NoDriver as error:
        raise EnvironmentFault(f"target auto: {error}. {_OTHERWISE}") from None
    if not every:
        raise EnvironmentFault(f"target auto: the NVIDIA driver shows no card. {_OTHERWISE}")
    cards = visible_cards(every, environment)
    _check_selection(every, cards, environment)
    _check_order(every, environment)
    specs = [_spec(card) for card in cards]
    total = sum(spec.memory_gib for spec in specs)
    return Target(
        name=_label(cards),
        description="The cards of this machine: " + ", ".join(map(_described, cards)),
        cards=tuple(_grouped(specs)),
        devices=tuple(_device(card, every) for card in cards),
        context_tokens=next((n for gib, n in CONTEXTS if total < gib), LONGEST_CONTEXT),
    )


def _device(card: Card, every: Sequence[Card]) -> str:
    """What CUDA_VISIBLE_DEVICES calls it: its number, or of an instance (MIG) its UUID."""
    return str(card.index) if card in every else card.uuid


def _check_selection(
    every: Sequence[Card], cards: Sequence[Card], environment: Mapping[str, str]
) -> None:
    """Raise where CUDA_VISIBLE_DEVICES names what is not there, or what a program cannot use."""
    entries = visible_entries(environment) or []
    if len(cards) < len(entries):
        known = ", ".join(f"{card.index} ({card.uuid})" for card in every)
        raise InputError(
            f"target auto: with {VISIBLE}={environment[VISIBLE]!r} CUDA shows {len(cards)} of this "
            f"machine's cards, because {entries[len(cards)]!r} names none, or one again. There are "
            f"{known}: unset the variable, or name some of these"
        )
    instances = [instance for card in every for instance in card.instances]
    if any(card.mig for card in cards) or (len(cards) > 1 and set(cards) & set(instances)):
        uuids = ", ".join(card.uuid for card in instances) or "none has been made"
        raise InputError(
            "target auto: a program can use one MIG instance, and no other card beside it. Set "
            f"{VISIBLE} to one of the instances ({uuids}), or to cards that are not in MIG mode"
        )
    for card in cards:
        if card.lent:
            raise EnvironmentFault(
                f"target auto: card {card.index}, {card.name}, is lent to virtual machines: CUDA "
                f"cannot use it here. Leave it out of {VISIBLE}, or run quantkit in the guest"
            )


def _check_order(every: Sequence[Card], environment: Mapping[str, str]) -> None:
    """Raise where the driver's order may not be CUDA's.

    CUDA numbers cards from the fastest to the slowest by a rule of its own unless it is told
    otherwise, and a tensor split goes by these numbers.
    """
    kinds = {(card.name, card.memory and card.memory.total) for card in every}
    entries = visible_entries(environment)
    by_uuid = entries is not None and all(entry.startswith(UUID_PREFIXES) for entry in entries)
    if len(kinds) > 1 and not by_uuid and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise InputError(
            "target auto: this machine has cards of several kinds, which CUDA numbers by speed and "
            "the driver by their place. Set CUDA_DEVICE_ORDER=PCI_BUS_ID, here and where the model "
            "is served, so that the plan's cards are the same in both"
        )


def _spec(card: Card) -> CardSpec:
    """The card with its memory, and what of it the planned buffers cannot have.

    Raises:
        EnvironmentFault: it has no memory of its own, or the driver does not tell how much.
    """
    if card.compute_capability in SHARED_MEMORY:
        raise EnvironmentFault(
            f"target auto: {card.name} uses the processor's memory, and the driver does not tell "
            "how much of it a model may have. Use --target dgx-spark on a DGX Spark; for another "
            "machine write a YAML file (docs/targets.md), with what the system needs as reserve_gib"
        )
    if card.memory is None:
        raise EnvironmentFault(
            f"target auto: the NVIDIA driver does not report the memory of card {card.index}, "
            f"{card.name} (nvmlDeviceGetMemoryInfo). {_OTHERWISE}"
        )
    multiprocessors = card.multiprocessors or MOST_MULTIPROCESSORS
    runtime = RUNTIME_BYTES + multiprocessors * RUNTIME_BYTES_EACH_MULTIPROCESSOR
    taken = card.memory.driver + card.memory.others + runtime
    return CardSpec(
        name=card.name,
        memory_gib=card.memory.total / GIB,
        reserve_gib=-(-taken // RESERVE_STEP) * RESERVE_STEP / GIB,
    )


def _label(cards: Sequence[Card]) -> str:
    """`2xRTX-3090+1xRTX-4090`: fit for the name of a folder."""
    groups = [(name, len(list(same))) for name, same in groupby(card.name for card in cards)]
    short = ((re.sub(r"^NVIDIA (GeForce )?", "", name), count) for name, count in groups)
    return "+".join(f"{count}x{re.sub(r'[^A-Za-z0-9.]+', '-', name)}" for name, count in short)


def _described(card: Card) -> str:
    others = card.memory.others if card.memory else 0
    return f"{card.name} ({bytes_text(others)} taken by other programs)" if others else card.name


def _grouped(specs: Sequence[CardSpec]) -> list[CardSpec]:
    """Equal neighbours as one entry; the order stays."""
    groups = [list(same) for _, same in groupby(specs)]
    return [same[0].model_copy(update={"count": len(same)}) for same in groups]
