"""Compares a plan with llama.cpp: the same model and placement, loaded without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from quantkit.config.target import Target
from quantkit.core.errors import InputError
from quantkit.llamacpp.child import run_isolated
from quantkit.llamacpp.devices import DeviceKind, Devices
from quantkit.llamacpp.memory_plan import Breakdown, Question, ask_memory, ask_of_files
from quantkit.plan.machine import nvidia_gpus
from quantkit.plan.plan import Entry

Where = Literal["auto", "fake", "present", "rpc"]
WHERE: tuple[Where, ...] = get_args(Where)
TOLERANCE = {"weights": 0.001, "context": 0.001, "compute": 0.05}
"""Largest accepted difference between a plan and llama.cpp, relative."""
NEGLIGIBLE = 1 << 20
"""Bytes that may differ in any case: padding of rows is much of a tiny model."""
_KINDS: dict[str, DeviceKind] = {"fake": "cuda", "present": "present", "rpc": "rpc"}


@dataclass(frozen=True)
class Compared:
    gpu: int
    part: str
    planned: int
    found: int

    @property
    def difference(self) -> float:
        """Relative to llama.cpp's number."""
        return abs(self.planned - self.found) / max(self.found, 1)

    @property
    def agrees(self) -> bool:
        apart = abs(self.planned - self.found)
        return apart <= NEGLIGIBLE or self.difference <= TOLERANCE[self.part]


@dataclass(frozen=True)
class Verification:
    """A plan compared with llama.cpp's own numbers.

    Attributes:
        where: the devices that llama.cpp was asked for.
        host: what it takes of the computer's own memory, bytes.
    """

    where: Where
    compared: Sequence[Compared]
    fits: bool
    host: int

    @property
    def agrees(self) -> bool:
        return all(one.agrees for one in self.compared)


def where_of(word: str) -> Where:
    """`--on`; `stand-ins` is the earlier name of `fake`.

    Raises:
        InputError: no such kind of devices.
    """
    for where in WHERE:
        if where == {"stand-ins": "fake"}.get(word, word):
            return where
    raise InputError(f"unknown devices --on {word}: give one of {', '.join(WHERE)}")


def verify(entry: Entry, target: Target, where: Where, file: Path | None = None) -> Verification:
    """Load the planned model with llama.cpp, without weights, and compare its memory.

    Args:
        file: the GGUF that was planned as it is; a file of the plan's exact shape otherwise.

    Raises:
        InputError: llama.cpp refuses the model.
        EnvironmentFault: the devices are not there.
    """
    planned, gpus = entry.placement, len(target.gpu_bytes)
    if where == "auto":  # this machine's GPUs, where llama.cpp sees as many
        here = len(nvidia_gpus()) == gpus
        seen = here and run_isolated("quantkit.llamacpp.llama:offloads_in_child", {})
        where = "present" if seen else "fake"
    if where == "rpc":
        # Servers on a CPU need no F16 copies of the KV cache, and do not pad rows, as CUDA does.
        planned = planned.with_compute(_ask(entry, Devices("plain", target.gpu_bytes), None))
    found = _ask(entry, Devices(_KINDS[where], target.gpu_bytes), file)
    pairs = list(zip(planned.gpus, found.gpus, strict=True))
    compared = [
        Compared(index, part, getattr(gpu, f"{part}_bytes"), getattr(asked, part))
        for index, (gpu, asked) in enumerate(pairs)
        for part in TOLERANCE
    ]
    fits = all(asked.total_bytes + gpu.reserve_bytes <= gpu.capacity_bytes for gpu, asked in pairs)
    return Verification(where, compared, fits, found.host.total_bytes)


def _ask(entry: Entry, devices: Devices, file: Path | None) -> Breakdown:
    split, runs = entry.placement.tensor_split, (entry.placement.run,)
    if file is not None:
        ((answer,),) = ask_of_files([Question(file, devices, split, runs)])
    else:
        model = entry.model.quantized(entry.types)
        ((answer,),) = ask_memory([Question(model, devices, split, runs)])
    return answer
