"""The child process of the retrieval check: prompts, a context that fits, and the questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault, GateError
from quantkit.core.files import identity
from quantkit.core.progress import Emitted, Progress
from quantkit.core.units import bytes_text
from quantkit.core.work_folders import Journal
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.devices import free_memory
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.memory_plan import DeviceMemory, used_memory
from quantkit.llamacpp.prompts import ForkTest, Slots, try_forks
from quantkit.llamacpp.saved_state import SavedState
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings, device_parts
from quantkit.models.gguf_source import GGUFSource
from quantkit.retrieval.answers import Answers, ask_all
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.prompts import all_prompts
from quantkit.retrieval.results import DeviceUse, Retrieval
from quantkit.retrieval.run.ask_child import Forks, FreshPrefills
from quantkit.retrieval.run.check import CheckSettings

BATCH_TOKENS = 2048
"""llama-server's logical batch: several GPUs work on its physical ones at once."""
ALONE_TOLERANCE = 1e-3
"""Of a fork's logits, relative; equal to the bit where computed in the same order."""
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
    haystack: Path | None,
    emit: Emit,
) -> Retrieval:
    """Body of the child process of `check_retrieval`."""
    progress = Emitted(emit)
    shape = Model(model_path, settings.devices, weightless=True)
    longest, trained = max(recipe.context_tokens), shape.trained_context_tokens
    if longest > trained:  # llama-server would serve less than was planned
        raise GateError(
            f"{model_path.name} has a context_length of {trained} tokens in its metadata, and "
            f"is to be checked at {longest}: llama-server would cut its context there; make it "
            "anew from a checkpoint that says more, or check a shorter context"
        )
    prompts = _prompts(shape, recipe, haystack)
    branches = [branch for one in prompts for branch in one.branches]
    most = Slots(1, 0)  # without forks no candidates are compared
    if not settings.fresh:
        candidates = max(len(branch.candidates) for branch in branches)
        most = Slots(1 if recipe.mode == "classic" else recipe.forks, candidates)
    slots, sizes, planned = _plan(shape, most, settings, branches)
    if slots != most:
        progress.note(
            f"memory holds {slots.questions} questions and {slots.candidates} answers to compare "
            "side by side, fewer than asked for: it takes longer"
        )
    shape.close()
    model = Model(model_path, settings.devices)
    context = Context(model, sizes)
    used, nothing = used_memory(context.handle), DeviceMemory(0, 0, 0)
    memory = tuple(
        DeviceUse(
            device, *astuple(planned.get(device, nothing)), *astuple(used.get(device, nothing))
        )
        for device in dict.fromkeys([*planned, *used])
    )
    test = try_forks(context, model.vocab, slots)
    forked = test.alone <= ALONE_TOLERANCE and not settings.fresh
    if not forked or test.together > TOGETHER_TOLERANCE:
        slots = Slots(1, slots.candidates)
    _tell(progress, settings.fresh, test, forked, prompts)
    # everything that answers depend on, apart from the model
    purpose = {
        "recipe": recipe.model_dump(mode="json"),
        "prompts": [one.digest for one in prompts],
        "kv_type": settings.kv_type,
        "ubatch_tokens": settings.ubatch_tokens,
        "forked": forked,
        "devices": device_parts(settings.devices),
    }
    answers = Answers(Journal(journal_path, json.dumps(purpose)), recipe)
    respondent = FreshPrefills(context, model.vocab, slots, answers, progress)
    if forked:
        # everything that a saved prefix depends on, apart from its tokens
        parts = [identity(GGUFSource(model_path).paths), asdict(sizes), purpose["devices"]]
        made = json.dumps([*parts, library_version()], sort_keys=True)
        saved = {
            one.seed: SavedState(work, f"{made} {one.digest}", settings.save_seconds, progress.note)
            for one in prompts
        }
        respondent = Forks(context, model.vocab, slots, answers, progress, saved)
    ask_all(respondent, prompts, answers, progress)
    return answers.result(prompts, settings.kv_type, test.alone, forked=forked, memory=memory)


def try_prompts_in_child(
    model_path: Path,
    recipe: RetrievalRecipe,
    devices: DeviceSettings,
    haystack: Path | None,
    emit: Emit,
) -> None:
    """Body of the child process of `check_prompts`."""
    shape = Model(model_path, devices, weightless=True)
    _prompts(shape, recipe.model_copy(update={"seeds": recipe.seeds[:1]}), haystack)


