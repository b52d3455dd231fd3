"""Headers of a repository over real HTTP: no weights come, and what came is not asked for again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import loopback_hub
import make_shape
import pytest
import watched
from checkpoints import LLAMA, NEMOTRON, llama_arrays, safetensors_bytes, write_checkpoint
from loopback_hub import COMMIT, Fault, LoopbackHub, commit_of
from waiting import wait_until

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.safetensors_files import SafetensorsFile, header_bytes
from quantkit.formats.tensors import TensorSource
from quantkit.hub.reading import Hub
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.choose import choose_model, open_shapes
from quantkit.models.remote_headers import FIRST_BYTES, RemoteHeaders, fetch_headers

REPO = "someone/Model-BF16"
CONFIG = NEMOTRON | {"hidden_size": 1024, "num_nextn_predict_layers": 0, "vocab_size": 2048}
SMALL = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
NOWHERE = "http://127.0.0.1:9"


class Watched(watched.Watched):
    """Of files, not of bytes."""

    unit = "files"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three shards of some megabytes, a model card, and a licence, which conversion never reads."""
    folder = tmp_path / "repository" / "checkpoint"
    make_shape.write_checkpoint(folder, CONFIG, shard_bytes=4_300_000)
    card = "---\nlicense: apache-2.0\nbase_model: someone/parent\n---\n# Model\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "generation_config.json").write_text('{"temperature": 0.6}', encoding="utf-8")
    (folder / "LICENSE").write_text("terms", encoding="utf-8")
    assert len(shards_of(folder)) == 3
    assert all((folder / name).stat().st_size > 3 * FIRST_BYTES for name in shards_of(folder))
    return folder


@dataclass
class Case:
    """A repository on a Hub of this machine, and the cache for its headers."""

    repository: Path
    hub: LoopbackHub
    cache: Path
    watched: Watched = field(default_factory=Watched)

    @property
    def shards(self) -> list[str]:
        return shards_of(self.repository)

    @property
    def work(self) -> Path:
        """Of an unfinished download."""
        return self.cache / REPO.lower().replace("/", "--") / f"{COMMIT}.partial"

    def client(self, address: str | None) -> Hub:
        """It waits in milliseconds where the real one waits in seconds."""
        address = address or self.hub.address
        return Hub(address, token=False, timeout_s=0.5, delays_s=(0.01,) * 3)

    def fetch(self, revision: str | None = None, address: str | None = None) -> RemoteHeaders:
        """The headers; `hub.served` and `watched` are then of this run alone."""
        self.hub.served.clear()
        self.watched = Watched()
        make = partial(self.client, address)
        return fetch_headers(make, REPO, revision, self.watched, self.cache)

    def open(
        self, model: str = REPO, address: str | None = None, *, keep_prediction: bool = False
    ) -> TensorSource:
        """The model, of headers alone."""
        self.hub.served.clear()
        self.watched = Watched()
        return open_shapes(
            choose_model(model),
            self.watched,
            partial(self.client, address),
            cache=self.cache,
            keep_prediction=keep_prediction,
        )


@pytest.fixture
def case(repository: Path, loopback: LoopbackHub, tmp_path: Path) -> Case:
    return Case(repository, loopback, tmp_path / "cache")


