"""What may be launched: names that can be written, numbers that a plan has."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from launches import AWKWARD, FLAGSHIP, SINGLE, UNPRINTABLE, named

from quantkit.core.errors import InputError


@pytest.mark.parametrize("text", UNPRINTABLE)
def test_what_does_not_print_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="name"):
        dataclasses.replace(SINGLE, model_name=text)
    with pytest.raises(InputError, match="name"):
        dataclasses.replace(SINGLE, gpus=(text,))
    if text.strip():
        with pytest.raises(InputError, match="name"):
            dataclasses.replace(SINGLE, model_file=f"{text}.gguf")


@pytest.mark.parametrize("file", ["../m.gguf", "/m.gguf", "a/m.gguf", "m.bin", "gguf"])
def test_only_a_gguf_file_without_a_folder(file: str) -> None:
    with pytest.raises(InputError, match="no folder"):
        dataclasses.replace(SINGLE, model_file=file)


@pytest.mark.parametrize("folder", [".", "..", "../..", "../../Q4", "Q4", "a/../b_c-d.e"])
def test_the_model_may_lie_elsewhere(folder: str) -> None:
    launch = dataclasses.replace(SINGLE, model_folder=folder)
    assert launch.path_to("-x.gguf") == f"{folder}/-x.gguf"


@pytest.mark.parametrize(
    "folder",
    ["", "/", "/srv", "../", "./..", "a//b", "~", "-a", "a b", "$HOME", "a}", "..\n", "a\n", "é",
     "../...", ".a", "a:b", 'a"', "a" * 101],
)  # fmt: skip
def test_only_a_plain_relative_folder(folder: str) -> None:
    with pytest.raises(InputError, match="the model's folder"):
        dataclasses.replace(SINGLE, model_folder=folder)


@pytest.mark.parametrize("word", ["a,b", "a=int:1", "a b", "", "a;b", "x" * 101, "a\n"])
def test_words_of_options_are_plain(word: str) -> None:
    with pytest.raises(InputError, match="cannot be given"):
        dataclasses.replace(SINGLE, architecture=word)
    with pytest.raises(InputError, match="cannot be given"):
        dataclasses.replace(SINGLE, kv_type=word)


@pytest.mark.parametrize(
    "changes",
    [
        {"context_tokens": 0},
        {"context_tokens": 1048577},
        {"ubatch_tokens": 0},
        {"batch_tokens": -1},
        {"sequences": 0},
        {"tensor_split": (1, 1, 1)},
        {"tensor_split": (0, 0, 0, 0)},
        {"tensor_split": (90, -1, 0, 0)},
    ],
)
def test_numbers_that_no_plan_has(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no plan has"):
        dataclasses.replace(FLAGSHIP, **changes)


def test_llama_cpp_divides_among_fifteen_gpus() -> None:
    dataclasses.replace(FLAGSHIP, gpus=("P100",) * 16, tensor_split=(6,) * 15 + (0,))
    with pytest.raises(InputError, match=r"16 GPUs hold layers.*at most 15"):
        dataclasses.replace(FLAGSHIP, gpus=("P100",) * 16, tensor_split=(6,) * 16)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_are_taken(name: str) -> None:
    assert named(name).files == (f"{name}.gguf",)


def test_shards() -> None:
    stem = "Nemotron-3-Super-Q4_K_S"
    assert FLAGSHIP.files == (f"{stem}-00001-of-00002.gguf", f"{stem}-00002-of-00002.gguf")
    assert FLAGSHIP.merged_file == f"{stem}.gguf"
    assert SINGLE.files == (SINGLE.merged_file,) == ("small.gguf",)
    alone = named("one-00001-of-00001")
    assert alone.files == (alone.merged_file,) == ("one-00001-of-00001.gguf",)
    assert named("x-00002-of-00003").files == ("x-00002-of-00003.gguf",)
