"""A small llama-server on loopback: a real model behind llama-server's addresses, which can be told
to misbehave.

The model runs in a child process, in one slot, as in llama.cpp's tools/server: what a prompt has
in common with the one before is not prefilled again, up to the last checkpoint of the recurrent
state. One is made four tokens before each prompt's end.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from serving import serving

from quantkit.llamacpp.child import Child, Emit
from quantkit.llamacpp.selftest import working_settings

CHECKPOINT_OFFSET = 4
SLOT, FIRST_CHECKPOINT, CHECKPOINTS = 0, 1, 3
PIECE_TOKENS = 64
LOWEST_FLOAT = -3.4028234663852886e38
_TASKS = "loopback_llama_server"


@dataclass
class Served:
    """One answered request for a completion, as the server saw it."""

    prompt: list[int]
    prefilled_tokens: int
    body: dict[str, Any]


@dataclass
class Faults:
    """How the server misbehaves.

    Attributes:
        loading: how often 503 is answered before the model is there.
        unavailable: how often 503 is answered for another reason, with these bytes.
        stop_after: completions, from the first on, before the connection is closed without a word
            at each further one.
        hang_up: the connection is closed after each answer, and the answer does not say so.
        cut_streams: a stream ends in its middle.
        malformed: paths whose answers are no JSON.
        missing: paths that are not there.
        texts_only: a prompt of token ids is taken for one of text.
        no_token_grammars: a grammar may not name tokens by id.
        speculative: no probabilities behind the first token.
        forgetful: nothing of a prompt is kept for the next one.
        confused: what is reused of a prompt is not what the model had seen.
        underflowed: the last of the likeliest has a probability of 0, whose logarithm llama-server
            writes as the lowest float.
        certain: all of the likeliest have a probability of 1.
        fail: the next completions fail, with this message.
        redirect: where every request is sent on to.
    """

    loading: int = 0
    unavailable: tuple[int, bytes] = (0, b"")
    stop_after: int | None = None
    hang_up: bool = False
    cut_streams: bool = False
    malformed: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    texts_only: bool = False
    no_token_grammars: bool = False
    speculative: bool = False
    forgetful: bool = False
    confused: bool = False
    underflowed: bool = False
    certain: bool = False
    fail: str = ""
    redirect: str = ""


@dataclass
class LoopbackServer:
    """What is served.

    Attributes:
        context_tokens: of the slot.
        props: instead of what /props says, by name.
        key: that requests must have; None: none.
        served: completions, in their order.
        paths: of all requests, in their order.
        connections: how many were opened.
    """

    child: Child
    facts: dict[str, Any]
    context_tokens: int
    address: str = ""
    props: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    faults: Faults = field(default_factory=Faults)
    served: list[Served] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def prefilled_tokens(self) -> int:
        return sum(one.prefilled_tokens for one in self.served)

    def recover(self) -> None:
        """As at the beginning, but for the model."""
        self.faults, self.key, self.props = Faults(), None, {}
        self.served, self.paths, self.connections = [], [], 0


class _Refusal(Exception):
    def __init__(self, kind: str, message: str) -> None:
        self.content = {"code": 400, "message": message, "type": kind}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or an answer in two pieces waits for 40 ms
    server_side: LoopbackServer

    def log_message(self, *_args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server_side.connections += 1

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body: dict[str, Any]) -> None:
        side = self.server_side
        side.paths.append(self.path)
        hang_up = side.faults.hang_up
        with side.lock:
            if side.faults.redirect:
                self.send(302, b"", "text/html", {"Location": side.faults.redirect})
            elif side.faults.loading:
                side.faults.loading -= 1
                self.refuse(503, "unavailable_error", "Loading model")
            elif side.faults.unavailable[0]:
                left, words = side.faults.unavailable
                side.faults.unavailable = (left - 1, words)
                self.send(503, words, "text/html")
            elif side.key is not None and self.headers["Authorization"] != f"Bearer {side.key}":
                self.refuse(401, "authentication_error", "Invalid API Key")
            elif self.path in side.faults.malformed:
                self.send(200, b"<html>", "text/html")
            elif self.path in side.faults.missing or self.path not in self.answers:
                self.refuse(404, "not_found_error", "File Not Found")
            else:
                self.answers[self.path](self, body)
        if hang_up:
            self.close_connection = True

    def health(self, _body: dict[str, Any]) -> None:
        self.send_json(200, {"status": "ok"})

    def models(self, _body: dict[str, Any]) -> None:
        meta = {"size": self.server_side.facts["size_bytes"]}
        self.send_json(200, {"object": "list", "data": [{"id": "tiny", "meta": meta}]})

    def tokenize(self, body: dict[str, Any]) -> None:
        arguments = {
            "content": body["content"],
            "add_special": body.get("add_special", False),
            "parse_special": body.get("parse_special", True),
        }
        tokens = self.server_side.child.call(f"{_TASKS}:tokenize", arguments)
        self.send_json(200, {"tokens": tokens})

    def props(self, _body: dict[str, Any]) -> None:
        side = self.server_side
        content = {
            "default_generation_settings": {"params": {}, "n_ctx": side.context_tokens},
            "total_slots": 1,
            "model_alias": "/models/tiny.gguf",
            "model_path": "/models/tiny.gguf",
            "build_info": "b0-loopback",
            **side.facts,
            **side.props,
        }
        self.send_json(200, content)

    def complete(self, body: dict[str, Any]) -> None:
        side, faults = self.server_side, self.server_side.faults
        if faults.stop_after is not None and len(side.served) >= faults.stop_after:
            self.close_connection = True
            return
        if faults.fail:
            self.refuse(500, "server_error", faults.fail)
            return
        prompt = body["prompt"]
        if faults.texts_only:
            content = {"content": str(prompt), "add_special": True, "parse_special": True}
            prompt = side.child.call(f"{_TASKS}:tokenize", content)
        try:
            forced = self.forced(body.get("grammar", ""))
            if len(prompt) >= side.context_tokens:
                raise _Refusal(
                    "exceed_context_size_error",
                    f"request ({len(prompt)} tokens) exceeds the available context size "
                    f"({side.context_tokens} tokens), try increasing it",
                )
        except _Refusal as refusal:
            self.send_json(400, {"error": refusal.content})
            return
        streamed = body.get("stream", False)
        if streamed:
            self.begin_stream()
        sent = 0

        def on_message(done: dict[str, Any]) -> None:
            nonlocal sent
            if streamed and body.get("return_progress") and not (faults.cut_streams and sent):
                self.send_event({"content": "", "stop": False, "prompt_progress": done})
                sent += 1

        arguments = {
            "prompt": prompt,
            "limit": body["n_predict"],
            "likeliest": body.get("n_probs", 0),
            "forced": forced,
            "reuse": body.get("cache_prompt", True) and not faults.forgetful,
            "confused": faults.confused,
        }
        result = side.child.call(f"{_TASKS}:complete", arguments, on_message)
        if faults.speculative:
            for step in result.get("completion_probabilities", [])[1:]:
                step.update(logprob=0.0, top_logprobs=[])
        for step in result.get("completion_probabilities", []):
            if faults.underflowed:
                step["top_logprobs"][-1]["logprob"] = LOWEST_FLOAT
            if faults.certain:
                for candidate in step["top_logprobs"]:
                    candidate["logprob"] = 0.0
        side.served.append(Served(prompt, result["timings"]["prompt_n"], body))
        if streamed:  # all tokens, here in one event of their own, and then what they took
            told = ("content", "tokens", "completion_probabilities")
            if not faults.cut_streams:
                event = {name: result[name] for name in told if name in result}
                self.send_event({**event, "stop": False})
            result = {**result, "content": "", "tokens": []}
            result.pop("completion_probabilities", None)
        wanted = body.get("response_fields") or list(result)
        result = {name: result[name] for name in wanted if name in result}
        if not streamed:
            self.send_json(200, result)
        elif faults.cut_streams:
            self.close_connection = True
        else:
            self.send_chunk(b":\n\n")  # a ping
            self.send_event(result)
            self.send_chunk(b"")

    def forced(self, grammar: str) -> list[int]:
        tokens = [int(token) for token in re.findall(r"<\[(\d+)\]>", grammar)]
        if grammar and (not tokens or self.server_side.faults.no_token_grammars):
            raise _Refusal("invalid_request_error", "failed to parse grammar")
        return tokens

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, content: dict[str, Any]) -> None:
        self.send_chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def send_chunk(self, raw: bytes) -> None:
        self.wfile.write(b"%x\r\n" % len(raw) + raw + b"\r\n")

    def refuse(self, status: int, kind: str, message: str) -> None:
        self.send_json(status, {"error": {"code": status, "message": message, "type": kind}})

    def send_json(self, status: int, content: dict[str, Any]) -> None:
        self.send(status, json.dumps(content).encode(), "application/json; charset=utf-8")

    def send(
        self, status: int, raw: bytes, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    answers: ClassVar[dict[str, Callable[[_Handler, dict[str, Any]], None]]] = {
        "/health": health,
        "/props": props,
        "/v1/models": models,
        "/tokenize": tokenize,
        "/completion": complete,
    }


@contextmanager
def llama_server(model: Path, context_tokens: int) -> Iterator[LoopbackServer]:
    """Serve `model` with a slot of `context_tokens`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        child = Child()
    with child:
        arguments = {
            "path": model,
            "context_tokens": context_tokens,
            "use_extra_buffers": working_settings().use_extra_buffers,
        }
        facts = child.call(f"{_TASKS}:load", arguments)
        side = LoopbackServer(child, facts, context_tokens)
        handler = type("Handler", (_Handler,), {"server_side": side})
        with serving(handler) as side.address:
            yield side


