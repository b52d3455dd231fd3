"""A running llama-server → niah.jsonl: the retrieval check through its own address.

Prompts are token ids, made with the server's tokenizer and chat template. A server does not fork,
but it keeps the last prompt of a slot, and of a recurrent state a checkpoint at a prompt's end. So
the haystack up to a length is sent alone first; then each question of that length prefills its own
part only, and the haystack goes on from there. What was prefilled in truth, the server counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.core.files import write_text
from quantkit.core.haystack import sentences
from quantkit.core.journal import Journal
from quantkit.core.progress import SILENT, Progress
from quantkit.llamacpp.server import LlamaServer, Props, Tokens, file_name
from quantkit.retrieval.branches import Prompts
from quantkit.retrieval.chat import frame
from quantkit.retrieval.journaled import read_journal
from quantkit.retrieval.prompt import prompts_of
from quantkit.retrieval.results import Retrieval, score_tasks
from quantkit.retrieval.run.ask_server import TEST_LIKELIEST, Run, tests_of
from quantkit.retrieval.writing import STOP

NOTED_RATIO = 2
"""Of tokens that were prefilled to those that are needed; more are worth a note."""
BLOCK_SENTENCES = 100
CACHED_CHARACTERS = 5000


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


def check_served(
    endpoint: str,
    recipe: RetrievalRecipe,
    out: Path,
    work: Path,
    haystack: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Retrieval, ServerFacts]:
    """Ask the model behind `endpoint` all questions at every context length; answers go to `out`.

    Answers are kept in `work` as they come; a run that was killed asks only the rest.
    `Retrieval.prefill_tokens` and `question_tokens` are what the server prefilled in truth, in this
    run and in those that it goes on from.

    Raises:
        InputError: no llama-server, a context that is too short, or a haystack that is.
        EnvironmentFault: it cannot be reached, stopped, or its reused prefixes are not exact.
    """
    with LlamaServer(endpoint, progress) as server:
        props = server.props()
        longest = max(recipe.context_tokens)
        if longest > props.context_tokens:
            raise InputError(
                f"a slot of {server.address} holds {props.context_tokens} tokens, the check asks "
                f"at {longest}; start llama-server with -np 1 -c {longest}, or check a shorter "
                "context"
            )
        prompts = _prompts(server, props, recipe, haystack)
        purpose = {
            "recipe": recipe.model_dump(mode="json"),
            "model": [props.model, props.model_path, props.size_bytes, props.build],
            "prompts": [one.digest for one in prompts],
            "likeliest": TEST_LIKELIEST[0],
        }
        journal = Journal(work / "answers.jsonl", json.dumps(purpose))
        Run(server, recipe, journal, progress).ask_all(prompts)
    keys, tests = prompts[0].keys, tests_of(journal.lines)
    answers, rungs = read_journal(journal.lines, keys, recipe)
    write_text(out, "".join(json.dumps(asdict(answer)) + "\n" for answer in answers))
    retrieval = Retrieval(
        mode=recipe.mode,
        answers=tuple(answers),
        scores=score_tasks(answers, keys, clustered=recipe.clustered),
        rungs=rungs,
        forked=False,
        fork_difference=max(one.difference for one in tests),
        prefill_tokens=sum(rung.prefill_tokens for rung in rungs),
        question_tokens=sum(rung.question_tokens for rung in rungs),
        classic_tokens=sum(one.classic_tokens for one in prompts),
    )
    one_pass = sum(one.prefill_tokens + one.question_tokens for one in prompts)
    taken = retrieval.prefill_tokens + retrieval.question_tokens
    if taken > NOTED_RATIO * one_pass:
        progress.note(
            f"the server prefilled {taken:,} tokens, where {one_pass:,} would have done: others "
            "ask it meanwhile, or it keeps no checkpoints (--ctx-checkpoints)"
        )
    facts = ServerFacts(
        loopback=server.loopback,
        model=props.model,
        file=file_name(props.model_path),
        size_bytes=props.size_bytes,
        context_tokens=props.context_tokens,
        slots=props.slots,
        build=props.build,
        chat_template=props.chat_template is not None,
        log_probabilities=all(one.forces for one in tests),
        one_pass_tokens=one_pass,
    )
    return retrieval, facts


class _Tokenizer:
    """The server's tokenizer, as a function of one text.

    The haystack's sentences are counted one by one, thousands of them: they are asked for in
    blocks. Short texts are remembered.
    """

    def __init__(self, server: LlamaServer, haystack: Sequence[str]) -> None:
        self._server = server
        self._texts = [f"{STOP} {sentence}" for sentence in haystack]
        self._places = {text: place for place, text in enumerate(self._texts)}
        self._known: dict[str, Tokens] = {}

    def __call__(self, text: str) -> Tokens:
        if text in self._known:
            return self._known[text]
        place = self._places.get(text)
        if place is not None:
            block = self._texts[place : place + BLOCK_SENTENCES]
            self._known.update(zip(block, self._server.tokenize(*block), strict=True))
            return self._known[text]
        (tokens,) = self._server.tokenize(text)
        if len(text) <= CACHED_CHARACTERS:
            self._known[text] = tokens
        return tokens


def _prompts(
    server: LlamaServer, props: Props, recipe: RetrievalRecipe, haystack: Path | None
) -> list[Prompts]:
    """The prompts of each seed."""
    some = sentences(haystack)
    tokenizer = _Tokenizer(server, some)
    text = frame(props.chat_template, props.bos, props.eos, thinking=recipe.thinking)
    bos = server.first_token()
    return [prompts_of(tokenizer, text, some, recipe, seed, bos=bos) for seed in recipe.seeds]
