"""Headers of a repository over real HTTP: no weights come, and what came is not asked for again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import loopback_hub
import make_shape
import pytest
import watched
from checkpoints import LLAMA, NEMOTRON, llama_arrays, safetensors_bytes, write_checkpoint
from loopback_hub import COMMIT, GOOD_TOKEN, Fault, LoopbackHub, commit_of, hub

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.safetensors_files import header_bytes
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


@pytest.fixture
def loopback(repository: Path) -> Iterator[LoopbackHub]:
    from huggingface_hub import close_session

    with hub({REPO: repository}) as served:
        yield served
    close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def shards_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def client(address: str, token: str | bool = False) -> Callable[[], Hub]:
    """Makes a client that waits in milliseconds where the real one waits in seconds."""
    return lambda: Hub(address, token=token, timeout_s=0.5, delays_s=(0.01,) * 3)


def fetch(
    loopback: LoopbackHub, cache: Path, revision: str | None = None, watched: Watched | None = None
) -> RemoteHeaders:
    return fetch_headers(client(loopback.address), REPO, revision, watched or Watched(), cache)


def opened(
    address: str, cache: Path, model: str = REPO, keep_prediction: bool = False
) -> TensorSource:
    return open_shapes(
        choose_model(model), hub=client(address), keep_prediction=keep_prediction, cache=cache
    )


def rewrite_header(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """The same data under another header."""
    content = path.read_bytes()
    stop = 8 + header_bytes(content)
    header = json.loads(content[8:stop])
    change(header)
    path.write_bytes(safetensors_bytes(header, content[stop:]))


# ---- what comes


def test_only_headers_and_small_files_come(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    watched = Watched()
    found = fetch(loopback, cache, watched=watched)
    assert (found.repository, found.commit) == (REPO, COMMIT)
    assert sorted(loopback.names()) == sorted([*SMALL, *shards_of(repository)])  # each once
    for name in SMALL:
        assert loopback.sent_bytes(name) == (repository / name).stat().st_size
        assert (found.checkpoint / name).read_bytes() == (repository / name).read_bytes()
    for name in shards_of(repository):
        size = (repository / name).stat().st_size
        assert loopback.sent_bytes(name) == min(FIRST_BYTES, size)
        assert found.shard_bytes[name] == size
    assert watched.total == watched.done == 10
    kept = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert kept < 300_000  # of shards their headers, not all that came
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("mtp", [False, True])
def test_all_but_rows_is_as_in_the_folder(
    mtp: bool, loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    shutil.rmtree(repository)
    config = CONFIG | {"num_nextn_predict_layers": 1}
    make_shape.write_checkpoint(repository, config, shard_bytes=4_300_000)
    here = open_checkpoint(repository, "Model", keep_prediction=mtp)
    there = opened(loopback.address, cache, keep_prediction=mtp)
    assert list(there.tensors) == list(here.tensors)
    assert any(info.name.startswith("blk.4.nextn") for info in there.tensors) == mtp
    assert list(there.metadata.items()) == list(here.metadata.items())


def test_rows_are_refused_with_what_to_do(loopback: LoopbackHub, cache: Path) -> None:
    source = opened(loopback.address, cache)
    advice = f"of {REPO}@{COMMIT} only headers are here.*'quantkit download {REPO}@{COMMIT}' brings"
    for name in ("token_embd.weight", "blk.1.ffn_up_exps.weight", "blk.2.attn_q.weight"):
        with pytest.raises(InputError, match=advice):
            source.read_rows(name, 0, 2)
        with pytest.raises(InputError, match=advice):
            source.read_stored(name, 0, 2)


def test_files_come_side_by_side(loopback: LoopbackHub, cache: Path) -> None:
    loopback.bytes_per_second = 2e6
    fetch(loopback, cache)
    assert loopback.together >= 3


def test_a_long_header_takes_a_second_request(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    long, *others = shards_of(repository)
    rewrite_header(repository / long, lambda h: h.update(__metadata__={"notes": "x" * 700_000}))
    length = header_bytes((repository / long).read_bytes())
    source = opened(loopback.address, cache)
    asked = [(s.start, s.sent_bytes) for s in loopback.served if s.name == long]
    assert asked == [(0, FIRST_BYTES), (FIRST_BYTES, 8 + length - FIRST_BYTES)]
    assert [loopback.names().count(name) for name in others] == [1, 1]
    assert source.tensors == open_checkpoint(repository).tensors


def test_of_a_server_without_ranges_no_shard_comes_whole(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    shutil.rmtree(repository)
    config = CONFIG | {"vocab_size": 32768}
    make_shape.write_checkpoint(repository, config, shard_bytes=4_300_000)
    (long,) = (n for n in shards_of(repository) if "lm_head.weight" in header_of(repository / n))
    rewrite_header(repository / long, lambda h: h.update(__metadata__={"notes": "x" * 300_000}))
    loopback.always = {name: Fault(ignore_range=True) for name in shards_of(repository)}
    for name in shards_of(repository):
        loopback_hub.hashes(repository / name)  # hashed now, the client will not wait for it
    source = opened(loopback.address, cache)
    assert source.tensors == open_checkpoint(repository).tensors
    large = [s for s in loopback.served if (repository / s.name).stat().st_size > 64_000_000]
    assert [s.start for s in large] == [0, 0, 0]
    # what is under way when the client closes is some megabytes of buffers
    assert all(s.sent_bytes < 24_000_000 for s in large)


def header_of(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        found: dict[str, object] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return found


def test_faults_of_the_network_are_got_over(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    first, second, third = shards_of(repository)
    loopback.api_faults = [503]
    loopback.faults = {
        first: [Fault(status=500), Fault(cut_after=1000), Fault(status=403)],
        second: [Fault(stall_after=100_000)],
        third: [Fault(status=429), Fault(extra_bytes=50)],
        "tokenizer.json": [Fault(cut_after=20)],
    }
    watched = Watched()
    found = fetch(loopback, cache, watched=watched)
    assert not any(loopback.faults.values())
    assert watched.notes[0].endswith("HTTP 503; trying again in 0.01 s")
    assert [shard.name for shard in found.open_shards()] == shards_of(repository)


# ---- what is wrong


def test_a_file_that_came_wrong_is_fetched_again(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    shard = shards_of(repository)[0]
    loopback.faults = {shard: [Fault(corrupt=True)], "tokenizer.json": [Fault(corrupt=True)]}
    source = opened(loopback.address, cache)
    assert [loopback.names().count(name) for name in (shard, "tokenizer.json")] == [2, 2]
    assert source.metadata == open_checkpoint(repository, "Model").metadata


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
    damage: Callable[[Path], object],
    message: str,
    loopback: LoopbackHub,
    repository: Path,
    cache: Path,
) -> None:
    shard = shards_of(repository)[0]
    damage(repository / shard)
    words = rf"{REPO}: {shard}.*{message}.*; it is broken at {COMMIT[:12]}.*another revision"
    with pytest.raises(InputError, match=words):
        fetch(loopback, cache)
    assert loopback.names().count(shard) == 2
    assert loopback.sent_bytes(shard) <= 2 * FIRST_BYTES  # 100 MB were not asked for
    with pytest.raises(InputError, match=message):  # nothing was kept as if it were whole
        fetch(loopback, cache)


def test_a_record_with_another_size_is_told(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    shard = shards_of(repository)[1]
    loopback.claims = {shard: (repository / shard).stat().st_size + 4096}
    with pytest.raises(InputError, match=rf"{shard} has \d+ bytes"):
        fetch(loopback, cache)


def test_an_index_of_other_shards_is_told(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    shard = repository / shards_of(repository)[2]
    rewrite_header(shard, lambda h: h.update(head=h.pop("lm_head.weight")))
    with pytest.raises(
        InputError, match=r"index\.json says that tensor lm_head.weight is in .*in no file"
    ):
        opened(loopback.address, cache)


@pytest.mark.parametrize(("revision", "words"), [(None, "gated"), ("v9", "no revision 'v9'")])
def test_a_refusal_leaves_no_record(
    revision: str | None, words: str, loopback: LoopbackHub, cache: Path
) -> None:
    loopback.gated = set() if revision else {REPO}
    with pytest.raises(InputError, match=words):
        fetch(loopback, cache, revision)
    assert not list(cache.rglob("headers.json"))


def test_a_private_repository_is_read_with_a_token(loopback: LoopbackHub, cache: Path) -> None:
    loopback.private = {REPO}
    make = client(loopback.address, GOOD_TOKEN)
    assert fetch_headers(make, REPO, None, Watched(), cache).commit == COMMIT


def test_what_cannot_be_converted_costs_no_header(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    (repository / "config.json").write_text('{"architectures": ["Mystery"]}', encoding="utf-8")
    with pytest.raises(InputError, match="architecture 'Mystery'"):
        fetch(loopback, cache)
    assert loopback.names() == ["config.json"]


# ---- what is kept


def test_the_next_time_takes_one_request(loopback: LoopbackHub, cache: Path) -> None:
    first = opened(loopback.address, cache)
    loopback.served.clear()
    loopback.asked = 0
    again = opened(loopback.address, cache)
    assert (loopback.asked, loopback.served) == (1, [])
    assert again.tensors == first.tensors
    assert again.metadata == first.metadata


def test_without_a_network_the_last_known_commit_is_taken(
    loopback: LoopbackHub, cache: Path
) -> None:
    with pytest.raises(EnvironmentFault, match=f"downloading {REPO} from .*check the network"):
        fetch_headers(client(NOWHERE), REPO, None, Watched(), cache)
    kept, watched = fetch(loopback, cache), Watched()
    began = len(loopback.served)
    # 500: asked once only, since there is an answer
    loopback.api_faults = [500, 500]
    assert fetch(loopback, cache, watched=watched) == kept
    assert loopback.api_faults == [500]
    assert fetch_headers(client(NOWHERE), REPO, "main", watched, cache) == kept
    assert len(loopback.served) == began
    for note, why in zip(watched.notes, ("HTTP 500", "refused"), strict=True):
        assert all(value in note for value in (REPO, COMMIT[:12], "main", why))
    with pytest.raises(EnvironmentFault, match="check the network"):
        fetch_headers(client(NOWHERE), REPO, "v2", Watched(), cache)


def test_a_refusal_is_not_covered_up_by_what_is_kept(loopback: LoopbackHub, cache: Path) -> None:
    fetch(loopback, cache)
    del loopback.repos[REPO]
    with pytest.raises(InputError, match=f"no repository {REPO} for you"):
        fetch(loopback, cache)


def test_a_commit_that_is_here_needs_no_hub(loopback: LoopbackHub, cache: Path) -> None:
    kept = fetch(loopback, cache)

    def never() -> Hub:
        pytest.fail("a client was made")

    assert fetch_headers(never, REPO, COMMIT, Watched(), cache) == kept
    assert fetch_headers(never, REPO.upper(), COMMIT, Watched(), cache) == kept


def test_revisions_are_kept_side_by_side(
    loopback: LoopbackHub, repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repository.parent / "other"
    make_shape.write_checkpoint(other, CONFIG | {"hybrid_override_pattern": "ME"})
    loopback.repos[REPO]["pr/2"] = other
    whole, short = (opened(loopback.address, cache, f"{REPO}{at}") for at in ("", "@pr/2"))
    assert len(whole.tensors) > len(short.tensors)
    assert short.tensors == open_checkpoint(other).tensors
    for at, source in (("", whole), ("@pr/2", short), (f"@{commit_of('pr/2')}", short)):
        assert opened(NOWHERE, cache, f"{REPO}{at}").tensors == source.tensors
    # and a branch that moves on
    monkeypatch.setattr(loopback_hub, "COMMIT", "9" * 40)
    loopback.repos[REPO]["main"] = other
    assert opened(loopback.address, cache).tensors == short.tensors
    assert opened(NOWHERE, cache).tensors == short.tensors
    assert opened(NOWHERE, cache, f"{REPO}@{COMMIT}").tensors == whole.tensors


def test_what_was_lost_or_spoilt_here_comes_again(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    kept = fetch(loopback, cache)
    for spoil in (
        lambda: (kept.checkpoint / "tokenizer.json").unlink(),
        lambda: (kept.folder / "headers.json").write_text("{"),
        lambda: os.truncate(next(kept.folder.glob("headers/*")), 9),
    ):
        spoil()
        loopback.served.clear()
        assert fetch(loopback, cache) == kept
        assert len(loopback.served) == 10
    changed = next(kept.folder.glob("headers/*"))
    changed.write_bytes(changed.read_bytes().replace(b"BF16", b"BF61"))
    with pytest.raises(InputError, match=f"BF61.*delete {kept.folder}"):
        opened(loopback.address, cache)


def test_killed_in_between_only_the_rest_comes(
    loopback: LoopbackHub, repository: Path, cache: Path
) -> None:
    last = shards_of(repository)[2]
    loopback.faults[last] = [Fault(stall_after=100)]
    code = (
        "import sys; from pathlib import Path\n"
        "from quantkit.models.remote_headers import fetch_headers\n"
        "from quantkit.hub.reading import Hub\nfrom quantkit.core.progress import SILENT\n"
        "fetch_headers(lambda: Hub(sys.argv[1], token=False), sys.argv[2], None, SILENT,"
        " Path(sys.argv[3]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, loopback.address, REPO, str(cache)])
    work = cache / REPO.lower().replace("/", "--") / f"{COMMIT}.partial" / "whole"
    wanted = {f"checkpoint/{n}" for n in SMALL}
    wanted |= {f"headers/{n}.header" for n in shards_of(repository)[:2]}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if {p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()} == wanted:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(EnvironmentFault):  # half of it is nothing to plan from
        fetch_headers(client(NOWHERE), REPO, None, Watched(), cache)
    loopback.served.clear()
    assert opened(loopback.address, cache).tensors == open_checkpoint(repository).tensors
    assert loopback.names() == [last]
    assert not list(cache.rglob("*.partial"))


def test_two_runs_do_not_fetch_the_same(loopback: LoopbackHub, cache: Path) -> None:
    import fcntl

    work = cache / REPO.lower().replace("/", "--") / f"{COMMIT}.partial"
    work.mkdir(parents=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"another run is writing what .* is for"):
            fetch(loopback, cache)
    assert fetch(loopback, cache).commit == COMMIT


def test_a_cache_that_cannot_be_written_is_named(loopback: LoopbackHub, cache: Path) -> None:
    cache.write_text("a file in the way")
    with pytest.raises(EnvironmentFault, match=f"cannot keep.*{cache}.*XDG_CACHE_HOME"):
        fetch(loopback, cache)


def test_one_file_without_an_index(loopback: LoopbackHub, cache: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama", LLAMA, llama_arrays(LLAMA))
    loopback.repos[REPO] = {"main": folder}
    assert opened(loopback.address, cache).tensors == open_checkpoint(folder).tensors


@pytest.mark.parametrize(("width", "notes"), [(32, 1), (24, 0)])
def test_an_output_beside_tied_embeddings_is_believed_to_be_their_copy(
    width: int, notes: int, loopback: LoopbackHub, cache: Path, tmp_path: Path
) -> None:
    """And where it cannot be one, the folder is not opened either."""
    arrays = llama_arrays(LLAMA)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"][:, :width]
    folder = write_checkpoint(tmp_path / "llama", LLAMA, arrays)
    loopback.repos[REPO] = {"main": folder}
    watched = Watched()
    choice, make = choose_model(REPO), client(loopback.address)
    if notes:
        source = open_shapes(choice, watched, make, cache=cache)
        assert source.tensors == open_checkpoint(folder).tensors
        assert "output.weight" not in {info.name for info in source.tensors}
    else:
        with pytest.raises(InputError, match=r"lm_head.weight has shape \[320, 24\]"):
            open_shapes(choice, watched, make, cache=cache)
    assert [note.startswith("config.json ties the output") for note in watched.notes] == [
        True
    ] * notes
