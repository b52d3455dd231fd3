"""artifact → niah.jsonl: the retrieval check at each context length.

One prefill answers every question: the longest haystack is decoded once a seed, and where it has
reached a length that is to be checked, the questions of that length are answered on forks of it.
Where forks are not exact, each question gets a prefill of its own, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import GateError
from quantkit.core.files import write_text
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.llamacpp.child import run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.retrieval.branches import Prompts
from quantkit.retrieval.journaled import Answers, read_journal
from quantkit.retrieval.results import DeviceUse, Retrieval, answer_lines, score_tasks

SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class CheckSettings:
    """What the check runs with.

    Attributes:
        kv_type: of the KV cache.
        ubatch_tokens: of a physical batch.
        fresh: ask each question after a prefill of its own, as if forks were not exact.
        save_seconds: between two savings of the prefill, at least; 0 saves after every batch.
    """

    devices: DeviceSettings
    kv_type: str
    ubatch_tokens: int = 512
    fresh: bool = False
    save_seconds: float = SAVE_SECONDS


def found_by(
    prompts: Sequence[Prompts],
    answers: Answers,
    kv_type: str,
    fork_difference: float,
    *,
    forked: bool = False,
    memory: tuple[DeviceUse, ...] = (),
) -> Retrieval:
    """What the answers in a journal amount to.

    Args:
        prompts: that were asked, for each seed.
        kv_type, fork_difference, forked, memory: as in `Retrieval`.
    """
    keys, recipe = dict(prompts[0].keys), answers.recipe
    found, rungs = read_journal(answers.journal.lines, keys, recipe)
    return Retrieval(
        recipe=recipe,
        kv_type=kv_type,
        answers=tuple(found),
        scores=score_tasks(found, keys, clustered=recipe.clustered),
        rungs=rungs,
        forked=forked,
        fork_difference=fork_difference,
        prefill_tokens=sum(one.prefill_tokens for one in prompts),
        question_tokens=sum(one.question_tokens for one in prompts),
        classic_tokens=sum(one.classic_tokens for one in prompts),
        memory=memory,
    )


def check_context_length(name: str, recipe: RetrievalRecipe, trained_context_tokens: int) -> None:
    """Fail a file that says of itself that it was not made for the lengths to be checked.

    llama-server caps a slot at that length, so whoever starts the file as planned gets less.

    Raises:
        GateError: names both lengths.
    """
    longest = max(recipe.context_tokens)
    if longest > trained_context_tokens:
        raise GateError(
            f"{name} has a context_length of {trained_context_tokens} tokens in its metadata, and "
            f"is to be checked at {longest}: llama-server would cut its context there; make it "
            "anew from a checkpoint that says more, or check a shorter context"
        )


def check_prompts(
    model: Path, recipe: RetrievalRecipe, devices: DeviceSettings, haystack: Path | None
) -> None:
    """Make the first seed's prompts with the tokenizer in `model`, whose weights are not read.

    Raises:
        InputError: a context is too short for what is to be hidden in it, or the haystack is.
    """
    run_isolated(
        "quantkit.retrieval.run.check_child:try_prompts_in_child",
        {"model_path": model, "recipe": recipe, "devices": devices, "haystack": haystack},
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

    Answers, and now and then the prefill, are kept in `work`; a run that was killed does only the
    rest.

    Raises:
        InputError: llama.cpp cannot load the file, or the haystack is too short.
        EnvironmentFault: no memory for the context, or a crash.
        GateError: the file's own context_length is shorter than what is to be checked.
    """
    found: Retrieval = run_isolated(
        "quantkit.retrieval.run.check_child:ask_in_child",
        {
            "model_path": model,
            "recipe": recipe,
            "settings": settings,
            "work": work,
            "journal_path": work / "answers.jsonl",
            "haystack": haystack,
        },
        told_to(progress, "tokens"),
    )
    write_text(out, answer_lines(found.answers))
    return found
