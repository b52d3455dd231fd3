"""The largest artifact for each context and KV cache type, and the picture of it."""

from __future__ import annotations

import dataclasses
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from checkpoints import write_llama, write_nemotron

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import MeasureRecipe
from quantkit.config.target import Target
from quantkit.llamacpp import memory_plan
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.model import Model
from quantkit.plan.allowed_types import Costs
from quantkit.plan.alternatives import largest_level
from quantkit.plan.level_plans import nominal_costs
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.what_if import CONTEXTS, KV_TYPES, Cell, level_sizes, sweep
from quantkit.quantize.quantize import artifact_bytes
from quantkit.report.pictures import draw_what_if

pytestmark = pytest.mark.usefixtures("one_child")

LEVELS = (
    LevelRecipe(name="all"),
    LevelRecipe(name="half", size="0.4 MB"),
    LevelRecipe(name="bits", bits_per_weight=5),
    LevelRecipe(name="stock", preset="Q4_K_S", baseline=True),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    sizes = {"head_dim": 64, "hidden_size": 256, "moe_intermediate_size": 96}
    layers = {"hybrid_override_pattern": "M*EM*E"}
    folder = write_nemotron(tmp_path_factory.mktemp("m") / "tiny", **sizes, **layers)
    source = open_checkpoint(folder)
    return Model.of("tiny", source)


@pytest.fixture(scope="module")
def costs(model: Model) -> Costs:
    return nominal_costs(model, MeasureRecipe())


def target(mib: float, **changes: object) -> Target:
    gpu = {"name": "gpu", "memory_gib": mib / 1024, "reserve_gib": 0.001, "count": 2}
    given = {"name": "mine", "gpus": [gpu], "context_tokens": 65_536, "ubatch_tokens": 64}
    return Target.model_validate(given | changes)


def test_each_cell_is_the_largest_there(model: Model, costs: Costs) -> None:
    one = target(200)
    sizes = level_sizes(LEVELS, model)
    cells, why = sweep(model, costs, one, sizes)
    assert why is None
    asked = [(cell.kv_type, cell.context_tokens) for cell in cells]
    assert asked == [(kind, tokens) for kind in KV_TYPES for tokens in CONTEXTS]
    found = {}
    for cell in cells:
        at = one.changed(kv_type=cell.kv_type, context_tokens=cell.context_tokens)
        (alone,), _ = gpu_memories(model, [at])
        expected = largest_level(model, costs, alone)
        assert cell.largest == expected
        size = 0 if cell.largest is None else cell.largest.total_bytes
        found[cell.kv_type, cell.context_tokens] = size
        fitting = [name for bytes_, name in sizes if bytes_ <= size]
        assert cell.level == (fitting[-1] if fitting else None)
    for kind in KV_TYPES:
        by_context = [found[kind, tokens] for tokens in CONTEXTS]
        assert by_context == sorted(by_context, reverse=True)
        assert by_context[0] > 0
        assert by_context[-1] == 0  # nothing


def test_a_target_s_own_way_is_among_them(model: Model, costs: Costs) -> None:
    cells, _ = sweep(model, costs, target(90, kv_type="bf16", context_tokens=50_000), [])
    assert {cell.kv_type for cell in cells} == {*KV_TYPES, "bf16"}
    assert {cell.context_tokens for cell in cells} == {*CONTEXTS, 50_000}
    assert all(cell.level is None for cell in cells)


def test_without_flash_attention_nothing_is_quantized(model: Model, costs: Costs) -> None:
    one = target(500, kv_type="f16", flash_attention=False)
    cells, _ = sweep(model, costs, one, [])
    assert {cell.kv_type for cell in cells} == {"f16"}


def test_a_model_of_few_tokens_and_odd_heads(tmp_path: Path) -> None:
    """No context is longer than the model's, and no cache is of a type that llama.cpp refuses."""
    folder = write_llama(tmp_path / "m", max_position_embeddings=2048, head_dim=80)
    source = open_checkpoint(folder)
    small = Model.of("small", source)
    one = target(100, kv_type="f16")
    cells, _ = sweep(small, nominal_costs(small, MeasureRecipe()), one, [])
    assert [(cell.kv_type, cell.context_tokens) for cell in cells] == [("f16", 2048)]


def test_where_llama_cpp_cannot_be_asked_it_says_so(
    model: Model, costs: Costs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "_answers", {})
    monkeypatch.setattr("sys.platform", "darwin")
    cells, why = sweep(model, costs, target(300), [])
    assert why is not None
    assert "estimated" in why
    assert all(
        cell.largest is None or cell.largest.placement.compute_is_estimated for cell in cells
    )
    assert any(cell.largest is not None for cell in cells)


def test_levels_have_the_sizes_that_their_files_will_have(model: Model) -> None:
    """One that takes all that there is has none."""
    sizes = level_sizes(LEVELS, model)
    assert sizes == sorted(sizes)
    by_name = {name: size for size, name in sizes}
    assert set(by_name) == {"half", "bits", "stock"}
    assert by_name["half"] == pytest.approx(400_000, abs=1)
    assert by_name["bits"] == int(5 * model.elements / 8)
    stock = ask_preset(model, "Q4_K_S", has_imatrix=True)
    expected = artifact_bytes(model, stock.types)
    assert by_name["stock"] == expected


@pytest.fixture(scope="module")
def cells(model: Model, costs: Costs) -> list[Cell]:
    """Sizes from 0.8 MB down, a little less for each further KV type, until nothing fits."""
    one = target(400)
    (asked,), _ = gpu_memories(model, [one])
    largest = largest_level(model, costs, asked)
    assert largest is not None
    found = []
    for column, kind in enumerate(KV_TYPES):
        for row, tokens in enumerate(CONTEXTS):
            size = 800_000 - 100_000 * row - 10_000 * column
            fits = size > 320_000
            cell = dataclasses.replace(largest, total_bytes=size) if fits else None
            found.append(Cell(tokens, kind, cell, None))
    return found


def draw(cells: list[Cell], model: Model, out: Path) -> bytes:
    levels = [(300_000, "small"), (303_000, "near"), (500_000, "large"), (10**9, "far away")]
    draw_what_if(cells, levels, model.elements, "tiny on mine", out)
    assert not out.with_name(out.name + ".partial").exists()
    return out.read_bytes()


def test_a_png_and_a_pdf_are_such(cells: list[Cell], model: Model, tmp_path: Path) -> None:
    content = draw(cells, model, tmp_path / "p.PNG")
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000
    assert height > 600
    assert draw(cells, model, tmp_path / "p.pdf").startswith(b"%PDF")


def words_of(svg: bytes) -> set[str]:
    """The words of a picture: they are outlines, each with its words in a comment."""
    return set(re.findall(r"<!-- (.*?) -->", svg.decode()))


def test_an_svg_has_a_line_for_each_kv_type_and_the_words(
    cells: list[Cell], model: Model, tmp_path: Path
) -> None:
    svg = draw(cells, model, tmp_path / "p.svg")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    words = words_of(svg)
    for kind in KV_TYPES:
        assert f"{kind} KV cache" in words
    assert {"32K", "504K", "1M", "context, tokens", "bits a weight", "tiny on mine"} <= words
    assert "largest artifact that fits, MiB" in words
    assert "small, near" in words  # lines so near to each other share a label
    assert not any("far away" in word for word in words)


def test_where_nothing_fits_there_is_a_picture_still(model: Model, tmp_path: Path) -> None:
    nothing = [Cell(tokens, kind, None, None) for kind in ("f16", "q8_0") for tokens in CONTEXTS]
    words = words_of(draw(nothing, model, tmp_path / "p.svg"))
    assert "q8_0 KV cache: nothing fits" in words