# --- in the child process -------------------------------------------------------------------------

_held: dict[str, Any] = {}


def load(path: Path, context_tokens: int, use_extra_buffers: bool, emit: Emit) -> dict[str, Any]:
    """Load the model; what /props says of its texts."""
    from quantkit.llamacpp.llama import Context, Model
    from quantkit.llamacpp.settings import ContextSettings, DeviceSettings

    model = Model(path, DeviceSettings(1, use_extra_buffers, gpu_layers=0))
    settings = ContextSettings(
        2 * context_tokens, PIECE_TOKENS, PIECE_TOKENS, sequences=FIRST_CHECKPOINT + CHECKPOINTS
    )
    _held.update(model=model, context=Context(model, settings), tokens=[], checkpoints={}, turn=0)
    vocab = model.vocab
    return {
        "chat_template": model.chat_template(),
        "bos_token": vocab.token_text(vocab.bos),
        "eos_token": vocab.token_text(vocab.eos),
        "size_bytes": model.size_bytes,
    }


def tokenize(
    content: str | list[str | int], add_special: bool, parse_special: bool, emit: Emit
) -> list[int]:
    """Tokens of a text, or of texts and tokens mixed."""
    vocab = _held["model"].vocab
    tokens: list[int] = [vocab.bos] if add_special and vocab.adds_bos else []
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, int):
            tokens.append(part)
        else:
            tokens += vocab.tokenize(part, parse_special=parse_special).tolist()
    return tokens


