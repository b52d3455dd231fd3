"""Calibration texts against their page, and mixtures of them as chunks of tokens."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from places import ROOT

from quantkit.config.recipe import ImatrixRecipe, Recipe, known_recipes, load_recipe
from quantkit.core.errors import InputError
from quantkit.core.paths import haystack_text
from quantkit.models.chat_template import ChatTemplate
from quantkit.study.calibration import texts
from quantkit.study.calibration.rows import RenderChat
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.calibration.texts import (
    CalibrationTokens,
    Tokenize,
    Tokenizer,
    calibration_tokens,
    chunk_order,
    spread_out,
)

FOLDER = ROOT / "calibration"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".txt", ".jsonl"))
PROSE = FOLDER / "english-prose.txt"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def letters(text: str) -> NDArray[np.int32]:
    """A tokenizer: each character is a token."""
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


def tokens_of(
    recipe: ImatrixRecipe, tokenize: Tokenize = letters, render: RenderChat | None = None
) -> CalibrationTokens:
    tokenizer = Tokenizer(tokenize, tokenize, render)
    return calibration_tokens(recipe, resolve_sources(recipe), tokenizer)


def written(tokens: NDArray[np.int32]) -> str:
    return tokens.astype("<i4").tobytes().decode("utf-32-le")


# --- the files ------------------------------------------------------------------------------------


def phrases(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(13)), strict=False))


def test_no_phrase_of_13_words_is_in_the_haystack() -> None:
    # the haystack is also the text that the divergence is measured on
    new = {path.name: phrases(path.read_text(encoding="utf-8")) for path in FILES if path != PROSE}
    prose = phrases(PROSE.read_text(encoding="utf-8"))
    every = prose.union(*new.values())
    words = re.findall(r"\w+", haystack_text().lower())
    shared = {found for found in zip(*(words[i:] for i in range(13)), strict=False)} & every
    assert {name: shared & found for name, found in new.items()} == {key: set() for key in new}
    assert not any(prose & found for found in new.values())
    # later presidents quote Monroe and Jackson
    assert len(shared) == 5


def test_no_text_names_a_place_on_a_machine() -> None:
    unwanted = re.compile(r"(?<![\w.])/(?:tmp|work)/")
    for path in FILES:
        assert not unwanted.findall(path.read_text(encoding="utf-8")), path.name


def rows(name: str) -> list[Any]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def test_conversations_alternate() -> None:
    for messages in rows("chat.jsonl"):
        roles = [message["role"] for message in messages]
        talk = roles[roles[0] == "system" :]
        assert talk == ["user", "assistant"] * (len(talk) // 2)
        assert all(set(message) == {"role", "content"} for message in messages)
        assert all(message["content"].strip() for message in messages)


def test_every_call_names_a_defined_tool_and_its_arguments() -> None:
    for row in rows("tool-calls.jsonl"):
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        open_calls: list[str] = []
        for message in row["messages"]:
            if message["role"] == "tool":
                open_calls.remove(message["tool_call_id"])
                continue
            assert not open_calls
            for call in message.get("tool_calls", []):
                parameters = tools[call["function"]["name"]]
                arguments = call["function"]["arguments"]
                assert set(arguments) <= set(parameters["properties"])
                assert set(parameters["required"]) <= set(arguments)
                open_calls.append(call["id"])
        assert row["messages"][-1]["role"] == "assistant"
        assert not open_calls


# --- the order of a mixture's chunks --------------------------------------------------------------

SHARES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.sampled_from([0.02, 0.05, 0.1, 0.15, 0.2, 0.33, 0.5, 1.0, 7.0]),
    min_size=1,
    max_size=8,
)


@given(SHARES, st.integers(1, 150), st.integers(0, 99))
def test_any_prefix_holds_the_shares(shares: dict[str, float], chunks: int, seed: int) -> None:
    order = chunk_order(shares, dict.fromkeys(shares, chunks), chunks, seed)
    assert len(order) == chunks
    total = sum(shares.values())
    held: Counter[str] = Counter()
    for count, name in enumerate(order, 1):
        held[name] += 1
        for domain, share in shares.items():
            assert abs(held[domain] - count * share / total) < 1 + 1e-9
    half = chunk_order(shares, dict.fromkeys(shares, chunks), chunks // 2 + 1, seed)
    assert half == order[: chunks // 2 + 1]


@given(SHARES, st.data())
def test_what_runs_out_leaves_its_share_to_the_others(
    shares: dict[str, float], data: st.DataObject
) -> None:
    room = {name: data.draw(st.integers(0, 12)) for name in shares}
    chunks = data.draw(st.integers(1, 80))
    order = chunk_order(shares, room, chunks, 1)
    held = Counter(order)
    assert all(held[name] <= room[name] for name in shares)
    assert len(order) == min(chunks, sum(room.values()))


def test_the_order_does_not_depend_on_where_texts_lie() -> None:
    def order(folder: str) -> list[str]:
        shares = {f"{folder}{name}": 1.0 for name in ("a.txt", "b.txt", "c.txt")}
        found = chunk_order(shares, dict.fromkeys(shares, 9), 6, 1)
        return [name.removeprefix(folder) for name in found]

    assert order("") == order("./") == order("/home/me/texts/") == order("elsewhere/")


def test_the_seed_orders_equal_shares() -> None:
    shares = dict.fromkeys("abcdef", 1.0)
    orders = {tuple(chunk_order(shares, dict.fromkeys(shares, 9), 6, seed)) for seed in range(9)}
    assert len(orders) > 1
    assert all(sorted(order) == list("abcdef") for order in orders)


@given(st.integers(0, 300), st.integers(1, 300))
def test_spread_places_lie_evenly(count: int, first: int) -> None:
    places = spread_out(count)
    assert sorted(places) == list(range(count))
    some = [0, *sorted(places[:first]), count]
    gap = max(b - a for a, b in pairwise(some))
    assert gap <= max(1, 4 * count / min(first, count or 1))


# --- tokens of a mixture --------------------------------------------------------------------------


def mixed(folder: Path, texts: dict[str, tuple[float, str]], **settings: object) -> ImatrixRecipe:
    """Chunks of 32 tokens of files with these shares and texts."""
    for name, (_, text) in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    mixture = {str(folder / name): share for name, (share, _) in texts.items()}
    return ImatrixRecipe.model_validate({"mixture": mixture, "chunk_tokens": 32, **settings})


@given(st.booleans(), st.integers(1, 40), st.integers(0, 5))
def test_a_chunk_is_of_one_domain_and_none_comes_twice(
    tmp_path_factory: pytest.TempPathFactory, spread: bool, chunks: int, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    one, two = ("".join(map(chr, range(*ends))) for ends in ((0x4E00, 0x5200), (0x400, 0x500)))
    domains = {"one.txt": (0.75, one), "two.txt": (0.25, two)}
    recipe = mixed(folder, domains, chunks=chunks, spread=spread, seed=seed)
    found = tokens_of(recipe)
    again = tokens_of(recipe)
    assert np.array_equal(found.tokens, again.tokens)
    assert found.tokens.dtype == np.int32
    assert len(found.tokens) == 32 * chunks
    assert len(set(found.tokens.tolist())) == len(found.tokens)
    for chunk in found.tokens.reshape(-1, 32):
        assert len({int(token) >= 0x4E00 for token in chunk}) == 1
        assert np.array_equal(chunk, np.arange(chunk[0], chunk[0] + 32))
    if not spread:
        assert written(found.tokens[:32]) in (one[:32], two[:32])
    for first in (chunks, chunks // 2 + 1):
        taken = found.taken_after(first)
        in_chinese = sum(
            found.tokens[: 32 * first].tolist()[n] >= 0x4E00 for n in range(32 * first)
        )
        assert [*taken.values()] == [in_chinese, 32 * first - in_chinese]


def test_a_short_domain_is_told(tmp_path: Path) -> None:
    texts = {"short.txt": (1.0, "a" * 70), "long.txt": (1.0, "b" * 2000)}
    recipe = mixed(tmp_path, texts, chunks=20)
    found = tokens_of(recipe)
    assert [*found.taken_after(20).values()] == [64, 18 * 32]
    [note] = found.notes
    assert "2 of the 10" in note
    with pytest.raises(InputError, match="no domain"):
        tokens_of(recipe.model_copy(update={"chunk_tokens": 4000}))


def test_texts_are_joined_as_they_are(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text(path.stem, encoding="utf-8")
    recipe = ImatrixRecipe(texts=tuple(map(str, paths)))
    found = tokens_of(recipe)
    assert written(found.tokens) == "a\n\nb"
    assert found.taken_after(3) == {", ".join(map(str, paths)): 3 * 512}


def test_rows_among_texts_are_rows(tmp_path: Path) -> None:
    names = ("a.txt", "b.txt", "rows.jsonl", "c.txt")
    for name in names:
        (tmp_path / name).write_text(name[0])
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n[{"role": "user", "content": "y"}]\n')
    recipe = ImatrixRecipe(texts=tuple(str(tmp_path / name) for name in names))
    assert written(tokens_of(recipe).tokens) == "a\n\nb\n\nx\n\nuser: y\n\nc"


@pytest.mark.parametrize("spread", [False, True])
def test_going_on_until_covered_begins_with_the_same_chunks(tmp_path: Path, spread: bool) -> None:
    a, b = ("".join(map(chr, range(at, at + size))) for at, size in ((0x4E00, 90), (0x400, 640)))
    texts = {"a.txt": (0.7, a), "b.txt": (0.3, b)}
    recipe = mixed(tmp_path, texts, chunks=10, spread=spread)
    short = tokens_of(recipe)
    long = tokens_of(recipe.model_copy(update={"until_covered": 1}))
    assert len(short.order) == 10
    assert long.order[:10] == short.order
    assert np.array_equal(long.tokens[:320], short.tokens)
    assert len(long.order) == 2 + 20  # all whole chunks of both; two line ends count
    assert long.taken_after(10) == short.taken_after(10)
    assert [*long.taken_after(22).values()] == [64, 640]
    assert long.notes == short.notes
    assert "2 of the 7" in short.notes[0]


def test_no_more_rows_are_read_than_the_chunks_need(tmp_path: Path) -> None:
    rows = json.dumps({"text": "x" * 30}) + "\n" + "broken\n"
    recipe = mixed(tmp_path, {"rows.jsonl": (1, rows)}, chunks=1)
    assert written(tokens_of(recipe).tokens) == "x" * 30 + "\n\n"
    for more in ({"chunks": 2}, {"spread": True}, {"until_covered": 1}):
        with pytest.raises(InputError, match="line 2"):
            tokens_of(recipe.model_copy(update=more))


@pytest.mark.parametrize("empty_lines", [True, False])
def test_a_long_text_becomes_tokens_in_parts(
    tmp_path: Path, empty_lines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PART_CHARACTERS", 1050)
    text = ("x" * 98 + ("\n\n" if empty_lines else "xx")) * 20
    parts: list[str] = []

    def noted(part: str) -> NDArray[np.int32]:
        parts.append(part)
        return letters(part)

    recipe = mixed(tmp_path, {"long.txt": (1, text)}, chunks=10**6)
    tokens_of(recipe, noted)
    assert "".join(parts) == text + "\n\n"
    assert [len(part) for part in parts] == ([1000, 1002] if empty_lines else [1050, 952])
    parts.clear()
    tokens_of(recipe.model_copy(update={"chunks": 1}), noted)
    assert len(parts) == 1


@pytest.mark.parametrize("share", [0, -1, float("inf"), float("nan")])
def test_a_share_is_a_positive_number(share: float) -> None:
    with pytest.raises(ValueError, match="mixture"):
        ImatrixRecipe(mixture={"code": share})


# --- the recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "nemotron-3-super"])
def test_shipped_mixtures_have_text_enough(name: str) -> None:
    recipe: Recipe = load_recipe(known_recipes()[name])
    imatrix = recipe.imatrix
    assert sum(imatrix.mixture.values()) == pytest.approx(1)
    assert {f.name for source in resolve_sources(imatrix) for f in source.files} == {
        path.name for path in FILES
    }

    def coarse(text: str) -> NDArray[np.int32]:
        return np.zeros(len(text) // 4, np.int32)

    render = ChatTemplate("{{ tools | tojson }}" + CHATML).render
    found = tokens_of(imatrix, coarse, render)
    assert len(found.tokens) == imatrix.chunks * imatrix.chunk_tokens
    for name, tokens in found.taken_after(imatrix.chunks).items():
        assert abs(tokens / len(found.tokens) - imatrix.mixture[name]) < 1 / imatrix.chunks
    assert not found.notes
