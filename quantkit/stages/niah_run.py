"""The retrieval check's own process: prompts, a context that memory holds, and the questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from quantkit.errors import EnvironmentFault
from quantkit.formats.gguf_file import GGUFSource
from quantkit.journal import Journal
from quantkit.native.child import Emit
from quantkit.native.device_sets import free_memory
from quantkit.native.llama import Context, Model
from quantkit.native.memory import DeviceMemory, used_memory
from quantkit.native.questions import ForkTest, Seats, try_forks
from quantkit.native.saved_state import SavedState
from quantkit.native.settings import ContextSettings
from quantkit.native.shared_libraries import library_version
from quantkit.receipts import identity
from quantkit.recipe import RetrievalRecipe
from quantkit.retrieval.branches import Prompts
from quantkit.retrieval.chat import frame
from quantkit.retrieval.haystack import sentences
from quantkit.retrieval.prompt import prompts_of
from quantkit.retrieval.results import DeviceUse
from quantkit.sizes import bytes_text
from quantkit.stages.niah import CheckSettings, RunFacts, check_context_length
from quantkit.stages.niah_questions import QuestionRun

BATCH_TOKENS = 2048
"""llama-server's logical batch: several cards work on its physical ones at once."""
ALONE_TOLERANCE = 1e-3
"""Of a fork's logits, relative. What is computed in the same order is equal to the bit."""
TOGETHER_TOLERANCE = 0.1
"""Of questions side by side: kernels for more tokens at a time round otherwise, by a hundredth
of the largest logit in F16; a state that was not copied differs by as much as the logits."""
_CELLS = 256
"""llama.cpp pads contexts to multiples of it."""


def ask_in_child(
    model_path: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    work: Path,
    journal_path: Path,
    purpose: str,
    haystack: Path | None,
    emit: Emit,
) -> RunFacts:
    """Body of the child process of `check_retrieval`."""

    def note(sentence: str) -> None:
        emit(("note", sentence))

    shape = Model(model_path, settings.devices, weightless=True)
    check_context_length(model_path.name, recipe, shape.trained_context_tokens)
    prompts = _prompts(shape, recipe, haystack)
    seats, sizes, planned = _plan(shape, recipe, settings, prompts)
    if seats.questions < _most(recipe, settings):
        note(
            f"memory holds {seats.questions} questions side by side, not {recipe.forks}: it takes "
            "longer"
        )
    shape.close()
    model = Model(model_path, settings.devices)
    context = Context(model, sizes)
    memory = _memory(planned, used_memory(context.handle))
    test = try_forks(context, model.vocab, seats)
    forked = test.alone <= ALONE_TOLERANCE and not settings.fresh
    if not forked or test.together > TOGETHER_TOLERANCE:
        seats = Seats(1, seats.candidates)
    _tell(note, settings, test, forked, prompts)
    journal = Journal(journal_path, purpose)
    run = QuestionRun(context, model.vocab, seats, recipe, journal, emit)
    run.begin(prompts, forked=forked)
    of = _state_of(model_path, sizes)
    for seed, one in prompts.items():
        if forked:
            saved = SavedState(work, f"{of} {one.digest}", settings.save_seconds, note)
            run.one_pass(seed, one, saved)
        else:
            run.fresh(seed, one)
    every = prompts.values()
    return RunFacts(
        forked=forked,
        fork_difference=test.alone,
        prefill_tokens=sum(one.prefill_tokens for one in every),
        question_tokens=sum(one.question_tokens for one in every),
        classic_tokens=sum(one.classic_tokens for one in every),
        keys=dict(next(iter(every)).keys),
        memory=memory,
    )


def _state_of(model: Path, sizes: ContextSettings) -> str:
    """All that a saved prefix depends on beside its tokens."""
    made = identity(GGUFSource(model).paths)
    return json.dumps([made, asdict(sizes), library_version()], sort_keys=True)


def _prompts(shape: Model, recipe: RetrievalRecipe, haystack: Path | None) -> dict[int, Prompts]:
    """The prompts of each seed, with the file's own tokenizer and chat template."""
    vocab = shape.vocab
    bos, eos = vocab.token_text(vocab.bos), vocab.token_text(vocab.eos)
    text = frame(shape.chat_template(), bos, eos, thinking=recipe.thinking)
    begin = vocab.bos if vocab.adds_bos and vocab.bos >= 0 else None
    return {
        seed: prompts_of(vocab.tokenize, text, sentences(haystack), recipe, seed, bos=begin)
        for seed in recipe.seeds
    }


