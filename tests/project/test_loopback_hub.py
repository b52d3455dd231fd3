"""The hub of the tests answers as the Hub does, to the client that everybody has."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    close_session,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import COMMIT, GOOD_TOKEN, READ_TOKEN, Account, Fault, LoopbackHub, hub

REPO = "someone/new"
STRANGER = "hf_stranger"
COMMITS = ("POST", "/commit/")
WEIGHTS = b"GGUF" + bytes(range(256)) * 400
CARD = "---\nlicense: other\nlicense_name: open-model\nbase_model: nvidia/base\ntags:\n- imatrix\n"
CARD += "base_model_relation: quantized\nlanguage: en\n---\n# A model\n"

# the client's own way of sending files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield
    close_session()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[LoopbackHub]:
    with hub({}, storage=tmp_path / "hub") as served:
        served.accounts[STRANGER] = Account("stranger")
        yield served


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "levels/Q4").mkdir(parents=True)
    (folder / "model Q4.gguf").write_bytes(WEIGHTS)
    (folder / "imatrix.dat").write_bytes(b"\0" + os.urandom(999))
    (folder / "README.md").write_text(CARD)
    (folder / "levels/Q4/allocation.json").write_text("{}")
    (folder / "empty.bin").write_bytes(b"")
    return folder


def client(served: LoopbackHub, token: str = GOOD_TOKEN) -> HfApi:
    return HfApi(endpoint=served.address, token=token)


def created(served: LoopbackHub, **settings: bool) -> HfApi:
    api = client(served)
    api.create_repo(REPO, **settings)  # type: ignore[arg-type]
    return api


def put(
    api: HfApi,
    content: bytes | Path = WEIGHTS,
    name: str = "a.gguf",
    **settings: Any,  # noqa: ANN401 - the client's own
) -> str:
    """Upload one file; the commit."""
    made = api.upload_file(
        path_or_fileobj=content,
        path_in_repo=name,
        repo_id=REPO,
        **settings,
    )
    return str(made.oid)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_new_repository_is_its_owners(served: LoopbackHub) -> None:
    api = created(served, private=True)
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert api.model_info(REPO).private
    with pytest.raises(HfHubHTTPError, match="409") as caught:
        api.create_repo(REPO)
    assert "already created this model repo" in str(caught.value)
    assert str(api.create_repo("someone/NEW", exist_ok=True)) == f"{served.address}/{REPO}"
    with pytest.raises(RepositoryNotFoundError):
        client(served, STRANGER).model_info(REPO)
    assert httpx2.get(f"{served.address}/api/models/{REPO}").status_code == 401
    assert client(served, READ_TOKEN).model_info(REPO).sha == api.model_info(REPO).sha
    api.create_repo("lab/shared")
    assert not client(served, STRANGER).model_info("lab/shared").private
    api.create_repo("someone/rows", repo_type="dataset")
    rows = [CommitOperationAdd("a.json", b"{}")]
    api.create_commit("someone/rows", rows, commit_message="rows", repo_type="dataset")
    assert "a.json" in api.list_repo_files("someone/rows", repo_type="dataset")
    for token, name in (
        (GOOD_TOKEN, "nobody/x"),
        (GOOD_TOKEN, "readers/x"),
        (READ_TOKEN, "someone/x"),
    ):
        with pytest.raises(HfHubHTTPError, match="rights to create a model under the namespace"):
            client(served, token).create_repo(name, exist_ok=True)


def test_what_was_uploaded_is_what_comes_back(
    served: LoopbackHub, release: Path, tmp_path: Path
) -> None:
    api = created(served)
    made = api.upload_folder(repo_id=REPO, folder_path=release, commit_message="Q4")
    assert made.commit_url == f"{served.address}/{REPO}/commit/{made.oid}"
    came = snapshot_download(
        REPO, endpoint=served.address, cache_dir=tmp_path / "cache", token=False
    )
    found = files_of(Path(came))
    attributes = found.pop(".gitattributes").decode()
    assert found == files_of(release)
    one = hf_hub_download(
        REPO, "model Q4.gguf", endpoint=served.address, cache_dir=tmp_path / "one", token=False
    )
    assert Path(one).read_bytes() == WEIGHTS
    assert attributes.splitlines()[-2:] == [
        "imatrix.dat filter=lfs diff=lfs merge=lfs -text",
        "model[[:space:]]Q4.gguf filter=lfs diff=lfs merge=lfs -text",
    ]
    commit = served.commit(REPO)
    assert commit is not None
    assert (commit.id, commit.title, commit.author) == (made.oid, "Q4", "someone")
    assert commit.parent is not None
    assert api.list_repo_files(REPO, revision=commit.parent.id) == [".gitattributes"]


def test_the_record_is_gits(served: LoopbackHub, release: Path) -> None:
    api = created(served)
    api.upload_folder(repo_id=REPO, folder_path=release)
    siblings = api.model_info(REPO, files_metadata=True).siblings or []
    large = {sibling.rfilename for sibling in siblings if sibling.lfs}
    assert large == {"model Q4.gguf", "imatrix.dat"}
    contents = files_of(release)
    for sibling in siblings:
        content = contents.get(sibling.rfilename)
        if content is None:
            assert sibling.rfilename == ".gitattributes"
            continue
        if sibling.lfs:
            assert (sibling.lfs.sha256, sibling.lfs.size) == (oid(content), len(content))
            content = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{oid(content)}\nsize {len(content)}\n"
            ).encode()
            assert sibling.lfs.pointer_size == len(content)
        git = ["git", "hash-object", "--stdin"]
        blob = subprocess.run(git, input=content, capture_output=True, check=True).stdout
        assert sibling.blob_id == blob.decode().strip()
    entries = api.list_repo_tree(REPO, recursive=True)
    blobs = {e.path: e.blob_id for e in entries if hasattr(e, "blob_id")}
    assert blobs == {sibling.rfilename: sibling.blob_id for sibling in siblings}


def test_branches(served: LoopbackHub) -> None:
    api = created(served)
    first = str(api.model_info(REPO).sha)
    api.create_branch(REPO, branch="next")
    made = put(api, revision="next")
    assert (api.model_info(REPO).sha, api.model_info(REPO, revision="next").sha) == (first, made)
    with pytest.raises(HfHubHTTPError, match="Reference already exists"):
        api.create_branch(REPO, branch="next")
    api.create_branch(REPO, branch="next", exist_ok=True)
    with pytest.raises(BadRequestError, match="Invalid reference"):
        api.create_branch(REPO, branch="refs/pr/5")
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(REPO, branch="third", revision="second")
    with pytest.raises(HfHubHTTPError, match="you must use a write token"):
        client(served, READ_TOKEN).create_branch(REPO, branch="third")
    refs = api.list_repo_refs(REPO)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "next": made}
    assert refs.pull_requests is None
    with pytest.raises(RevisionNotFoundError):
        put(api, revision="third")


def test_a_pull_request_leaves_main_as_it_is(served: LoopbackHub, tmp_path: Path) -> None:
    api = created(served)
    first = str(api.model_info(REPO).sha)
    made = api.create_commit(
        REPO,
        [CommitOperationAdd("a.gguf", WEIGHTS)],
        commit_message="Add Q4",
        commit_description="as measured",
        create_pr=True,
    )
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert made.pr_url == f"{served.address}/{REPO}/discussions/1"
    assert api.model_info(REPO).sha == first
    assert api.model_info(REPO, revision="refs/pr/1").sha == made.oid
    second = put(api, b"{}", "b.json", revision="refs/pr/1")
    assert api.model_info(REPO, revision="refs/pr/1").sha == second
    settings: Any = {"endpoint": served.address, "cache_dir": tmp_path / "cache", "token": False}
    came = snapshot_download(REPO, revision="refs/pr/1", **settings)
    assert (Path(came) / "a.gguf").read_bytes() == WEIGHTS
    path = hf_hub_download(REPO, "b.json", revision="refs/pr/1", **settings)
    assert Path(path).read_bytes() == b"{}"


def test_pull_requests_are_found_by_author_and_status(served: LoopbackHub) -> None:
    api, stranger = created(served), client(served, STRANGER)
    for number in range(11):
        put(stranger, b"{}", f"{number}.json", create_pr=True, commit_message=f"no. {number}")
    put(api, create_pr=True)
    served.repository(REPO).discussions[2].status = "closed"

    def numbers(**wanted: str) -> list[int]:
        return [d.num for d in api.get_repo_discussions(REPO, **wanted)]  # type: ignore[arg-type]

    assert numbers() == list(range(12, 0, -1))
    assert numbers(author="someone") == [12]
    wanted = {"author": "stranger", "discussion_type": "pull_request", "discussion_status": "open"}
    assert numbers(**wanted) == [11, 10, 9, 8, 7, 6, 5, 4, 3, 1]
    assert numbers(discussion_status="closed") == [2]
    put(stranger, b"[]", "0.json", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="pass `create_pr=1` as a query parameter"):
        put(stranger, b"[]", "0.json", revision="refs/pr/12")
    with pytest.raises(HfHubHTTPError, match="pass `create_pr=1` as a query parameter"):
        put(stranger, b"[]", "0.json")
    with pytest.raises(HfHubHTTPError, match="Authorization error"):
        put(stranger, create_pr=True)  # large files only in one's own repositories
    with pytest.raises(HfHubHTTPError, match="you must use a write token"):
        put(client(served, READ_TOKEN))


def test_a_commit_since_is_noticed(served: LoopbackHub) -> None:
    api = created(served)
    head = str(api.model_info(REPO).sha)
    theirs: list[str] = []
    served.upload_faults[COMMITS] = [
        Fault(before=lambda: theirs.append(served.write(REPO, {"theirs.gguf": b"GGUF"})))
    ]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        put(api, parent_commit=head)
    assert caught.value.response.status_code == 412
    assert api.model_info(REPO).sha == theirs[0]
    assert set(api.list_repo_files(REPO)) == {".gitattributes", "theirs.gguf"}
    put(api, parent_commit=theirs[0])
    assert set(api.list_repo_files(REPO)) == {".gitattributes", "theirs.gguf", "a.gguf"}
    assert served.received[oid(WEIGHTS)] == len(WEIGHTS)


def test_files_go_with_a_commit_or_not_at_all(served: LoopbackHub, release: Path) -> None:
    api = created(served)
    api.upload_folder(repo_id=REPO, folder_path=release)
    gone = [CommitOperationDelete("levels/"), CommitOperationDelete("imatrix.dat")]
    made = api.create_commit(REPO, gone, commit_message="fewer")
    names = {".gitattributes", "README.md", "empty.bin", "model Q4.gguf"}
    assert set(api.list_repo_files(REPO)) == names
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit(
            REPO,
            [CommitOperationAdd("new.txt", b"x"), CommitOperationDelete("none.txt")],
            commit_message="no",
        )
    missing = CommitOperationAdd("b.gguf", b"GGUF")
    missing._upload_mode, missing._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        api.create_commit(REPO, [missing], commit_message="no")
    assert (api.model_info(REPO).sha, set(api.list_repo_files(REPO))) == (made.oid, names)
    assert len(list((served.repository(REPO).folder / "commits").iterdir())) == 3


def test_a_card_is_looked_at_first(served: LoopbackHub, release: Path) -> None:
    api = created(served)
    for wrong, words in (
        ("license: [mit\n", "while parsing"),
        ("license: NVIDIA\n", '"license" must be one of'),
        ("base_model: /tmp/x\n", '"base_model" with value "/tmp/x" is not valid'),
        ("license: other\nlicense_name: My Own\n", '"license_name" fails to match'),
        ("model-index:\n- name: x\n  results:\n  - task: {type: t}\n", r"dataset\.name. is requ"),
    ):
        with pytest.raises(ValueError, match=rf"(?s)Invalid metadata in README\.md.*{words}"):
            put(api, f"---\n{wrong}---\n".encode(), "README.md")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        put(api, b"# none\n", "README.md")
    assert api.model_info(REPO).card_data is None
    api.upload_folder(repo_id=REPO, folder_path=release)
    served.gates[REPO] = "manual"
    info = api.model_info(REPO)
    assert (info.gated, info.card_data.base_model) == ("manual", "nvidia/base")  # type: ignore[union-attr]
    only = api.model_info(REPO, expand=["sha", "gated"])
    assert (only.sha, only.gated, only.siblings) == (info.sha, "manual", None)


def test_what_is_not_shown_is_refused_as_the_hub_does(served: LoopbackHub) -> None:
    put(created(served), b"{}", "a.json")

    def refused(kind: type[Exception], name: str = "a.json", token: str | bool = False,
                repo: str = REPO, **wanted: str) -> None:  # fmt: skip
        address = hf_hub_url(repo, name, endpoint=served.address, **wanted)
        with pytest.raises(kind):
            get_hf_file_metadata(address, token=token)

    refused(EntryNotFoundError, "none.json")
    refused(RevisionNotFoundError, revision="v9")
    refused(RepositoryNotFoundError, repo="someone/nothing")
    refused(RepositoryNotFoundError, repo="someone/nothing", token=GOOD_TOKEN)
    refused(HfHubHTTPError, token="hf_wrong")
    served.gated = {REPO}
    refused(GatedRepoError)
    refused(GatedRepoError, token=GOOD_TOKEN)
    served.private = {REPO}
    refused(RepositoryNotFoundError)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(served, "hf_wrong").whoami()


def test_ranges_and_where_a_large_file_is(served: LoopbackHub) -> None:
    api = created(served, private=True)
    head = put(api)
    address = hf_hub_url(REPO, "a.gguf", endpoint=served.address)
    found = get_hf_file_metadata(address, token=GOOD_TOKEN)
    assert (found.etag, found.size, found.commit_hash) == (oid(WEIGHTS), len(WEIGHTS), head)
    assert found.location.startswith(f"{served.large_address}/")
    with httpx2.Client() as session:
        for asked, start, stop in (
            ("0-7", 0, 8),
            ("90000-90007", 90_000, 90_008),
            ("-5", -5, None),
        ):
            answer = session.get(found.location, headers={"Range": f"bytes={asked}"})
            content = WEIGHTS[start:stop]
            assert (answer.status_code, answer.content) == (206, content)
            begin = start % len(WEIGHTS)
            expected = f"bytes {begin}-{begin + len(content) - 1}/{len(WEIGHTS)}"
            assert answer.headers["Content-Range"] == expected
        beyond = session.get(found.location, headers={"Range": f"bytes={len(WEIGHTS)}-"})
        assert beyond.status_code == 416
        assert beyond.headers["Content-Range"] == f"bytes */{len(WEIGHTS)}"
        signed = session.get(found.location, headers={"Authorization": f"Bearer {GOOD_TOKEN}"})
        assert signed.status_code == 400


def test_other_bytes_than_announced_are_refused(served: LoopbackHub) -> None:
    created(served)
    address = f"{served.large_address}/lfs/{REPO}/{oid(WEIGHTS)}"
    assert httpx2.put(address, content=b"other").status_code == 400
    complete = f"{served.address}/api/complete_multipart/{REPO}/{oid(WEIGHTS)}/up"
    part = httpx2.put(f"{address}/up/1", content=b"other")
    for etag in ('"0"', part.headers["ETag"]):
        parts = {"oid": oid(WEIGHTS), "parts": [{"partNumber": 1, "etag": etag}]}
        assert httpx2.post(complete, json=parts).status_code == 400
    assert served.repository(REPO).object(oid(WEIGHTS)) is None
    assert httpx2.put(address, content=WEIGHTS).status_code == 200
    assert served.repository(REPO).object(oid(WEIGHTS)) is not None


def test_a_folder_is_written_over_without_a_change_to_it(release: Path, tmp_path: Path) -> None:
    before = files_of(release)
    with hub({REPO: release}, storage=tmp_path / "hub") as served:
        api = client(served)
        assert api.model_info(REPO).sha == COMMIT
        put(api, b"GGUF", "model Q4.gguf", parent_commit=COMMIT)
        assert api.model_info(REPO, revision=COMMIT).sha == COMMIT
        folder = served.repository(REPO).branches["main"].folder
        after = files_of(folder)
        attributes = b"model[[:space:]]Q4.gguf filter=lfs diff=lfs merge=lfs -text\n"
        assert after == before | {"model Q4.gguf": b"GGUF", ".gitattributes": attributes}
    assert files_of(release) == before
