"""Calibration sources: shipped texts, local files, and datasets of the Hub over real HTTP."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from loopback_hub import COMMIT, Fault, LoopbackHub, commit_of, hub
from places import ROOT

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import SILENT
from quantkit.hub.downloads import STATE
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.study.calibration import sources
from quantkit.study.calibration.sources import (
    LIMIT_BYTES,
    DatasetAddress,
    chosen_files,
    local_sources,
    resolve_sources,
    shipped_texts,
)
from quantkit.study.calibration.texts import CalibrationSource

NAME = "datasets/someone/talks"
ALL = f"hf://{NAME}"
TRAIN = "data/train/0.parquet"
READ = ["a.txt", "data/notes.md", TRAIN, "data/train/1.jsonl"]
UNREAD = ["README.md", ".gitattributes", ".cache/b.txt", "data/picture.png"]

Fetch = Callable[..., CalibrationSource]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for name in (*READ, *UNREAD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), folder / TRAIN)
    return folder


@pytest.fixture
def loopback(repository: Path) -> Iterator[LoopbackHub]:
    from huggingface_hub import close_session

    with hub({NAME: repository}, cards={NAME: {"license": "cc-by-4.0"}}) as served:
        yield served
    close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "quantkit"


@pytest.fixture
def fetch(loopback: LoopbackHub, cache: Path) -> Fetch:
    def fetched(name: str = ALL) -> CalibrationSource:
        client = Hub(loopback.address, token=False, timeout_s=0.5, delays_s=(0.01,) * 3)
        (source,) = resolve_sources(ImatrixRecipe(mixture={name: 1}), SILENT, client, cache)
        return source

    return fetched


def names(source: CalibrationSource, cache: Path, commit: str = COMMIT) -> list[str]:
    """The files of a source by their names in the repository."""
    folder = cache / "datasets" / "someone--talks" / commit
    return [path.relative_to(folder).as_posix() for path in source.files]


# ---- what arrives


def test_a_dataset_arrives_with_its_commit_and_licence(
    loopback: LoopbackHub, repository: Path, cache: Path, fetch: Fetch
) -> None:
    source = fetch()
    assert (source.name, source.licence) == (ALL, "cc-by-4.0")
    assert source.origin == f"hf://datasets/someone/talks@{COMMIT}"
    assert names(source, cache) == READ
    for path, name in zip(source.files, READ, strict=True):
        assert path.read_bytes() == (repository / name).read_bytes()
    assert sorted(loopback.names()) == READ


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ({}, None),
        ({"license": None}, None),
        ({"license": ["mit", None, "cc0-1.0"]}, "mit, cc0-1.0"),
        ({"license": "other"}, "other"),
        ({"license": "other", "license_name": "Our Terms"}, "other (Our Terms)"),
        ({"license": "m\x1b[2Jit\u202e"}, "m[2Jit"),
        ({"license": "x" * 5000}, "x" * 200),
        ({"license": {"a": 1}}, "{'a': 1}"),
        ("mit", None),
    ],
)
def test_the_licence_is_what_the_card_states(
    card: object, licence: str | None, loopback: LoopbackHub, fetch: Fetch
) -> None:
    loopback.cards[NAME] = card
    assert fetch(f"{ALL}/a.txt").licence == licence


@pytest.mark.parametrize("revision", ["v2", "refs/convert/parquet", "refs/pr/12", "a%2Fb"])
def test_a_revision_becomes_its_commit(
    revision: str, loopback: LoopbackHub, repository: Path, cache: Path, fetch: Fetch
) -> None:
    plain = revision.replace("%2F", "/")
    loopback.repos[NAME][plain] = repository
    source = fetch(f"{ALL}@{revision}/data/train")
    assert source.origin == f"hf://datasets/someone/talks@{commit_of(plain)}"
    assert names(source, cache, commit_of(plain)) == READ[2:]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("data", READ[1:]),
        ("data/train/", READ[2:]),
        (TRAIN, [TRAIN]),
        ("README.md", ["README.md"]),
    ],
)
def test_a_path_is_a_file_or_a_folder(
    path: str, found: list[str], loopback: LoopbackHub, cache: Path, fetch: Fetch
) -> None:
    assert names(fetch(f"{ALL}/{path}"), cache) == found
    assert sorted(loopback.names()) == found


# ---- what is here already


def test_a_commit_that_is_whole_needs_no_network(
    loopback: LoopbackHub, cache: Path, fetch: Fetch
) -> None:
    first = fetch(f"{ALL}/data")
    asked = loopback.asked
    loopback.served.clear()
    for name in (f"{ALL}@{COMMIT}/data", f"{ALL}@{COMMIT}/{TRAIN}"):
        again = fetch(name)
        assert set(again.files) <= set(first.files)
        assert (again.name, again.origin, again.licence) == (name, first.origin, "cc-by-4.0")
    assert loopback.asked == asked
    fetch(f"{ALL}/data")  # main may have moved
    assert loopback.asked == asked + 1
    assert loopback.served == []
    fetch(f"{ALL}@{COMMIT}")  # a.txt is not here
    assert loopback.names() == ["a.txt"]


def test_a_changed_file_is_fetched_again_and_kept_aside(
    loopback: LoopbackHub, repository: Path, fetch: Fetch
) -> None:
    (path,) = fetch(f"{ALL}/a.txt").files
    path.write_text("changed")
    loopback.served.clear()
    fetch(f"{ALL}@{COMMIT}/a.txt")
    assert path.read_bytes() == (repository / "a.txt").read_bytes()
    assert path.with_name("a.txt.changed").read_text() == "changed"
    assert loopback.names() == ["a.txt"]


def test_a_record_that_cannot_be_read_is_asked_for_again(
    loopback: LoopbackHub, cache: Path, fetch: Fetch
) -> None:
    fetch(f"{ALL}/a.txt")
    asked = loopback.asked
    record = cache / "datasets" / "someone--talks" / COMMIT / STATE / "listing.json"
    for content in ("", "[]", "{}", '{"files": [1]}'):
        record.write_text(content)
        assert fetch(f"{ALL}@{COMMIT}/a.txt").licence == "cc-by-4.0"
        asked += 1
        assert loopback.asked == asked


def test_what_arrived_before_a_fault_is_kept_in_the_users_own_cache(
    loopback: LoopbackHub, repository: Path, cache: Path, fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (repository / TRAIN).write_bytes(os.urandom(1 << 20))
    loopback.faults = {TRAIN: [Fault(cut_after=600_000), *[Fault(status=500)] * 4]}
    with pytest.raises(EnvironmentFault, match="finished files are kept"):
        fetch(f"{ALL}/{TRAIN}")
    loopback.served.clear()
    client = Hub(loopback.address, token=False)
    monkeypatch.setattr(sources, "Hub", lambda: client)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    (source,) = resolve_sources(ImatrixRecipe(texts=(f"{ALL}/{TRAIN}",)))
    assert names(source, cache) == [TRAIN]
    assert source.files[0].read_bytes() == (repository / TRAIN).read_bytes()
    assert [served.start > 500_000 for served in loopback.served] == [True]


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://datasets/someone/nothing", "someone/nothing .*hf auth login"),
        ("hf://datasets/someone/model", "someone/model"),
        (f"{ALL}@v9", "someone/talks .*'v9'"),
        (f"{ALL}/datum", r"'datum' in 0123456789ab.*'a.txt' \(16 B\)"),
        (f"{ALL}/dat", "'dat'"),
        (f"{ALL}/data/picture.png", r"'data/picture.png' .*\.txt, \.md, \.jsonl, \.parquet"),
        (f"{ALL}/.cache", r"'\.cache/b\.txt'.*@refs/convert/parquet"),
    ],
)
def test_what_is_not_there(
    name: str, words: str, loopback: LoopbackHub, repository: Path, cache: Path, fetch: Fetch
) -> None:
    loopback.repos["someone/model"] = {"main": repository}
    with pytest.raises(InputError, match=words):
        fetch(name)
    assert loopback.served == []
    assert not cache.exists()


def test_a_gated_dataset_says_where_its_terms_are(loopback: LoopbackHub, fetch: Fetch) -> None:
    loopback.gated = {NAME}
    page = f"{loopback.address}/datasets/someone/talks"
    with pytest.raises(InputError, match=f"gated.*{page}.*hf auth login"):
        fetch()


def test_too_large(loopback: LoopbackHub, cache: Path, fetch: Fetch) -> None:
    loopback.claims = {TRAIN: LIMIT_BYTES - 8, "data/train/1.jsonl": 9}
    words = r"'data/train/0.parquet' \(1.00 GiB\), 'data/train/1.jsonl' \(9 B\)"
    with pytest.raises(InputError, match=f"{words}.*{ALL}@main/data/train/1.jsonl"):
        fetch(f"{ALL}@main/data/train")
    assert loopback.served == []
    loopback.claims["a.txt"] = LIMIT_BYTES + 1
    with pytest.raises(InputError, match="smaller files"):
        fetch(f"{ALL}/a.txt")
    loopback.claims["data/train/1.jsonl"] = 8
    listing = Hub(loopback.address, token=False).listing("someone/talks", kind="dataset")
    assert len(chosen_files(listing, DatasetAddress("someone/talks", None, "data/train"))) == 2


def test_no_room_on_the_disk_names_the_variable(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.models.local_copy.free_bytes", lambda folder: 10)
    with pytest.raises(EnvironmentFault, match="XDG_CACHE_HOME"):
        fetch()


def test_a_cache_that_cannot_be_made(cache: Path, fetch: Fetch) -> None:
    cache.touch()
    with pytest.raises(EnvironmentFault, match=r"Not a directory.*XDG_CACHE_HOME"):
        fetch()


@pytest.mark.parametrize(
    "name", ["../up.txt", "/etc/up.txt", "a/../../up.txt", "a//up.txt", "a\\b.txt", "bell\x07.txt"]
)
def test_names_from_the_hub_stay_in_the_folder(name: str) -> None:
    files = tuple(HubFile(n, 1, "0" * 64, None) for n in ("good/a..b c.txt", name))
    listing = Listing("someone/talks", COMMIT, files, "dataset")
    with pytest.raises(InputError, match="unsafe name"):
        chosen_files(listing, DatasetAddress.parse(ALL))
    good = chosen_files(listing, DatasetAddress.parse(f"{ALL}/good"))
    assert [file.name for file in good] == ["good/a..b c.txt"]


@pytest.mark.parametrize(
    ("repository_name", "commit"),
    [("../up", COMMIT), ("someone/..", COMMIT), ("a/b/c", COMMIT), ("someone/talks", "../../up")],
)
def test_a_hub_does_not_choose_the_folder(
    repository_name: str, commit: str, loopback: LoopbackHub, cache: Path
) -> None:
    class Liar(Hub):
        def listing(self, *arguments: object, **named: object) -> Listing:
            file = HubFile("a.txt", 1, "0" * 64, None)
            return Listing(repository_name, commit, (file,), "dataset")

    liar = Liar(loopback.address, token=False)
    with pytest.raises(EnvironmentFault, match="HF_ENDPOINT"):
        resolve_sources(ImatrixRecipe(texts=(ALL,)), hub=liar, cache=cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (ALL, ("someone/talks", None, "")),
        (f"{ALL}/", ("someone/talks", None, "")),
        (f"{ALL}/a b/ç.txt", ("someone/talks", None, "a b/ç.txt")),
        (f"{ALL}/a@b.txt", ("someone/talks", None, "a@b.txt")),
        (f"{ALL}@v1.0", ("someone/talks", "v1.0", "")),
        (f"{ALL}@refs/pr/7/x", ("someone/talks", "refs/pr/7", "x")),
        (f"{ALL}@refs/heads/x", ("someone/talks", "refs", "heads/x")),
        (f"{ALL}@a%2Fb/x", ("someone/talks", "a/b", "x")),
    ],
)
def test_addresses_mean_what_they_mean_to_huggingface_hub(
    name: str, address: tuple[str, str | None, str]
) -> None:
    from huggingface_hub.utils._hf_uris import parse_hf_uri

    found = DatasetAddress.parse(name)
    assert (found.repository, found.revision, found.path) == address
    theirs = parse_hf_uri(name.rstrip("/"))
    assert (theirs.id, theirs.revision, theirs.path_in_repo) == address
    assert DatasetAddress.parse(found.at("x/y")) == DatasetAddress(*address[:2], "x/y")


@pytest.mark.parametrize(
    "name",
    [
        "hf://", "hf://datasets", "hf://datasets/talks", "hf://models/someone/talks",
        "hf://someone/talks", "hf://datasets/some one/talks", "hf://datasets/someone/..",
        "hf://datasets/some--one/talks", f"{ALL}@", f"{ALL}@/x", f"{ALL}/../x", f"{ALL}//x",
        f"{ALL}/a\x1b", "hf://datasets/-a/b",
    ],
)  # fmt: skip
def test_malformed_addresses(name: str) -> None:
    with pytest.raises(InputError, match="OWNER/NAME"):
        DatasetAddress.parse(name)


FOLDER = ROOT / "calibration"
SPDX = {"public domain": "blessing"}
"""A licence in the words of calibration/README.md → in SPDX's, where they differ."""


