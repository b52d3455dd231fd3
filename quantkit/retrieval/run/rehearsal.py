"""Goes through the retrieval check before a build's long stages, with nothing computed.

What a check needs of llama.cpp depends on the model's kind of memory: a KV cache, sliding windows,
a recurrent state or several of them. Whether it has room for the prefix, and for the questions on
forks of it, shows only at full length.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.progress import Emitted, Progress
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.llama import Context, Model, Vocabulary
from quantkit.llamacpp.prompts import PromptRunner, Slots
from quantkit.llamacpp.uncomputed import Uncomputed
from quantkit.retrieval.branches import Prompts
from quantkit.retrieval.run.check import CheckSettings
from quantkit.retrieval.run.check_child import asked, prompts_for
from quantkit.retrieval.run.check_memory import most_slots, plan_context


def rehearse_in_child(
    model_path: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    haystack: Path | None,
    emit: Emit,
) -> None:
    """Body of the child process of `rehearse_check`."""
    shape = Model(model_path, settings.devices, weightless=True)
    (prompts,) = prompts_for(shape, recipe.model_copy(update={"seeds": recipe.seeds[:1]}), haystack)
    branches = prompts.branches
    most = most_slots(recipe, settings, branches)
    plan_context(shape, most, settings, branches, weights=False)
    shape.close()
    # nothing is computed, so no GPU is needed: its memory is the artifact's
    here = replace(settings.devices, gpu_layers=0, tensor_split=())
    shape = Model(model_path, here, weightless=True)
    planned = plan_context(shape, most, settings, branches)
    shape.close()
    model = Model(model_path, here)
    context = Uncomputed(model, planned.sizes, _token(model.vocab))
    rehearse(context, model.vocab, planned.slots, prompts, Emitted(emit))
    context.close()
    model.close()


def _token(vocab: Vocabulary) -> int:
    """One that ends no answer."""
    return next(token for token in range(vocab.size) if not vocab.is_end(token))


def rehearse(
    context: Context, vocab: Vocabulary, slots: Slots | None, prompts: Prompts, progress: Progress
) -> None:
    """Decode the stream, and at each length as many of its longest questions as fit `slots`."""

    def prefill(start: int, stop: int) -> None:
        size = context.settings.batch_tokens
        for at in range(start, stop, size):
            tokens = prompts.stream[at : min(at + size, stop)]
            context.prefill(tokens, at)
            progress.advance(len(tokens))

    longest = max(prompts.branches, key=lambda branch: branch.prompt_tokens)
    progress.start(longest.leaves_at, "tokens")
    if slots is None:
        prefill(0, longest.leaves_at)
        runner = PromptRunner(context, vocab, Slots(1, 0))
        runner.ask_without_fork(longest.leaves_at, asked(longest))
        return
    runner, position = PromptRunner(context, vocab, slots), 0
    for (leaves_at, _), rung in itertools.groupby(prompts.branches, key=lambda b: b.rung):
        prefill(position, leaves_at)
        position = leaves_at
        group = sorted(rung, key=lambda b: len(b.tokens))[-slots.questions :]
        runner.probe(leaves_at, group[-1].tokens)
        runner.ask(leaves_at, [asked(b) for b in group], lambda _place, _said: None)
        runner.rate(leaves_at, int(group[-1].tokens[0]))
