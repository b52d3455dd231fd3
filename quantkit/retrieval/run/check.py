"""artifact → niah.jsonl: the retrieval check at each context length.

One prefill answers every question: the longest haystack of a seed is decoded once, and at each
length the questions are answered on forks of it. If forks are not exact, each question gets a
prefill of its own, and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.files import write_text
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.llamacpp.child import run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.retrieval.results import Retrieval, answer_lines


@dataclass(frozen=True)
class CheckSettings:
    """Settings of the check.

    Attributes:
        kv_type: of the KV cache.
        ubatch_tokens: of a physical batch.
        fresh: ask each question after a prefill of its own, as if forks were not exact.
        beyond_training: ask at lengths that the file's own context_length does not reach.
        save_seconds: least time between two saves of the prefill; 0 saves after every batch.
    """

    devices: DeviceSettings
    kv_type: str
    ubatch_tokens: int = 512
    fresh: bool = False
    beyond_training: bool = False
    save_seconds: float = 60.0


def rehearse_check(
    model: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    haystack: Path | None,
    progress: Progress = SILENT,
) -> None:
    """Go through the first seed's check of `model`, a file of the right shape, without computing.

    The prompts are made with its tokenizer, and its memory is used at full length, forks included.

    Raises:
        InputError: a context is too short for what is hidden in it, or the haystack is.
        EnvironmentFault: no memory for the context, or llama.cpp cannot do what the check needs.
    """
    run_isolated(
        "quantkit.retrieval.run.rehearsal:rehearse_in_child",
        {"model_path": model, "recipe": recipe, "settings": settings, "haystack": haystack},
        told_to(progress, "tokens"),
    )


def check_retrieval(
    model: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    out: Path,
    work: Path,
    haystack: Path | None = None,
    progress: Progress = SILENT,
) -> Retrieval:
    """Ask `model` all questions at every context length, and write the answers to `out`.

    `work` keeps answers and, now and then, the prefill: an interrupted run resumes there.

    Raises:
        InputError: llama.cpp cannot load the file, or the haystack is too short.
        EnvironmentFault: no memory for the context, or a crash.
        GateError: the file's own context_length is shorter than a length of the check.
    """
    found: Retrieval = run_isolated(
        "quantkit.retrieval.run.check_child:ask_in_child",
        {
            "model_path": model,
            "recipe": recipe,
            "settings": settings,
            "work": work,
            "haystack": haystack,
        },
        told_to(progress, "tokens"),
    )
    write_text(out, answer_lines(found.answers))
    return found
