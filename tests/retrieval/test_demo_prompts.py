"""Prompts by the demo model's own tokenizer and chat template, as llama.cpp has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_artifacts import write_demo
from demo_prompts import Seen
from small_prompts import ALL_PROBES

from quantkit.config.recipe import RetrievalRecipe
from quantkit.llamacpp.child import run_isolated
from quantkit.retrieval.needles import INSTRUCTION, SINGLE_INSTRUCTION

LENGTHS = (2048, 8192, 32768)
LADDER = RetrievalRecipe(context_tokens=LENGTHS, needles=8, probes=dict.fromkeys(ALL_PROBES, 1))
KEYS = 8 + 3 + 1 + 1 + 2
"""Hidden for one length; an absent key is not, and a paraphrase has none."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "demo.gguf")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def prompts(
    demo: Path, recipe: RetrievalRecipe, seed: int = 1, bos: bool = False
) -> tuple[list[Seen], dict[int, int], str]:
    arguments = {"path": demo, "recipe": recipe, "seed": seed, "bos": bos}
    built: tuple[list[Seen], dict[int, int], str] = run_isolated("demo_prompts:build", arguments)
    return built


@pytest.mark.parametrize("bos", [False, True])
def test_ladder(demo: Path, bos: bool) -> None:
    seen, keys, digest = prompts(demo, LADDER, bos=bos)
    assert len(seen) == 3 * (8 + len(ALL_PROBES))
    assert keys[32768] == 3 * KEYS > keys[8192] > keys[2048] >= KEYS
    assert all(one.exact and one.longer_exact for one in seen)
    for length in LENGTHS:
        some = [one for one in seen if one.question.context_tokens == length]
        assert len({one.leaves_at for one in some}) == 1
        left = [length - one.prompt_tokens - one.question.answer_tokens for one in some]
        assert 0 <= min(left) <= 8
        for one in some:
            question = one.question
            assert one.text.startswith(f"<|im_start|>user\n{INSTRUCTION}\n\n")
            assert one.text.endswith("<|im_end|>\n<|im_start|>assistant\n<think></think>")
            assert all(one.text.count(value) == 1 for value in question.values)
            if len(question.values) == 1:
                assert one.candidates == (*question.values, *question.lures)
    arguments = {"path": demo, "recipe": LADDER, "seed": 1, "bos": bos}
    assert run_isolated("demo_prompts:digest", arguments) == digest


def test_thinking(demo: Path) -> None:
    changes = {"thinking": True, "context_tokens": (2048,)}
    seen, _, _ = prompts(demo, LADDER.model_copy(update=changes))
    assert all(one.text.endswith("assistant\n<think>\n") and not one.candidates for one in seen)


def test_classic(demo: Path) -> None:
    recipe = RetrievalRecipe(mode="classic", context_tokens=LENGTHS)
    seen, keys, _ = prompts(demo, recipe, seed=2)
    assert keys == dict.fromkeys(LENGTHS, 1)
    assert len(seen) == 9
    for one in seen:
        assert one.exact
        assert one.text.startswith(f"<|im_start|>user\n{SINGLE_INSTRUCTION}\n\n")
        assert one.text.count("magic numbers for") == 1
        depth = recipe.depths[one.question.index]
        assert abs(one.question.depth - depth) < 0.01 + 64 / one.question.context_tokens
        left = one.question.context_tokens - one.prompt_tokens - one.question.answer_tokens
        assert 0 <= left <= 8
        assert one.candidates == one.question.values
