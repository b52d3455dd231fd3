"""Answers that begin with thinking, from the demo's tokens to the score."""

from __future__ import annotations

from pathlib import Path

from demo_artifacts import write_demo

from quantkit.llamacpp.llama import Model
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.retrieval.scoring import THINKING_TAGS, score


def test_the_end_of_thinking_is_seen_where_it_is_a_special_token(tmp_path: Path) -> None:
    devices = DeviceSettings(threads=1, use_extra_buffers=False, gpu_layers=0)
    model = Model(write_demo(tmp_path / "demo.gguf", "Q8_0"), devices, weightless=True)
    vocab = model.vocab
    tags = [int(token) for tag in THINKING_TAGS for token in vocab.tokenize(tag)]
    assert len(tags) == 2
    answer = [int(token) for token in vocab.tokenize("Not 11111.</think>48213")]
    assert vocab.text(answer) == "Not 11111.48213"
    text = vocab.text(answer, tags)
    assert text == "Not 11111.</think>48213"
    assert score("multikey", ("48213",), text, thinking=True).hit
    assert not score("multikey", ("11111",), text, thinking=True).hit
    model.close()
