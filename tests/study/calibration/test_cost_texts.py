"""The text for costs: all domains by their shares, from places that importance did not see."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.config.recipe import ImatrixRecipe, known_recipes, load_recipe
from quantkit.core.errors import InputError
from quantkit.study.calibration.cost_texts import CostText, chunk_counts, cost_text
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.calibration.texts import Tokenizer, calibration_tokens

SHARES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.sampled_from([0.02, 0.05, 0.1, 0.15, 0.2, 0.33, 0.5, 1.0, 7.0]),
    min_size=1,
    max_size=8,
)


def exact(shares: dict[str, float]) -> dict[str, Fraction]:
    return {name: Fraction(str(share)) for name, share in shares.items()}


# --- how many of each domain ----------------------------------------------------------------------


@given(SHARES, st.integers(1, 150), st.integers(0, 99))
def test_each_domain_gets_its_share(shares: dict[str, float], count: int, seed: int) -> None:
    found = chunk_counts(exact(shares), dict.fromkeys(shares, count), count, seed)
    assert list(found) == list(shares)
    assert sum(found.values()) == count
    total = sum(shares.values())
    wanted = {name: count * share / total for name, share in shares.items()}
    if count >= len(shares):
        assert min(found.values()) >= 1
    if count < len(shares) or min(wanted.values()) >= 1:  # none is raised to one chunk
        assert all(abs(found[name] - wanted[name]) < 1 for name in shares)


@given(SHARES, st.data())
def test_room_is_all_that_limits(shares: dict[str, float], data: st.DataObject) -> None:
    room = {name: data.draw(st.integers(0, 12)) for name in shares}
    count, seed = data.draw(st.integers(1, 80)), data.draw(st.integers(0, 9))
    found = chunk_counts(exact(shares), room, count, seed)
    assert sum(found.values()) == min(count, sum(room.values()))
    assert all(found[name] <= room[name] for name in shares)
    if sum(found.values()) >= sum(n > 0 for n in room.values()):
        assert all(found[name] for name in shares if room[name])


def test_of_few_chunks_every_domain_has_its_chance() -> None:
    shares = {"a": 0.5, "b": 0.2, "c": 0.12, "d": 0.1, "e": 0.08}
    runs = [chunk_counts(exact(shares), dict.fromkeys(shares, 9), 2, seed) for seed in range(2000)]
    for name, share in shares.items():
        assert fmean(run[name] for run in runs) == pytest.approx(2 * share, abs=0.03)


# --- which places ---------------------------------------------------------------------------------

A = "".join(map(chr, range(0x4E00, 0x5600)))  # 2,048 characters, each a token of its own
B = "".join(map(chr, range(0x400, 0x500)))


def letters(text: str) -> NDArray[np.int32]:
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


LETTERS = Tokenizer(letters, letters)


def recipe_of(folder: Path, texts: dict[str, str], **settings: object) -> ImatrixRecipe:
    """Chunks of 32 tokens of a mixture, the first text's share 0.75."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    shares = [0.75, 0.25][: len(texts)]
    mixture = dict(zip((str(folder / name) for name in texts), shares, strict=True))
    return ImatrixRecipe.model_validate({"mixture": mixture, "chunk_tokens": 32, **settings})


def costs_of(
    recipe: ImatrixRecipe, used: int, count: int, size: int = 8, seed: int = 1
) -> CostText:
    return cost_text(recipe, resolve_sources(recipe), LETTERS, used, count, size, seed)


def seen_of(recipe: ImatrixRecipe, used: int) -> set[int]:
    of = recipe.model_copy(update={"chunks": used})
    found = calibration_tokens(of, resolve_sources(of), LETTERS).tokens
    return set(found[: 32 * used].tolist())


