"""Answers that no hub gives: each ends in an error of ours, in bounded time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import hostile_server as hostile
import pytest
from hostile_server import Hostile, answering

from quantkit.core import answers_of_servers
from quantkit.core.errors import EnvironmentFault, QuantkitError
from quantkit.hub import connection, reading
from quantkit.hub.connection import Connection
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.hub.writing import HubWriter

FILE = {"rfilename": "a.safetensors", "size": 9, "blobId": "1" * 40}
RECORD: dict[str, Any] = {"id": "someone/demo", "sha": "0" * 40, "siblings": [FILE]}
LISTED = Listing("someone/demo", "0" * 40, (HubFile("a", 1 << 40, "0" * 64, None),))
SENT = 64 << 20


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import close_session

    for module in (answers_of_servers, reading):
        monkeypatch.setattr(module, "RATE_SECONDS", 0.2)
    monkeypatch.setattr(connection, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(connection, "MOST_SECONDS", 0.5)
    yield
    close_session()


def client(address: str) -> Hub:
    return Hub(address, token=False, timeout_s=5, delays_s=(0.01,) * 2)


def ends(act: Callable[[], object]) -> str:
    """The words of the error that `act` ends in, soon."""
    began = time.monotonic()
    with pytest.raises(QuantkitError) as caught:
        act()
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_as_it_should_be() -> None:
    with answering(hostile.content(RECORD)) as address:
        listing = client(address).listing("someone/demo")
    assert listing.files == (HubFile("a.safetensors", 9, None, "1" * 40),)


OTHERS: dict[str, object] = {
    "HTML": b"<html>log in</html>", "nothing": b"", "list": [RECORD], "number": 3, "null": None,
    "text": "x", "error": {"error": "no"}, "cut": b'{"id": "a/b", "sha"',
    "deep": b"[" * 9999, "latin": b'{"id": "\xe9"}',
} | {
    f"{key}={value!r}": RECORD | {key: value}
    for key, values in {
        "id": (3, "a/b\nc", "../x", ["a"], "a/b/c", "x" * 9 + "\u202e"),
        "sha": (None, 3, "../..", "0" * 41, ["0"]),
        "siblings": (3, [3], {"a": 1}, [[]], "x", [FILE, FILE]),
        "lastModified": (3, "no date"),
        "cardData": (3, [1], "x"),
    }.items()
    for value in values
} | {
    f"file {change!r}": RECORD | {"siblings": [FILE | change]}
    for change in (
        {"rfilename": 3}, {"rfilename": ""}, {"rfilename": None}, {"rfilename": ["a"]},
        {"size": "9"}, {"size": -1}, {"size": 1.5}, {"size": True}, {"size": None},
        {"size": 10**30}, {"blobId": 3}, {"blobId": "../../x"}, {"blobId": None}, {"lfs": 3},
        {"lfs": {"size": 9, "sha256": "../../x", "pointerSize": 1}},
        {"lfs": {"size": "9", "sha256": "0" * 64, "pointerSize": 1}},
    )
}  # fmt: skip
HARMLESS = ("cardData=", "lastModified=")


@pytest.mark.parametrize("kind", OTHERS)
def test_records_of_other_kinds(kind: str) -> None:
    with answering(hostile.content(OTHERS[kind])) as address:
        reader = client(address)
        if kind.startswith(HARMLESS):  # what is not read may be taken or refused
            try:
                assert reader.listing("someone/demo").commit == "0" * 40
            except EnvironmentFault:
                pass
            return
        ends(lambda: reader.listing("someone/demo"))


FLOODS: dict[str, Callable[[], Hostile]] = {
    "endless": hostile.endless, "bomb": hostile.bomb, "around": hostile.around,
    "slow": lambda: hostile.slow(0.02), "too short": hostile.too_short,
    "steady, and long": lambda: hostile.slow(0.01, b" " * 100),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "status"), [*((kind, 200) for kind in FLOODS), ("endless", 404), ("bomb", 503)]
)
def test_answers_without_an_end(kind: str, status: int) -> None:
    answer = FLOODS[kind]()
    if status != 200 and answer.status == 200:
        answer.status = status
    with answering(answer) as address:
        ends(lambda: client(address).listing("someone/demo"))
        assert answer.sent_bytes < SENT


@pytest.mark.parametrize(
    ("kind", "status"), [("bomb", 200), ("bomb", 206), ("around", 302), ("slow", 206)]
)
def test_files_that_do_not_come(kind: str, status: int) -> None:
    answer = FLOODS[kind]()
    if answer.status == 200:
        answer.status = status
        answer.headers = {**answer.headers, "Content-Range": f"bytes 0-{(1 << 40) - 1}/*"}
    with answering(answer) as address:
        reader, came = client(address), 0

        def read() -> None:
            nonlocal came
            for piece in reader.read(LISTED, LISTED.files[0]):
                came += len(piece)

        ends(read)
        assert came < 1000
        assert answer.sent_bytes < SENT


def test_a_file_is_no_longer_than_its_record() -> None:
    short = HubFile("a", 1000, "0" * 64, None)
    answer = hostile.endless()
    with answering(answer) as address:
        assert len(b"".join(client(address).read(LISTED, short))) == 1000
        assert answer.sent_bytes < SENT


WRITES: dict[str, Callable[[HubWriter], object]] = {
    "account": lambda hub: hub.account(),
    "create": lambda hub: hub.create("someone/demo", private=True),
    "branch": lambda hub: hub.create_branch("someone/demo", "b"),
    "branches": lambda hub: hub.branches("someone/demo"),
    "proposal": lambda hub: hub.proposal("someone/demo", "title", "someone"),
    "card": lambda hub: hub.check_card("someone/demo", "text"),
}


@pytest.mark.parametrize("request_", WRITES)
@pytest.mark.parametrize("kind", ["endless", "bomb", "HTML", "list", "number", "null", "error"])
def test_requests_of_publishing(request_: str, kind: str) -> None:
    answer = FLOODS[kind]() if kind in FLOODS else hostile.content(OTHERS[kind])
    with answering(answer) as address:
        writer = HubWriter(Connection(address, "hf_x", delays_s=(0.01,)))
        if kind not in FLOODS and request_ in ("create", "branch", "card"):
            try:  # what they answer is not read where the status is 200
                WRITES[request_](writer)
            except QuantkitError:
                pass
            return
        ends(lambda: WRITES[request_](writer))
        assert answer.sent_bytes < SENT


def test_discussions_without_an_end() -> None:
    one = {
        "num": 1, "title": "other", "status": "open", "author": {"name": "someone"},
        "createdAt": "2026-01-01T00:00:00.000Z", "isPullRequest": True,
        "repo": {"name": "someone/demo", "type": "model"},
    }  # fmt: skip
    answer = hostile.content({"discussions": [one] * 50, "count": 10**9, "start": 0})
    with answering(answer) as address:
        writer = HubWriter(Connection(address, "hf_x", delays_s=(0.01,)))
        assert writer.proposal("someone/demo", "title", "someone") is None
        assert len(answer.requests) < 30


def test_what_a_program_itself_asks_of_the_hub_has_no_limit() -> None:
    from huggingface_hub import get_session

    body = b" " * (3 << 20)
    with answering(hostile.content(body)) as address:
        with pytest.raises(QuantkitError):
            client(address).listing("someone/demo")
        assert get_session().get(address).content == body
