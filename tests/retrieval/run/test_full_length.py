"""Forks, memory, the saved prefill and token counts at the flagship's full length.

The model is small and random, with the flagship's mix of layers: its answers do not matter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from check_full_length import LADDER, record
from checkpoints import NEMOTRON, nemotron_arrays, write_checkpoint

from quantkit.core.paths import DEMO_MODEL
from quantkit.core.progress import SILENT
from quantkit.models.choose import choose_model, open_source
from quantkit.quantize.quantize import convert

SHAPE = {
    "hybrid_override_pattern": "MEMEMEM*EME",  # its first eleven layers, one attention among them
    "vocab_size": 2048,
    "hidden_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1_048_576,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def made(folder: Path) -> Path:
    config = NEMOTRON | SHAPE
    checkpoint = write_checkpoint(folder / "mix", config, nemotron_arrays(config), "BF16", 1)
    for name in TOKENIZER:
        (checkpoint / name).write_bytes((DEMO_MODEL / name).read_bytes())
    source = open_source(choose_model(str(checkpoint)))
    work = folder / "work"
    work.mkdir()
    return convert(source, "source", folder / "mix.gguf", work, 2, SILENT)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_one_pass_at_516096_tokens_killed_and_resumed(tmp_path: Path) -> None:
    options = ["--needles", "6", "--kv", "f16", "--minimum", "0", "--probe", "near-miss=2"]
    facts = record(made(tmp_path), tmp_path / "niah", LADDER, 150_000, options)
    niah = facts["niah"]
    assert facts["exit_code"] == 0
    assert facts["killed_at_tokens"] < niah["recipe"]["context_tokens"][-1] == LADDER[-1] == 516_096
    assert "an earlier run saved" in facts["resumed_log"]
    assert niah["forked"]
    assert niah["fork_difference"] == 0.0
    assert [rung["context_tokens"] for rung in niah["rungs"]] == list(LADDER)
    # the last of them also against the prefix itself: a fresh decode at full length
    assert [rung["fork_difference"] for rung in niah["rungs"]] == [0.0] * len(LADDER)
    assert sum(rung["prefill_tokens"] for rung in niah["rungs"]) == niah["prefill_tokens"]
    assert 516_096 - 100 < niah["prefill_tokens"] + 24 + 40 <= 516_096 + 40
    paid = niah["prefill_tokens"] + niah["question_tokens"]
    assert paid <= 1.05 * LADDER[-1]
    assert niah["classic_tokens"] > 8 * (sum(LADDER) - 5 * 300)
    answers = (tmp_path / "niah" / "niah.jsonl").read_text().splitlines()
    assert len(answers) == len(LADDER) * 8
    for use in niah["memory"]:
        assert use["context_bytes"] == use["planned_context_bytes"]
        assert use["compute_bytes"] == use["planned_compute_bytes"]
