"""The targets that a name selects: shipped ones, YAML files, this machine's GPUs (`auto`).

Sizes and used memory come from the driver. What llama.cpp needs of a GPU beside the planned
buffers is added (docs/targets.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import ModuleType

from quantkit.config.target import GPUSpec, Target, known_targets, load_target
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.core.units import GIB, MIB, bytes_text
from quantkit.plan.machine import (
    GPU,
    UUID_PREFIX,
    VISIBLE,
    NoDriver,
    read_gpus,
    visible_entries,
    visible_gpus,
)

RUNTIME_BYTES, RUNTIME_BYTES_EACH_MULTIPROCESSOR = 320 * MIB, 3 * MIB
"""CUDA's context, which grows with the multiprocessors; kernels and workspaces of llama.cpp and
cuBLAS; ggml's pools."""
MOST_MULTIPROCESSORS = 192
"""Of a GPU whose driver does not tell: a whole GB202 has these, and no GPU has more."""
RESERVE_STEP = GIB // 8
"""Reserves are rounded up to this, so that most small changes of a desktop change no plan."""
GB10 = (12, 1)
"""Compute capability of the DGX Spark's chip, which uses the processor's memory."""
CONTEXTS = ((20, 32_768), (40, 131_072), (90, 262_144))
"""(GiB, tokens): the context for GPUs with less than this in all, as the shipped targets do."""
LONGEST_CONTEXT = 516_096
_OTHERWISE = (
    "Choose a target by name ('quantkit targets'), or write the GPUs into a YAML file "
    "(docs/targets.md)"
)


def local_target(
    nvml: ModuleType | None = None, environment: Mapping[str, str] = os.environ
) -> Target:
    """The NVIDIA GPUs that CUDA would show a program started now, and what they have left.

    Args:
        nvml: pynvml, or a module with the same functions.
        environment: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say which GPUs, in which order.

    Raises:
        EnvironmentFault: there is no driver or no GPU, or its memory is not reported.
        InputError: the environment does not say which GPUs are meant.
    """
    try:
        every = read_gpus(nvml)
    except NoDriver as error:
        raise EnvironmentFault(f"target auto: {error}. {_OTHERWISE}") from None
    if not every:
        raise EnvironmentFault(f"target auto: the NVIDIA driver shows no GPU. {_OTHERWISE}")
    gpus = visible_gpus(every, environment)
    _check_selection(every, gpus, environment)
    _check_order(every, environment)
    specs = [_spec(gpu) for gpu in gpus]
    taken = [gpu.memory.others if gpu.memory else 0 for gpu in gpus]
    described = [
        f"{gpu.name} ({bytes_text(others)} taken by other programs)" if others else gpu.name
        for gpu, others in zip(gpus, taken, strict=True)
    ]
    total = sum(spec.memory_gib for spec in specs)
    return Target(
        name=_label(gpus),
        description="The GPUs of this machine: " + ", ".join(described),
        gpus=tuple(_grouped(specs)),
        devices=tuple(str(gpu.index) for gpu in gpus),
        context_tokens=next((n for gib, n in CONTEXTS if total < gib), LONGEST_CONTEXT),
    )


def _check_selection(
    every: Sequence[GPU], gpus: Sequence[GPU], environment: Mapping[str, str]
) -> None:
    """Raise where CUDA_VISIBLE_DEVICES names what is not there, or what a program cannot use."""
    entries = visible_entries(environment) or []
    if len(gpus) < len(entries):
        known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in every)
        raise InputError(
            f"target auto: with {VISIBLE}={environment[VISIBLE]!r} CUDA shows {len(gpus)} of this "
            f"machine's GPUs, because {entries[len(gpus)]!r} names none, or one again. There are "
            f"{known}: unset the variable, or name some of these"
        )
    for gpu in gpus:
        if gpu.divided:
            raise EnvironmentFault(
                f"target auto: GPU {gpu.index}, {gpu.name}, is in MIG mode or lent to virtual "
                f"machines, which is not supported. Leave it out of {VISIBLE}"
            )


