"""A small llama-server on loopback: a real model behind llama-server's addresses, which can be told
to misbehave.

There is one slot, as in llama.cpp's tools/server: what a prompt has in common with the one before
is not prefilled again, up to the last checkpoint of the recurrent state. One is made four tokens
before each prompt's end.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from serving import serving

from quantkit.llamacpp.llama import Context, Logits, Model
from quantkit.llamacpp.selftest import working_settings
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings

CHECKPOINT_OFFSET = 4
SLOT, FIRST_CHECKPOINT, CHECKPOINTS = 0, 1, 3
PIECE_TOKENS = 64
LOWEST_FLOAT = -3.4028234663852886e38


class Slot:
    """The model and its one sequence, which goes on from what the last prompt left."""

    def __init__(self, path: Path, context_tokens: int) -> None:
        extra = working_settings().use_extra_buffers
        self.model = Model(path, DeviceSettings(1, extra, gpu_layers=0))
        sequences = FIRST_CHECKPOINT + CHECKPOINTS
        settings = ContextSettings(2 * context_tokens, PIECE_TOKENS, PIECE_TOKENS, sequences)
        self._context = Context(self.model, settings)
        vocab = self.model.vocab
        self.facts: dict[str, Any] = {  # of /props and /v1/models
            "chat_template": self.model.chat_template(),
            "bos_token": vocab.token_text(vocab.bos),
            "eos_token": vocab.token_text(vocab.eos),
            "size_bytes": self.model.size_bytes,
        }
        self._held: list[int] = []
        self._checkpoints: dict[int, int] = {}  # tokens → sequence

    def close(self) -> None:
        self._context.close()
        self.model.close()

    def tokenize(
        self, content: str | Sequence[str | int], add_special: bool = False, **parse: bool
    ) -> list[int]:
        """Tokens of a text, or of texts and tokens mixed."""
        vocab = self.model.vocab
        tokens = [vocab.bos] if add_special and vocab.text_bos is not None else []
        for part in [content] if isinstance(content, str) else content:
            tokens += [part] if isinstance(part, int) else vocab.tokenize(part, **parse).tolist()
        return tokens

    def complete(
        self,
        prompt: list[int],
        limit: int,
        likeliest: int,
        forced: list[int],
        *,
        reuse: bool,
        confused: bool,
    ) -> tuple[list[dict[str, int]], dict[str, Any]]:
        """(progress of the prefill, answer) of /completion."""
        vocab, had = self.model.vocab, self._go_back(prompt, reuse, confused)
        logits, progress = self._prefill(prompt, had)
        position, tokens, steps = len(prompt), list[int](), []
        while True:
            tokens.append(forced[len(tokens)] if forced else int(np.argmax(logits)))
            if likeliest:
                steps.append(_step(logits, tokens[-1], likeliest))
            ended = vocab.is_end(tokens[-1])
            if ended or len(tokens) >= (len(forced) or max(limit, 1)):
                break
            logits = self._context.decode(np.array(tokens[-1:], np.int32), position)
            self._held.append(tokens[-1])
            position += 1
        answer = {
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
        return progress, answer

    def _go_back(self, prompt: list[int], reuse: bool, confused: bool) -> int:
        """Put the slot where a checkpoint before the end of the common part is: its tokens."""
        context, held, checkpoints = self._context, self._held, self._checkpoints
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
        return reached

    def _prefill(self, prompt: list[int], had: int) -> tuple[Logits, list[dict[str, int]]]:
        """Decode the rest of the prompt, with a checkpoint before its last tokens."""
        stop, progress = len(prompt) - CHECKPOINT_OFFSET, []
        cuts = sorted({*range(had, len(prompt), PIECE_TOKENS), *([stop] if stop > had else [])})
        for begin, end in zip(cuts, [*cuts[1:], len(prompt)], strict=True):
            if begin == stop:
                self._checkpoint(stop)
            logits = self._context.decode(np.array(prompt[begin:end], np.int32), begin)
            progress.append({"total": len(prompt), "cache": had, "processed": end, "time_ms": 1})
        self._held = list(prompt)
        return logits, progress

    def _checkpoint(self, tokens: int) -> None:
        context, checkpoints = self._context, self._checkpoints
        if tokens in checkpoints:
            return
        if len(checkpoints) == CHECKPOINTS:  # the oldest goes
            context.drop(checkpoints.pop(next(iter(checkpoints))))
        sequences = range(FIRST_CHECKPOINT, FIRST_CHECKPOINT + CHECKPOINTS)
        checkpoints[tokens] = min({*sequences} - {*checkpoints.values()})
        context.fork(SLOT, checkpoints[tokens])


def _step(logits: Logits, token: int, likeliest: int) -> dict[str, Any]:
    wide = logits.astype(np.float64)
    found = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    order = np.argsort(-found)[:likeliest]
    top = [{"id": int(n), "logprob": float(found[n])} for n in order]
    return {"id": token, "logprob": float(found[token]), "top_logprobs": top}


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

    slot: Slot
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
                self.send(302, b"", Location=side.faults.redirect)
            elif side.faults.loading:
                side.faults.loading -= 1
                self.refuse(503, "unavailable_error", "Loading model")
            elif side.faults.unavailable[0]:
                left, words = side.faults.unavailable
                side.faults.unavailable = (left - 1, words)
                self.send(503, words)
            elif side.key is not None and self.headers["Authorization"] != f"Bearer {side.key}":
                self.refuse(401, "authentication_error", "Invalid API Key")
            elif self.path in side.faults.malformed:
                self.send(200, b"<html>")
            elif self.path in side.faults.missing or self.path not in self.answers:
                self.refuse(404, "not_found_error", "File Not Found")
            else:
                self.answers[self.path](self, body)
        if hang_up:
            self.close_connection = True

    def models(self, _body: dict[str, Any]) -> None:
        meta = {"size": self.server_side.facts["size_bytes"]}
        self.send_json(200, {"object": "list", "data": [{"id": "tiny", "meta": meta}]})

    def tokenize(self, body: dict[str, Any]) -> None:
        self.send_json(200, {"tokens": self.server_side.slot.tokenize(**body)})

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
            return None
        if faults.fail:
            return self.refuse(500, "server_error", faults.fail)
        prompt, grammar = body["prompt"], body.get("grammar", "")
        if faults.texts_only:
            prompt = side.slot.tokenize(str(prompt), add_special=True)
        forced = [int(token) for token in re.findall(r"<\[(\d+)\]>", grammar)]
        if grammar and (not forced or faults.no_token_grammars):
            return self.refuse(400, "invalid_request_error", "failed to parse grammar")
        if len(prompt) >= side.context_tokens:
            message = (
                f"request ({len(prompt)} tokens) exceeds the available context size "
                f"({side.context_tokens} tokens), try increasing it"
            )
            return self.refuse(400, "exceed_context_size_error", message)
        progress, result = side.slot.complete(
            prompt,
            body["n_predict"],
            body.get("n_probs", 0),
            forced,
            reuse=body.get("cache_prompt", True) and not faults.forgetful,
            confused=faults.confused,
        )
        for number, step in enumerate(result.get("completion_probabilities", [])):
            if faults.speculative and number:
                step.update(logprob=0.0, top_logprobs=[])
            if faults.underflowed:
                step["top_logprobs"][-1]["logprob"] = LOWEST_FLOAT
            if faults.certain:
                for candidate in step["top_logprobs"]:
                    candidate["logprob"] = 0.0
        side.served.append(Served(prompt, result["timings"]["prompt_n"], body))
        wanted = body.get("response_fields") or list(result)
        if body.get("stream"):
            return self.stream(progress if body.get("return_progress") else [], result, wanted)
        return self.send_json(200, {name: result[name] for name in wanted if name in result})

    def stream(
        self, progress: list[dict[str, int]], result: dict[str, Any], wanted: list[str]
    ) -> None:
        """All tokens in one event of their own, and then what they took."""
        told = ("content", "tokens", "completion_probabilities")
        events = [{"content": "", "stop": False, "prompt_progress": done} for done in progress]
        events.append({name: result[name] for name in told if name in result} | {"stop": False})
        last = result | {"content": "", "tokens": []}
        last.pop("completion_probabilities", None)
        events.append({name: last[name] for name in wanted if name in last})
        cut = self.server_side.faults.cut_streams
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.send_chunk(b":\n\n")  # a ping
        for event in events[:1] if cut else events:
            self.send_chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        if cut:
            self.close_connection = True
        else:
            self.send_chunk(b"")

    def send_chunk(self, raw: bytes) -> None:
        self.wfile.write(b"%x\r\n" % len(raw) + raw + b"\r\n")

    def refuse(self, status: int, kind: str, message: str) -> None:
        self.send_json(status, {"error": {"code": status, "message": message, "type": kind}})

    def send_json(self, status: int, content: dict[str, Any]) -> None:
        self.send(status, json.dumps(content).encode(), "application/json; charset=utf-8")

    def send(self, status: int, raw: bytes, kind: str = "text/html", **headers: str) -> None:
        self.send_response(status)
        sizes = {"Content-Type": kind, "Content-Length": str(len(raw))}
        for name, value in (sizes | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    answers: ClassVar[dict[str, Callable[[_Handler, dict[str, Any]], None]]] = {
        "/props": props,
        "/v1/models": models,
        "/tokenize": tokenize,
        "/completion": complete,
    }


@contextmanager
def llama_server(model: Path, context_tokens: int) -> Iterator[LoopbackServer]:
    """Serve `model` with a slot of `context_tokens`."""
    slot = Slot(model, context_tokens)
    try:
        side = LoopbackServer(slot, slot.facts, context_tokens)
        handler = type("Handler", (_Handler,), {"server_side": side})
        with serving(handler) as side.address:
            yield side
    finally:
        slot.close()
