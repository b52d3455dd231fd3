"""The client of a llama-server: what it reads, what it is told wrong, and what it says then."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from demo_artifacts import WANTS_BOS, write_demo
from loopback_llama_server import Faults, LoopbackServer, llama_server
from watched import Recorder

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import SILENT, Progress
from quantkit.llamacpp import endpoint
from quantkit.llamacpp.endpoint import API_KEY_VARIABLE, Endpoint, Refused
from quantkit.llamacpp.server import LlamaServer, Props, file_name

CONTEXT_TOKENS = 512


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    model = write_demo(tmp_path_factory.mktemp("served") / "demo.gguf")
    with llama_server(model, CONTEXT_TOKENS) as side:
        yield side


@pytest.fixture
def side(running: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> LoopbackServer:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    monkeypatch.setattr(endpoint, "POLL_SECONDS", 0.01)
    running.recover()
    return running


@pytest.fixture
def server(side: LoopbackServer) -> Iterator[LlamaServer]:
    with LlamaServer(side.address) as client:
        yield client


def props_of(address: str, notes: Progress = SILENT) -> Props:
    with LlamaServer(address, notes) as client:
        return client.props()


def prompt(server: LlamaServer) -> np.ndarray:
    (tokens,) = server.tokenize("The number of the amber lake is 4821. " * 6)
    return tokens


def test_props(server: LlamaServer, side: LoopbackServer) -> None:
    props = server.props()
    assert (props.model, props.context_tokens, props.slots) == ("tiny.gguf", CONTEXT_TOKENS, 1)
    assert props.chat_template is not None
    assert "<|im_start|>" in props.chat_template
    assert props.eos == "<|im_end|>"
    assert props.size_bytes == side.facts["size_bytes"] > 13_000_000


def test_many_texts_are_tokenized_in_one_request(server: LlamaServer, side: LoopbackServer) -> None:
    texts = ["", "one", "<|im_start|>user\n", "two\n\nlines", "", "Ünïcode 🙂", "trailing "]
    found = server.tokenize(*texts)
    assert side.paths == ["/tokenize"]
    assert [tokens.tolist() for tokens in found] == [side.slot.tokenize(text) for text in texts]
    assert len(found[0]) == 0 < len(found[1])
    assert server.tokenize() == ()


def test_first_token(server: LlamaServer, tmp_path: Path) -> None:
    assert server.first_token() is None
    with llama_server(write_demo(tmp_path / "bos.gguf", changes=WANTS_BOS), 256) as other:
        with LlamaServer(other.address) as client:
            first = client.first_token()
        assert first == other.slot.tokenize("x", add_special=True)[0]


def test_a_prefix_is_prefilled_once(server: LlamaServer, side: LoopbackServer) -> None:
    prefix, shares = prompt(server), list[float]()
    first = server.prefill(prefix, shares.append)
    assert first.prefilled_tokens == len(prefix)
    assert shares == sorted(shares)
    assert len(shares) > 2
    assert shares[-1] == 1.0
    tail = prefix[:9]
    answer = server.complete(np.concatenate([prefix, tail]), 4)
    assert answer.prefilled_tokens <= len(tail) + 4
    fresh = server.complete(np.concatenate([prefix, tail]), 4, reuse=False)
    assert fresh.prefilled_tokens == len(prefix) + len(tail)
    assert fresh.tokens == answer.tokens
    assert [one.body["cache_prompt"] for one in side.served] == [True, True, False]
    assert all(one.body["temperature"] == 0 for one in side.served)


def test_forced_tokens_have_their_own_probability(server: LlamaServer) -> None:
    """Token by token as the chain rule has it: p(ab) = p(a) · p(b | a), each asked for alone."""
    tokens = prompt(server)
    forced = server.tokenize("xyz")[0].tolist()
    said = server.complete(tokens, len(forced), likeliest=3, forced=forced)
    assert list(said.tokens) == forced
    for place, step in enumerate(said.steps):
        before = np.concatenate([tokens, np.array(forced[:place], np.int32)])
        alone = server.complete(before, 1, likeliest=5000, reuse=False)
        everything = dict(alone.steps[0].likeliest)
        assert sum(map(math.exp, everything.values())) == pytest.approx(1, abs=1e-6)
        assert step.log_probability == pytest.approx(everything[forced[place]], rel=1e-4)
        assert step.likeliest[0][0] == alone.tokens[0]
        assert step.rank is None  # not among three
    greedy = server.complete(tokens, 2, likeliest=1)
    assert [step.rank for step in greedy.steps] == [1, 1]


def test_what_was_not_computed_is_not_known(server: LlamaServer, side: LoopbackServer) -> None:
    side.faults = Faults(speculative=True)
    first, *others = server.complete(prompt(server), 3, likeliest=2).steps
    assert first.log_probability is not None
    assert [step.log_probability for step in others] == [None, None]
    assert [step.rank for step in others] == [None, None]


def test_the_logarithm_of_0_is_no_number(server: LlamaServer, side: LoopbackServer) -> None:
    tokens = prompt(server)
    whole = server.complete(tokens, 1, likeliest=5).steps[0]
    side.faults = Faults(underflowed=True)
    step = server.complete(tokens, 1, likeliest=5).steps[0]
    assert [token for token, _ in step.likeliest] == [token for token, _ in whole.likeliest[:4]]
    assert (step.rank, len(whole.likeliest)) == (1, 5)


@pytest.mark.parametrize(
    "path", ["/models/sub dir/tiny.gguf", r"C:\models\tiny.gguf", "C:/models/tiny.gguf"]
)
def test_no_folder_of_the_server_is_told(side: LoopbackServer, path: str) -> None:
    side.props = {"model_alias": path}
    assert props_of(side.address).model == file_name(path) == "tiny.gguf"


def test_connections_are_used_again(
    server: LlamaServer, side: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "IDLE_SECONDS", 100.0)
    for _ in range(5):
        server.tokenize("word")
    assert side.connections == 1
    side.faults = Faults(hang_up=True)
    for _ in range(3):
        assert len(server.tokenize("word")[0])
    assert side.connections == 3
    assert len(side.paths) == 8


def test_waits_for_a_model_that_is_being_loaded(
    side: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Recorder()
    side.faults = Faults(loading=3)
    assert props_of(side.address, notes).context_tokens == CONTEXT_TOKENS
    (note,) = notes.notes
    assert "is loading its model (Loading model)" in note
    monkeypatch.setattr(endpoint, "LOADING_SECONDS", 0.05)
    side.faults = Faults(loading=1000)
    with pytest.raises(EnvironmentFault, match="loading its model for 0 minutes"):
        props_of(side.address)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"error":{"code":503,"message":"no slot","type":"unavailable_error"}}', "(no slot)"),
        (b'{"error": "busy"}', "(busy)"),
        (b"<html>\r\n<h1>\x1b[31mBad day</h1>" + b"." * 500, "(<html> <h1> [31mBad day</h1>..."),
        (b"", "(without a message)"),
    ],
)
def test_other_reasons_to_wait(
    side: LoopbackServer, monkeypatch: pytest.MonkeyPatch, said: bytes, words: str
) -> None:
    notes = Recorder()
    side.faults = Faults(unavailable=(2, said))
    assert props_of(side.address, notes).context_tokens == CONTEXT_TOKENS
    (note,) = notes.notes
    assert f"is not available {words}" in note
    assert len(note) < 400
    monkeypatch.setattr(endpoint, "UNAVAILABLE_SECONDS", 0.05)
    side.faults = Faults(unavailable=(100_000, said))
    with pytest.raises(EnvironmentFault, match="503") as given:
        props_of(side.address)
    assert words[1:-1] in str(given.value)


def test_a_proxy_waits_for_a_server_that_loads(
    side: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short wait is for what is not the loading of a model, which takes longer."""
    monkeypatch.setattr(endpoint, "UNAVAILABLE_SECONDS", 0.05)
    notes = Recorder()
    side.faults = Faults(unavailable=(1, b"Bad Gateway"), loading=20)
    assert props_of(side.address, notes).context_tokens == CONTEXT_TOKENS
    loading, gateway = notes.notes
    assert "loading" in loading
    assert "loading" not in gateway
    assert "Bad Gateway" in gateway


