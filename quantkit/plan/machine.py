"""This machine: its NVIDIA GPUs as the driver describes them, cores, memory, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

from quantkit import __version__
from quantkit.core.errors import EnvironmentFault
from quantkit.core.threads import worker_count
from quantkit.core.units import GIB, bytes_text
from quantkit.llamacpp.ggml import library_version

VISIBLE = "CUDA_VISIBLE_DEVICES"
UUID_PREFIX = "GPU-"
AnswerT = TypeVar("AnswerT")

# NVML's "cores" of a multiprocessor are its FP32 results a clock: 128, but for these compute
# capabilities (CUDA C++ programming guide, throughput of native arithmetic instructions).
_CORES_OTHERWISE = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}


class NoDriver(EnvironmentFault):
    """NVIDIA's management library is not there, or no driver answers it."""


@dataclass(frozen=True)
class GPUBytes:
    """A GPU's memory as the driver reports it, bytes.

    Attributes:
        total: what nvidia-smi shows; CUDA shows `driver` less.
        driver: of the total, what driver and firmware keep. A driver older than 510 does not tell;
            it is part of `others` then.
        others: of the total, what programs that run now have taken.
    """

    total: int
    driver: int
    others: int


@dataclass(frozen=True)
class GPU:
    """A GPU.

    Attributes:
        index: its number in the order of the PCI bus, which is nvidia-smi's, and CUDA's with
            CUDA_DEVICE_ORDER=PCI_BUS_ID.
        name: as the driver writes it, for people; nothing is concluded from it.
        pci_bus_id: "00000000:07:00.0".
        multiprocessors: None where the driver does not tell.
        memory: None where the driver does not tell, as of a GB10, which has none of its own.
        divided: it is in MIG mode, or lent to virtual machines: a program cannot use it whole.
    """

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    compute_capability: tuple[int, int]
    multiprocessors: int | None
    memory: GPUBytes | None
    divided: bool = False

    def __str__(self) -> str:
        size = bytes_text(self.memory.total) if self.memory else "of unknown memory"
        return f"{self.name} {size}"


def driver_version(nvml: ModuleType | None = None) -> str:
    """`580.65.06`, or why there is no driver."""
    nvml = nvml or _pynvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"none ({error})"
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    finally:
        nvml.nvmlShutdown()


def read_gpus(nvml: ModuleType | None = None) -> tuple[GPU, ...]:
    """Every NVIDIA GPU of this machine, in the order of the PCI bus.

    Args:
        nvml: pynvml, or a module with the same functions.

    Raises:
        NoDriver: no driver answers.
        EnvironmentFault: it fails to describe its GPUs.
    """
    nvml = nvml or _pynvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoDriver(f"no NVIDIA driver answers nvmlInit: {error}") from None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = [_gpu(nvml, handle) for handle in handles]
    except nvml.NVMLError as error:
        raise EnvironmentFault(
            f"the NVIDIA driver fails to describe its GPUs: {error}; nvidia-smi shows which one"
        ) from None
    finally:
        nvml.nvmlShutdown()
    found.sort(key=lambda gpu: gpu.pci_bus_id)
    return tuple(replace(gpu, index=index) for index, gpu in enumerate(found))


def visible_gpus(gpus: Sequence[GPU], environment: Mapping[str, str]) -> tuple[GPU, ...]:
    """Those that CUDA shows a program, in the order in which it numbers them there.

    CUDA_VISIBLE_DEVICES names them by number or by UUID, whole or its beginning. CUDA reads it up
    to the first entry that names no GPU (CUDA programming guide, environment variables).
    """
    entries = visible_entries(environment)
    if entries is None:
        return tuple(gpus)
    found: list[GPU] = []
    for entry in entries:
        gpu = _named(gpus, entry)
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    return tuple(found)


def visible_entries(environment: Mapping[str, str]) -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES; None where it is not set and all GPUs are visible."""
    value = environment.get(VISIBLE)
    return None if value is None else [entry.strip() for entry in value.split(",")]


def _pynvml() -> ModuleType:
    import pynvml

    module: ModuleType = pynvml
    return module


def _named(gpus: Sequence[GPU], entry: str) -> GPU | None:
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    fits = [c for c in gpus if entry.startswith(UUID_PREFIX) and c.uuid.startswith(entry)]
    return fits[0] if len(fits) == 1 else None


def _gpu(nvml: ModuleType, handle: object) -> GPU:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    cores = _if_known(nvml, lambda: nvml.nvmlDeviceGetNumGpuCores(handle))
    mig = _if_known(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    virtual = _if_known(nvml, lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))
    divided = (mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE) or virtual in (
        nvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU,
        nvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA,
    )
    return GPU(
        index=0,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        pci_bus_id=nvml.nvmlDeviceGetPciInfo(handle).busId,
        compute_capability=(major, minor),
        multiprocessors=cores // _CORES_OTHERWISE.get((major, minor), 128) if cores else None,
        memory=None if divided else _memory(nvml, handle),
        divided=divided,
    )


def _memory(nvml: ModuleType, handle: object) -> GPUBytes | None:
    """The GPU's memory as the driver reports it.

    `used` includes the driver's share in some versions and not in others, so it is not read: what
    is neither free nor reserved belongs to other programs.
    """
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        driver = found.reserved
    except nvml.NVMLError_FunctionNotFound:
        found = nvml.nvmlDeviceGetMemoryInfo(handle)
        driver = 0
    except nvml.NVMLError_NotSupported:
        return None
    if not found.total:
        return None
    return GPUBytes(found.total, driver, max(0, found.total - found.free - driver))


def _if_known(nvml: ModuleType, ask: Callable[[], AnswerT]) -> AnswerT | None:
    try:
        return ask()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None


def describe_machine() -> dict[str, Any]:
    """Facts for `quantkit doctor`, in the order in which they are shown."""
    import psutil

    return {
        "quantkit": __version__,
        "llama_cpp_python": library_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": worker_count(None),
        "memory": f"{psutil.virtual_memory().total / GIB:.1f} GiB",
        "nvidia_driver": driver_version(),
        "nvidia_gpus": nvidia_gpus(),
    }


def nvidia_gpus() -> list[str]:
    """Name and memory of the NVIDIA GPUs that CUDA shows this program; empty without a driver.

    Raises:
        EnvironmentFault: the driver fails to describe its GPUs.
    """
    try:
        return [str(gpu) for gpu in visible_gpus(read_gpus(), os.environ)]
    except NoDriver:
        return []
