"""What `--types` may be: allocations that are this model's, presets, and what needs an imatrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from models import llama_arrays, llama_metadata

from quantkit.config.levels import PRESETS
from quantkit.core.errors import InputError
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import MetaValue, TensorInfo
from quantkit.llamacpp.presets import StockTypes, ask_preset
from quantkit.models.model import Model
from quantkit.plan.type_choice import (
    ALIASES,
    TypeChoice,
    check_importance,
    choose_types,
)

LLAMA = [TensorInfo(name, array.shape, "F32") for name, array in llama_arrays().items()]
OF_LLAMA = Model("llama", llama_metadata(), LLAMA)
WIDE, NARROW = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"
NORM, ROUTER, TABLE = "blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.hash.weight"
TENSORS = (
    TensorInfo(WIDE, (64, 512), "BF16"),
    TensorInfo(NARROW, (2, 64, 288), "BF16"),
    TensorInfo(NORM, (512,), "F32"),
    TensorInfo(ROUTER, (2, 512), "F32"),
    TensorInfo(TABLE, (4, 512), "I32"),
)
STORED = {info.name: info.type_name for info in TENSORS}


def allocation(path: Path, types: Mapping[str, str], preset: str | None = None) -> Path:
    """An allocation.json with what is read of it."""
    tensors = {name: {"type": kind} for name, kind in types.items()}
    path.write_text(json.dumps({"preset": preset, "tensors": tensors}))
    return path


def read_allocation(path: str | Path) -> TypeChoice:
    return choose_types(str(path), Model("none", {}, TENSORS), has_imatrix=False)


@pytest.mark.parametrize("key", ["block_count", "expert_count", "expert_used_count"])
def test_counts_that_llama_cpp_dies_of_are_the_file_s_fault(key: str) -> None:
    metadata = {**llama_metadata(), f"llama.{key}": MetaValue("u32", 10**8)}
    with pytest.raises(InputError, match=r"expert|layer"):
        choose_types("Q4_K_M", Model("llama", metadata, LLAMA), has_imatrix=False)


def chosen(given: object, *, has_imatrix: bool = True) -> TypeChoice:
    return choose_types(str(given), OF_LLAMA, has_imatrix=has_imatrix)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({WIDE: kind} for kind in ("Q4_K", "Q8_0", "IQ2_XXS", "F16", "F32", "Q1_0", "q4_k")),
        *({NARROW: kind} for kind in ("Q5_0", "IQ4_NL", "MXFP4")),  # of 32: 288 is 9 blocks
    ],
)
def test_an_allocation_is_read_as_it_stands(tmp_path: Path, changes: dict[str, str]) -> None:
    path = allocation(tmp_path / "a.json", STORED | changes)
    types = STORED | {name: kind.upper() for name, kind in changes.items()}
    assert read_allocation(path) == TypeChoice(types, None)
    without = {"tensors": json.loads(path.read_text())["tensors"]}
    path.write_text(json.dumps(without))  # what a person writes names no preset
    assert read_allocation(path) == TypeChoice(types, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({WIDE: "Q9"}, "unknown tensor type 'Q9'"),
        ({WIDE: "I8"}, f"{WIDE} cannot be made I8"),
        ({WIDE: "I32"}, "type for weights"),
        ({WIDE: "F64"}, "type for weights"),
        ({NARROW: "Q4_K"}, f"{NARROW} has rows of 288, which are not whole blocks of 256, as Q4_K"),
        ({NARROW: "NVFP4"}, "rows of 288, which are not whole blocks of 64, as NVFP4 needs"),
        ({NORM: "Q8_0"}, f"{NORM} is to be Q8_0, but llama.cpp takes it only as it is, F32"),
        ({NORM: "F16"}, "llama.cpp takes it only as it is, F32"),
        ({ROUTER: "Q8_0"}, f"{ROUTER} is to be Q8_0, but llama.cpp takes it only as it is"),
        ({TABLE: "Q8_0"}, "llama.cpp takes it only as it is, I32"),
        ({"blk.9.x.weight": "Q8_0"}, "names 1 tensors that the model lacks, blk.9.x.weight for"),
    ],
)
def test_a_type_that_a_tensor_cannot_have_is_refused(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        read_allocation(allocation(tmp_path / "a.json", STORED | changes))
    assert words in str(refused.value)


def test_an_allocation_without_some_tensors_says_how_many(tmp_path: Path) -> None:
    path = allocation(tmp_path / "a.json", {WIDE: "Q8_0", "other.weight": "Q8_0"})
    with pytest.raises(InputError) as refused:
        read_allocation(path)
    assert str(refused.value) == (
        f"{path} has no type for 4 of the model's tensors, {NARROW} for one; it was made for "
        "another model, or with other --mtp"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"{}", b'{"tensors": []}',
        b'{"tensors": {"a": 3}}', b'{"tensors": {"a": {"bytes": 3}}}',
        b'{"tensors": {"a": {"type": 3}}}', b'{"tensors": {"a": {"type": null}}}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_allocation_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"quantkit build"):
        read_allocation(path)


def test_a_word_that_is_neither_file_nor_preset_is_refused(tmp_path: Path) -> None:
    for word in ("Q4_K_XL", "allocation.json", str(tmp_path), "BF16", ""):
        with pytest.raises(InputError) as refused:
            choose_types(word, Model("none", {}, TENSORS), has_imatrix=True)
        assert f"--types {word} " in str(refused.value)
        assert all(preset in str(refused.value) for preset in PRESETS)


def test_presets_are_taken_in_any_case_and_by_llama_quantize_s_aliases() -> None:
    stock = ask_preset(OF_LLAMA, "Q4_K_M", has_imatrix=True)
    for word in ("q4_k_m", "Q4_k"):
        found = chosen(word)
        assert found == TypeChoice(stock.types, stock, is_named=True), word
        assert found.preset == "Q4_K_M"
    assert set(ALIASES.values()) <= set(PRESETS)
    assert not set(ALIASES) & set(PRESETS)


def test_a_file_comes_before_a_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    types = {info.name: info.type_name for info in LLAMA}
    allocation(tmp_path / "Q8_0", types)
    assert chosen("Q8_0") == TypeChoice(types, None)
    assert chosen("q8_0").preset == "Q8_0"


def test_the_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    allocation(tmp_path / "a.json", STORED)
    assert read_allocation("~/a.json").types == STORED


def test_the_allocation_of_a_preset_is_the_preset(tmp_path: Path) -> None:
    """A build writes the preset's name; it holds for the types that llama.cpp gives today."""
    path = tmp_path / "a.json"
    stock = ask_preset(OF_LLAMA, "IQ3_XXS", has_imatrix=True)
    found = chosen(allocation(path, stock.types, "IQ3_XXS"))
    assert found == TypeChoice(stock.types, stock)
    assert found.preset == "IQ3_XXS"

    # without an importance matrix, llama.cpp would make another mixture
    plain = chosen(path, has_imatrix=False)
    assert (plain.types, plain.preset) == (stock.types, None)

    changed = {**stock.types, WIDE: "Q8_0"}
    edited = chosen(allocation(path, changed, "IQ3_XXS"))
    assert (edited.types, edited.preset) == (changed, None)
    assert chosen(allocation(path, stock.types, "IQ9_XXL")).preset is None
    assert chosen(allocation(path, stock.types)).preset is None


