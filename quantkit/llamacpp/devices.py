"""What this machine can run llama.cpp on, and the settings that work here."""

from __future__ import annotations

from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.selftest import working_settings
from quantkit.llamacpp.settings import DeviceSettings


def device_settings(threads: int) -> DeviceSettings:
    """Settings for this machine: the self-test's choice, all layers on GPUs where there are any.

    Raises:
        EnvironmentFault: llama.cpp cannot run a quantized model here at all.
    """
    tested = working_settings()
    layers = -1 if run_isolated("quantkit.llamacpp.devices:offloads_in_child", {}) else 0
    return DeviceSettings(threads, tested.use_extra_buffers, layers)


def offloads_in_child(emit: Emit) -> bool:
    """Body of a child process: whether llama.cpp sees a GPU."""
    from quantkit.llamacpp.llama import offloads

    return offloads()
