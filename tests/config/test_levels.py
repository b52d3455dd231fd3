"""Levels: what a recipe may say of one, and what `--levels` makes of a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from forked import quantkit
from pydantic import ValidationError
from small_recipes import write_recipe

from quantkit.config.levels import MOST_LEVELS, PRESETS, LevelRecipe, parse_size
from quantkit.config.recipe import Recipe
from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.choose import choose_model, open_source
from quantkit.models.gguf_source import GGUFSource
from quantkit.plan.placement import PlacementFile

RECIPE = Recipe(
    name="mine",
    levels=(
        LevelRecipe(name="Q4", bits_per_weight=4.8, minimum={"output": "Q6_K"}),
        LevelRecipe(name="Q4_K_M", bits_per_weight=4.9),
    ),
)


def test_every_word_of_levels_is_understood() -> None:
    levels = RECIPE.with_levels("q5_k_s, Q4,4.50, 71GiB,76.5 gb,6bpw,900MiB").levels
    assert [level.name for level in levels] == [
        "Q5_K_S", "Q4", "4.5bpw", "71GiB", "76.5GB", "6bpw", "900MiB",
    ]  # fmt: skip
    preset, own, bits, gib, gb, spelled, mib = levels
    assert (preset.preset, preset.baseline) == ("Q5_K_S", True)
    assert own == RECIPE.levels[0]
    assert (bits.bits_per_weight, bits.baseline, bits.minimum) == (4.5, False, {})
    assert gib.size_bytes == 71 << 30
    assert gb.size_bytes == 76_500_000_000
    assert spelled.bits_per_weight == 6
    assert mib.size_bytes == 900 << 20
    assert gib.bits(8 << 30) == 71


def test_a_recipe_s_own_name_comes_before_a_preset_s() -> None:
    (level,) = RECIPE.with_levels("Q4_K_M").levels
    assert level.preset is None
    assert level.bits_per_weight == 4.9


@pytest.mark.parametrize("word", ["Q9", "", "0.3", "33", "0GiB", "71 TB", "-4", "../x", "4,5 5"])
def test_an_unknown_word_is_refused_with_what_is_possible(word: str) -> None:
    with pytest.raises(InputError, match=r"no level '.*recipe mine has Q4, Q4_K_M.*71GiB.*Q2_K_S"):
        RECIPE.with_levels(word)


def test_so_many_levels_that_they_are_not_meant() -> None:
    words = [f"{2 + n / 100:g}" for n in range(MOST_LEVELS + 1)]
    assert len(RECIPE.with_levels(",".join(words[1:])).levels) == MOST_LEVELS
    with pytest.raises(InputError, match=str(MOST_LEVELS)):
        RECIPE.with_levels(",".join(words))


def test_a_level_is_built_once() -> None:
    with pytest.raises(InputError, match=r"4\.5bpw twice"):
        RECIPE.with_levels("4.5,Q4,4.50")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"size": "71"}, "'71' is not a size"),
        ({"size": "71GiB", "bits_per_weight": 4}, "bits_per_weight and size exclude each other"),
        ({"preset": "Q4_K_M", "size": "71GiB"}, "size and preset exclude each other"),
        ({"preset": "Q4_K_XL"}, "unknown preset 'Q4_K_XL'; known are Q8_0"),
        ({"preset": "Q4_K_M", "pin": {"a": "Q8_0"}}, "leave minimum and pin out"),
        ({"preset": "Q4_K_M", "minimum": {"a": "Q8_0"}}, "leave minimum and pin out"),
        ({"pin": {"a": "Q9"}}, "unknown tensor types Q9"),
        ({"minimum": {"a(": "Q8_0"}}, "is not a regular expression"),
    ],
)
def test_what_a_level_cannot_be(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        LevelRecipe(name="x", **content)


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a b", "x" * 97])
def test_what_a_level_cannot_be_named(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        LevelRecipe(name=name)


def test_sizes() -> None:
    assert parse_size("1.5GiB") == 3 << 29
    assert parse_size("5 mb") == 5_000_000
    assert parse_size("5") is None
    assert LevelRecipe(name="x").takes_all
    assert not any(
        LevelRecipe(name="x", **content).takes_all
        for content in ({"size": "1GB"}, {"bits_per_weight": 4}, {"preset": "Q8_0"})
    )
    assert (
        not set(PRESETS)
        - set(BY_NAME)
        - {name for name in PRESETS if name.endswith(("_S", "_M", "_L", "_XS", "_MOE"))}
    )


def test_levels_of_the_command_line() -> None:
    command = ("plan", "--target", "4x3090", "--model", "demo", "--levels")
    planned = quantkit(*command, "Q4,Q4_K_M,5MB", "--json")
    assert planned.returncode == 0, planned.stderr
    sizes = {e["level"]: e["total_bytes"] for e in json.loads(planned.stdout)["levels"]}
    assert list(sizes) == ["Q4", "Q4_K_M", "5MB"]
    assert 0.995 * 5_000_000 < sizes["5MB"] <= 5_000_000
    shown = quantkit(*command, "Q4_K_M")
    assert "3 tensors fell back: 2 Q4_K → Q5_0, 1 Q6_K → Q8_0" in shown.stdout
    refused = quantkit(*command, "Q9")
    assert refused.returncode == 2
    assert "no level 'Q9': recipe demo has Q6" in refused.stderr


def test_presets_and_sizes_are_built(tmp_path: Path) -> None:
    cheap = {"candidates": ["Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0"], "sample_rows": 16,
             "cost_tokens": 0}  # fmt: skip
    levels = [{"name": "mine", "size": "4 MiB", "pin": {"ffn_down_exps": "Q5_0"}}]
    recipe = write_recipe(
        tmp_path / "r.yaml", measure=cheap, levels=levels, divergence={"chunks": 0}
    )
    out = tmp_path / "out"
    finished = quantkit(
        "build", "--target", "4x3090", "--model", "demo", "--recipe", recipe, "--out", out,
        "--levels", "mine,Q4_K_M,5.2",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "3 tensors fell back: 2 Q4_K → Q5_0, 1 Q6_K → Q8_0" in finished.stdout
    source = open_source(choose_model("demo"))
    for name, budget in (("mine", 4 << 20), ("Q4_K_M", None), ("5.2bpw", None)):
        folder = out / "levels" / name
        allocation = json.loads((folder / "allocation.json").read_text())
        artifact = folder / f"quantkit-demo-{name}.gguf"
        assert artifact.stat().st_size == allocation["total_bytes"]
        assert budget in (None, allocation["budget_bytes"])
        if budget is not None:
            assert 0.995 * budget < allocation["total_bytes"] <= budget
        types = {key: entry["type"] for key, entry in allocation["tensors"].items()}
        assert {t.name: t.type_name for t in GGUFSource(artifact).tensors} == types
        if name == "mine":
            assert {t for n, t in types.items() if "ffn_down_exps" in n} == {"Q5_0"}
        if name == "Q4_K_M":
            expected = ask_preset(source, name, has_imatrix=True)
            assert types == expected.types
            assert set(allocation["fallbacks"]) == set(expected.fallbacks)
            assert GGUFSource(artifact).metadata["general.file_type"].value == 15
        else:
            assert "general.file_type" not in GGUFSource(artifact).metadata
        assert PlacementFile.read(folder / "placement.json").placement.fits
    again = tmp_path / "again.gguf"
    preset = out / "levels" / "Q4_K_M"
    published = tmp_path / "quantkit-demo-imatrix.gguf"  # artifacts name it so
    published.write_bytes((out / "imatrix.gguf").read_bytes())
    quantized = quantkit(
        "quantize", "--model", "demo", "--types", preset / "allocation.json",
        "--imatrix", published, "--out", again,
    )  # fmt: skip
    assert quantized.returncode == 0, quantized.stderr
    assert "3 tensors fell back" in quantized.stdout
    assert file_sha256(again) == file_sha256(preset / "quantkit-demo-Q4_K_M.gguf")
