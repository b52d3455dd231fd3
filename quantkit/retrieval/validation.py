"""validation.json: retrieval, divergence and the artifact's own weights, and the gate's verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantkit.core.json_documents import JsonDocument
from quantkit.quantize.integrity import Integrity
from quantkit.retrieval.results import Retrieval
from quantkit.study.kld_statistics import KLDStatistics


@dataclass(frozen=True)
class ServerFacts:
    """What answered, and what it cost; without paths and addresses, for these are published.

    Attributes:
        loopback: whether it ran on the machine of the check.
        model: its alias, or its file's name.
        file: its file's name.
        context_tokens: of one slot.
        build: of llama.cpp.
        chat_template: whether it has one; otherwise prompts are plain.
        log_probabilities: whether it could be made to give those of right answers.
        one_pass_tokens: what the questions take where nothing is prefilled twice, beside
            prefill_tokens + question_tokens of `Retrieval`.
    """

    loopback: bool
    model: str
    file: str
    size_bytes: int | None
    context_tokens: int
    slots: int
    build: str
    chat_template: bool
    log_probabilities: bool
    one_pass_tokens: int


class Validation(JsonDocument):
    """validation.json.

    Attributes:
        passed: the gate's verdict.
        kld: divergence from the base; None where it was not measured.
        integrity: what was compared with the model that the artifact was made from, if anything.
        artifact: name of each file that was asked, without folder → SHA-256, so that the verdict
            is of no other; None where they are not known.
        server: where a running server was asked.
    """

    version: Literal[1] = 1
    passed: bool
    niah: Retrieval
    kld: KLDStatistics | None = None
    integrity: Integrity | None = None
    artifact: dict[str, str] | None = None
    server: ServerFacts | None = None