def _plan(
    shape: Model, recipe: RetrievalRecipe, settings: CheckSettings, prompts: dict[int, Prompts]
) -> tuple[Seats, ContextSettings, dict[str, DeviceMemory]]:
    """As many questions side by side as the recipe wants and the devices' free memory holds.

    Raises:
        EnvironmentFault: not even one fits; says what is needed and what is free.
    """
    candidates = max(
        (len(b.candidates) for one in prompts.values() for b in one.branches), default=0
    )
    most = _most(recipe, settings)
    free = free_memory()
    while True:
        seats = Seats(most, candidates)
        sizes = _sizes(prompts, seats, settings)
        context = Context(shape, sizes)
        planned = used_memory(context.handle)
        context.close()
        short = {
            device: (_taken(device, use), free[device])
            for device, use in planned.items()
            if device in free and _taken(device, use) > free[device]
        }
        if not short:
            return seats, sizes, planned
        if most == 1:
            words = "; ".join(
                f"{device} needs {bytes_text(needed)} and has {bytes_text(there)} free"
                for device, (needed, there) in short.items()
            )
            raise EnvironmentFault(
                f"no memory for a check at {max(recipe.context_tokens):,} tokens: {words}; use a "
                "smaller KV cache type, a shorter context or a smaller file"
            )
        most //= 2


def _most(recipe: RetrievalRecipe, settings: CheckSettings) -> int:
    """Questions side by side, at most."""
    return 1 if recipe.mode == "classic" or settings.fresh else recipe.forks


def _taken(device: str, use: DeviceMemory) -> int:
    """Of a device; weights that are mapped into the computer's memory can be read again."""
    return use.context + use.compute + (0 if device == "CPU" else use.weights)


def _sizes(prompts: dict[int, Prompts], seats: Seats, settings: CheckSettings) -> ContextSettings:
    """Of a context that holds the longest prompt, and beside it what else is asked of it."""
    branches = [branch for one in prompts.values() for branch in one.branches]
    whole = max(b.prompt_tokens + b.question.answer_tokens for b in branches)
    own = max(len(b.tokens) + b.question.answer_tokens for b in branches)
    longest = max((len(c) for b in branches for c in b.candidates), default=0)
    cells = whole + (seats.questions - 1) * own + seats.candidates * longest
    return ContextSettings(
        context_tokens=-(-cells // _CELLS) * _CELLS,
        batch_tokens=max(BATCH_TOKENS, settings.ubatch_tokens),
        ubatch_tokens=settings.ubatch_tokens,
        sequences=seats.sequences,
        kv_type=settings.kv_type,
        outputs=max(seats.questions, seats.candidates * longest),
    )


def _memory(
    planned: dict[str, DeviceMemory], used: dict[str, DeviceMemory]
) -> tuple[DeviceUse, ...]:
    nothing = DeviceMemory(0, 0, 0)
    return tuple(
        DeviceUse(
            device,
            *(size for of in (planned, used) for size in asdict(of.get(device, nothing)).values()),
        )
        for device in dict.fromkeys([*planned, *used])
    )


def _tell(
    note: Callable[[str], None],
    settings: CheckSettings,
    test: ForkTest,
    forked: bool,
    prompts: dict[int, Prompts],
) -> None:
    """Say, before it is paid, what the check takes, and why it is as it is."""
    every = prompts.values()
    haystack = sum(one.prefill_tokens for one in every)
    questions = sum(one.question_tokens for one in every)
    classic = sum(one.classic_tokens for one in every)
    if not forked and not settings.fresh:
        note(
            f"a forked sequence differs from a fresh decode by {test.alone:.1e} on this device "
            f"(limit {ALONE_TOLERANCE:.0e}): each question gets a prefill of its own, "
            f"{classic:,} tokens instead of {haystack + questions:,}"
        )
    elif not forked:
        note(f"each question after a prefill of its own: {classic:,} tokens")
    else:
        if test.together > TOGETHER_TOLERANCE:
            note(
                f"questions side by side differ from those asked alone by {test.together:.1e} of "
                f"the largest logit here (limit {TOGETHER_TOLERANCE}): they are asked one by one"
            )
        note(
            f"{haystack:,} tokens of haystack and {questions:,} of questions; one prefill a "
            f"question would take {classic:,}, {classic / (haystack + questions):.0f} times as many"
        )
