"""The targets that ship: each names its GPUs and what they have as the driver reports it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT

from quantkit.config.target import known_targets, load_target
from quantkit.core.errors import InputError

FOLDER = ROOT / "recipes" / "targets"


def test_a_name_says_which_gpus_and_how_many() -> None:
    for name in known_targets():
        target = load_target(name)
        assert target.name == name
        (gpu,) = target.gpus
        found = re.fullmatch(r"(\d+)x([\w-]+)", name)
        if found is None:
            assert name == "dgx-spark"
            continue
        assert gpu.count == int(found[1])
        assert found[2].split("-")[0] in gpu.name
        assert {"1": "One", "2": "Two", "3": "Three", "4": "Four", "8": "Eight"}[
            found[1]
        ] == target.description.split()[0]


def test_equal_gpus_are_equal_in_every_target() -> None:
    kinds: dict[str, set[tuple[float, float]]] = {}
    for name in known_targets():
        for gpu in load_target(name).gpus:
            kinds.setdefault(gpu.name, set()).add((gpu.memory_gib, gpu.reserve_gib))
    assert len(kinds) == 8
    assert all(len(found) == 1 for found in kinds.values()), kinds


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_numbers_are_the_sum_of_their_comments(path: Path) -> None:
    """`memory_gib: 24  # 24576 MiB …`, `reserve_gib: 1.0  # driver 453 MiB … kernels 566`."""
    text = path.read_text(encoding="utf-8")
    memory = re.search(r"memory_gib: (\S+)  # (\d+) MiB", text)
    assert memory is not None
    assert float(memory[1]) <= int(memory[2]) / 1024 < float(memory[1]) + 0.05
    if path.stem == "dgx-spark":  # an estimate of the system's share, in words
        return
    reserve = re.search(
        r"reserve_gib: (\S+)  # driver (\d+) MiB \(CUDA shows (\d+)\), .* (\d+)$", text, re.M
    )
    assert reserve is not None
    assert int(memory[2]) - int(reserve[3]) == int(reserve[2])
    needed = (int(reserve[2]) + int(reserve[4])) / 1024
    assert needed <= float(reserve[1]) < needed + 0.125


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'5x3090'; known: 1x3090, .*auto for this machine's"):
        load_target("5x3090")


def test_the_earlier_name_of_gpus_is_read(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("name: old\ncards: [{name: RTX 3060, memory_gib: 12}]\ncontext_tokens: 8192\n")
    assert load_target(str(file)).gpus[0].name == "RTX 3060"
