"""GPUs as the driver reports them, which of them CUDA shows, and what `doctor` shows of them."""

from __future__ import annotations

import inspect
import os
import sys

import pynvml
import pytest
from fake_nvml import (
    MIB,
    Device,
    FakeNVML,
    functions,
    gb10,
    rtx_3090,
    rtx_4090,
)

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.threads import MOST_WORKERS, worker_count
from quantkit.plan.machine import (
    GPUBytes,
    NoDriver,
    describe_machine,
    driver_version,
    nvidia_gpus,
    read_gpus,
    visible_gpus,
)


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpus_are_those_that_cuda_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML(rtx_4090(1), rtx_3090(1), gb10()))
    assert [gpu.multiprocessors for gpu in read_gpus()] == [82, 48, 128]
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


def test_the_double_has_pynvml_s_functions_and_parameters() -> None:
    for name, function in functions().items():
        own = list(inspect.signature(function).parameters)[1:]
        real = inspect.signature(inspect.unwrap(getattr(pynvml, name))).parameters
        assert own == list(real), name


def test_every_fact_is_the_driver_s() -> None:
    nvml = FakeNVML(rtx_4090(2, others_mib=311), rtx_3090(7), rtx_3090(1, driver_mib=417))
    gpus = read_gpus(nvml)
    assert [gpu.index for gpu in gpus] == [0, 1, 2]
    assert [gpu.pci_bus_id for gpu in gpus] == [
        "00000000:01:00.0", "00000000:07:00.0", "00000000:42:00.0",
    ]  # fmt: skip
    assert [gpu.memory for gpu in gpus] == [
        GPUBytes(24576 * MIB, 417 * MIB, 0),
        GPUBytes(24576 * MIB, 453 * MIB, 0),
        GPUBytes(24564 * MIB, 487 * MIB, 311 * MIB),
    ]
    assert [gpu.multiprocessors for gpu in gpus] == [82, 82, 128]
    assert [gpu.compute_capability for gpu in gpus] == [(8, 6), (8, 6), (8, 9)]
    assert gpus[2].uuid == "GPU-40900002-bb"
    assert str(gpus[2]) == "NVIDIA GeForce RTX 4090 23.99 GiB"
    assert not any(gpu.divided for gpu in gpus)
    assert nvml.initialized == 0


def test_an_old_driver_does_not_tell_its_share() -> None:
    """The first version of the structure counts it as used; the sum is the same."""
    (gpu,) = read_gpus(FakeNVML(rtx_3090(1, others_mib=100), old=True))
    assert gpu.memory == GPUBytes(24576 * MIB, 0, 553 * MIB)


def test_what_a_gpu_does_not_support_is_unknown() -> None:
    bare = rtx_3090(1, cores=None, virtualization=None, mig=None)
    (gpu,) = read_gpus(FakeNVML(bare))
    assert gpu.multiprocessors is None
    assert not gpu.divided
    assert gpu.memory is not None
    for total in (None, 0):
        (gpu,) = read_gpus(FakeNVML(rtx_3090(1, total_mib=total, driver_mib=0)))
        assert gpu.memory is None
        assert str(gpu) == "NVIDIA GeForce RTX 3090 of unknown memory"


@pytest.mark.parametrize(
    ("capability", "cores", "multiprocessors"),
    [((8, 0), 6912, 108), ((9, 0), 16896, 132), ((7, 5), 4608, 72), ((12, 0), 24064, 188)],
)
def test_cores_of_a_multiprocessor(
    capability: tuple[int, int], cores: int, multiprocessors: int
) -> None:
    """A100, H100, TITAN RTX and RTX PRO 6000, by NVIDIA's data sheets."""
    device = Device("gpu", "GPU-1", "01", capability=capability, cores=cores)
    (gpu,) = read_gpus(FakeNVML(device))
    assert gpu.multiprocessors == multiprocessors


def test_a_gpu_that_no_program_has_whole_is_divided() -> None:
    for mode in ("HOST_VGPU", "HOST_VSGA", "VGPU"):
        virtual = getattr(pynvml, f"NVML_GPU_VIRTUALIZATION_MODE_{mode}")
        (gpu,) = read_gpus(FakeNVML(rtx_3090(1, virtualization=virtual)))
        assert gpu.divided == (mode != "VGPU")  # a guest has its GPU as any other
    for mig in (True, False):
        (gpu,) = read_gpus(FakeNVML(rtx_3090(1, mig=mig)))
        assert gpu.divided == mig


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("0,2,-1,1", [0, 2]),
        ("0,7,1", [0]),
        ("1,1", [1]),
        ("", []),
        ("-1", []),
        ("GPU-30900002-aa,0", [1, 0]),
        ("GPU-4", [2]),
        ("GPU-309", []),
        ("NVIDIA", []),
    ],
)
def test_cuda_visible_devices(value: str, numbers: list[int]) -> None:
    """As NVIDIA documents it: up to the first entry that names no GPU, or not one alone."""
    gpus = read_gpus(FakeNVML(rtx_3090(1), rtx_3090(2), rtx_4090(1)))
    found = visible_gpus(gpus, {"CUDA_VISIBLE_DEVICES": value})
    assert [gpu.index for gpu in found] == numbers
    assert visible_gpus(gpus, {}) == gpus


def test_no_driver_and_a_driver_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = FakeNVML(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(NoDriver, match="NVML Shared Library Not Found"):
        read_gpus(missing)
    assert driver_version(missing) == "none (NVML Shared Library Not Found)"
    lost = FakeNVML(rtx_3090(1), rtx_3090(2, lost=True))
    monkeypatch.setitem(sys.modules, "pynvml", lost)
    with pytest.raises(EnvironmentFault, match=r"GPU is lost; nvidia-smi") as caught:
        nvidia_gpus()
    assert not isinstance(caught.value, NoDriver)
    assert lost.initialized == 0
    assert driver_version(lost) == "580.142"
    assert lost.initialized == 0


def test_pynvml_itself_answers_or_says_why() -> None:
    """The real library, whatever this machine has."""
    version = driver_version()
    if version.startswith("none"):
        with pytest.raises(NoDriver):
            read_gpus()
    else:
        assert all(gpu.uuid.startswith("GPU-") for gpu in read_gpus())
    assert "pynvml" in sys.modules


def test_threads() -> None:
    assert worker_count(3) == 3
    with pytest.raises(InputError, match=str(MOST_WORKERS)):
        worker_count(10**9)
    assert worker_count(None) == len(os.sched_getaffinity(0))