def test_the_list_of_shipped_texts_equals_the_page_and_the_files() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0].strip(): part for part in page.split("\n## ")[1:]}
    wordings = re.findall(r"^## (\S+)$", (FOLDER / "LICENSES.md").read_text(), re.M)
    files = [path.name for path in FOLDER.iterdir() if path.suffix in (".txt", ".jsonl")]
    texts = shipped_texts()
    assert sorted(texts) == sorted(sections) == sorted(files)
    for name, text in texts.items():
        section = sections[name]
        assert re.search(r"^\| origin \| \S", section, re.M)
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == text.sha256
        packages = re.findall(
            r"^\| (?:Debian|npm|PyPI sdist) `@?([^`]+)`.*\| (.*) \|$", section, re.M
        )
        for package, licence in packages:  # the wording of Apache-2.0 is quantkit's own LICENSE
            spelt = {package.replace("/", "-"), package.replace("-", "_")}
            assert licence.startswith("Apache-2.0") or spelt & set(wordings)
        whole = re.findall(r"^\| licence \| (\S.*) \|$", section, re.M)
        assert whole
        stated = [licence for _, licence in packages] or whole
        words = {re.split(r"[,;(]| for the dataset", licence)[0].strip() for licence in stated}
        terms = {SPDX.get(w, f"({w.replace(' or ', ' OR ')})" if " or " in w else w) for w in words}
        assert set(text.licence.split(" AND ")) == terms


