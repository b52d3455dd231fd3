"""A running llama-server → niah.jsonl: the retrieval check through its own address.

Prompts are token ids, made with the server's tokenizer and chat template; docs/retrieval.md
(Against a llama-server) says how a server without forks decodes them.
"""

from __future__ import annotations

import json
from pathlib import Path

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.core.files import write_text
from quantkit.core.progress import SILENT, Progress
from quantkit.core.work_folders import Journal
from quantkit.llamacpp.server import LlamaServer, Tokens, file_name
from quantkit.retrieval.answers import Answers, ask_all
from quantkit.retrieval.branches import Tokenize
from quantkit.retrieval.prompts import all_prompts
from quantkit.retrieval.results import Retrieval, ServerFacts, answer_lines
from quantkit.retrieval.run.ask_server import TEST_LIKELIEST, Served, tests_of

NOTED_RATIO = 2
"""A note is given if the server prefills more than this many times the tokens that it needs to."""
CACHED_CHARACTERS = 5000
"""Longest text whose tokens are kept: sentences and endings recur, whole prompts do not."""
AS_SERVED = "as served"


def check_served(
    endpoint: str,
    recipe: RetrievalRecipe,
    out: Path,
    work: Path,
    haystack: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Retrieval, ServerFacts]:
    """Ask the model at `endpoint` all questions at every context length; answers go to `out`.

    `work` keeps answers: an interrupted run resumes there. `Retrieval.prefill_tokens` and
    `question_tokens` are what the server prefilled, in this run and in those that it continues.

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
        prompts = all_prompts(
            _cached(server),
            props.chat_template,
            (props.bos, props.eos),
            recipe,
            haystack,
            server.first_token(),
        )
        purpose = json.dumps(
            {
                "recipe": recipe.model_dump(mode="json"),
                "model": [props.model, props.model_path, props.size_bytes, props.build],
                "prompts": [one.digest for one in prompts],
                "likeliest": TEST_LIKELIEST[0],
            }
        )
        answers = Answers(Journal(work / "answers.jsonl", purpose), recipe)
        ask_all(Served(server, answers, progress), prompts, answers, progress)
    tests = tests_of(answers.journal.lines)
    planned = answers.result(prompts, AS_SERVED, max(one.difference for one in tests))
    one_pass = planned.prefill_tokens + planned.question_tokens
    taken_by = {
        "prefill_tokens": sum(rung.prefill_tokens for rung in planned.rungs),
        "question_tokens": sum(rung.question_tokens for rung in planned.rungs),
    }
    retrieval = planned.model_copy(update=taken_by)
    write_text(out, answer_lines(retrieval.answers))
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


def _cached(server: LlamaServer) -> Tokenize:
    """The server's tokenizer, as a function of one text."""
    known: dict[str, Tokens] = {}

    def tokenize(text: str) -> Tokens:
        if text in known:
            return known[text]
        (tokens,) = server.tokenize(text)
        if len(text) <= CACHED_CHARACTERS:
            known[text] = tokens
        return tokens

    return tokenize
