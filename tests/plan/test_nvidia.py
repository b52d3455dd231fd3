"""Cards as the driver tells them, and which of them CUDA shows; the driver is a double."""

from __future__ import annotations

import inspect
import sys

import pynvml
import pytest
from fake_nvml import (
    MIB,
    Device,
    FakeNVML,
    a100_in_mig_mode,
    functions,
    gb10,
    rtx_3090,
    rtx_4090,
)

from quantkit.core.errors import EnvironmentFault
from quantkit.plan.nvidia import CardBytes, NoDriver, driver_version, read_cards, visible_cards


def test_the_double_has_pynvml_s_functions_and_parameters() -> None:
    for name, function in functions().items():
        own = list(inspect.signature(function).parameters)[1:]
        real = inspect.signature(inspect.unwrap(getattr(pynvml, name))).parameters
        assert own == list(real), name


def test_every_fact_is_the_driver_s() -> None:
    nvml = FakeNVML(rtx_4090(2, others_mib=311), rtx_3090(7), rtx_3090(1, driver_mib=417))
    cards = read_cards(nvml)
    assert [card.index for card in cards] == [0, 1, 2]
    assert [card.pci_bus_id for card in cards] == [
        "00000000:01:00.0", "00000000:07:00.0", "00000000:42:00.0",
    ]  # fmt: skip
    assert [card.memory for card in cards] == [
        CardBytes(24576 * MIB, 417 * MIB, 0),
        CardBytes(24576 * MIB, 453 * MIB, 0),
        CardBytes(24564 * MIB, 487 * MIB, 311 * MIB),
    ]
    assert [card.multiprocessors for card in cards] == [82, 82, 128]
    assert [card.compute_capability for card in cards] == [(8, 6), (8, 6), (8, 9)]
    assert cards[2].uuid == "GPU-40900002-bb"
    assert str(cards[2]) == "NVIDIA GeForce RTX 4090 23.99 GiB"
    assert not any(card.mig or card.lent or card.instances for card in cards)
    assert nvml.initialized == 0


def test_an_old_driver_does_not_tell_its_share() -> None:
    """The first version of the structure counts it as used; the sum is the same."""
    (card,) = read_cards(FakeNVML(rtx_3090(1, others_mib=100), old=True))
    assert card.memory == CardBytes(24576 * MIB, 0, 553 * MIB)


def test_what_a_card_does_not_support_is_unknown() -> None:
    bare = rtx_3090(1, cores=None, virtualization=None, mig=None)
    (card,) = read_cards(FakeNVML(bare))
    assert card.multiprocessors is None
    assert not card.lent
    assert card.memory is not None
    for total in (None, 0):
        (card,) = read_cards(FakeNVML(rtx_3090(1, total_mib=total, driver_mib=0)))
        assert card.memory is None
        assert str(card) == "NVIDIA GeForce RTX 3090 with memory that it does not report"


@pytest.mark.parametrize(
    ("capability", "cores", "multiprocessors"),
    [((8, 0), 6912, 108), ((9, 0), 16896, 132), ((7, 5), 4608, 72), ((12, 0), 24064, 188)],
)
def test_cores_of_a_multiprocessor(
    capability: tuple[int, int], cores: int, multiprocessors: int
) -> None:
    """A100, H100, TITAN RTX and RTX PRO 6000, by NVIDIA's data sheets."""
    device = Device("card", "GPU-1", "01", capability=capability, cores=cores)
    (card,) = read_cards(FakeNVML(device))
    assert card.multiprocessors == multiprocessors


def test_instances_of_a_card_in_mig_mode() -> None:
    (card,) = read_cards(FakeNVML(a100_in_mig_mode(1)))
    assert card.mig
    assert card.memory is None
    assert [part.uuid for part in card.instances] == ["MIG-11c0ffee", "MIG-12c0ffee"]
    part = card.instances[1]
    assert (part.index, part.multiprocessors, part.mig) == (2, 42, False)
    assert part.memory == CardBytes(40192 * MIB, 63 * MIB, 0)
    assert part.compute_capability == (8, 0)


@pytest.mark.parametrize(
    "mode",
    [pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU, pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA],
)
def test_a_card_of_a_hypervisor_is_lent(mode: int) -> None:
    guest = pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU
    cards = read_cards(
        FakeNVML(rtx_3090(1, virtualization=mode), rtx_3090(2, virtualization=guest))
    )
    assert [card.lent for card in cards] == [True, False]


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
    """As NVIDIA documents it: up to the first entry that names no card, or not one alone."""
    cards = read_cards(FakeNVML(rtx_3090(1), rtx_3090(2), rtx_4090(1)))
    found = visible_cards(cards, {"CUDA_VISIBLE_DEVICES": value})
    assert [card.index for card in found] == numbers
    assert visible_cards(cards, {}) == cards


def test_instances_are_visible_by_uuid() -> None:
    cards = read_cards(FakeNVML(rtx_3090(1), a100_in_mig_mode(1)))
    found = visible_cards(cards, {"CUDA_VISIBLE_DEVICES": "MIG-12c0ffee"})
    assert found == (cards[1].instances[1],)


def test_no_driver_and_a_driver_that_fails() -> None:
    missing = FakeNVML(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(NoDriver, match="NVML Shared Library Not Found"):
        read_cards(missing)
    assert driver_version(missing) == "none (NVML Shared Library Not Found)"
    lost = FakeNVML(rtx_3090(1), rtx_3090(2, lost=True))
    with pytest.raises(EnvironmentFault, match=r"GPU is lost; nvidia-smi") as caught:
        read_cards(lost)
    assert not isinstance(caught.value, NoDriver)
    assert lost.initialized == 0
    assert driver_version(lost) == "580.142"
    assert lost.initialized == 0


def test_pynvml_itself_answers_or_says_why() -> None:
    """The real library, whatever this machine has."""
    version = driver_version()
    if version.startswith("none"):
        with pytest.raises(NoDriver):
            read_cards()
    else:
        assert all(card.uuid.startswith("GPU-") for card in read_cards())
    assert "pynvml" in sys.modules


def test_gb10_has_no_memory_of_its_own() -> None:
    (card,) = read_cards(FakeNVML(gb10()))
    assert card.memory is None
    assert card.multiprocessors == 48