def test_shipped_texts_go_by_their_names_with_their_licence() -> None:
    chat, code, prose = local_sources(
        ImatrixRecipe(mixture={"chat": 1, "code.txt": 1, "english-prose": 1})
    )
    assert (chat.name, chat.files, chat.origin) == ("chat", (FOLDER / "chat.jsonl",), "quantkit")
    assert (code.files, code.licence) == (
        (FOLDER / "code.txt",),
        shipped_texts()["code.txt"].licence,
    )
    assert (chat.licence, prose.licence) == ("Apache-2.0", "CC0-1.0")
    assert local_sources(ImatrixRecipe(texts=("chat", "english-prose"))) == (chat, prose)


def test_files_and_folders_are_of_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.txt", "a.md", "deeper/c.parquet", "d.jsonl", "picture.png"):
        (folder / name).write_text(name)
    own = tmp_path / "notes.rst"
    own.write_text("text")
    several, single = local_sources(ImatrixRecipe(mixture={str(folder): 1, str(own): 2}))
    names = ("a.md", "b.txt", "d.jsonl", "deeper/c.parquet")
    assert several.files == tuple(folder / name for name in names)
    assert single.files == (own,)
    assert {(s.origin, s.licence) for s in (several, single)} == {("disk", None)}


def test_a_path_is_not_taken_for_a_shipped_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "chat.jsonl"
    copy.write_text("[]\n")
    (source,) = local_sources(ImatrixRecipe(texts=(str(copy),)))
    assert (source.files, source.origin) == ((copy,), "disk")
    for name in ("README.md", str(FOLDER / "chat"), "sources.yaml"):
        with pytest.raises(InputError, match="calibration text"):
            local_sources(ImatrixRecipe(texts=(name,)))


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'nothing'.*chat"):
        local_sources(ImatrixRecipe(mixture={"nothing": 1}))
    with pytest.raises(InputError, match=r"folder.*\.parquet"):
        local_sources(ImatrixRecipe(mixture={str(tmp_path): 1}))


def test_a_misspelt_path_is_told_before_anything_is_downloaded(
    loopback: LoopbackHub, cache: Path
) -> None:
    recipe = ImatrixRecipe(mixture={ALL: 1, "nothing": 1})
    with pytest.raises(InputError, match="'nothing'"):
        resolve_sources(recipe, hub=Hub(loopback.address, token=False), cache=cache)
    assert loopback.asked == 0
    with pytest.raises(InputError, match="OWNER/NAME"):
        local_sources(ImatrixRecipe(texts=("hf://models/someone/talks",)))
