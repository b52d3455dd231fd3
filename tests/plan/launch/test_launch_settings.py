"""What may be launched: names that can be written, numbers that a plan has."""

from __future__ import annotations

import pytest
from launches import AWKWARD, FLAGSHIP, SINGLE, UNPRINTABLE, launched, named
from pydantic import ValidationError

from quantkit.core.errors import InputError


@pytest.mark.parametrize("text", UNPRINTABLE)
def test_what_does_not_print_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="name"):
        launched(SINGLE, model_name=text)
    with pytest.raises(InputError, match="name"):
        launched(SINGLE, gpus=(text,))
    if text.strip():
        with pytest.raises(InputError, match="name"):
            launched(SINGLE, model_file=f"{text}.gguf")


@pytest.mark.parametrize("file", ["../m.gguf", "/m.gguf", "a/m.gguf", "m.bin", "gguf"])
def test_only_a_gguf_file_without_a_folder(file: str) -> None:
    with pytest.raises(InputError, match="no folder"):
        launched(SINGLE, model_file=file)


@pytest.mark.parametrize("folder", [".", "..", "../..", "../../Q4", "Q4", "a/../b_c-d.e"])
def test_the_model_may_lie_elsewhere(folder: str) -> None:
    launch = launched(SINGLE, model_folder=folder)
    assert launch.path_to("-x.gguf") == f"{folder}/-x.gguf"


@pytest.mark.parametrize(
    "folder",
    ["", "/", "/srv", "../", "./..", "a//b", "~", "-a", "a b", "$HOME", "a}", "..\n", "a\n", "é",
     "../...", ".a", "a:b", 'a"', "a" * 101],
)  # fmt: skip
def test_only_a_plain_relative_folder(folder: str) -> None:
    with pytest.raises(InputError, match="the model's folder"):
        launched(SINGLE, model_folder=folder)


@pytest.mark.parametrize("word", ["a,b", "a=int:1", "a b", "", "a;b", "x" * 101, "a\n"])
def test_words_of_options_are_plain(word: str) -> None:
    with pytest.raises(InputError, match="architecture"):
        launched(SINGLE, architecture=word)
    with pytest.raises(ValidationError, match="kv_type"):
        launched(SINGLE, kv_type=word)


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
