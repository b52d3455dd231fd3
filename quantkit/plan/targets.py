"""The targets that can be named here: those that ship, this machine's GPUs, and a person's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantkit.config.target import Target, known_targets, load_target
from quantkit.core.errors import InputError, QuantkitError
from quantkit.plan.local_gpus import local_target
from quantkit.plan.nvidia import NoDriver, read_gpus
from quantkit.plan.nvml import NVML


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
    nvml: NVML | None = None,
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
    present, why = _present(nvml, environment)
    if present is not None:
        found.append(present)
    for file in files:
        if file.suffix not in (".yaml", ".yml"):
            raise InputError(
                f"--target {file} is no YAML file: give targets of your own (docs/targets.md); "
                "those that ship and auto are listed without it"
            )
        found.append(load_target(str(file)))
    return found, why


def _present(nvml: NVML | None, environment: Mapping[str, str]) -> tuple[Target | None, str | None]:
    """This machine's GPUs by the name that `--target` takes, or why they are no target."""
    try:
        if not read_gpus(nvml):
            return None, None
        return local_target(nvml, environment).changed(name="auto"), None
    except NoDriver:
        return None, None
    except QuantkitError as error:
        return None, str(error)