@given(st.booleans(), st.integers(1, 20), st.integers(1, 32), st.sampled_from([5, 8, 32]))
def test_chunks_are_of_one_domain_and_of_what_importance_did_not_see(
    tmp_path_factory: pytest.TempPathFactory, spread: bool, used: int, count: int, size: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    count = min(count, 6 if size == 32 else 32)  # B has 8 chunks of 32 at most
    recipe = recipe_of(folder, {"a.txt": A, "b.txt": B}, spread=spread)
    found = costs_of(recipe, used, count, size)
    assert found.tokens.dtype == np.int32
    assert found.tokens.shape == (count, size)
    assert not found.notes
    of_texts = found.tokens[found.tokens != ord("\n")].tolist()  # an empty line ends each
    assert len(set(of_texts)) == len(of_texts) >= count * size - 4
    assert not seen_of(recipe, used) & set(of_texts)
    for chunk, domain in zip(found.tokens, found.domains, strict=True):
        kept = chunk[chunk != ord("\n")]
        assert np.array_equal(kept, np.arange(chunk[0], chunk[0] + len(kept)))
        assert Path(domain).name == ("a.txt" if chunk[0] >= 0x4E00 else "b.txt")
    held = Counter(Path(domain).name for domain in found.domains)
    assert abs(held["a.txt"] - 0.75 * count) < 1 or held["b.txt"] == 1
    assert np.array_equal(costs_of(recipe, used, count, size).tokens, found.tokens)


def test_chunks_come_from_all_over_the_text(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"a.txt": A}, spread=True)
    found = costs_of(recipe, 16, 8)
    begins = sorted(found.tokens[:, 0].tolist())
    assert np.diff([0x4E00, *begins, 0x5600]).max() < 2 * 2048 / 8
    assert len({begin // 32 for begin in begins}) == 8  # no two from one of importance's chunks
    texts = ImatrixRecipe(texts=tuple(recipe.mixture), chunk_tokens=32)
    begins = sorted(costs_of(texts, 16, 8).tokens[:, 0].tolist())
    assert begins[0] >= 0x4E00 + 16 * 32
    assert np.diff([0x4E00 + 16 * 32, *begins, 0x5600]).max() < 2 * 1536 / 8


def test_the_seed_moves_the_places(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"a.txt": A, "b.txt": B}, spread=True)
    texts = {costs_of(recipe, 8, 6, seed=seed).tokens.tobytes() for seed in range(6)}
    assert len(texts) == 6


def test_what_importance_saw_is_taken_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"a.txt": A, "b.txt": B[:70]})
    found = costs_of(recipe, 8, 40)  # importance saw 2 whole chunks of b, which ends in 8 tokens
    of_b = found.tokens[[Path(name).name == "b.txt" for name in found.domains]]
    assert len(of_b) == 9  # all that it has, of a share of 10
    fresh = [chunk for chunk in of_b.tolist() if not set(chunk) & seen_of(recipe, 8)]
    assert len(fresh) == 1
    short, overlap = found.notes
    assert "b.txt has only 9" in short
    assert "8 of the 40" in overlap


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"a.txt": A[:100]})
    found = costs_of(recipe, 3, 40)
    assert len(found.tokens) == 12
    assert ["12 of the 40" in found.notes[0], "12 of the 12" in found.notes[1]] == [True, True]
    with pytest.raises(InputError, match="cost_tokens"):
        costs_of(recipe, 3, 1, 200)


def test_no_more_rows_are_read_than_may_be_needed(tmp_path: Path) -> None:
    rows = '{"text": "%s"}\n' % ("x" * 94) + "broken\n"  # three chunks with the empty line
    recipe = recipe_of(tmp_path, {"rows.jsonl": rows})
    assert len(costs_of(recipe, 2, 1).tokens) == 1
    with pytest.raises(InputError, match="line 2"):
        costs_of(recipe, 2, 2)


def test_conversations_that_are_left_out_are_told_once(tmp_path: Path) -> None:
    rows = '[{"role": "user", "content": "%s"}]\n' % ("y" * 200)
    recipe = recipe_of(tmp_path, {"chat.jsonl": rows})
    assert any("template" in note for note in costs_of(recipe, 0, 2).notes)
    assert not costs_of(recipe, 1, 2).notes


@pytest.mark.parametrize("name", ["default", "nemotron-3-super"])
def test_shipped_mixtures_have_new_text_of_every_domain(name: str) -> None:
    recipe = load_recipe(known_recipes()[name]).imatrix

    def coarse(text: str) -> NDArray[np.int32]:
        return np.zeros(len(text) // 4, np.int32)

    tokenizer = Tokenizer(coarse, coarse, lambda messages, tools=None: f"{messages}{tools or ''}")
    found = cost_text(recipe, resolve_sources(recipe), tokenizer, recipe.chunks, 32, 128, 1)
    assert found.tokens.shape == (32, 128)
    held = Counter(found.domains)
    for domain, share in recipe.mixture.items():
        assert abs(held[domain] - 32 * share) < 1
        assert held[domain]
    assert not found.notes
