"""The client of the Hub over real HTTP, against a hub on loopback that also misbehaves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from loopback_hub import COMMIT, GOOD_TOKEN, Fault, LoopbackHub, commit_of, hub
from serving import serving

from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.hub.reading import Hub, HubFile, Listing

SIZE = 3_000_000
WEIGHTS = "model.safetensors"
DATASET = "datasets/someone/talks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / WEIGHTS).write_bytes(os.urandom(SIZE))
    (repository / "config.json").write_text("{}")
    return repository


@pytest.fixture
def loopback(folder: Path) -> Iterator[LoopbackHub]:
    from huggingface_hub import close_session

    repositories = {"someone/demo": {"main": folder, "v2": folder}, DATASET: folder}
    with hub(repositories, cards={DATASET: {"license": ["mit", "cc0-1.0"]}}) as served:
        yield served
    close_session()


def client(loopback: LoopbackHub, **settings: object) -> Hub:
    """A client that waits in milliseconds where the real one waits in seconds."""
    defaults: dict[str, object] = {"token": False, "timeout_s": 30, "delays_s": (0.01,) * 3}
    return Hub(loopback.address, **(defaults | settings))  # type: ignore[arg-type]


def weights(loopback: LoopbackHub, **settings: object) -> tuple[Hub, Listing, HubFile]:
    reader = client(loopback, **settings)
    listing = reader.listing("someone/demo")
    return reader, listing, next(file for file in listing.files if file.name == WEIGHTS)


def test_listing_has_the_commit_and_every_size_and_hash(
    loopback: LoopbackHub, folder: Path
) -> None:
    listing = client(loopback).listing("SomeOne/Demo")
    assert (listing.repository, listing.commit) == ("someone/demo", COMMIT)
    content = (folder / WEIGHTS).read_bytes()
    large, small = sorted(listing.files, key=lambda file: -file.size_bytes)
    assert (large.name, large.size_bytes) == (WEIGHTS, SIZE)
    assert large.identity == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert small == HubFile("config.json", 2, None, hashlib.sha1(b"blob 2\0{}").hexdigest())
    assert client(loopback).listing("someone/demo", "v2").commit == commit_of("v2")


def test_a_dataset_is_listed_and_read_at_its_own_addresses(
    loopback: LoopbackHub, folder: Path
) -> None:
    reader = client(loopback)
    listing = reader.listing("someone/talks", kind="dataset")
    assert (listing.repository, listing.kind) == ("someone/talks", "dataset")
    assert (listing.commit, listing.licence) == (COMMIT, "mit, cc0-1.0")
    assert reader.listing("someone/demo").licence is None
    for file in listing.files:
        assert b"".join(reader.read(listing, file)) == (folder / file.name).read_bytes()
    for name, kind in (("someone/talks", "model"), ("someone/demo", "dataset")):
        with pytest.raises(InputError, match=f"no (repository|dataset) {name} for you"):
            reader.listing(name, kind=kind)  # type: ignore[arg-type]


def test_what_is_refused_of_a_dataset_is_called_one(loopback: LoopbackHub) -> None:
    reader = client(loopback, delays_s=())
    page = f"{loopback.address}/datasets/someone/talks"
    with pytest.raises(InputError, match=f"the dataset someone/talks has no rev.*{page}/tree/main"):
        reader.listing("someone/talks", "v9", kind="dataset")
    loopback.api_faults = [500, 403]
    with pytest.raises(EnvironmentFault, match="the dataset someone/talks"):
        reader.listing("someone/talks", kind="dataset")
    with pytest.raises(InputError, match=r"the dataset someone/talks \(403.*permissions of your"):
        reader.listing("someone/talks", kind="dataset")


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, None), (1_234_567, None), (0, 8), (100_000, 900_000), (SIZE - 5, SIZE + 5)],
)
def test_bytes_from_any_position(
    start: int, stop: int | None, loopback: LoopbackHub, folder: Path
) -> None:
    reader, listing, file = weights(loopback)
    content = (folder / WEIGHTS).read_bytes()[start:stop]
    assert b"".join(reader.read(listing, file, start, stop=stop)) == content
    assert [(s.start, s.stop) for s in loopback.served] == [(start, start + len(content))]


def test_no_bytes_are_not_asked_for_and_faults_move_no_end(
    loopback: LoopbackHub, folder: Path
) -> None:
    reader, listing, file = weights(loopback)
    assert b"".join(reader.read(listing, file, SIZE)) == b""
    assert b"".join(reader.read(listing, file, 50, stop=50)) == b""
    assert loopback.served == []
    loopback.faults[WEIGHTS] = [Fault(cut_after=300_000), Fault(status=503)]
    content = (folder / WEIGHTS).read_bytes()[100_000:900_000]
    assert b"".join(reader.read(listing, file, 100_000, stop=900_000)) == content
    first, second = loopback.served  # what came before a fault is not served again
    assert (first.start, second.stop) == (100_000, 900_000)
    assert second.start > 200_000


def test_the_commit_of_a_revision(loopback: LoopbackHub) -> None:
    assert client(loopback).commit("someone/demo") == COMMIT
    assert client(loopback).commit("someone/demo", "v2") == commit_of("v2")
    assert (loopback.asked, loopback.served) == (2, [])
    with pytest.raises(InputError, match="no revision 'v9'"):
        client(loopback).commit("someone/demo", "v9")
    said: list[str] = []
    loopback.api_faults = [503, 503]
    assert client(loopback).commit("someone/demo", None, said.append) == COMMIT
    assert len(said) == 2
    loopback.api_faults = [503, 503]
    with pytest.raises(EnvironmentFault, match="HTTP 503"):
        client(loopback).commit("someone/demo", None, said.append, at_once=True)
    assert (len(said), loopback.api_faults) == (2, [503])


def test_a_commit_that_is_none_is_refused(
    loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes the name of a folder."""
    monkeypatch.setattr("loopback_hub.COMMIT", "../../elsewhere")
    for ask in (client(loopback).commit, client(loopback).listing):
        with pytest.raises(EnvironmentFault, match=r"'\.\./\.\./elsewhere'"):
            ask("someone/demo")


