"""A target's memory for a model, with the compute buffers that llama.cpp itself plans.

llama.cpp is asked on fake GPUs of the target's sizes (`llamacpp/memory_plan.py`), with the model's
shape alone. Before the layers are placed they are taken to lie evenly; afterwards the exact cut is
asked for, so a placement's numbers are llama.cpp's own. Functions that ask raise InputError where
llama.cpp refuses the model.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.target import RunSettings, Target
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.llamacpp.devices import Devices
from quantkit.llamacpp.memory_plan import Breakdown, Question, ask_memory
from quantkit.models.model import Model
from quantkit.plan.gpu_memory import ComputeBuffers, GPUMemory, check_draft, gpu_memory

MOST_GPUS = 15
"""ggml's scheduler takes 16 backends (GGML_SCHED_MAX_BACKENDS), one of which is the processor."""


def gpu_memories(model: Model, targets: Sequence[Target]) -> tuple[list[GPUMemory], str | None]:
    """The memory of each of `targets` for the model; llama.cpp is asked of all of them at once.

    It is told how many layers each GPU gets, and so plans alike for GPUs of any size: targets
    that have as many GPUs share a question.

    Returns:
        The memories, and why the compute buffers are only estimated, if they are.

    Raises:
        InputError: llama.cpp refuses the model, a target has too many GPUs for it, or the model
            cannot draft tokens and should.
    """
    geometry = model.geometry
    wanted = [
        (len(target.gpu_bytes), target.run.within(geometry.trained_context_tokens))
        for target in targets
    ]
    alike: dict[int, dict[RunSettings, Target]] = {}
    for target, (gpus, run) in zip(targets, wanted, strict=True):
        check_gpus(target)
        check_draft(geometry, target)
        alike.setdefault(gpus, {}).setdefault(run, target)
    questions = []
    for gpus, runs in alike.items():
        counts = even_counts(len(geometry.layers) + 1, gpus)
        devices = Devices("cuda", next(iter(runs.values())).gpu_bytes)
        questions.append(Question(model, devices, counts, tuple(runs)))
    try:
        answers = ask_memory(questions)
    except EnvironmentFault as error:
        estimated = [gpu_memory(geometry, target) for target in targets]
        return estimated, f"compute buffers are estimated: {error}"
    buffers = {
        (len(question.tensor_split), run): buffers_of(answer, question.tensor_split)
        for question, of_runs in zip(questions, answers, strict=True)
        for run, answer in zip(question.runs, of_runs, strict=True)
    }
    asked = zip(targets, wanted, strict=True)
    return [gpu_memory(geometry, target, buffers[key]) for target, key in asked], None


def check_gpus(target: Target) -> None:
    """Raise when llama.cpp cannot use so many GPUs.

    Raises:
        InputError: it has more; the message names the limit.
    """
    gpus = len(target.each_gpu)
    if gpus > MOST_GPUS:
        raise InputError(
            f"target {target.name} has {gpus} GPUs, but one llama.cpp uses at most {MOST_GPUS} "
            "(GGML_SCHED_MAX_BACKENDS); leave the others out of it"
        )


def even_counts(layers: int, gpus: int) -> tuple[int, ...]:
    """Layers of each GPU when they are spread evenly, the later ones getting the rest."""
    return tuple(layers * (i + 1) // gpus - layers * i // gpus for i in range(gpus))


def buffers_of(answer: Breakdown, counts: Sequence[int]) -> ComputeBuffers:
    """The compute buffers, for cuts near an even one: of GPUs without the output the largest.

    Where only the output's GPU attends, the mask is counted with the output; another cut is mended
    when it is asked for exactly.

    Args:
        counts: layers of each GPU, the output being the last.
    """
    used = [gpu.compute for gpu, count in zip(answer.gpus, counts, strict=True) if count]
    gpu = max(used[:-1], default=used[-1])
    return ComputeBuffers(gpu, max(0, used[-1] - gpu), answer.host.compute, estimated=False)


@dataclass(frozen=True)
class ContextLadder:
    """Compute buffers at some contexts, interpolated between them.

    A buffer is about the largest of several sums that grow linearly with the context, so between
    two rungs it is seldom more than the straight line between them. ggml's allocator packs as it
    goes, which on one GPU can be a tenth off: what is found so is to be asked for again.

    Attributes:
        rungs: (tokens, buffers), at least one, in the order of tokens.
    """

    model: Model
    target: Target
    rungs: tuple[tuple[int, ComputeBuffers], ...]

    def memory(self, tokens: int) -> GPUMemory:
        changed = self.target.changed(context_tokens=tokens)
        ends = [at for at, _ in self.rungs]
        upper = min(bisect.bisect_left(ends, tokens), len(ends) - 1)
        lower = max(upper - 1, 0)
        (low, a), (high, b) = self.rungs[lower], self.rungs[upper]
        share = (tokens - low) / (high - low) if high > low else 1.0

        def between(x: int, y: int) -> int:
            return math.ceil(x + share * (y - x))

        whole = between(a.gpu + a.output, b.gpu + b.output)
        gpu = between(a.gpu, b.gpu)
        buffers = ComputeBuffers(
            gpu, max(0, whole - gpu), between(a.host, b.host), a.estimated or b.estimated
        )
        return gpu_memory(self.model.geometry, changed, buffers)


def ask_ladders(
    model: Model, targets: Sequence[Target], contexts: Sequence[int]
) -> tuple[list[ContextLadder], str | None]:
    """A ladder over `contexts`, tokens, for each of `targets`; llama.cpp is asked once.

    Returns:
        The ladders, and why their compute buffers are only estimated, if they are.

    Raises:
        InputError: llama.cpp refuses the model, or a target has too many GPUs for it.
    """
    tokens = sorted({min(n, model.geometry.longest_context_tokens) for n in contexts})
    asked = [target.changed(context_tokens=n) for target in targets for n in tokens]
    memories, why = gpu_memories(model, asked)
    found = []
    for index, target in enumerate(targets):
        part = memories[index * len(tokens) : (index + 1) * len(tokens)]
        rungs = tuple((n, m.compute) for n, m in zip(tokens, part, strict=True))
        found.append(ContextLadder(model, target, rungs))
    return found, why
