"""What `test_demo_prompts.py` runs in a child process: prompts by a GGUF's own tokenizer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.haystack import sentences
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.llama import Model
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.retrieval.branches import Prompts, Question, frame_of
from quantkit.retrieval.prompts import prompts_of


@dataclass(frozen=True)
class Seen:
    """One prompt.

    Attributes:
        exact: its tokens are those of its text.
        candidates: as text.
        longer_exact: the prompt with its first candidate likewise; True without one.
    """

    question: Question
    leaves_at: int
    prompt_tokens: int
    text: str
    exact: bool
    candidates: tuple[str, ...]
    longer_exact: bool


def digest(path: Path, recipe: RetrievalRecipe, seed: int, bos: bool, emit: Emit) -> str:
    """Of the prompts that `build` shows."""
    return _prompts(path, recipe, seed, bos)[1].digest


def build(
    path: Path, recipe: RetrievalRecipe, seed: int, bos: bool, emit: Emit
) -> tuple[list[Seen], dict[int, int], str]:
    """Every prompt as text; keys and digest."""
    model, prompts = _prompts(path, recipe, seed, bos)
    vocab = model.vocab
    buffer = ctypes.create_string_buffer(512)
    handle = llama_cpp.llama_model_get_vocab(model.handle)
    pieces = []
    for token in range(vocab.size):
        size = llama_cpp.llama_token_to_piece(handle, token, buffer, 512, 0, True)
        pieces.append(buffer.raw[:size])

    def text_of(tokens: np.ndarray) -> str:
        return b"".join([pieces[token] for token in tokens.tolist()]).decode()

    def exact(tokens: np.ndarray) -> bool:
        return np.array_equal(vocab.tokenize(text_of(tokens)), tokens)

    seen = []
    for branch in prompts.branches:
        whole = np.concatenate([prompts.stream[: branch.leaves_at], branch.tokens])
        if bos:
            assert whole[0] == vocab.eos
            whole = whole[1:]
        seen.append(
            Seen(
                branch.question,
                branch.leaves_at,
                branch.prompt_tokens,
                text_of(whole),
                exact(whole),
                tuple(text_of(tokens) for tokens in branch.candidates),
                not branch.candidates or exact(np.concatenate([whole, branch.candidates[0]])),
            )
        )
    return seen, prompts.keys, prompts.digest


def _prompts(path: Path, recipe: RetrievalRecipe, seed: int, bos: bool) -> tuple[Model, Prompts]:
    model = Model(path, DeviceSettings(1, use_extra_buffers=False, gpu_layers=0), weightless=True)
    vocab = model.vocab
    shape = frame_of(model.chat_template(), thinking=recipe.thinking)
    begin = vocab.eos if bos else None  # any token will do
    return model, prompts_of(vocab.tokenize, shape, sentences(), recipe, seed, begin)
