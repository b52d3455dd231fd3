"""`--target auto` and the list of targets; the driver is a double."""

from __future__ import annotations

import sys
from pathlib import Path

import pynvml
import pytest
from fake_nvml import MIB, Device, FakeNVML, gb10, rtx_3090, rtx_4090

from quantkit.config.target import Target, known_targets, load_target
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.core.units import GIB
from quantkit.plan.targets import choose_target, local_target, target_list

BY_PLACE = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def gpus_of(target: Target) -> list[tuple[str, float, float, int]]:
    return [(c.name, c.memory_gib, c.reserve_gib, c.count) for c in target.gpus]


def test_equal_gpus_are_one_entry() -> None:
    target = local_target(FakeNVML(*(rtx_3090(i) for i in range(1, 5))), {})
    assert gpus_of(target) == [("NVIDIA GeForce RTX 3090", 24.0, 1.0, 4)]
    assert target.name == "4xRTX-3090"
    assert target.context_tokens == 516_096
    assert target.kv_type == "q8_0"
    assert target.weight_budget_gib == "auto"
    assert target.description.count("RTX 3090") == 4
    assert target.devices == ("0", "1", "2", "3")


def test_sizes_are_the_driver_s_and_not_the_name_s() -> None:
    """A GPU with ECC has less than its name says."""
    device = Device("NVIDIA A100-SXM4-80GB", "GPU-1", "01", capability=(8, 0), cores=6912)
    for total in (20_475, 46_068, 81_920):
        device.total_mib = total
        (gpu,) = local_target(FakeNVML(device), {}).gpus
        assert gpu.memory_gib * GIB == total * MIB


@pytest.mark.parametrize(
    ("driver_mib", "others_mib", "cores", "reserve_gib"),
    [
        (453, 0, 82 * 128, 1.0),  # 453 + 320 + 3 x 82 = 1019 MiB
        (453, 5, 82 * 128, 1.0),
        (453, 6, 82 * 128, 1.125),
        (453, 2000, 82 * 128, 3.0),
        (900, 0, 82 * 128, 1.5),
        (453, 0, None, 1.375),  # 453 + 320 + 3 x 192 = 1349 MiB
    ],
)
def test_reserve_is_driver_programs_and_runtime(
    driver_mib: int, others_mib: int, cores: int | None, reserve_gib: float
) -> None:
    device = rtx_3090(1, driver_mib=driver_mib, others_mib=others_mib, cores=cores)
    for old in (False, True):  # an old driver counts its share with the programs'
        (gpu,) = local_target(FakeNVML(device, old=old), {}).gpus
        assert gpu.reserve_gib == reserve_gib


def test_what_other_programs_have_is_said() -> None:
    target = local_target(FakeNVML(rtx_3090(1, others_mib=1536), rtx_3090(2)), {})
    assert [gpu.count for gpu in target.gpus] == [1, 1]
    assert "RTX 3090 (1.50 GiB taken by other programs), NVIDIA" in target.description


def test_unequal_gpus_keep_cuda_s_order() -> None:
    nvml = FakeNVML(rtx_4090(1), rtx_3090(1), rtx_3090(2))
    target = local_target(nvml, BY_PLACE)
    assert [(c.name[-4:], c.count) for c in target.gpus] == [("3090", 2), ("4090", 1)]
    assert target.name == "2xRTX-3090+1xRTX-4090"
    assert target.context_tokens == 262_144
    chosen = local_target(nvml, {"CUDA_VISIBLE_DEVICES": "GPU-4090, GPU-30900001"})
    assert [(c.name[-4:], c.count) for c in chosen.gpus] == [("4090", 1), ("3090", 1)]
    chosen = local_target(nvml, BY_PLACE | {"CUDA_VISIBLE_DEVICES": "2,0"})
    assert chosen.devices == ("2", "0")
    assert [(c.name[-4:], c.count) for c in chosen.gpus] == [("4090", 1), ("3090", 1)]


@pytest.mark.parametrize("visible", [None, "1", "2,0", "GPU-4090,0"])
def test_numbers_of_unequal_gpus_need_an_order(visible: str | None) -> None:
    nvml = FakeNVML(rtx_4090(1), rtx_3090(1), rtx_3090(2))
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(InputError, match=r"several kinds.*CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        local_target(nvml, environment)


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("0,2,1", r"='0,2,1' CUDA shows 1 of .*because '2' names none.*1 \(GPU-30900002-aa\): un"),
        ("", r"='' CUDA shows 0 of .*unset the variable"),
        ("-1", r"'-1' names none"),
        ("0,0", r"CUDA shows 1 of .*'0' names none, or one again"),
        ("GPU-30", r"'GPU-30' names none"),
    ],
)
def test_a_selection_that_names_no_gpu(visible: str, words: str) -> None:
    nvml = FakeNVML(rtx_3090(1), rtx_3090(2))
    with pytest.raises(InputError, match=words):
        local_target(nvml, {"CUDA_VISIBLE_DEVICES": visible})


@pytest.mark.parametrize(
    "state", [{"mig": True}, {"virtualization": pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU}]
)
def test_a_divided_gpu_is_refused_and_can_be_left_out(state: dict[str, object]) -> None:
    nvml = FakeNVML(rtx_3090(1), rtx_3090(2, **state))
    with pytest.raises(EnvironmentFault, match=r"GPU 1.*CUDA_VISIBLE_DEVICES"):
        local_target(nvml, {})
    assert local_target(nvml, BY_PLACE | {"CUDA_VISIBLE_DEVICES": "0"}).gpus[0].count == 1


