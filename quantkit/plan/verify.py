"""A plan held against llama.cpp: the same model, cut the same way, loaded without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.config.target import Target
from quantkit.core.errors import InputError
from quantkit.core.units import GIB
from quantkit.llamacpp.child import run_isolated
from quantkit.llamacpp.device_sets import DeviceKind, Devices
from quantkit.llamacpp.memory_plan import Breakdown, Question, ask_memory, ask_of_files
from quantkit.plan.llama_memory import shape_of, use_of
from quantkit.plan.machine import nvidia_gpus
from quantkit.plan.place import Placement
from quantkit.plan.plan import Entry

Where = Literal["auto", "stand-ins", "present", "rpc"]
WHERE: tuple[Where, ...] = ("auto", "stand-ins", "present", "rpc")
TOLERANCE = {"weights": 0.001, "context": 0.001, "compute": 0.05}
"""How far a plan may be from what llama.cpp says, relative."""
NEGLIGIBLE = 1 << 20
"""Bytes that may differ in any case: what CUDA pads rows with is much of a tiny model."""
_KINDS: dict[str, DeviceKind] = {"stand-ins": "cuda", "present": "present", "rpc": "rpc"}


@dataclass(frozen=True)
class Compared:
    """One number of one GPU, bytes."""

    gpu: int
    part: str
    planned: int
    found: int

    @property
    def difference(self) -> float:
        """Relative to what llama.cpp says."""
        return abs(self.planned - self.found) / max(self.found, 1)

    @property
    def agrees(self) -> bool:
        apart = abs(self.planned - self.found)
        return apart <= NEGLIGIBLE or self.difference <= TOLERANCE[self.part]


@dataclass(frozen=True)
class Verification:
    """A plan beside llama.cpp's own numbers.

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
    """`--on`.

    Raises:
        InputError: no such kind of devices.
    """
    for where in WHERE:
        if word == where:
            return where
    raise InputError(f"--on {word} is none of {', '.join(WHERE)}")


def chosen_devices(where: Where, gpus: int) -> Where:
    """`auto` as what it means here: this machine's GPUs, where llama.cpp sees as many."""
    if where != "auto":
        return where
    here = bool(gpus) and len(nvidia_gpus()) == gpus
    seen = here and run_isolated("quantkit.llamacpp.selftest:offloads_in_child", {})
    return "present" if seen else "stand-ins"


def verify(entry: Entry, target: Target, where: Where, file: Path | None = None) -> Verification:
    """Let llama.cpp load what was planned, without weights, and compare.

    Args:
        file: the GGUF that was planned as it is; a file of the plan's exact shape otherwise.

    Raises:
        InputError: llama.cpp refuses the model.
        EnvironmentFault: the devices are not there.
    """
    planned, where = entry.placement, chosen_devices(where, len(target.each_gpu))
    capacities = tuple(int(gpu.memory_gib * GIB) for gpu in target.each_gpu)
    if where == "rpc":
        # Servers on a CPU need no F16 copies of the KV cache, and do not pad rows, as CUDA does.
        planned = planned.with_compute(_ask(entry, target, Devices("plain", capacities), None))
    found = _ask(entry, target, Devices(_KINDS[where], capacities), file)
    compared = []
    for index, (gpu, asked) in enumerate(zip(planned.gpus, found.gpus, strict=True)):
        compared += [
            Compared(index, "weights", gpu.weights_bytes, asked.weights),
            Compared(index, "context", gpu.context_bytes, asked.context),
            Compared(index, "compute", gpu.compute_bytes, asked.compute),
        ]
    host = found.host.weights + found.host.context + found.host.compute
    return Verification(where, compared, _fits(planned, found), host)


def _ask(entry: Entry, target: Target, devices: Devices, file: Path | None) -> Breakdown:
    use, counts = use_of(entry.model.geometry, target), entry.placement.tensor_split
    if file is not None:
        ((answer,),) = ask_of_files([Question(file, devices, counts, (use,))])
        return answer
    model = entry.model
    shape = shape_of(model.metadata, model.tensors, entry.types, use, devices, counts)
    ((answer,),) = ask_memory([shape])
    return answer


def _fits(planned: Placement, found: Breakdown) -> bool:
    """Whether what llama.cpp takes leaves every GPU its reserve."""
    return all(
        asked.weights + asked.context + asked.compute + gpu.reserve_bytes <= gpu.capacity_bytes
        for gpu, asked in zip(planned.gpus, found.gpus, strict=True)
    )