def test_very_large_files_are_asked_for_in_parts(loopback: LoopbackHub, folder: Path) -> None:
    reader = client(loopback)
    reader.request_bytes = 1_000_000
    listing = reader.listing("someone/demo")
    file = next(file for file in listing.files if file.name == WEIGHTS)
    assert b"".join(reader.read(listing, file)) == (folder / WEIGHTS).read_bytes()
    assert [(s.start, s.stop) for s in loopback.served] == [
        (0, 1_000_000), (1_000_000, 2_000_000), (2_000_000, SIZE)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=500)] * 2,
        [Fault(status=429), Fault(status=503)],
        [Fault(cut_after=1_500_000), Fault(cut_after=400_000), Fault(cut_after=400_000)],
        [Fault(stall_after=1_500_000)],
        [Fault(cut_after=0)] * 3,
        [Fault(cut_after=150_000)] * 12,
        [Fault(cut_after=1_500_000), Fault(ignore_range=True)],
        [Fault(status=408), Fault(status=416)],
        [Fault(cut_after=1_500_000), Fault(claimed_start=7)],
        [Fault(cut_after=1_500_000), Fault(extra_bytes=1000)],
        [Fault(cut_after=1_500_000), Fault(status=403), Fault(status=410)],
        [Fault(status=401), Fault(status=404), Fault(status=400)],
    ],
    ids=[
        "500", "429", "cut short", "stalled", "closed at once", "crumbs", "no ranges",
        "408 and 416", "wrong range", "more than asked for", "address expired", "address refused",
    ],
)  # fmt: skip
def test_faults_of_the_network_are_got_over(
    faults: list[Fault], loopback: LoopbackHub, folder: Path
) -> None:
    stalled = any(fault.stall_after is not None for fault in faults)
    reader, listing, file = weights(loopback, timeout_s=0.5 if stalled else 30)
    loopback.faults[WEIGHTS] = list(faults)
    assert b"".join(reader.read(listing, file)) == (folder / WEIGHTS).read_bytes()
    assert not loopback.faults[WEIGHTS]