def shards_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def rewrite_header(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """The same data under another header."""
    content = path.read_bytes()
    stop = 8 + header_bytes(content)
    header = json.loads(content[8:stop])
    change(header)
    path.write_bytes(safetensors_bytes(header, content[stop:]))


def lengthen_header(path: Path, more_bytes: int) -> int:
    """The same data under a longer header, whose length is returned."""
    rewrite_header(path, lambda h: h.update(__metadata__={"notes": "x" * more_bytes}))
    return header_bytes(path.read_bytes())


# ---- what comes


def test_only_headers_and_small_files_come(case: Case) -> None:
    found = case.fetch()
    assert (found.repository, found.commit) == (REPO, COMMIT)
    assert sorted(case.hub.names()) == sorted([*SMALL, *case.shards])  # each once
    for name in SMALL:
        assert case.hub.sent_bytes(name) == (case.repository / name).stat().st_size
        assert (found.checkpoint / name).read_bytes() == (case.repository / name).read_bytes()
    for name in case.shards:
        size = (case.repository / name).stat().st_size
        assert case.hub.sent_bytes(name) == min(FIRST_BYTES, size)
        assert found.shard_bytes[name] == size
    assert case.watched.total == case.watched.done == 10
    kept = sum(path.stat().st_size for path in case.cache.rglob("*") if path.is_file())
    assert kept < 300_000  # of shards their headers, not all that came
    assert not list(case.cache.rglob("*.safetensors"))


@pytest.mark.parametrize("mtp", [False, True])
def test_all_but_rows_is_as_in_the_folder(case: Case, mtp: bool) -> None:
    shutil.rmtree(case.repository)
    config = CONFIG | {"num_nextn_predict_layers": 1}
    make_shape.write_checkpoint(case.repository, config, shard_bytes=4_300_000)
    here = open_checkpoint(case.repository, "Model", keep_prediction=mtp)
    there = case.open(keep_prediction=mtp)
    assert list(there.tensors) == list(here.tensors)
    assert any(info.name.startswith("blk.4.nextn") for info in there.tensors) == mtp
    assert list(there.metadata.items()) == list(here.metadata.items())


def test_rows_are_refused_with_what_to_do(case: Case) -> None:
    source = case.open()
    advice = f"of {REPO}@{COMMIT} only headers are here.*'quantkit download {REPO}@{COMMIT}' brings"
    for name in ("token_embd.weight", "blk.1.ffn_up_exps.weight", "blk.2.attn_q.weight"):
        with pytest.raises(InputError, match=advice):
            source.read_rows(name, 0, 2)
        with pytest.raises(InputError, match=advice):
            source.read_stored(name, 0, 2)


def test_files_come_side_by_side(case: Case) -> None:
    case.hub.bytes_per_second = 2e6
    case.fetch()
    assert case.hub.together >= 3


def test_a_long_header_takes_a_second_request(case: Case) -> None:
    long, *others = case.shards
    length = lengthen_header(case.repository / long, 700_000)
    source = case.open()
    asked = [(s.start, s.sent_bytes) for s in case.hub.served if s.name == long]
    assert asked == [(0, FIRST_BYTES), (FIRST_BYTES, 8 + length - FIRST_BYTES)]
    assert [case.hub.names().count(name) for name in others] == [1, 1]
    assert source.tensors == open_checkpoint(case.repository).tensors


def test_of_a_server_without_ranges_no_shard_comes_whole(case: Case) -> None:
    shutil.rmtree(case.repository)
    config = CONFIG | {"vocab_size": 32768}
    make_shape.write_checkpoint(case.repository, config, shard_bytes=4_300_000)
    for path in map(case.repository.joinpath, case.shards):
        if "lm_head.weight" in SafetensorsFile(path).entries:
            lengthen_header(path, 300_000)
    case.hub.always = {name: Fault(ignore_range=True) for name in case.shards}
    for name in case.shards:
        loopback_hub.hashes(case.repository / name)  # now: the client will not wait
    source = case.open()
    assert source.tensors == open_checkpoint(case.repository).tensors
    large = [s for s in case.hub.served if (case.repository / s.name).stat().st_size > 64_000_000]
    assert [s.start for s in large] == [0, 0, 0]
    # what is under way when the client closes is some megabytes of buffers
    assert all(s.sent_bytes < 24_000_000 for s in large)


def test_faults_of_the_network_are_got_over(case: Case) -> None:
    first, second, third = case.shards
    case.hub.api_faults = [503]
    case.hub.faults = {
        first: [Fault(status=500), Fault(cut_after=1000), Fault(status=403)],
        second: [Fault(stall_after=100_000)],
        third: [Fault(status=429), Fault(extra_bytes=50)],
        "tokenizer.json": [Fault(cut_after=20)],
    }
    found = case.fetch()
    assert not any(case.hub.faults.values())
    assert case.watched.notes[0].endswith("HTTP 503; trying again in 0.01 s")
    assert [shard.name for shard in found.open_shards()] == case.shards


# ---- what is wrong


def test_a_file_that_came_wrong_is_fetched_again(case: Case) -> None:
    shard = case.shards[0]
    case.hub.faults = {shard: [Fault(corrupt=True)], "tokenizer.json": [Fault(corrupt=True)]}
    source = case.open()
    assert [case.hub.names().count(name) for name in (shard, "tokenizer.json")] == [2, 2]
    assert source.metadata == open_checkpoint(case.repository, "Model").metadata


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"\xff" * 5000), "too large"),
        (lambda path: path.write_bytes(b"\x01"), "truncated"),
        (lambda path: os.truncate(path, 700), "has 700 bytes"),
        (lambda path: os.truncate(path, path.stat().st_size - 2), "not fully covered"),
        (lambda path: os.truncate(path, path.stat().st_size + 2), "not fully covered"),
        (lambda path: path.write_bytes(b"\x05" + bytes(7) + b"<html>"), "has 14 bytes"),
        (lambda path: rewrite_header(path, lambda h: h.popitem()), "not fully covered"),
    ],
)
def test_a_header_that_is_wrong_is_refused(
    case: Case, damage: Callable[[Path], object], message: str
) -> None:
    shard = case.shards[0]
    damage(case.repository / shard)
    words = rf"{REPO}: {shard}.*{message}.*; it is broken at {COMMIT[:12]}.*another revision"
    with pytest.raises(InputError, match=words):
        case.fetch()
    assert case.hub.names().count(shard) == 2
    assert case.hub.sent_bytes(shard) <= 2 * FIRST_BYTES  # 100 MB were not asked for
    with pytest.raises(InputError, match=message):  # nothing was kept as if it were whole
        case.fetch()


