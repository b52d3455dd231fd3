"""A client of a running llama-server: its model, tokenizer and completions.

The wire format is that of llama.cpp's tools/server (README.md, server-schema.cpp,
server-context.cpp) as of October 2026. Unlike its README says, `tokens_cached` counts prompt and
answer; the number of prefilled tokens is `timings.prompt_n`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from quantkit.core.documents import Amount, first_problem
from quantkit.core.errors import InputError
from quantkit.llamacpp.endpoint import Endpoint

PING_SECONDS = 15
_BETWEEN = -1
"""Not a token: separates the tokens of different texts in one answer of /tokenize."""
MOST_STEPS = 1000
"""Of the answer to a prefill, which has one."""
_UNLIKELY = -1e30
"""The server writes the lowest float for the logarithm of 0."""
_WANTED = "stop content tokens stop_type tokens_evaluated timings completion_probabilities".split()

Tokens = NDArray[np.int32]
Token = Annotated[int, Field(ge=_BETWEEN, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 40)]


class _Said(BaseModel):
    """A part of an answer; what is not used of it is ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


class _Candidate(_Said):
    id: Token
    logprob: FiniteFloat


class _SaidStep(_Candidate):
    top_logprobs: tuple[_Candidate, ...]


class _Timings(_Said):
    prompt_n: Count
    prompt_ms: Amount
    predicted_n: Count
    predicted_ms: Amount


class _SaidCompletion(_Said):
    content: str
    tokens: tuple[Token, ...]
    stop_type: str
    tokens_evaluated: int
    timings: _Timings
    completion_probabilities: tuple[_SaidStep, ...] = ()


class _Done(_Said):
    total: Count = 0
    cache: Count = 0
    processed: Count = 0


class _Event(_Said):
    stop: bool = False
    completion_probabilities: tuple[_SaidStep, ...] = ()
    prompt_progress: _Done | None = None


class _Settings(_Said):
    n_ctx: Annotated[int, Field(ge=1, lt=1 << 31)]


class _SaidProps(_Said):
    default_generation_settings: _Settings
    model_path: str | None = None
    model_alias: str | None = None
    total_slots: Count | None = None
    build_info: str | None = None
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None


_Answer = TypeVar("_Answer", bound=_Said)
_TOKENS = TypeAdapter(list[Token])


@dataclass(frozen=True)
class Props:
    """What a server says of itself.

    Attributes:
        model: its alias, by default the name of its file.
        size_bytes: of the weights; None if unknown.
        context_tokens: of one slot.
        build: of llama.cpp.
        chat_template: Jinja. llama-server puts ChatML in the place of a missing one.
        bos, eos: texts of these tokens; empty for none.
    """

    model: str
    model_path: str
    size_bytes: int | None
    context_tokens: int
    slots: int
    build: str
    chat_template: str | None
    bos: str
    eos: str


@dataclass(frozen=True)
class Step:
    """One token of an answer.

    Attributes:
        log_probability: nats, of a softmax of the model's logits over the whole vocabulary, in F32;
            None if the server did not compute it (speculative decoding), or it underflowed.
        likeliest: (token, log-probability) in descending order, as many as were requested,
            without those that underflowed.
    """

    token: int
    log_probability: float | None
    likeliest: tuple[tuple[int, float], ...]

    @property
    def rank(self) -> int | None:
        """1: the likeliest token; None: beyond the requested candidates."""
        own = self.log_probability
        if own is None or self.token not in dict(self.likeliest):
            return None
        return 1 + sum(other > own for _, other in self.likeliest)


@dataclass(frozen=True)
class Completion:
    """An answer, and its cost.

    Attributes:
        tokens: of the answer, with the end-of-generation token if there was one.
        steps: by token; empty if no probabilities were requested.
        ended: by the model itself, not by the limit.
        prefilled_tokens: of the prompt, without those that the server had already.
        decoded_tokens: after the first, which comes with the prompt.
    """

    text: str
    tokens: tuple[int, ...]
    steps: tuple[Step, ...]
    ended: bool
    prefilled_tokens: int
    prefill_seconds: float
    decoded_tokens: int
    decode_seconds: float