def test_key(side: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    side.key = "sesame"
    with pytest.raises(InputError, match=f"{API_KEY_VARIABLE}.*--api-key"):
        props_of(side.address)
    monkeypatch.setenv(API_KEY_VARIABLE, "barley")
    with pytest.raises(InputError) as refused:
        props_of(side.address)
    assert "barley" not in str(refused.value)
    monkeypatch.setenv(API_KEY_VARIABLE, "two\nlines")
    with pytest.raises(InputError, match=API_KEY_VARIABLE):
        props_of(side.address)
    monkeypatch.setenv(API_KEY_VARIABLE, "sesame")
    assert props_of(side.address).slots == 1


def test_proxies_are_not_used(server: LlamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert server.props().slots == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://me:secret@127.0.0.1:8080",
     "http://127.0.0.1:99999", "http://me:secret@h:99999", "http://me:se/cret@h", "http://[::1",
     "http://me:secret@\u2100", "http://a..b:80", f"http://{'a' * 70}:80", "http://h/?key=secret",
     "http://h/#secret", "http://h?", "http://h/a b", "http://h/\u00fc", "http://h\u200b"],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT") as given:
        LlamaServer(address)
    assert "secret" not in str(given.value)
    assert "cret" not in str(given.value)


def test_whether_an_address_is_this_machine() -> None:
    here = ("http://[::1]", "https://[::1]/", "http://localhost", "http://127.8.0.1:0")
    others = (
        "http://[fe80::7]:8080/api",
        "https://b\u00fccher.example",
        "http://localhost.example",
    )
    for address in (*here, *others):
        found = Endpoint(address)
        assert (found.address, found.loopback) == (address.rstrip("/"), address in here)


def test_nobody_answers() -> None:
    for address in (f"http://127.0.0.1:{closed_port()}", "http://[::1]"):
        with pytest.raises(EnvironmentFault, match=rf"{re.escape(address)} cannot be reached"):
            props_of(address)


def test_an_answer_without_an_end(side: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_ANSWER_BYTES", 1 << 20)
    side.props = {"build_info": "b" * (2 << 20)}
    with pytest.raises(InputError, match="1 MiB"):
        props_of(side.address)


@pytest.mark.parametrize(
    ("faults", "props", "message"),
    [
        (Faults(redirect="http://example.invalid/"), {}, "302"),  # is not followed
        (Faults(missing=frozenset({"/props"})), {}, "/props"),
        (Faults(malformed=frozenset({"/props"})), {}, "<html>"),
        (Faults(), {"default_generation_settings": None}, "default_generation_settings"),
        (Faults(), {"role": "router"}, "router"),
    ],
)
def test_other_servers(
    side: LoopbackServer, faults: Faults, props: dict[str, object], message: str
) -> None:
    side.faults, side.props = faults, props
    with pytest.raises(InputError, match=message):
        props_of(side.address)


@pytest.mark.parametrize(
    ("faults", "tokens", "error", "message"),
    [
        (Faults(), CONTEXT_TOKENS, Refused, r"512 tokens.*-c"),
        (Faults(no_token_grammars=True), 9, Refused, "failed to parse grammar"),
        (Faults(fail="Compute error."), 9, EnvironmentFault, "Compute error"),
        (Faults(texts_only=True), 40, InputError, "tokens of a prompt of 40 token ids"),
    ],
)
def test_refusals(
    server: LlamaServer, side: LoopbackServer, faults: Faults, tokens: int,
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    side.faults = faults
    with pytest.raises(error, match=message):
        server.complete(np.full(tokens, 40, np.int32), 2, forced=[40])


def test_a_server_that_stops(server: LlamaServer, side: LoopbackServer) -> None:
    tokens = prompt(server)
    side.faults = Faults(cut_streams=True)
    with pytest.raises(EnvironmentFault, match="are kept"):
        server.prefill(tokens, lambda share: None)
    side.faults = Faults(stop_after=0)
    with pytest.raises(EnvironmentFault, match="start it again"):
        server.complete(tokens, 2)


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
