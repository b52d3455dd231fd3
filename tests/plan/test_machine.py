"""What `doctor` shows, and the GPUs that a build compares with its target's."""

from __future__ import annotations

import os
import sys

import pynvml
import pytest
from fake_nvml import FakeNVML, gb10, rtx_3090, rtx_4090

from quantkit.core.errors import EnvironmentFault
from quantkit.core.threads import worker_count
from quantkit.plan.machine import describe_machine, nvidia_gpus


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpus_are_those_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML(rtx_4090(1), rtx_3090(1), gb10()))
    assert nvidia_gpus() == [
        "NVIDIA GeForce RTX 3090 24.00 GiB",
        "NVIDIA GB10 of unknown memory",
        "NVIDIA GeForce RTX 4090 23.99 GiB",
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [text.split()[3] for text in nvidia_gpus()] == ["4090", "3090"]
    facts = describe_machine()
    assert facts["nvidia_driver"] == "580.142"
    assert facts["nvidia_gpus"] == nvidia_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert nvidia_gpus() == []


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeNVML(init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    facts = describe_machine()
    assert facts["nvidia_gpus"] == nvidia_gpus() == []
    assert facts["nvidia_driver"] == "none (Driver Not Loaded)"


def test_a_lost_gpu_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML(rtx_3090(1), rtx_3090(2, lost=True)))
    with pytest.raises(EnvironmentFault, match="GPU is lost"):
        nvidia_gpus()


def test_threads() -> None:
    assert worker_count(3) == 3
    assert worker_count(None) == len(os.sched_getaffinity(0))
