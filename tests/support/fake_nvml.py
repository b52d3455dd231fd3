"""A machine's NVIDIA driver, as pynvml shows it: the same functions, structures and errors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

MIB = 1 << 20
AnswerT = TypeVar("AnswerT")


@dataclass
class Device:
    """What the driver knows of one GPU; None and absent things are "not supported"."""

    name: str
    uuid: str
    bus: str
    total_mib: int | None = 24576
    driver_mib: int = 453
    others_mib: int = 0
    capability: tuple[int, int] = (8, 6)
    cores: int | None = 82 * 128
    virtualization: int | None = pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE
    mig: bool | None = None
    lost: bool = False


class FakeNVML:
    """pynvml on a machine with these GPUs.

    Args:
        devices: in the driver's order, which need not be that of the bus.
        init_error: what nvmlInit fails with.
        old: a driver before 510, without the second version of the memory structure.
    """

    def __init__(self, *devices: Device, init_error: int | None = None, old: bool = False) -> None:
        self.devices = devices
        self.init_error = init_error
        self.old = old
        self.initialized = 0

    def __getattr__(self, name: str) -> object:
        """Constants and error classes are pynvml's own; functions that are missing here are not."""
        if name.startswith("nvml") and callable(getattr(pynvml, name)):
            raise AttributeError(f"{name} is asked for, and the double does not have it")
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.initialized += 1

    def nvmlShutdown(self) -> None:
        self.initialized -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.142"

    def nvmlDeviceGetCount(self) -> int:
        assert self.initialized
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:
        if self.devices[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.devices[index]

    def nvmlDeviceGetName(self, handle: Device) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Device) -> str:
        return handle.uuid

    def nvmlDeviceGetPciInfo(self, handle: Device) -> pynvml.nvmlPciInfo_t:
        return pynvml.nvmlPciInfo_t(busId=f"00000000:{handle.bus}:00.0".encode())

    def nvmlDeviceGetCudaComputeCapability(self, handle: Device) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetNumGpuCores(self, device: Device) -> int:
        return _supported(device.cores)

    def nvmlDeviceGetVirtualizationMode(self, handle: Device) -> int:
        return _supported(handle.virtualization)

    def nvmlDeviceGetMigMode(self, device: Device) -> list[int]:
        return [int(_supported(device.mig))] * 2

    def nvmlDeviceGetMemoryInfo(
        self, handle: Device, version: int | None = None
    ) -> ctypes.Structure:
        total = _supported(handle.total_mib) * MIB
        driver, others = handle.driver_mib * MIB, handle.others_mib * MIB
        if version is None:
            return pynvml.c_nvmlMemory_t(
                total=total, free=total - driver - others, used=driver + others
            )
        assert version == pynvml.nvmlMemory_v2
        if self.old:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return pynvml.c_nvmlMemory_v2_t(
            version=version, total=total, reserved=driver, free=total - driver - others, used=others
        )


def functions() -> dict[str, Callable[..., Any]]:
    """Those of the double that stand for pynvml's."""
    return {name: f for name, f in vars(FakeNVML).items() if name.startswith("nvml")}


def _supported(value: AnswerT | None) -> AnswerT:
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


def rtx_3090(number: int, **other: object) -> Device:
    return Device("NVIDIA GeForce RTX 3090", f"GPU-3090000{number}-aa", f"0{number}", **other)


def rtx_4090(number: int, **other: object) -> Device:
    facts = dict(total_mib=24564, driver_mib=487, capability=(8, 9), cores=128 * 128) | other
    return Device("NVIDIA GeForce RTX 4090", f"GPU-4090000{number}-bb", f"4{number}", **facts)


def gb10() -> Device:
    return Device("NVIDIA GB10", "GPU-6b10-dd", "0F", None, capability=(12, 1), cores=6144)