def of_preset(types: Mapping[str, str], preset: str) -> TypeChoice:
    return TypeChoice(types, StockTypes(preset, types, {}))


def wanting(choice: TypeChoice, importance: Sequence[str] = ()) -> str | None:
    try:
        check_importance(choice, importance, "or not")
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"])
@pytest.mark.parametrize("name", [WIDE, "token_embd.weight", "output.weight"])
def test_small_types_need_an_importance_matrix_everywhere(kind: str, name: str) -> None:
    """ggml refuses some of them, or ruins the tensor."""
    assert BY_NAME[kind].needs_imatrix
    words = f"these types need an importance matrix: {kind} (1 tensors, {name} for one); or not"
    for choice in (TypeChoice({name: kind}, None), of_preset({name: kind}, "Q4_K_M")):
        assert wanting(choice) == words
        assert wanting(choice, ["blk.7.other.weight"]) == words
        assert wanting(choice, [name]) is None


def test_a_preset_asks_for_what_llama_quantize_asks_for() -> None:
    """`tensor_requires_imatrix` of llama-quant.cpp; an allocation's are the person's to choose."""
    q2, iq3 = {WIDE: "Q2_K"}, {WIDE: "IQ3_XXS"}
    for types in (q2, iq3, {WIDE: "IQ3_S"}, {WIDE: "Q4_K"}):
        assert wanting(TypeChoice(types, None)) is None
    assert wanting(of_preset(iq3, "IQ3_XXS")) is not None
    assert wanting(of_preset(iq3, "IQ3_XS")) is not None
    assert wanting(of_preset(q2, "Q2_K_S")) is not None
    assert wanting(of_preset(q2, "Q2_K")) is None
    assert wanting(of_preset({WIDE: "IQ3_S"}, "IQ3_S")) is None
    for name in ("token_embd.weight", "output.weight", "per_layer_token_embd.weight"):
        assert wanting(of_preset({name: "Q2_K"}, "Q2_K_S")) is None
        assert wanting(of_preset({name: "IQ3_XXS"}, "IQ3_XXS")) is None


def test_what_needs_an_importance_matrix_is_counted_by_type() -> None:
    types = {f"blk.{n}.attn_q.weight": "IQ2_S" for n in range(3)} | {NARROW: "IQ1_M", NORM: "F32"}
    assert wanting(TypeChoice(types, None), ["blk.0.attn_q.weight"]) == (
        "these types need an importance matrix: IQ2_S (2 tensors, blk.1.attn_q.weight for one), "
        f"IQ1_M (1 tensors, {NARROW} for one); or not"
    )
    with pytest.raises(InputError, match="'quantkit imatrix' collects it"):
        check_importance(TypeChoice(types, None), ())