def test_a_record_with_another_size_is_told(case: Case) -> None:
    shard = case.shards[1]
    case.hub.claims = {shard: (case.repository / shard).stat().st_size + 4096}
    with pytest.raises(InputError, match=rf"{shard} has \d+ bytes"):
        case.fetch()


def test_an_index_of_other_shards_is_told(case: Case) -> None:
    shard = case.repository / case.shards[2]
    rewrite_header(shard, lambda h: h.update(head=h.pop("lm_head.weight")))
    with pytest.raises(InputError, match=r"lm_head.weight.* index names it, but no file"):
        case.open()


def test_what_the_hubs_cache_has_is_read_there(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = huggingface_hub.snapshot_download(REPO, endpoint=case.hub.address, token=False)
    names = {info.name for info in case.open().tensors}
    assert case.hub.served == []
    assert names == {info.name for info in open_shapes(choose_model(snapshot)).tensors}
    for path in (case.shards[0], "tokenizer.json"):
        blob = (Path(snapshot) / path).resolve()
        blob.write_bytes(bytes(blob.stat().st_size))
    shutil.rmtree(case.cache)
    assert names == {info.name for info in case.open().tensors}
    assert set(case.hub.names()) == {case.shards[0], "tokenizer.json"}


@pytest.mark.parametrize(("revision", "words"), [(None, "gated"), ("v9", "no revision 'v9'")])
def test_a_refusal_leaves_no_record(case: Case, revision: str | None, words: str) -> None:
    case.hub.gated = set() if revision else {REPO}
    with pytest.raises(InputError, match=words):
        case.fetch(revision)
    assert not list(case.cache.rglob("headers.json"))


def test_what_cannot_be_converted_costs_no_header(case: Case) -> None:
    (case.repository / "config.json").write_text('{"architectures": ["Mystery"]}', encoding="utf-8")
    with pytest.raises(InputError, match="architecture 'Mystery'"):
        case.fetch()
    assert case.hub.names() == ["config.json"]


# ---- what is kept


def test_the_next_time_takes_one_request(case: Case) -> None:
    first = case.open()
    case.hub.asked = 0
    again = case.open()
    assert (case.hub.asked, case.hub.served) == (1, [])
    assert again.tensors == first.tensors
    assert again.metadata == first.metadata


def test_without_a_network_the_last_known_commit_is_taken(case: Case) -> None:
    with pytest.raises(EnvironmentFault, match=f"downloading {REPO} from .*check the network"):
        case.fetch(address=NOWHERE)
    kept = case.fetch()
    # 500: asked once only, since there is an answer
    case.hub.api_faults = [500, 500]
    for revision, address, why in ((None, None, "HTTP 500"), ("main", NOWHERE, "refused")):
        assert case.fetch(revision, address) == kept
        assert case.hub.served == []
        (note,) = case.watched.notes
        assert all(value in note for value in (REPO, COMMIT[:12], "main", why))
    assert case.hub.api_faults == [500]
    with pytest.raises(EnvironmentFault, match="check the network"):
        case.fetch("v2", NOWHERE)


def test_a_refusal_is_not_covered_up_by_what_is_kept(case: Case) -> None:
    case.fetch()
    del case.hub.repos[REPO]
    with pytest.raises(InputError, match=f"no repository {REPO} for you"):
        case.fetch()


def test_a_commit_that_is_here_needs_no_hub(case: Case) -> None:
    kept = case.fetch()

    def never() -> Hub:
        pytest.fail("a client was made")

    assert fetch_headers(never, REPO, COMMIT, Watched(), case.cache) == kept
    assert fetch_headers(never, REPO.upper(), COMMIT, Watched(), case.cache) == kept


def test_revisions_are_kept_side_by_side(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    other = case.repository.parent / "other"
    make_shape.write_checkpoint(other, CONFIG | {"hybrid_override_pattern": "ME"})
    case.hub.repos[REPO]["pr/2"] = other
    whole, short = (case.open(f"{REPO}{at}") for at in ("", "@pr/2"))
    assert len(whole.tensors) > len(short.tensors)
    assert short.tensors == open_checkpoint(other).tensors
    for at, source in (("", whole), ("@pr/2", short), (f"@{commit_of('pr/2')}", short)):
        assert case.open(f"{REPO}{at}", NOWHERE).tensors == source.tensors
    # and a branch that moves on
    monkeypatch.setattr(loopback_hub, "COMMIT", "9" * 40)
    case.hub.repos[REPO]["main"] = other
    assert case.open().tensors == short.tensors
    assert case.open(address=NOWHERE).tensors == short.tensors
    assert case.open(f"{REPO}@{COMMIT}", NOWHERE).tensors == whole.tensors


def test_what_was_lost_or_spoilt_here_comes_again(case: Case) -> None:
    kept = case.fetch()
    record = json.loads((kept.folder / "headers.json").read_text())
    wrong = json.dumps(record | {"shards": [*record["shards"]]})
    for spoil in (
        lambda: (kept.checkpoint / "tokenizer.json").unlink(),
        lambda: (kept.folder / "headers.json").write_text("{"),
        lambda: (kept.folder / "headers.json").write_text(wrong),
        lambda: os.truncate(next(kept.folder.glob("headers/*")), 9),
    ):
        spoil()
        assert case.fetch() == kept
        assert len(case.hub.served) == 10
    changed = next(kept.folder.glob("headers/*"))
    changed.write_bytes(changed.read_bytes().replace(b"BF16", b"BF61"))
    with pytest.raises(InputError, match=f"BF61.*delete {kept.folder}"):
        case.open()


def test_killed_in_between_only_the_rest_comes(case: Case) -> None:
    last = case.shards[2]
    case.hub.faults[last] = [Fault(stall_after=100)]
    code = (
        "import sys; from pathlib import Path\n"
        "from quantkit.models.remote_headers import fetch_headers\n"
        "from quantkit.hub.reading import Hub\nfrom quantkit.core.progress import SILENT\n"
        "fetch_headers(lambda: Hub(sys.argv[1], token=False), sys.argv[2], None, SILENT,"
        " Path(sys.argv[3]))"
    )
    words = [sys.executable, "-c", code, case.hub.address, REPO, str(case.cache)]
    process = subprocess.Popen(words, text=True)
    work = case.work / "whole"
    wanted = {f"checkpoint/{n}" for n in SMALL} | {f"headers/{n}.header" for n in case.shards[:2]}
    wait_until(
        lambda: {p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()} == wanted,
        process,
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(EnvironmentFault):  # half of it is nothing to plan from
        case.fetch(address=NOWHERE)
    assert case.open().tensors == open_checkpoint(case.repository).tensors
    assert case.hub.names() == [last]
    assert not list(case.cache.rglob("*.partial"))


def test_two_runs_do_not_fetch_the_same(case: Case) -> None:
    import fcntl

    case.work.mkdir(parents=True)
    with (case.work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"another run is writing what .* is for"):
            case.fetch()
    assert case.fetch().commit == COMMIT


def test_a_cache_that_cannot_be_written_is_named(case: Case) -> None:
    case.cache.write_text("a file in the way")
    with pytest.raises(EnvironmentFault, match=f"cannot keep.*{case.cache}.*XDG_CACHE_HOME"):
        case.fetch()


def test_one_file_without_an_index(case: Case, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama", LLAMA, llama_arrays(LLAMA))
    case.hub.repos[REPO] = {"main": folder}
    assert case.open().tensors == open_checkpoint(folder).tensors


@pytest.mark.parametrize(("width", "notes"), [(32, 1), (24, 0)])
def test_an_output_beside_tied_embeddings_is_believed_to_be_their_copy(
    case: Case, width: int, notes: int, tmp_path: Path
) -> None:
    """And where it cannot be one, the folder is not opened either."""
    arrays = llama_arrays(LLAMA)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"][:, :width]
    folder = write_checkpoint(tmp_path / "llama", LLAMA, arrays)
    case.hub.repos[REPO] = {"main": folder}
    if notes:
        source = case.open()
        assert source.tensors == open_checkpoint(folder).tensors
        assert "output.weight" not in {info.name for info in source.tensors}
    else:
        with pytest.raises(InputError, match=r"lm_head.weight has shape \[320, 24\]"):
            case.open()
    assert len(case.watched.notes) == notes
    assert all(note.startswith("config.json ties the output") for note in case.watched.notes)