def complete(
    prompt: list[int],
    limit: int,
    likeliest: int,
    forced: list[int],
    reuse: bool,
    confused: bool,
    emit: Emit,
) -> dict[str, Any]:
    """Answer as /completion does; the progress of the prefill is emitted."""
    import numpy as np

    vocab = _held["model"].vocab
    had = _go_back(prompt, reuse, confused)
    logits = _prefill(prompt, had, emit)
    position, tokens, steps, ended = len(prompt), [], [], False
    while True:
        if forced:
            token = forced[len(tokens)]
        else:
            token = int(np.argmax(logits))
        tokens.append(token)
        if likeliest:
            steps.append(_step(logits, token, likeliest))
        ended = vocab.is_end(token)
        if ended or len(tokens) >= max(limit, 1) or (forced and len(tokens) == len(forced)):
            break
        logits = _held["context"].decode(np.array([token], np.int32), position)
        _held["tokens"].append(token)
        position += 1
    return {
        "content": vocab.text(tokens),
        "tokens": tokens,
        "stop": True,
        "stop_type": "eos" if ended else "limit",
        "tokens_evaluated": len(prompt),
        "tokens_cached": position,
        "timings": {
            "cache_n": had,
            "prompt_n": len(prompt) - had,
            "prompt_ms": 1.0,
            "predicted_n": len(tokens),
            "predicted_ms": 1.0,
        },
        **({"completion_probabilities": steps} if steps else {}),
    }


def _go_back(prompt: list[int], reuse: bool, confused: bool) -> int:
    """Put the slot where a checkpoint before the end of the common part is: its tokens."""
    import numpy as np

    context, held, checkpoints = _held["context"], _held["tokens"], _held["checkpoints"]
    common = 0
    while reuse and common < min(len(held), len(prompt)) and held[common] == prompt[common]:
        common += 1
    for tokens in [n for n in checkpoints if n > common]:
        context.drop(checkpoints.pop(tokens))
    reached = max((n for n in checkpoints if n < len(prompt)), default=0)
    context.drop(SLOT)
    if reached and confused:
        context.decode(np.array(prompt[:reached][::-1], np.int32), 0)
    elif reached:
        context.fork(checkpoints[reached], SLOT)
    _held["tokens"] = prompt[:reached]
    return reached


def _prefill(prompt: list[int], had: int, emit: Emit) -> Any:  # noqa: ANN401 - an array
    """Decode the rest of the prompt, with a checkpoint before its last tokens: the logits."""
    import numpy as np

    context, checkpoints = _held["context"], _held["checkpoints"]
    stop = len(prompt) - CHECKPOINT_OFFSET
    cuts = sorted({*range(had, len(prompt), PIECE_TOKENS), *([stop] if stop > had else [])})
    for begin, end in zip(cuts, [*cuts[1:], len(prompt)], strict=True):
        if begin == stop:
            _checkpoint(stop)
        logits = context.decode(np.array(prompt[begin:end], np.int32), begin)
        done = {"total": len(prompt), "cache": had, "processed": end, "time_ms": 1}
        emit(done)
    _held["tokens"] = list(prompt)
    assert len(checkpoints) <= CHECKPOINTS
    return logits


def _checkpoint(tokens: int) -> None:
    context, checkpoints = _held["context"], _held["checkpoints"]
    if tokens in checkpoints:
        return
    if len(checkpoints) == CHECKPOINTS:  # the oldest goes
        context.drop(checkpoints.pop(next(iter(checkpoints))))
    free = set(range(FIRST_CHECKPOINT, FIRST_CHECKPOINT + CHECKPOINTS)) - set(checkpoints.values())
    checkpoints[tokens] = min(free)
    context.fork(SLOT, checkpoints[tokens])


def _step(logits: Any, token: int, likeliest: int) -> dict[str, Any]:  # noqa: ANN401
    import numpy as np

    wide = np.asarray(logits, np.float64)
    found = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    order = np.argsort(-found)[:likeliest]
    top = [{"id": int(n), "logprob": float(found[n])} for n in order]
    return {"id": token, "logprob": float(found[token]), "top_logprobs": top}
