"""A recipe's calibration in a loaded model's tokens, with its chat template."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantkit.config.recipe import ImatrixRecipe
from quantkit.llamacpp.child import Emit
from quantkit.models.chat_template import ChatTemplate
from quantkit.study.calibration.chat import RenderChat
from quantkit.study.calibration.texts import (
    CalibrationSource,
    CalibrationTokens,
    calibration_tokens,
)

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Model, Vocabulary


def model_calibration(
    recipe: ImatrixRecipe, sources: Sequence[CalibrationSource], model: Model, emit: Emit
) -> CalibrationTokens:
    """The tokens of `sources`; notes for the user are emitted."""
    template = model.chat_template()
    calibration = calibration_tokens(
        recipe,
        sources,
        functools.partial(model.vocab.tokenize, parse_special=False),
        None if template is None else _renderer(template, model.vocab),
        tokenize_special=model.vocab.tokenize,
    )
    for sentence in calibration.notes:
        emit(("note", sentence))
    return calibration


def _renderer(template: str, vocabulary: Vocabulary) -> RenderChat:
    texts = (vocabulary.token_text(token) for token in (vocabulary.bos, vocabulary.eos))
    return ChatTemplate(template, *texts).render
