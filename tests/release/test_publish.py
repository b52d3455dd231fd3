"""Publishing a finished build through the real client, to a hub on loopback that misbehaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finished_builds import change_json, divide, fail, flip, rewrite
from loopback_hub import GOOD_TOKEN, READ_TOKEN, Fault, LoopbackHub, hub

from quantkit.core.console import Console
from quantkit.core.errors import EnvironmentFault, GateError, InputError
from quantkit.hub.reading import Hub
from quantkit.release.publish import Prepared, Published, PublishJob, prepare, send

# how the client 2.4 hands a file to httpx2
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")

TO = "someone/quantkit-demo"
REPOSITORY = f"{TO}-GGUF"
SOURCE = "nvidia/a-model"
CARD = {
    "license": "other", "license_name": "a-licence", "license_link": "LICENSE",
    "language": ["en", "de"], "tags": ["mamba"], "pipeline_tag": "text-generation",
}  # fmt: skip
COMMITS = ("POST", "/commit/")


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("quantkit.hub.connection.DELAYS_S", (0.01, 0.01))
    # of one target: llama.cpp takes seconds for all of them
    monkeypatch.setattr("quantkit.release.publish.targets_of", lambda own: [own])
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    with hub({SOURCE: source}, storage=tmp_path / "hub", cards={SOURCE: CARD}) as served:
        monkeypatch.setattr("quantkit.release.publish.Hub", partial(Hub, served.address))
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        yield served
    close_session()


def ready(build: Path, to: str = TO, **options: Any) -> Prepared:  # noqa: ANN401
    return prepare(PublishJob(build, to, **options), Console(quiet=True))


def publish(build: Path, to: str = TO, **options: Any) -> Published:  # noqa: ANN401
    return send(ready(build, to, **options))


def files_at(loopback: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    commit = loopback.commit(REPOSITORY, revision)
    assert commit is not None
    return {name: (commit.folder / name).read_bytes() for name in commit.names()}


def test_the_release_folder_is_published_once(loopback: LoopbackHub, own: Path) -> None:
    done = publish(own)
    assert done.made
    assert done.address == f"{loopback.address}/{REPOSITORY}"
    there = files_at(loopback)
    here = own / "release"
    names = {p.relative_to(here).as_posix() for p in here.rglob("*") if not p.is_dir()}
    assert names == there.keys() - {".gitattributes"}
    for name in names:
        assert there[name] == (here / name).read_bytes()
    assert {"quantkit-demo-Q8.gguf", "quantkit-demo-Q4.gguf", "README.md", "recipe.yaml"} < names
    assert not any("Q4_0" in name for name in names)  # a baseline
    lines = there["SHA256SUMS"].decode().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    assert sums == {
        name: hashlib.sha256(there[name]).hexdigest() for name in names - {"SHA256SUMS"}
    }
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=here, check=False)
    assert checked.returncode == 0
    manifest = json.loads(there["release.json"])
    assert manifest["levels"]["Q4"]["files"] == ["quantkit-demo-Q4.gguf"]
    assert manifest["levels"]["Q4"]["size_bytes"] == len(there["quantkit-demo-Q4.gguf"])
    received, made = dict(loopback.received), loopback.commits_made
    second = publish(own)
    assert (second.commit, second.made) == (done.commit, False)
    assert (dict(loopback.received), loopback.commits_made) == (received, made)


def test_a_dry_run(loopback: LoopbackHub, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(own / "none"))
    prepared = ready(own, dry_run=True)
    assert prepared.destination.listing is None
    assert len(prepared.changes.sent) == len(prepared.files)
    assert (own / "release" / "README.md").read_text().startswith("---")
    assert not any(request.startswith(("POST", "PUT")) for request in loopback.requests)
    with pytest.raises(InputError, match="settings/tokens"):
        publish(own)


def test_levels_come_one_after_another_and_go_when_asked(loopback: LoopbackHub, own: Path) -> None:
    publish(own, levels=("Q8",))
    assert "quantkit-demo-Q4.gguf" not in files_at(loopback)
    second = ready(own, levels=("Q4",))
    assert [level.name for level in second.levels] == ["Q8", "Q4"]  # Q8 stays on the card
    assert "quantkit-demo-Q8.gguf" in second.changes.kept
    publish(own, levels=("Q4",))
    assert {"quantkit-demo-Q8.gguf", "quantkit-demo-Q4.gguf"} < files_at(loopback).keys()
    fail(own, "Q8")
    with pytest.raises(InputError, match="--replace"):
        publish(own)
    publish(own, replace=True)
    assert not any("Q8" in name for name in files_at(loopback))


def test_a_failed_level_is_published_with_its_failure(loopback: LoopbackHub, own: Path) -> None:
    fail(own, "Q4")
    with pytest.raises(GateError, match="Q4 failed its gate"):
        publish(own, levels=("Q4",))
    assert REPOSITORY not in loopback.written
    publish(own, allow_failed=True)
    there = files_at(loopback)
    assert b"FAILED" in there["README.md"]
    assert json.loads(there["release.json"])["levels"]["Q4"]["passed"] is False


def test_launch_files_find_shards(loopback: LoopbackHub, own: Path, tmp_path: Path) -> None:
    shards = divide(own, "Q4")
    publish(own, levels=("Q4",))
    there = files_at(loopback)
    assert {f"Q4/{shard.name}" for shard in shards} < there.keys()
    folder = tmp_path / "down loaded"
    for name, content in there.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    server = tmp_path / "llama-server"
    server.write_text('#!/bin/sh\ntest -f "$2" && echo "$2"\n')
    server.chmod(0o755)
    script = folder / "levels" / "Q4" / "run-llama-server.sh"
    found = subprocess.run(
        ["sh", script], env={"LLAMA_SERVER": str(server), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert Path(found.stdout.strip()).samefile(folder / "Q4" / shards[0].name)


def test_the_card_says_where_it_comes_from(loopback: LoopbackHub, own: Path) -> None:
    from huggingface_hub import ModelCard

    loopback.gates[SOURCE] = "manual"
    prepared = ready(own, base_model=SOURCE)
    source = prepared.source
    assert (source.repository, source.licence, source.gated) == (SOURCE, "other", "manual")
    card = ModelCard((own / "release" / "README.md").read_text())
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (SOURCE, "quantized")
    assert (data["license"], data["license_name"]) == ("other", "a-licence")
    assert data["license_link"].startswith("https://huggingface.co/nvidia/a-model/blob/")
    assert data["language"] == ["en", "de"]
    assert {"gguf", "mamba"} <= set(data["tags"])
    assert json.loads((own / "release/release.json").read_text())["source"]["repository"] == SOURCE
    loopback.cards[SOURCE] = CARD | {"license": "weird-licence"}  # the Hub refuses it
    with pytest.raises(InputError, match=r"metadata: .*license"):
        publish(own, base_model=SOURCE)
    assert not loopback.received


def test_the_source_s_own_repository_is_refused(loopback: LoopbackHub, own: Path) -> None:
    loopback.accounts[GOOD_TOKEN] = type(loopback.accounts[GOOD_TOKEN])("nvidia")
    with pytest.raises(InputError, match="original model"):
        publish(own, SOURCE, exact_name=True, base_model=SOURCE)


def test_a_pull_request_is_opened_once(loopback: LoopbackHub, own: Path) -> None:
    with pytest.raises(InputError, match="--pr"):
        publish(own, propose=True)
    loopback.write(REPOSITORY, {"notes.txt": b"somebody's"})
    before = loopback.commit(REPOSITORY)
    first = publish(own, levels=("Q8",), propose=True)
    assert (first.made, first.proposal) == (True, "refs/pr/1")
    assert first.address.endswith(f"{REPOSITORY}/discussions/1")
    assert loopback.commit(REPOSITORY) == before
    assert "quantkit-demo-Q8.gguf" in files_at(loopback, "refs/pr/1")
    again = publish(own, levels=("Q8",), propose=True)
    assert (again.made, again.proposal, again.commit) == (False, "refs/pr/1", first.commit)
    more = publish(own, propose=True)  # into the same pull request
    assert (more.made, more.proposal) == (True, "refs/pr/1")
    assert "quantkit-demo-Q4.gguf" in files_at(loopback, "refs/pr/1")


def test_a_branch_is_made_and_found_again(loopback: LoopbackHub, own: Path) -> None:
    first = publish(own, branch="next")
    assert first.address.endswith("/tree/next")
    assert files_at(loopback).keys() == {".gitattributes"}
    assert "quantkit-demo-Q8.gguf" in files_at(loopback, "next")
    assert not publish(own, branch="next").made


def test_private_is_of_new_repositories(loopback: LoopbackHub, own: Path) -> None:
    publish(own, private=True)
    assert REPOSITORY in loopback.private
    assert not publish(own, private=True).made
    received = dict(loopback.received)
    made = Fault(before=lambda: loopback.write("someone/late-GGUF", {}))  # by another
    loopback.upload_faults["POST", "/repos/create"] = [made]
    loopback.write("someone/open-GGUF", {})
    for name in ("open", "late"):
        with pytest.raises(InputError, match="public"):
            publish(own, f"someone/{name}", private=True)
    assert dict(loopback.received) == received


def test_somebody_s_commit_in_between_is_kept(loopback: LoopbackHub, own: Path) -> None:
    loopback.write(REPOSITORY, {"notes.txt": b"one", "README.md": b"---\nlicense: mit\n---\n"})
    between = Fault(before=lambda: loopback.write(REPOSITORY, {"notes.txt": b"two"}))
    loopback.upload_faults[COMMITS] = [between]
    assert publish(own).made
    there = files_at(loopback)
    assert there["notes.txt"] == b"two"
    assert b"quantkit" in there["README.md"]  # in place of a card of metadata only
    assert "quantkit-demo-Q4.gguf" in there
    assert loopback.commits_made == 1


def test_a_lost_answer_is_no_second_commit(loopback: LoopbackHub, own: Path) -> None:
    loopback.upload_faults[COMMITS] = [Fault(500, "lost", afterwards=True)]
    done = publish(own)
    commit = loopback.commit(REPOSITORY)
    assert commit is not None
    assert (done.commit, loopback.commits_made) == (commit.id, 1)


def test_what_the_hub_recorded_is_compared(loopback: LoopbackHub, own: Path) -> None:
    wrong = {"quantkit-demo-Q4.gguf": 64 * "0"}
    loopback.upload_faults[COMMITS] = [Fault(recorded=wrong)]
    with pytest.raises(EnvironmentFault, match=r"quantkit-demo-Q4\.gguf"):
        publish(own)


def test_what_was_uploaded_is_not_sent_again(loopback: LoopbackHub, own: Path) -> None:
    for status, words in ((403, "no"), (400, "your push was rejected because of X")):
        loopback.upload_faults[COMMITS] = [Fault(status, words)]
        with pytest.raises(InputError, match=f"{status}: {words}"):
            publish(own)
    assert files_at(loopback).keys() == {".gitattributes"}  # nothing is to be seen
    received = dict(loopback.received)
    assert received
    assert publish(own).made
    assert dict(loopback.received) == received


@pytest.mark.parametrize(
    ("to", "token", "propose", "words"),
    [
        ("nobody/x", GOOD_TOKEN, False, "nobody: .* lab"),
        (TO, READ_TOKEN, False, "read-only"),
        (TO, READ_TOKEN, True, "read-only"),
        (TO, "hf_wrong", False, "401"),
        ("readers/x", GOOD_TOKEN, False, "readers/x-GGUF .*403"),
    ],
)
def test_who_may_not_publish_is_told_before_an_upload(
    loopback: LoopbackHub,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    token: str,
    propose: bool,
    words: str,
) -> None:
    loopback.write(REPOSITORY, {})
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=words) as told:
        publish(own, to, propose=propose)
    assert token not in str(told.value)
    assert not loopback.received


def test_a_path_of_this_machine_is_not_published(loopback: LoopbackHub, own: Path) -> None:
    path = {"name": f"{own}/text.txt"}
    change_json(own / "calibration.json", lambda content: content["sources"][0].update(path))
    rewrite(own, "report")
    with pytest.raises(InputError, match=r"calibration\.json, line"):
        publish(own)
    assert not loopback.received


@pytest.mark.parametrize("owner", ["lab", "SomeOne"])
def test_an_organization_and_any_spelling(loopback: LoopbackHub, own: Path, owner: str) -> None:
    done = publish(own, f"{owner}/quantkit-demo")
    assert done.address.endswith(f"/{owner.replace('O', 'o').replace('S', 's')}/quantkit-demo-GGUF")
    assert not publish(own, f"{owner}/quantkit-demo").made


def test_a_hub_that_is_away_is_told(loopback: LoopbackHub, own: Path) -> None:
    loopback.api_faults += [Fault(500)] * 20
    loopback.write(REPOSITORY, {})
    with pytest.raises(EnvironmentFault, match="HTTP 500"):
        publish(own)


def test_what_was_checked_is_what_is_sent(loopback: LoopbackHub, own: Path) -> None:
    place = own / "levels" / "Q4" / "niah.jsonl"
    before = place.read_bytes()
    prepared = ready(own)
    loopback.upload_faults["POST", "/preupload/"] = [Fault(before=lambda: flip(place))]
    assert send(prepared).made
    assert files_at(loopback)["levels/Q4/niah.jsonl"] == before


@pytest.mark.parametrize("name", ["niah.jsonl", "quantkit-demo-Q4.gguf"])
def test_a_file_that_changes_before_it_is_sent_is_refused(
    loopback: LoopbackHub, own: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("quantkit.hub.writing.LARGE_BYTES", 3_000_000)  # and the artifact is large
    prepared = ready(own)
    flip(own / "levels" / "Q4" / name)
    with pytest.raises(EnvironmentFault):
        send(prepared)
    assert loopback.commits_made == 0


@pytest.mark.parametrize("link", ["release", "release/levels"])
def test_links_are_refused(loopback: LoopbackHub, own: Path, tmp_path: Path, link: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "disc.iso").write_bytes(b"mine")
    (elsewhere / "SHA256SUMS").write_text(f"{hashlib.sha256(b'mine').hexdigest()}  disc.iso\n")
    (own / link).parent.mkdir(exist_ok=True)
    (own / link).symlink_to(own / "levels" if link != "release" else elsewhere)
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"{link} must be a folder"):
        ready(own, dry_run=True)
    assert {path.name for path in elsewhere.iterdir()} == {"disc.iso", "SHA256SUMS"}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_somebody_put_into_the_release_folder_stays(loopback: LoopbackHub, own: Path) -> None:
    ready(own, dry_run=True)
    mine, card = own / "release" / "mine.txt", own / "release" / "README.md"
    mine.write_text("mine")
    prepared = ready(own, levels=("Q8",), dry_run=True)
    assert "quantkit-demo-Q4.gguf" not in {p.name for p in mine.parent.rglob("*.gguf")}
    assert mine.read_text() == "mine"
    assert "mine.txt" not in {file.name for file in prepared.files}
    card.write_text(card.read_text() + "my own words\n")
    with pytest.raises(InputError, match=r"README\.md was changed"):
        ready(own, dry_run=True)
    assert "my own words" in card.read_text()
    card.unlink()
    (own / "release" / "SHA256SUMS").unlink()  # as a run leaves it that was killed
    ready(own, levels=("Q8",), dry_run=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", b"---\nlicense: mit\n---\nMy words\n---\n"),
        ("README.md", b"My words\n"),
        ("SHA256SUMS", b"-----BEGIN PGP SIGNED MESSAGE-----\n"),
        ("SHA256SUMS", b"0" * 64 + b"  disc.iso\n"),
    ],
)
def test_files_of_others(loopback: LoopbackHub, own: Path, name: str, content: bytes) -> None:
    loopback.write(REPOSITORY, {name: content, "disc.iso": b"theirs"})
    with pytest.raises(InputError, match=name):
        publish(own)
    publish(own, replace=True)
    assert files_at(loopback)["disc.iso"] == b"theirs"  # of another's SHA256SUMS nothing goes
    loopback.write(REPOSITORY, {name: content})  # edited after it was published
    with pytest.raises(InputError, match=name):
        publish(own)


def test_a_record_that_comes_late_is_waited_for(loopback: LoopbackHub, own: Path) -> None:
    late = Fault(404, "Invalid rev id", "RevisionNotFound")
    loopback.upload_faults["GET", r"/revision/[0-9a-f]{40}"] = [late]
    assert publish(own).made
    loopback.upload_faults["GET", r"/revision/[0-9a-f]{40}"] = [late] * 9
    with pytest.raises(EnvironmentFault, match="does not list"):
        publish(own, "someone/another")


def test_a_hub_that_dies_at_the_end_is_told(loopback: LoopbackHub, own: Path) -> None:
    loopback.write(REPOSITORY, {})
    prepared = ready(own)
    loopback.upload_faults[COMMITS] = [Fault(500, "out of order")] * 9
    loopback.upload_faults["GET", ""] = [Fault(500)] * 99
    with pytest.raises(EnvironmentFault, match="out of order"):
        send(prepared)


def test_a_gone_source(
    loopback: LoopbackHub, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nvidia/nowhere", "foo"):  # who names one must know it
        with pytest.raises(InputError, match=name):
            publish(own, base_model=name)
    gone = {"model": "nvidia/gone", "commit": 40 * "a"}
    change_json(own / "checkpoint.json", lambda content: content.update(gone))
    rewrite(own, "checkpoint")
    prepared = prepare(PublishJob(own, TO, dry_run=True), Console())
    assert (prepared.source.repository, prepared.source.licence) == ("nvidia/gone", "apache-2.0")
    assert "no repository nvidia/gone" in capsys.readouterr().out
    with pytest.raises(InputError, match="nvidia/gone"):
        publish(own, base_model=SOURCE)


@pytest.mark.parametrize(
    "branch", ["", "a b", "../x", "refs/heads/main", "refs/pr/3", "HEAD", 40 * "a", "-x", "x.lock"]
)
def test_what_is_no_branch_is_told_first(loopback: LoopbackHub, own: Path, branch: str) -> None:
    with pytest.raises(InputError, match="branch name"):
        publish(own, branch=branch)
    assert not loopback.requests


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(403, "Private repository storage limit reached"), "has no room for"),
        (Fault(403, "Forbidden"), "refuses to let you write to"),
        (Fault(401, "Invalid credentials in Authorization header"), "refuses your access t"),
    ],
)
def test_the_newer_storage_s_refusals_are_told_as_the_others(
    loopback: LoopbackHub,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    words: str,
) -> None:
    """With Xet, which is the default, and asks for a token of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    loopback.upload_faults["GET", "/xet-write-token/"] = [fault]
    with pytest.raises(InputError, match=words):
        publish(own)