@pytest.mark.parametrize("total_mib", [None, 124_610])
def test_gb10_is_pointed_to_its_file(total_mib: int | None) -> None:
    """Whatever the driver says of its memory, it is the processor's."""
    device = gb10()
    device.total_mib = total_mib
    with pytest.raises(EnvironmentFault, match="--target dgx-spark"):
        local_target(FakeNVML(device), {})


@pytest.mark.parametrize(
    ("nvml", "words"),
    [
        (
            FakeNVML(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
            r"no NVIDIA driver answers nvmlInit: NVML Shared Library Not Found",
        ),
        (FakeNVML(), r"the NVIDIA driver shows no GPU"),
        (FakeNVML(rtx_3090(1, total_mib=None)), r"does not report the memory of GPU 0, NVIDIA"),
    ],
)
def test_without_gpus_the_way_out_is_named(nvml: FakeNVML, words: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"target auto: .*{words}.*quantkit targets.*YAML"):
        local_target(nvml, {})


def test_auto_is_this_machine_s_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML(rtx_3090(1), rtx_3090(2)))
    target = choose_target("auto")
    assert gpus_of(target) == [("NVIDIA GeForce RTX 3090", 24.0, 1.0, 2)]
    changed = target.changed(context_tokens=65_536, kv_type="f16")
    assert (changed.context_tokens, changed.kv_type) == (65_536, "f16")
    assert changed.gpus == target.gpus
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML())
    with pytest.raises(QuantkitError) as caught:
        choose_target("auto")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "cores", "capability", "driver_mib"),
    [
        ("4x3090", 10_496, (8, 6), 461),
        ("4x4090", 16_384, (8, 9), 487),
        ("2x5090", 21_760, (12, 0), 498),
        ("2xA6000", 10_752, (8, 6), 602),
        ("1xA100-80", 6_912, (8, 0), 769),
        ("1xH100", 16_896, (9, 0), 480),
        ("1xRTX-PRO-6000", 24_064, (12, 0), 640),
    ],
)
def test_auto_on_the_shipped_gpus_is_the_shipped_target(
    name: str, cores: int, capability: tuple[int, int], driver_mib: int
) -> None:
    """Cores by NVIDIA's data sheets; the driver's share is what CUDA shows less than nvidia-smi."""
    shipped = load_target(name)
    devices = [
        Device(
            "gpu",
            f"GPU-{i}",
            f"0{i}",
            total_mib=round(gpu.memory_gib * 1024),
            driver_mib=driver_mib,
            capability=capability,
            cores=cores,
        )
        for i, gpu in enumerate(shipped.each_gpu)
    ]
    found = local_target(FakeNVML(*devices), {})
    assert found.context_tokens == shipped.context_tokens
    assert [gpu.reserve_gib for gpu in found.each_gpu] == [
        gpu.reserve_gib for gpu in shipped.each_gpu
    ]


def test_contexts_are_those_of_the_shipped_targets() -> None:
    assert "dgx-spark" in known_targets()
    for name in known_targets():
        shipped = load_target(name)
        total = sum(gpu.memory_gib for gpu in shipped.each_gpu)
        device = rtx_3090(1, total_mib=round(total * 1024))
        assert local_target(FakeNVML(device), {}).context_tokens == shipped.context_tokens, name
    for total, tokens in ((16_376, 32_768), (20_480, 131_072), (40_960, 262_144)):
        found = local_target(FakeNVML(rtx_3090(1, total_mib=total)), {})
        assert found.context_tokens == tokens


NO_DRIVER = FakeNVML(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
MINE = "name: mine\ngpus:\n  - {name: RTX 3060, memory_gib: 12}\ncontext_tokens: 8192\n"


@pytest.mark.parametrize("nvml", [NO_DRIVER, FakeNVML()])
def test_without_gpus_there_are_those_that_ship(nvml: FakeNVML) -> None:
    found, why = target_list((), nvml, {})
    assert [target.name for target in found] == known_targets()
    assert why is None


def test_gpus_of_this_machine_are_auto() -> None:
    found, why = target_list((), FakeNVML(rtx_3090(1), rtx_3090(2)), {})
    assert [target.name for target in found] == [*known_targets(), "auto"]
    assert why is None
    assert [(gpu.name, gpu.count) for gpu in found[-1].gpus] == [("NVIDIA GeForce RTX 3090", 2)]
    assert "RTX 3090" in found[-1].description


def test_gpus_that_are_no_target_are_said_to_be_left_out() -> None:
    found, why = target_list((), FakeNVML(rtx_4090(1), rtx_3090(1)), {})
    assert [target.name for target in found] == known_targets()
    assert why is not None
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in why
    lost = rtx_3090(1)
    lost.lost = True
    found, why = target_list((), FakeNVML(lost), {})
    assert len(found) == len(known_targets())
    assert why is not None
    assert "fails to describe its GPUs" in why


def test_own_files_come_last(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yml"
    first.write_text(MINE)
    second.write_text(MINE.replace("mine", "too"))
    found, _ = target_list((first, second), FakeNVML(rtx_3090(1)), {})
    assert [target.name for target in found] == [*known_targets(), "auto", "mine", "too"]


def test_what_is_no_file_of_a_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--target 4x3090 .*docs/targets.md"):
        target_list([Path("4x3090")], NO_DRIVER, {})
    wrong = tmp_path / "a.yaml"
    wrong.write_text(MINE.replace("gpus", "gpu"))
    with pytest.raises(InputError, match=r"a\.yaml.*gpu"):
        target_list([wrong], NO_DRIVER, {})
