"""Which targets can be named here; the driver is a double."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest
from fake_nvml import FakeNVML, rtx_3090, rtx_4090

from quantkit.config.target import known_targets
from quantkit.core.errors import InputError
from quantkit.plan.targets import target_list

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