def test_a_busy_hub_is_asked_again_for_small_files_too(loopback: LoopbackHub) -> None:
    reader = client(loopback)
    listing = reader.listing("someone/demo")
    loopback.faults["config.json"] = [Fault(status=408), Fault(status=416), Fault(status=429)]
    assert b"".join(reader.read(listing, listing.files[0])) == b"{}"


@pytest.mark.parametrize(
    ("fault", "words"),
    [(Fault(status=500), "HTTP 500"), (Fault(cut_after=0), "disconnected|closed|peer")],
)
def test_faults_that_stay_are_faults_of_the_machine(
    fault: Fault, words: str, loopback: LoopbackHub
) -> None:
    reader, listing, file = weights(loopback)
    loopback.always[WEIGHTS] = fault
    with pytest.raises(EnvironmentFault, match=f"(?i)({words})"):
        b"".join(reader.read(listing, file))


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_content_network_that_refuses_is_not_the_tokens_fault(
    status: int, loopback: LoopbackHub
) -> None:
    reader, listing, file = weights(loopback)
    loopback.always[WEIGHTS] = Fault(status=status)
    said: list[str] = []
    words = rf"the content network refused \({status}\) {loopback.large_address}/large"
    with pytest.raises(EnvironmentFault, match=words) as caught:
        b"".join(reader.read(listing, file, 0, said.append))
    assert len(said) == 3  # each time with a new address
    assert "token" not in str(caught.value)
    assert "signature" not in str(caught.value)
    loopback.always[WEIGHTS] = Fault(status=403, at_hub=True)
    with pytest.raises(InputError, match="permissions of your token"):
        b"".join(reader.read(listing, file, 0, said.append))
    assert len(said) == 3  # the Hub knows what it refuses