def _prompts(shape: Model, recipe: RetrievalRecipe, haystack: Path | None) -> list[Prompts]:
    """The prompts of each seed, with the file's own tokenizer and chat template."""
    vocab = shape.vocab
    special = vocab.token_text(vocab.bos), vocab.token_text(vocab.eos)
    begin = vocab.text_bos
    return all_prompts(vocab.tokenize, shape.chat_template(), special, recipe, haystack, begin)


def _plan(
    shape: Model, slots: Slots, settings: CheckSettings, branches: Sequence[Branch]
) -> tuple[Slots, ContextSettings, dict[str, DeviceMemory]]:
    """As many of `slots` as the devices' free memory holds."""
    free = free_memory()
    while True:
        sizes = _sizes(branches, slots, settings)
        context = Context(shape, sizes)
        planned = used_memory(context.handle)
        context.close()
        taken = _taken(planned, free)
        short = {device: size for device, size in taken.items() if size > free[device]}
        if not short:
            return slots, sizes, planned
        fewer = slots.fewer()
        if fewer is None:
            length = max(branch.question.context_tokens for branch in branches)
            words = "; ".join(
                f"{device} needs {bytes_text(size)} and has {bytes_text(free[device])} free"
                for device, size in short.items()
            )
            raise EnvironmentFault(
                f"no memory for a check at {length:,} tokens, which takes "
                f"{slots.sequences} sequences: {words}; use a smaller KV cache type, a shorter "
                "context or a smaller file"
            )
        slots = fewer


def _taken(planned: dict[str, DeviceMemory], free: dict[str, int]) -> dict[str, int]:
    """Bytes on each device; other buffers are in the computer's own memory (`CPU`).

    Weights that are mapped into that are not counted: they can be read again.
    """
    taken: dict[str, int] = {}
    for name, use in planned.items():
        device = name if name in free else "CPU"
        size = use.context + use.compute + (0 if name == "CPU" else use.weights)
        taken[device] = taken.get(device, 0) + size
    return {device: size for device, size in taken.items() if device in free}


def _sizes(branches: Sequence[Branch], slots: Slots, settings: CheckSettings) -> ContextSettings:
    """Of a context that holds the longest prompt, with the other questions and candidates."""
    whole = max(b.prompt_tokens + b.question.answer_tokens for b in branches)
    own = max(len(b.tokens) + b.question.answer_tokens for b in branches)
    longest = max((len(c) for b in branches for c in b.candidates), default=0)
    cells = whole + (slots.questions - 1) * own + slots.candidates * longest
    return ContextSettings(
        context_tokens=-(-cells // _CELLS) * _CELLS,
        batch_tokens=max(BATCH_TOKENS, settings.ubatch_tokens),
        ubatch_tokens=settings.ubatch_tokens,
        sequences=slots.sequences,
        kv_type=settings.kv_type,
        outputs=max(slots.questions, slots.candidates * longest),
    )


def _tell(
    progress: Progress, fresh: bool, test: ForkTest, forked: bool, prompts: Sequence[Prompts]
) -> None:
    """Note, before the prefill, how many tokens the check decodes, and why."""
    haystack = sum(one.prefill_tokens for one in prompts)
    questions = sum(one.question_tokens for one in prompts)
    classic = sum(one.classic_tokens for one in prompts)
    if forked and test.together > TOGETHER_TOLERANCE:
        progress.note(
            f"questions side by side differ from those asked alone by {test.together:.1e} of "
            f"the largest logit here (limit {TOGETHER_TOLERANCE}): they are asked one by one"
        )
    if forked:
        progress.note(
            f"{haystack:,} tokens of haystack and {questions:,} of questions; one prefill a "
            f"question would take {classic:,}, {classic / (haystack + questions):.1f} times as many"
        )
    elif fresh:
        progress.note(f"each question after a prefill of its own: {classic:,} tokens")
    else:
        progress.note(
            f"a forked sequence differs from a fresh decode by {test.alone:.1e} on this device "
            f"(limit {ALONE_TOLERANCE:.0e}): each question gets a prefill of its own, "
            f"{classic:,} tokens instead of {haystack + questions:,}"
        )
