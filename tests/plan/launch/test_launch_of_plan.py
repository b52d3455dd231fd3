"""From a plan to a command: the flagship's plan on four RTX 3090 is the published run's."""

from __future__ import annotations

import dataclasses
import functools
import shlex

import flagship
import pytest

from quantkit.config.target import Target, load_target
from quantkit.core.units import GIB
from quantkit.formats.tensors import MetaValue
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.model import Model
from quantkit.plan.launch.llama_cpp import cli_arguments, server_command
from quantkit.plan.plan import Entry, plan_types

pytestmark = pytest.mark.usefixtures("one_child")

NAME = "Nemotron-3-Super-Q4_K_S"
TRAINED = 1 << 20


@functools.cache
def model() -> Model:
    return flagship.model().named(NAME)


@functools.cache
def types() -> dict[str, str]:
    asked = ask_preset(model(), "Q4_K_S", has_imatrix=True)
    return dict(asked.types)


@functools.cache
def planned(target: Target, said: int = TRAINED) -> Entry:
    (entry,) = plan_types("Q4_K_S", types(), target, model(), said, flagship.costs()).entries
    return entry


def options(command: str) -> dict[str, str]:
    """Options with a value; those without are ""."""
    words = shlex.split(command)
    found = {}
    for word, following in zip(words[1:], [*words[2:], "-"], strict=True):
        if word.startswith("-"):
            found[word] = "" if following.startswith("-") else following
    return found


def test_the_published_run() -> None:
    entry = planned(load_target("4x3090"))
    assert entry.total_bytes / GIB == pytest.approx(70.6, abs=0.05)
    split = entry.placement.tensor_split
    assert sum(split) == 89
    assert max(split) - min(split) <= 1
    command = server_command(entry.launch)
    assert command == (
        f"llama-server -m {NAME}-00001-of-00002.gguf -ngl 999 -sm layer "
        f"-ts {','.join(map(str, split))} -c 516096 -ctk q8_0 -ctv q8_0 -fa on -b 2048 -ub 512 "
        f"--fit off -np 1 --jinja --alias {NAME}"
    )
    assert [gpu.name for gpu in entry.placement.gpus] == ["RTX 3090"] * 4
    assert entry.launch.used_gpus == (0, 1, 2, 3)
    assert options(command)["-c"] == options(shlex.join(cli_arguments(entry.launch)))["-c"]


def test_a_gpu_that_stays_free_is_left_out_of_the_command() -> None:
    target = load_target("4x3090").changed(layers="in_order")
    eight = target.changed(gpus=[{"name": "RTX 3090", "memory_gib": 24, "count": 8}])
    entry = planned(eight)
    used = entry.launch.used_gpus
    assert used == tuple(range(len(used)))
    assert 4 <= len(used) < 8
    command = server_command(entry.launch)
    assert f"CUDA_VISIBLE_DEVICES={','.join(map(str, used))} " in command
    shares = options(command[command.index("llama-server") :])["-ts"].split(",")
    assert tuple(map(int, shares)) == entry.launch.shares
    assert sum(map(int, shares)) == 89


def test_more_tokens_than_the_metadata_says_are_planned_where_they_are_asked_for() -> None:
    key = "nemotron_h_moe.context_length"
    short = dataclasses.replace(
        model(), metadata={**model().metadata, key: MetaValue("u32", 262_144)}
    )
    assert short.with_context(262_144) is short
    longer = short.with_context(516_096)
    assert longer.geometry.trained_context_tokens == 516_096
    assert longer.tensors == short.tensors
    for one, tokens, override in ((short, 262_144, False), (longer, 516_096, True)):
        target = load_target("4x3090")
        (entry,) = plan_types("Q4_K_S", types(), target, one, 262_144, flagship.costs()).entries
        given = options(server_command(entry.launch))
        assert given["-c"] == str(tokens)
        assert ("--override-kv" in given) is override
        if override:
            assert given["--override-kv"] == "nemotron_h_moe.context_length=int:516096"


def test_how_the_target_is_used_is_how_it_is_started() -> None:
    target = load_target("8x3090").changed(
        kv_type="f16", ubatch_tokens=2560, sequences=4, flash_attention=False, context_tokens=8192
    )
    entry = planned(target)
    given = options(server_command(entry.launch))
    assert given["-ctk"] == given["-ctv"] == "f16"
    assert given["-fa"] == "off"
    assert given["-ub"] == given["-b"] == "2560"  # a logical batch is no smaller
    assert given["-np"] == "4"
    assert "-kvu" in given
    assert given["-c"] == "8192"
    alone = options(shlex.join(("llama-cli", *cli_arguments(entry.launch))))
    assert alone["-np"] == "1"