def _check_order(every: Sequence[GPU], environment: Mapping[str, str]) -> None:
    """Raise where the driver's order may not be CUDA's.

    CUDA numbers GPUs from the fastest to the slowest by a rule of its own unless it is told
    otherwise, and a tensor split goes by these numbers.
    """
    kinds = {(gpu.name, gpu.memory and gpu.memory.total) for gpu in every}
    entries = visible_entries(environment)
    by_uuid = entries is not None and all(entry.startswith(UUID_PREFIX) for entry in entries)
    if len(kinds) > 1 and not by_uuid and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise InputError(
            "target auto: this machine has GPUs of several kinds, which CUDA numbers by speed and "
            "the driver by their place. Set CUDA_DEVICE_ORDER=PCI_BUS_ID, here and where the model "
            "is served, so that the plan's GPUs are the same in both"
        )


def _spec(gpu: GPU) -> GPUSpec:
    """The GPU with its memory, and what of it the planned buffers cannot have."""
    if gpu.compute_capability == GB10:
        raise EnvironmentFault(
            f"target auto: {gpu.name} uses the processor's memory; give --target dgx-spark"
        )
    if gpu.memory is None:
        raise EnvironmentFault(
            f"target auto: the NVIDIA driver does not report the memory of GPU {gpu.index}, "
            f"{gpu.name} (nvmlDeviceGetMemoryInfo). {_OTHERWISE}"
        )
    multiprocessors = gpu.multiprocessors or MOST_MULTIPROCESSORS
    runtime = RUNTIME_BYTES + multiprocessors * RUNTIME_BYTES_EACH_MULTIPROCESSOR
    taken = gpu.memory.driver + gpu.memory.others + runtime
    return GPUSpec(
        name=gpu.name,
        memory_gib=gpu.memory.total / GIB,
        reserve_gib=-(-taken // RESERVE_STEP) * RESERVE_STEP / GIB,
    )


def _label(gpus: Sequence[GPU]) -> str:
    """`2xRTX-3090+1xRTX-4090`: fit for the name of a folder."""
    groups = [(name, len(list(same))) for name, same in groupby(gpu.name for gpu in gpus)]
    short = ((re.sub(r"^NVIDIA (GeForce )?", "", name), count) for name, count in groups)
    return "+".join(f"{count}x{re.sub(r'[^A-Za-z0-9.]+', '-', name)}" for name, count in short)


def _grouped(specs: Sequence[GPUSpec]) -> list[GPUSpec]:
    groups = [list(same) for _, same in groupby(specs)]
    return [same[0].model_copy(update={"count": len(same)}) for same in groups]


def choose_target(name: str | Path | Target) -> Target:
    """What `name` stands for: a shipped target, a YAML file, or `auto` for this machine's GPUs.

    Raises:
        InputError: no such target, or the file is not a valid one.
        EnvironmentFault: `auto`, where the NVIDIA driver shows no GPU.
    """
    if isinstance(name, Target):
        return name
    return local_target() if name == "auto" else load_target(str(name))


def target_list(
    files: Sequence[Path] = (),
    nvml: ModuleType | None = None,
    environment: Mapping[str, str] = os.environ,
) -> tuple[list[Target], str | None]:
    """The targets that ship by name, `auto` where this machine has NVIDIA GPUs, and `files`.

    Args:
        nvml: as for `local_target`.
        environment: as for `local_target`.

    Returns:
        The targets, and why this machine's GPUs are not among them, if it has some.

    Raises:
        InputError: one of `files` is no YAML file, or not a valid target.
    """
    found = [load_target(name) for name in known_targets()]
    why = None
    try:
        if read_gpus(nvml):
            found.append(local_target(nvml, environment).changed(name="auto"))
    except NoDriver:
        pass
    except QuantkitError as error:
        why = str(error)
    for file in files:
        if file.suffix not in (".yaml", ".yml"):
            raise InputError(
                f"--target {file} is no YAML file: give targets of your own (docs/targets.md); "
                "those that ship and auto are listed without it"
            )
        found.append(load_target(str(file)))
    return found, why
