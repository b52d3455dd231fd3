"""Devices for llama.cpp to plan on: fake GPUs, this machine's own, or RPC servers.

Used inside a child process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.fake_gpus import GPU, FakeGPUs
from quantkit.llamacpp.ggml import base_library, load

DeviceKind = Literal["cuda", "plain", "present", "rpc"]
"""`cuda` and `plain` are fake GPUs, `present` are this machine's own devices."""
_CGROUP = Path("/sys/fs/cgroup")
INTEGRATED_GPU = 2  # GGML_BACKEND_DEVICE_TYPE_IGPU: of DGX Spark, for example


@dataclass(frozen=True)
class Devices:
    """The devices that llama.cpp is to plan for.

    Attributes:
        capacities: bytes of each GPU; of `present` and `rpc` devices only their number counts.
    """

    kind: DeviceKind
    capacities: tuple[int, ...]


@contextmanager
def open_devices(devices: Devices) -> Iterator[tuple[int, ...]]:
    """Addresses of the devices, while they can be used.

    Raises:
        EnvironmentFault: there are not as many, or RPC is not built in.
    """
    if devices.kind == "rpc":
        from quantkit.llamacpp.rpc_servers import rpc_devices

        with rpc_devices(len(devices.capacities)) as addresses:
            yield addresses
    elif devices.kind == "present":
        yield _present(len(devices.capacities))
    else:
        fake = FakeGPUs(devices.capacities, cuda=devices.kind == "cuda")
        yield fake.devices


def free_memory() -> dict[str, int]:
    """Name of each device that llama.cpp sees here, `CPU` or `CUDA0`, → bytes that are free on it.

    Of the computer's own memory what the system could give, its caches among it.
    """
    base = base_library()
    base.ggml_backend_dev_name.restype = ctypes.c_char_p
    base.ggml_backend_dev_name.argtypes = (ctypes.c_void_p,)
    base.ggml_backend_dev_memory.restype = None
    base.ggml_backend_dev_memory.argtypes = (
        ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t),
    )  # fmt: skip
    found, free, total = {}, ctypes.c_size_t(), ctypes.c_size_t()
    for device, kind in _registered().items():
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        is_gpu = kind in (GPU, INTEGRATED_GPU)
        own = free.value if is_gpu else _available_memory()
        found[base.ggml_backend_dev_name(device).decode()] = own
    return found


def _available_memory() -> int:
    """Of the system, or of the container that this runs in where that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = dict(line.split() for line in lines).get("inactive_file", "0")
    except (OSError, ValueError):
        return available
    return min(available, max(limit - used + int(cached), 0))


def _registered() -> dict[int, int]:
    """Address of each device that llama.cpp sees here → its kind, in llama.cpp's order."""
    registry, base = load("ggml"), base_library()
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = (ctypes.c_size_t,)
    base.ggml_backend_dev_type.restype = ctypes.c_int
    base.ggml_backend_dev_type.argtypes = (ctypes.c_void_p,)
    found = [registry.ggml_backend_dev_get(i) for i in range(registry.ggml_backend_dev_count())]
    return {device: base.ggml_backend_dev_type(device) for device in found}


def _present(wanted: int) -> tuple[int, ...]:
    """This machine's GPUs, as llama.cpp numbers them."""
    kinds = _registered()
    gpus = tuple(d for d in kinds if kinds[d] == GPU) or tuple(
        d for d in kinds if kinds[d] == INTEGRATED_GPU
    )
    if len(gpus) != wanted:
        raise EnvironmentFault(
            f"the target has {wanted} GPUs, but llama.cpp sees {len(gpus)} here; verify on fake "
            "GPUs of its sizes with --on fake"
        )
    return gpus
