"""Devices for llama.cpp to plan on: fake GPUs, this machine's own, or RPC servers.

For use in a child process. RPC servers are an independent check of `fake_gpus.py`: they are
llama.cpp's own, one in place of each GPU, on this machine's CPU and the loopback interface. They
need a build with `-DGGML_RPC=ON`, and each ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.child import PYTHON, child_environment, die_with_parent
from quantkit.llamacpp.fake_gpus import GPU, FakeGPUs
from quantkit.llamacpp.ggml import base_library, load
from quantkit.llamacpp.settings import DeviceSettings

DeviceKind = Literal["cuda", "plain", "present", "rpc"]
"""`cuda` and `plain` are fake GPUs, `present` are this machine's own devices."""
_CGROUP = Path("/sys/fs/cgroup")
ROOM_TO_COMPUTE = 1.15
"""A model's memory with its activations, in sizes of its weights."""
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
        with _rpc_devices(len(devices.capacities)) as addresses:
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
    found, free, total = {}, ctypes.c_size_t(), ctypes.c_size_t()
    for device, kind in _registered().items():
        base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        own = free.value if kind in (GPU, INTEGRATED_GPU) else _available_memory()
        found[base.ggml_backend_dev_name(device).decode()] = own
    return found


def can_hold(model_bytes: int, devices: DeviceSettings) -> bool:
    """Whether a model of that size fits the memory that `devices` name, with room to compute.

    On the GPUs if layers are to lie there, else in the computer's own memory.
    """
    free = free_memory()
    own = free.pop("CPU", 0)
    room = sum(free.values()) if devices.gpu_layers != 0 and free else own
    return model_bytes * ROOM_TO_COMPUTE < room


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
    library = load("ggml")
    device, count = library.ggml_backend_dev_get, library.ggml_backend_dev_count
    count.restype = ctypes.c_size_t
    device.restype, device.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    found = [device(index) for index in range(count())]
    return {one: base_library().ggml_backend_dev_type(one) for one in found}


def _present(wanted: int) -> tuple[int, ...]:
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


START_S = 20.0
LOOPBACK = "127.0.0.1"


@contextmanager
def _rpc_devices(count: int) -> Iterator[tuple[int, ...]]:
    """Addresses of `count` devices, each behind a server that is started and ended here."""
    try:
        library = load("ggml-rpc")
    except EnvironmentFault:
        raise EnvironmentFault(
            "llama.cpp was built without its RPC backend; install it again with "
            "CMAKE_ARGS=-DGGML_RPC=ON pip install --force-reinstall --no-cache-dir "
            "llama-cpp-python, or verify with --on fake, which needs no RPC"
        ) from None
    servers, null = list[subprocess.Popen[bytes]](), subprocess.DEVNULL
    try:
        # ports that nothing listens on, all different because all are taken until the last is
        sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        for port in ports:
            words = [*PYTHON, "-m", "quantkit.llamacpp.devices", str(port), str(os.getpid())]
            servers.append(
                subprocess.Popen(
                    words, stdin=null, stdout=null, stderr=null, env=child_environment()
                )
            )
        for port, server in zip(ports, servers, strict=True):
            _wait_for(port, server)
        yield tuple(_device(library, f"{LOOPBACK}:{port}") for port in ports)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise EnvironmentFault(f"an RPC server did not start on port {port} within {START_S:.0f} s")


def _device(library: ctypes.CDLL, endpoint: str) -> int:
    add = library.ggml_backend_rpc_add_server
    add.restype, add.argtypes = ctypes.c_void_p, (ctypes.c_char_p,)
    registry = add(endpoint.encode())
    if not registry:
        raise EnvironmentFault(f"llama.cpp cannot reach its RPC server at {endpoint}")
    return int(base_library().ggml_backend_reg_dev_get(registry, 0))


def _serve(port: int) -> None:
    """Body of a server's process: one device, the CPU."""
    device_of = load("ggml").ggml_backend_dev_by_type
    device_of.restype, device_of.argtypes = ctypes.c_void_p, (ctypes.c_int,)
    devices = (ctypes.c_void_p * 1)(device_of(0))
    start, size = load("ggml-rpc").ggml_backend_rpc_start_server, ctypes.c_size_t
    start.restype = None
    start.argtypes = (ctypes.c_char_p, ctypes.c_char_p, size, size, ctypes.c_void_p)
    start(f"{LOOPBACK}:{port}".encode(), None, 1, 1, ctypes.addressof(devices))


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    _serve(int(sys.argv[1]))
