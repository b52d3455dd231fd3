"""Facts about this machine: cores, memory, NVIDIA GPUs, library versions."""

from __future__ import annotations

import os
import platform
from typing import Any

from quantkit import __version__
from quantkit.core.threads import worker_count
from quantkit.core.units import GIB
from quantkit.llamacpp.ggml import library_version
from quantkit.plan.nvidia import NoDriver, driver_version, read_gpus, visible_gpus


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