def test_the_hub_is_waited_for_as_long_as_it_asks(
    loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    reader, listing, file = weights(loopback)
    monkeypatch.setattr("quantkit.hub.connection.time.sleep", waited.append)
    loopback.api_faults = [Fault(429, limited_s=260), Fault(429, retry_after_s=9), Fault(503)]
    assert reader.listing("someone/demo").commit == COMMIT
    assert waited == [261, 9, 0.01]
    waited.clear()
    said: list[str] = []
    loopback.faults[WEIGHTS] = [Fault(429, limited_s=40), Fault(429, limited_s=4000), Fault(502)]
    assert sum(len(piece) for piece in reader.read(listing, file, 0, said.append)) == SIZE
    assert waited == [41, 300, 0.01]
    assert said == [
        f"{WEIGHTS}: HTTP 429; trying again in 41 s",
        f"{WEIGHTS}: HTTP 429; trying again in 300 s",
        f"{WEIGHTS}: HTTP 502; trying again in 0.01 s",
    ]
    loopback.always[WEIGHTS] = Fault(429, limited_s=0)
    with pytest.raises(EnvironmentFault, match=r"429.*log in"):
        b"".join(reader.read(listing, file))


@pytest.mark.parametrize("token", ["hf_S\xe9cret", "hf_S\x01cret", "hf_S cret", "hf_S\u20accret"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    token: str, loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for given in (None, token):
        with pytest.raises(InputError, match="copy it again") as caught:
            client(loopback, token=given)
        assert "cret" not in str(caught.value)


def test_no_message_holds_the_token(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.echo_token = True
    for fault in (401, 403, 404, 400, 429, 500):
        reader = client(loopback, token=GOOD_TOKEN, delays_s=())
        loopback.api_faults = [fault]
        with pytest.raises(QuantkitError) as caught:
            reader.listing("someone/demo")
        assert GOOD_TOKEN not in str(caught.value)
    assert not loopback.api_faults

    def fail(*arguments: object, **named: object) -> None:
        raise ValueError(f"Bearer {GOOD_TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(EnvironmentFault, match="ValueError"):
        reader.listing("someone/demo")


@pytest.mark.parametrize("address", ["http://host:abc", "huggingface.co", "http://", "ftp://hub"])
def test_an_endpoint_that_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="address of a hub"):
        Hub(address)
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        Hub()


def test_the_api_is_not_asked_for_ever(loopback: LoopbackHub) -> None:
    loopback.api_faults = [500] * 4
    with pytest.raises(EnvironmentFault, match="HTTP 500"):
        client(loopback).listing("someone/demo")


def test_a_token_goes_to_the_hub_and_not_to_where_large_files_are(loopback: LoopbackHub) -> None:
    loopback.private = {"someone/demo"}
    reader = client(loopback, token=GOOD_TOKEN)
    listing = reader.listing("someone/demo")
    for file in listing.files:
        assert len(b"".join(reader.read(listing, file))) == file.size_bytes


@pytest.mark.parametrize(
    ("repository", "revision", "token", "words"),
    [
        ("someone/nothing", None, False, "no repository someone/nothing for you.*hf auth login"),
        ("someone/nothing", None, GOOD_TOKEN, "no repository someone/nothing.*needs access"),
        ("someone/private", None, False, "no repository someone/private.*if it is private"),
        ("someone/demo", "v9", False, "no revision 'v9'; its branches and tags are at http"),
        ("someone/demo", None, "hf_old", "refuses your access token.*expired.*settings/tokens"),
        ("not a name", None, False, "'not a name'.*OWNER/NAME"),
        ("https://hub/someone/demo", None, False, "OWNER/NAME"),
    ],
)
def test_refusals_say_what_to_do(
    repository: str, revision: str | None, token: str | bool, words: str, loopback: LoopbackHub
) -> None:
    loopback.repos["someone/private"] = loopback.repos["someone/demo"]
    loopback.private = {"someone/private"}
    with pytest.raises(InputError, match=words):
        client(loopback, token=token).listing(repository, revision)


@pytest.mark.parametrize(
    ("token", "words"),
    [(False, ": accept its terms at http.*hf auth login"), (GOOD_TOKEN, "may still have to agree")],
)
def test_a_gated_repository_says_where_its_terms_are(
    token: str | bool, words: str, loopback: LoopbackHub
) -> None:
    loopback.gated = {"someone/demo"}
    reader = client(loopback, token=token)
    listing = reader.listing("someone/demo")
    for file in listing.files:
        with pytest.raises(InputError, match=f"someone/demo is gated.*{words}"):
            b"".join(reader.read(listing, file))


def test_a_file_that_is_listed_and_not_there(loopback: LoopbackHub, folder: Path) -> None:
    reader, listing, file = weights(loopback)
    (folder / WEIGHTS).unlink()
    with pytest.raises(EnvironmentFault, match=r"lists a file.*does not have"):
        b"".join(reader.read(listing, file))


def test_an_answer_that_is_no_record() -> None:
    """A login page of a hotel's network answers everything with 200."""

    class LoginPage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *arguments: object) -> None:
            pass

    with (
        serving(LoginPage) as address,
        pytest.raises(EnvironmentFault, match="whether the network wants a login"),
    ):
        Hub(address, token=False).listing("someone/demo")


def test_no_network_is_a_fault_of_the_machine() -> None:
    reader = Hub("http://127.0.0.1:9", token=False, delays_s=())
    with pytest.raises(EnvironmentFault, match=r"someone/demo.*network"):
        reader.listing("someone/demo")


def test_offline_mode_is_named(loopback: LoopbackHub) -> None:
    code = (
        "import sys; from quantkit.hub.reading import Hub\n"
        "try: Hub(token=False).listing('someone/demo')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    settings = {"HF_ENDPOINT": loopback.address, "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True
    )
    assert finished.stdout.startswith("EnvironmentFault"), finished.stderr
    assert "unset it" in finished.stdout
