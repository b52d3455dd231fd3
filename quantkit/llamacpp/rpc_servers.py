"""llama.cpp's RPC servers on this machine's CPU, one in place of each GPU.

An independent check of `fake_gpus.py`: these devices are llama.cpp's own. They need a build with
`-DGGML_RPC=ON`. Every server is a process of its own on the loopback interface, and ends with the
one that started it.
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

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.child import die_with_parent
from quantkit.llamacpp.ggml import load

START_S = 20.0
LOOPBACK = "127.0.0.1"


@contextmanager
def rpc_devices(count: int) -> Iterator[tuple[int, ...]]:
    """Addresses of `count` devices, each behind a server that is started and ended here.

    Raises:
        EnvironmentFault: RPC is not built in, or a server did not start.
    """
    library = _library()
    servers: list[subprocess.Popen[bytes]] = []
    try:
        ports = _free_ports(count)
        for port in ports:
            words = ["-m", "quantkit.llamacpp.rpc_servers", str(port), str(os.getpid())]
            servers.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        for port, server in zip(ports, servers, strict=True):
            _wait_for(port, server)
        yield tuple(_device(library, f"{LOOPBACK}:{port}") for port in ports)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _library() -> ctypes.CDLL:
    try:
        return load("ggml-rpc")
    except EnvironmentFault:
        raise EnvironmentFault(
            "llama.cpp was built without its RPC backend; install it again with "
            "CMAKE_ARGS=-DGGML_RPC=ON pip install --force-reinstall --no-cache-dir "
            "llama-cpp-python, or verify with --on fake, which needs no RPC"
        ) from None


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different because all are taken until the last is."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


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
    from quantkit.llamacpp.ggml import base_library

    base = base_library()
    library.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    library.ggml_backend_rpc_add_server.argtypes = (ctypes.c_char_p,)
    base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_get.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    registry = library.ggml_backend_rpc_add_server(endpoint.encode())
    if not registry:
        raise EnvironmentFault(f"llama.cpp cannot reach its RPC server at {endpoint}")
    return int(base.ggml_backend_reg_dev_get(registry, 0))


def _serve(port: int) -> None:
    """Body of a server's process: one device, the CPU."""
    registry = load("ggml")
    registry.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    registry.ggml_backend_dev_by_type.argtypes = (ctypes.c_int,)
    cpu = registry.ggml_backend_dev_by_type(0)
    devices = (ctypes.c_void_p * 1)(cpu)
    start = load("ggml-rpc").ggml_backend_rpc_start_server
    start.restype = None
    start.argtypes = (
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p,
    )  # fmt: skip
    start(f"{LOOPBACK}:{port}".encode(), None, 1, 1, ctypes.addressof(devices))


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    _serve(int(sys.argv[1]))
