"""Names of repositories and of the files in them."""

from __future__ import annotations

import pytest

from quantkit.core.errors import InputError
from quantkit.release.names import artifact_names, model_folder, repository_name


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("someone", "someone/Model-120B-GGUF"),
        ("someone/mine", "someone/mine-GGUF"),
        ("someone/mine-GGUF", "someone/mine-GGUF"),
        ("someone/mine-gguf", "someone/mine-gguf"),
    ],
)
def test_the_suffix_is_added_once(to: str, name: str) -> None:
    assert repository_name(to, "Model-120B") == name


def test_an_exact_name_is_taken_as_it_is() -> None:
    assert repository_name("someone/mine", "m", exact=True) == "someone/mine"


@pytest.mark.parametrize(
    "to",
    ["", "/", "a/b/c", "a b/m", "a/", "-a/m", "a/m..n", "a/m--n", "a/../b", "a/" + 96 * "x"],
)
def test_names_that_the_hub_refuses_are_told(to: str) -> None:
    with pytest.raises(InputError, match="repository"):
        repository_name(to, "model" if to else "", exact=True)


def test_shards_lie_in_a_folder_of_the_level() -> None:
    assert artifact_names("Q4", ["m-Q4.gguf"]) == ("m-Q4.gguf",)
    shards = ["m-Q4-00001-of-00002.gguf", "m-Q4-00002-of-00002.gguf"]
    assert artifact_names("Q4", shards) == tuple(f"Q4/{name}" for name in shards)
    assert model_folder(["m-Q4.gguf"]) == "../.."
    assert model_folder(artifact_names("Q4", shards)) == "../../Q4"
