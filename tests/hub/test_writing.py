"""Writing to the Hub through the real client, to a hub on loopback that also misbehaves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import GOOD_TOKEN, READ_TOKEN, Fault, LoopbackHub, hub

from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.hub.connection import Connection
from quantkit.hub.errors import ConflictError
from quantkit.hub.writing import (
    UPLOADED_FIRST_BYTES,
    HubWriter,
    LocalFile,
    Upload,
    local_file,
)

# how the client 2.4 hands a file to httpx2
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")

REPOSITORY = "someone/model-GGUF"
BATCH = ("POST", r"/objects/batch")
COMMIT = ("POST", r"/commit/main")
PUT = ("PUT", "")


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # the client's own waits between attempts
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with hub({}, storage=tmp_path / "hub") as served:
        served.write(REPOSITORY, {"notes.txt": b"somebody's"})
        yield served
    close_session()


def connection(loopback: LoopbackHub, token: str | bool = GOOD_TOKEN) -> Connection:
    return Connection(loopback.address, token, timeout_s=2, delays_s=(0.01,) * 3)


def writer(loopback: LoopbackHub, token: str | bool = GOOD_TOKEN) -> HubWriter:
    return HubWriter(connection(loopback, token))


def local(folder: Path, name: str, content: bytes) -> LocalFile:
    path = folder / name.replace("/", "_")
    path.write_bytes(content)
    return local_file(name, path, len(content), hashlib.sha256(content).hexdigest())


def files(folder: Path) -> list[LocalFile]:
    return [
        local(folder, "model.gguf", b"GGUF" + os.urandom(UPLOADED_FIRST_BYTES)),
        local(folder, "levels/Q4/heatmap.png", b"\x89PNG\0" + os.urandom(5_000)),
        local(folder, "README.md", b"---\nlicense: mit\n---\n# words\n"),
    ]


def upload(loopback: LoopbackHub, *, propose: bool = False) -> Upload:
    reader = connection(loopback)
    HubWriter(reader)  # sets the client's timeout
    return Upload(reader, REPOSITORY, "main", propose)


def head(loopback: LoopbackHub) -> str:
    return loopback.repository(REPOSITORY).branches["main"].id


def test_large_files_go_first_and_a_commit_shows_all(loopback: LoopbackHub, tmp_path: Path) -> None:
    sent, before = files(tmp_path), head(loopback)
    doing = upload(loopback)
    doing.send(sent)
    assert head(loopback) == before  # nothing is to be seen yet
    assert loopback.received[sent[0].sha256] == sent[0].size_bytes
    made = doing.commit(["notes.txt"], before, "a title", "a text")
    commit = loopback.commit(REPOSITORY)
    assert commit is not None
    assert made.commit == commit.id == head(loopback)
    assert (commit.title, commit.parent and commit.parent.id) == ("a title", before)
    assert set(commit.names()) == {file.name for file in sent} | {".gitattributes"}
    for file in sent:
        assert (commit.folder / file.name).read_bytes() == file.path.read_bytes()


def test_what_is_there_is_not_sent_again(loopback: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    upload(loopback).send(sent)  # killed before its commit
    doing = upload(loopback)
    doing.send(sent)
    doing.commit([], head(loopback), "t", "")
    assert loopback.received[sent[0].sha256] == sent[0].size_bytes


def test_parts_that_fail_are_sent_again(loopback: LoopbackHub, tmp_path: Path) -> None:
    loopback.part_bytes = 400_000
    loopback.upload_faults[PUT] = [Fault(), 503, Fault(cut_after=50_000), 500]
    sent = files(tmp_path)[:1]
    doing = upload(loopback)
    doing.send(sent)
    made = doing.commit([], head(loopback), "t", "")
    commit = loopback.commit(REPOSITORY, made.commit)
    assert commit is not None
    assert (commit.folder / "model.gguf").read_bytes() == sent[0].path.read_bytes()


def test_a_pull_request_is_opened_and_found_again(loopback: LoopbackHub, tmp_path: Path) -> None:
    before = head(loopback)
    assert writer(loopback).proposal(REPOSITORY, "a title", "someone") is None
    doing = upload(loopback, propose=True)
    doing.send(files(tmp_path))
    made = doing.commit([], before, "a title", "")
    assert head(loopback) == before
    assert made.proposal == "refs/pr/1"
    assert writer(loopback).proposal(REPOSITORY, "a title", "someone") == "refs/pr/1"
    assert writer(loopback).proposal(REPOSITORY, "a title", "another") is None
    assert writer(loopback).proposal(REPOSITORY, "another title", "someone") is None


def test_a_repository_and_a_branch_are_made_once(loopback: LoopbackHub) -> None:
    for _ in range(2):
        writer(loopback).create("someone/new-GGUF", private=True)
        writer(loopback).create_branch("someone/new-GGUF", "next")
    assert set(loopback.repository("someone/new-GGUF").branches) == {"main", "next"}
    assert "someone/new-GGUF" in loopback.private


def test_the_account_of_a_token(loopback: LoopbackHub) -> None:
    account = writer(loopback).account()
    assert (account.name, account.reads_only) == ("someone", False)
    assert "lab" in account.organizations
    assert writer(loopback, READ_TOKEN).account().reads_only
    with pytest.raises(InputError, match="HF_TOKEN"):
        writer(loopback, False).account()
    with pytest.raises(InputError, match=r"\(401\)"):
        writer(loopback, "hf_wrong").account()


def test_somebody_s_commit_before_ours_is_a_conflict(loopback: LoopbackHub, tmp_path: Path) -> None:
    doing, before = upload(loopback), head(loopback)
    doing.send(files(tmp_path))
    loopback.write(REPOSITORY, {"notes.txt": b"changed"})
    with pytest.raises(ConflictError, match=REPOSITORY):
        doing.commit([], before, "t", "")


@pytest.mark.parametrize(
    ("where", "fault", "kind", "words"),
    [
        (BATCH, Fault(403, "Private repository storage limit reached, please upgrade"),
         InputError, r"storage limit reached.*settings/billing"),
        (BATCH, Fault(402, "Payment required"), InputError, "Payment required"),
        (COMMIT, Fault(403, "Forbidden: pass a token with write scope"), InputError,
         r"someone/model-GGUF \(403: Forbidden.*write access to someone"),
        (COMMIT, Fault(401), InputError, "settings/tokens"),
        (COMMIT, Fault(404, "Repository not found", "RepoNotFound"), InputError,
         "no repository someone/model-GGUF"),
        (COMMIT, Fault(409, "Another commit is in progress"), EnvironmentFault,
         r"\(409: Another commit"),
        (COMMIT, Fault(413, "Payload too large"), EnvironmentFault, "--levels"),
        (COMMIT, Fault(429), EnvironmentFault, "429"),
        (COMMIT, Fault(500, "Internal"), EnvironmentFault,
         r"someone/model-GGUF .*\(HTTP 500"),
        (COMMIT, Fault(cut_after=10), EnvironmentFault, "failed"),
    ],
)  # fmt: skip
def test_each_refusal_is_told_in_its_own_words(
    loopback: LoopbackHub,
    tmp_path: Path,
    where: tuple[str, str],
    fault: Fault,
    kind: type[QuantkitError],
    words: str,
) -> None:
    doing = upload(loopback)
    loopback.upload_faults[where] = [fault] * 20
    before = head(loopback)
    with pytest.raises(kind, match=words) as told:  # noqa: PT012 - any step may be refused
        doing.send(files(tmp_path))
        doing.commit([], before, "t", "")
    assert GOOD_TOKEN not in str(told.value)
    assert head(loopback) == before


def test_a_file_that_changes_meanwhile_is_told(loopback: LoopbackHub, tmp_path: Path) -> None:
    sent = files(tmp_path)
    sent[0].path.write_bytes(b"GGUF shorter")
    with pytest.raises(EnvironmentFault, match=r"model\.gguf changed"):
        upload(loopback).send(sent)


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(
    loopback: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("quantkit.hub.writing.SILENCE_S", 0.3)
    close_session()
    doing = upload(loopback)
    doing.send(files(tmp_path))
    loopback.upload_faults[COMMIT] = [Fault(stall_after=10)]
    with pytest.raises(EnvironmentFault, match="timed out"):
        doing.commit([], head(loopback), "t", "")