class LlamaServer(Endpoint):
    """A running llama-server."""

    def props(self) -> Props:
        """What /props and /v1/models say.

        Raises:
            InputError: no llama-server, or a router of several models.
        """
        got = self.ask("GET", "/props")
        if got.get("role") == "router":
            raise InputError(
                f"{self.address} is a router of several models; start llama-server with -m FILE "
                "and give its address"
            )
        props = self._valid(_SaidProps, "/props", got)
        listed = self.ask("GET", "/v1/models").get("data")
        try:
            size = int(listed[0]["meta"]["size"])  # type: ignore[index]
        except (TypeError, LookupError, ValueError, OverflowError):
            size = None
        return Props(
            model=file_name(props.model_alias or props.model_path or ""),
            model_path=props.model_path or "",
            size_bytes=size,
            context_tokens=props.default_generation_settings.n_ctx,
            slots=props.total_slots or 1,
            build=props.build_info or "",
            chat_template=props.chat_template or None,
            bos=props.bos_token or "",
            eos=props.eos_token or "",
        )

    def tokenize(self, *texts: str) -> tuple[Tokens, ...]:
        """Token ids of each of `texts`, special tokens in them recognised, without BOS or EOS.

        All in one request: it takes texts and ids mixed, and passes the ids through.
        """
        content = [part for text in texts for part in (text, _BETWEEN)]
        tokens = self._tokens({"content": content, "parse_special": True})
        ends = np.flatnonzero(tokens == _BETWEEN)
        if len(ends) != len(texts) or len(tokens) != (ends[-1] + 1 if len(ends) else 0):
            raise self.stranger("/tokenize does not take several texts")
        begins = [0, *(ends + 1)]
        return tuple(tokens[a:b] for a, b in zip(begins, ends, strict=False))

    def first_token(self) -> int | None:
        """What the model's tokenizer puts before every text: BOS, or nothing."""
        plain, begun = (
            self._tokens({"content": ".", "add_special": special}) for special in (False, True)
        )
        return int(begun[0]) if len(begun) > len(plain) else None

    def _tokens(self, body: Mapping[str, object]) -> Tokens:
        got = self.ask("POST", "/tokenize", body)
        try:
            return np.array(_TOKENS.validate_python(got.get("tokens"), strict=True), np.int32)
        except ValidationError:
            raise self.stranger("/tokenize gives no tokens") from None

    def prefill(
        self,
        tokens: Tokens,
        on_share: Callable[[float], None],
        *,
        likeliest: int = 0,
        reuse: bool = True,
    ) -> Completion:
        """Fill the slot's cache with `tokens`, as far as they are not there.

        Args:
            on_share: gets the share of the work that is done, 0 to 1, after every batch.
            likeliest, reuse: as in `complete`; the answer has only its first step.
        """
        body = {
            **_request(tokens, 0, likeliest, reuse),
            "stream": True,
            "return_progress": True,
            "sse_ping_interval": PING_SECONDS,
        }
        last, steps = None, list[_SaidStep]()
        for told in self.events("/completion", body):
            event = self._valid(_Event, "/completion", told)
            if event.stop:
                last = told
            steps += event.completion_probabilities
            if len(steps) > MOST_STEPS:
                raise self.stranger(f"/completion gives more than {MOST_STEPS} tokens")
            done = event.prompt_progress
            if done is not None and done.total > done.cache:
                on_share((done.processed - done.cache) / (done.total - done.cache))
        if last is None:
            raise self.gone("the answer ended before it was complete")
        on_share(1.0)
        return self._completion(last, len(tokens), steps)

    def complete(
        self,
        tokens: Tokens,
        limit: int,
        *,
        likeliest: int = 0,
        forced: Sequence[int] = (),
        reuse: bool = True,
        kept: Sequence[str] = (),
    ) -> Completion:
        """Answer the prompt `tokens` greedily with at most `limit` tokens.

        Args:
            likeliest: number of candidates with log-probabilities at each step.
            forced: tokens that the answer must begin with, by a grammar of token ids;
                probabilities are those before any grammar.
            reuse: continue from the part of the prompt that the slot has already.
            kept: texts of special tokens that stay in the answer's text.

        Raises:
            Refused: the prompt does not fit, or the server's grammars have no token ids.
        """
        body = _request(tokens, limit, likeliest, reuse)
        if forced:
            body["grammar"] = "root ::= " + " ".join(f"<[{token}]>" for token in forced)
        if kept:
            body["preserved_tokens"] = list(kept)
        return self._completion(self.ask("POST", "/completion", body), len(tokens))

    def _valid(self, kind: type[_Answer], path: str, got: Mapping[str, Any]) -> _Answer:
        """The part of an answer that is used.

        Raises:
            InputError: it is of another kind.
        """
        try:
            return kind.model_validate_json(json.dumps(got))
        except ValidationError as error:
            raise self.stranger(f"{path} gives no valid {first_problem(error)}") from None

    def _completion(
        self, got: Mapping[str, Any], prompt_tokens: int, steps: Sequence[_SaidStep] = ()
    ) -> Completion:
        said = self._valid(_SaidCompletion, "/completion", got)
        if said.tokens_evaluated != prompt_tokens:
            raise self.stranger(
                f"/completion made {said.tokens_evaluated} tokens of a prompt of {prompt_tokens} "
                "token ids"
            )
        return Completion(
            text=said.content,
            tokens=said.tokens,
            steps=tuple(map(_step, steps or said.completion_probabilities)),
            ended=said.stop_type != "limit",
            prefilled_tokens=said.timings.prompt_n,
            prefill_seconds=said.timings.prompt_ms / 1000,
            decoded_tokens=max(said.timings.predicted_n - 1, 0),
            decode_seconds=said.timings.predicted_ms / 1000,
        )


def file_name(path: str) -> str:
    """The last part of a path of the server's machine, which may run Windows."""
    return re.split(r"[/\\]", path)[-1]


def _request(tokens: Tokens, limit: int, likeliest: int, reuse: bool) -> dict[str, object]:
    """Of a greedy answer."""
    return {
        "prompt": tokens.tolist(),
        "n_predict": limit,
        "n_probs": likeliest,
        "cache_prompt": reuse,
        "temperature": 0,
        "samplers": ["temperature"],  # no penalty, whatever the server was started with
        "logit_bias": [],
        "ignore_eos": False,
        "mirostat": 0,
        "backend_sampling": False,  # would leave the probabilities of a few candidates only
        "post_sampling_probs": False,  # but a softmax of the model's own logits, over all tokens
        "n_cache_reuse": 0,  # would move chunks to new positions, which no fresh prefill does
        "return_tokens": True,
        "response_fields": _WANTED,  # not the whole prompt again
        "id_slot": 0,  # the same for every question: it keeps the prefix
    }


def _step(said: _SaidStep) -> Step:
    """One entry of completion_probabilities; its list is empty where nothing was computed."""
    known = bool(said.top_logprobs) and said.logprob > _UNLIKELY
    likeliest = tuple((c.id, c.logprob) for c in said.top_logprobs if c.logprob > _UNLIKELY)
    return Step(said.id, said.logprob if known else None, likeliest)
