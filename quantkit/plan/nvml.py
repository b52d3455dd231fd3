"""The part of pynvml (nvidia-ml-py), NVIDIA's management library, that is called.

The library comes with the driver and needs nothing of CUDA: a machine's GPUs are known where
llama.cpp was built without CUDA too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class MemoryInfo(Protocol):
    """c_nvmlMemory_v2_t; version 1 lacks `reserved`."""

    total: int
    reserved: int
    free: int


class PciInfo(Protocol):
    """nvmlPciInfo_t."""

    busId: str


class NVML(Protocol):
    """The part of pynvml that is called; handles are opaque."""

    NVMLError: type[Exception]
    NVMLError_NotSupported: type[Exception]
    NVMLError_FunctionNotFound: type[Exception]
    nvmlMemory_v2: int
    NVML_DEVICE_MIG_ENABLE: int
    NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU: int
    NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA: int

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...
    def nvmlDeviceGetName(self, handle: object) -> str: ...
    def nvmlDeviceGetUUID(self, handle: object) -> str: ...
    def nvmlDeviceGetPciInfo(self, handle: object) -> PciInfo: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]: ...
    def nvmlDeviceGetNumGpuCores(self, device: object) -> int: ...
    def nvmlDeviceGetVirtualizationMode(self, handle: object) -> int: ...
    def nvmlDeviceGetMigMode(self, device: object) -> Sequence[int]: ...
    def nvmlDeviceGetMemoryInfo(self, handle: object, version: int | None = None) -> MemoryInfo: ...


def pynvml_module() -> NVML:
    """The real one."""
    import pynvml

    module: NVML = pynvml
    return module
