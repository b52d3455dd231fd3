"""Downloads over real HTTP: refused early, verified, resumed, never in a person's way."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import flagship
import pytest
from forked import quantkit
from loopback_hub import COMMIT, GOOD_TOKEN, Fault, LoopbackHub, commit_of, hub
from waiting import KILLED_BEHIND_BYTES, kill_while_it_waits, wait_until
from watched import Watched

from quantkit.config.levels import PRESETS
from quantkit.config.recipe import Recipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import file_sha256, publish
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.units import GIB
from quantkit.hub.downloads import STATE, CommitJournal, is_whole, read_record
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.download import Downloaded, download
from quantkit.models.local_copy import HEADER_BYTES, SpaceNeeded, check_space, space_needed, survey
from quantkit.models.model import Model
from quantkit.models.remote import look_up, wanted_files
from quantkit.quantize.quantize import artifact_bytes

MIB = 1 << 20
REPO = "someone/demo"
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
TEMPLATE = "additional_chat_templates/tool_use.jinja"
CONFIG = json.loads((DEMO_MODEL / "config.json").read_text())
QUANTIZED = json.dumps(CONFIG | {"quantization_config": {"quant_method": "fp8"}})
UNWANTED = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", ".hidden.json",
    "onnx/config.json", "original/model.safetensors", "run.py",
)  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkpoint as repositories have them: three shards, and much that is not wanted."""
    folder = tmp_path / "repository"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "model.safetensors").unlink()
    for number, name in enumerate(SHARDS):
        (folder / name).write_bytes(os.urandom(MIB + number))
    weight_map = {f"tensor.{n}": name for n, name in enumerate(SHARDS)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in (TEMPLATE, "LICENSE", *UNWANTED):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def loopback(repository: Path) -> Iterator[LoopbackHub]:
    from huggingface_hub import close_session

    with hub({REPO: repository}) as served:
        yield served
    close_session()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def client(loopback: LoopbackHub, timeout_s: float = 30) -> Hub:
    return Hub(loopback.address, token=False, timeout_s=timeout_s, delays_s=(0.01,) * 3)


def fetch(
    loopback: LoopbackHub,
    folder: Path,
    revision: str | None = None,
    watched: Watched | None = None,
    workers: int = 8,
    repo: str = REPO,
    timeout_s: float = 30,
) -> Downloaded:
    reader = client(loopback, timeout_s)
    remote = look_up(reader, repo, revision, folder)
    return download(remote, reader, folder, watched or Watched(), workers)


def files_in(folder: Path) -> dict[str, str]:
    """Hashes of what a person sees in a folder."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and STATE not in path.parts
    }


def wanted(repository: Path) -> dict[str, str]:
    return {name: sha for name, sha in files_in(repository).items() if name not in UNWANTED}


# ---- what arrives


def test_what_is_wanted_arrives_verified_and_nothing_else(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    watched = Watched()
    done = fetch(loopback, out, watched=watched)
    assert files_in(out) == wanted(repository)
    assert {file.name: file.sha256 for file in done.files} == wanted(repository)
    assert done.commit == COMMIT
    assert done.size_bytes == done.fetched_bytes == watched.total == watched.done
    assert sorted(loopback.names()) == sorted(wanted(repository))
    assert loopback.names()[:2] == ["config.json", INDEX]  # looked at before anything large
    assert not list((out).rglob("*.partial"))


def test_files_come_side_by_side(loopback: LoopbackHub, tmp_path: Path) -> None:
    loopback.bytes_per_second = 4 * MIB
    fetch(loopback, tmp_path / "a", workers=3)
    assert loopback.together >= 3


def test_a_second_run_is_served_nothing(loopback: LoopbackHub, out: Path) -> None:
    first = fetch(loopback, out)
    loopback.served.clear()
    watched = Watched()
    second = fetch(loopback, out, watched=watched)
    assert loopback.served == []
    assert second.files == first.files
    assert second.fetched_bytes == 0
    assert watched.done == watched.total  # what was here counts


def test_files_that_were_brought_otherwise_are_verified_and_kept(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    out.mkdir()
    for name in (SHARDS[0], "README.md"):
        shutil.copy(repository / name, out / name)
    done = fetch(loopback, out)
    assert {SHARDS[0], "README.md"}.isdisjoint(loopback.names())
    assert {file.name: file.sha256 for file in done.files} == wanted(repository)


# ---- what is refused before anything large


def refused(loopback: LoopbackHub, folder: Path, words: str) -> None:
    """The download is refused with `words`, and neither weights nor a folder came of it."""
    before = files_in(folder) if folder.exists() else None
    with pytest.raises(InputError, match=words):
        fetch(loopback, folder)
    assert not [name for name in loopback.names() if name.endswith(".safetensors")]
    assert (files_in(folder) if folder.exists() else None) == before


def test_pickle_only(loopback: LoopbackHub, repository: Path, out: Path) -> None:
    for path in repository.rglob("*.safetensors"):
        path.unlink()
    refused(loopback, out, r"no \*.safetensors, only pytorch_model.bin: pickle files")
    (repository / "pytorch_model.bin").unlink()
    refused(loopback, out, "choose the repository of the model's original weights")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", '{"architectures": ["Foo"]}', "'Foo'.*LlamaForCausalLM"),
        ("config.json", QUANTIZED, "quantized checkpoint.*BF16 release"),
        ("config.json", "[", "config.json is not valid JSON"),
        ("config.json", "[1]", "config.json holds no JSON object"),
        (INDEX, "{}", "names no shards"),
        (INDEX, '{"weight_map": {"a": "lost.safetensors"}}', "'lost.safetensors', which the repo"),
        (INDEX, '{"weight_map": {"a": "../../x.safetensors"}}', r"'../../x.safetensors', which"),
    ],
)
def test_broken_descriptions(
    name: str, content: str | None, words: str, loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    (repository / name).unlink()
    if content is not None:
        (repository / name).write_text(content)
    refused(loopback, out, words)


def test_gated_repository(loopback: LoopbackHub, out: Path) -> None:
    loopback.gated = {REPO}
    refused(loopback, out, "is gated: accept its terms")


def test_weights_that_are_not_of_this_checkpoint(loopback: LoopbackHub, out: Path) -> None:
    out.mkdir()
    (out / "adapter.safetensors").write_bytes(b"mine")
    refused(loopback, out, "holds adapter.safetensors, not of someone/demo.*move them away")


def test_a_persons_file_with_the_name_of_one_of_the_checkpoint(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    out.mkdir()
    (out / "README.md").write_text("my project")
    refused(loopback, out, "README.md is not the file that someone/demo has.*move it away")
    size = (repository / "README.md").stat().st_size
    (out / "README.md").write_bytes(b"x" * size)  # only its hash tells
    with pytest.raises(InputError, match=r"README.md is not the file"):
        fetch(loopback, out)
    assert (out / "README.md").read_bytes() == b"x" * size


def test_a_folder_with_another_repository(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    fetch(loopback, out)
    before = files_in(out)
    loopback.repos["other/demo"] = {"main": repository}
    with pytest.raises(InputError, match="holds a download of someone/demo"):
        fetch(loopback, out, repo="other/demo")
    assert files_in(out) == before


def test_a_folder_that_cannot_be_written(loopback: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to .*/file/out.*: Not a directory.*--out"):
        fetch(loopback, tmp_path / "file" / "out")


def test_names_from_the_hub_stay_in_the_folder() -> None:
    names = (
        "../up.json", "/etc/up.json", "a/../../up.json", "..", ".json", "a\\b.json",
        "bell\x07.json", "x/y.safetensors", "additional_chat_templates/..",
        "additional_chat_templates/../../x.jinja",
    )  # fmt: skip
    files = [HubFile(name, 1, "0" * 64, None) for name in (*names, "config.json", "m.safetensors")]
    found = wanted_files(Listing(REPO, COMMIT, tuple(files)), None)
    assert [file.name for file in found] == ["config.json", "m.safetensors"]


# ---- faults on the way


def test_a_wrong_file_is_fetched_once_more(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    loopback.faults = {SHARDS[1]: [Fault(corrupt=True)], "README.md": [Fault(corrupt=True)]}
    watched = Watched()
    done = fetch(loopback, out, watched=watched)
    assert files_in(out) == wanted(repository)
    assert loopback.names().count(SHARDS[1]) == loopback.names().count("README.md") == 2
    assert loopback.names().count(SHARDS[0]) == 1
    assert f"{SHARDS[1]} arrived with a wrong hash and is fetched again" in watched.notes
    assert watched.done == watched.total == done.size_bytes


@pytest.mark.parametrize("name", [SHARDS[1], "tokenizer.json", "config.json"])
def test_a_file_that_is_always_wrong_is_named_with_both_hashes(
    name: str, loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    loopback.always = {name: Fault(corrupt=True)}
    with pytest.raises(EnvironmentFault, match=f"{name} arrived wrong twice") as caught:
        fetch(loopback, out)
    if name == SHARDS[1]:
        assert f"records sha256:{file_sha256(repository / name)}" in str(caught.value)
    assert not (out / name).exists()
    assert loopback.names().count(name) == 2
    loopback.always.clear()
    fetch(loopback, out)
    assert files_in(out) == wanted(repository)


def test_network_faults_in_the_middle_of_files(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    loopback.faults = {
        SHARDS[0]: [Fault(status=500), Fault(cut_after=600_000), Fault(status=503)],
        SHARDS[1]: [Fault(stall_after=600_000)],
        SHARDS[2]: [Fault(cut_after=600_000), Fault(ignore_range=True)],
    }
    watched = Watched()
    fetch(loopback, out, watched=watched, timeout_s=0.5)
    assert files_in(out) == wanted(repository)
    assert watched.done == watched.total
    assert "HTTP 500; trying again in" in watched.notes[0]


def test_what_arrived_before_a_fault_that_stays_is_kept(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    loopback.faults = {SHARDS[0]: [Fault(cut_after=600_000), *[Fault(status=500)] * 4]}
    with pytest.raises(EnvironmentFault, match=r"HTTP 500.*finished files are kept"):
        fetch(loopback, out, workers=1)
    loopback.served.clear()
    fetch(loopback, out)
    assert files_in(out) == wanted(repository)
    assert next(s.start for s in loopback.served if s.name == SHARDS[0]) > 500_000
    assert "config.json" not in loopback.names()


def run_command(loopback: LoopbackHub, *arguments: str | Path) -> list[str]:
    assert loopback.address
    code = "from quantkit.cli.app import main; main()"
    return [sys.executable, "-c", code, "download", *map(str, arguments)]


def environment(loopback: LoopbackHub, out: Path) -> dict[str, str]:
    settings = {"HF_ENDPOINT": loopback.address, "HF_HOME": str(out.with_name("hf"))}
    return {k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | settings


def test_killed_in_the_middle_of_a_file_goes_on_from_there(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    large, out = repository / SHARDS[0], out
    large.write_bytes(os.urandom(12 * MIB))
    loopback.faults[SHARDS[0]] = [Fault(stall_after=KILLED_BEHIND_BYTES)]
    process = subprocess.Popen(
        run_command(loopback, REPO, "--out", out, "--quiet"),
        env=environment(loopback, out) | {"HF_HUB_DOWNLOAD_TIMEOUT": "600"},
        text=True,
    )
    arrived = kill_while_it_waits(process, out / STATE, f"{SHARDS[0]}.*.partial")
    assert not (out / SHARDS[0]).exists()
    loopback.served.clear()
    again = quantkit("download", REPO, "--out", out, "--json", env=environment(loopback, out))
    assert again.returncode == 0, again.stderr
    assert files_in(out) == wanted(repository)
    assert loopback.names() == [SHARDS[0]]
    assert loopback.served[0].start == arrived
    assert loopback.sent_bytes() == json.loads(again.stdout)["fetched_bytes"] == 12 * MIB - arrived


def test_ctrl_c_ends_at_once_although_a_connection_is_stalled(
    loopback: LoopbackHub, out: Path
) -> None:
    loopback.always = {SHARDS[0]: Fault(stall_after=600_000)}
    process = subprocess.Popen(
        run_command(loopback, REPO, "--out", out),
        env=environment(loopback, out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore it, and hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: SHARDS[0] in loopback.names(), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == "stopped; run the same command again to resume"


def test_a_file_that_cannot_be_written_is_a_fault_of_the_machine(
    loopback: LoopbackHub, out: Path
) -> None:
    """A limit of 256 KiB a file stands for a full disk: write fails in the middle."""
    finished = subprocess.run(
        run_command(loopback, REPO, "--out", out),
        env=environment(loopback, out),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 3, finished.stderr
    assert "error: cannot write" in finished.stderr
    assert "finished files are kept" in finished.stderr
    assert "make room" not in finished.stderr  # there is room
    assert "Traceback" not in finished.stderr


# ---- disk space


def test_space_of_a_build() -> None:
    elements = 1_000_000_000
    recipe = space_recipe(
        {"name": "a", "bits_per_weight": 6}, {"name": "b", "size": "500MB"}, {"name": "all"},
        {"name": "c", "bits_per_weight": 12}, base_type="Q8_0",
    )  # fmt: skip
    needed = space_needed(500, elements, 1000, recipe, 900_000_000)
    assert needed.download_bytes == 500
    assert needed.logits_bytes == 2 * 1000 * 4 * 255 + HEADER_BYTES
    assert needed.base_bytes == 1_062_500_000 + HEADER_BYTES
    levels = 750_000_000 + 500_000_000 + 900_000_000  # 12 bits a weight exceed the target
    assert needed.level_bytes == levels + 3 * HEADER_BYTES
    parts = needed.base_bytes + needed.level_bytes + needed.logits_bytes
    assert needed.total_bytes == 500 + parts
    recipe = space_recipe({"name": "all"}, {"name": "b", "bits_per_weight": 4}, chunks=0)
    unknown = space_needed(0, elements, 1000, recipe)
    assert unknown.base_bytes == 2 * elements + HEADER_BYTES
    assert unknown.level_bytes == 500_000_000 + HEADER_BYTES
    assert unknown.logits_bytes == 0


def space_recipe(*levels: dict[str, object], base_type: str = "BF16", chunks: int = 4) -> Recipe:
    sections = {"convert": {"base_type": base_type}, "divergence": {"chunks": chunks}}
    return Recipe.model_validate({"name": "r", "levels": levels, **sections})


def test_space_of_presets_is_a_bound_that_is_not_far_off() -> None:
    """Of a model with rows that most blocks do not divide; none takes all the target's memory."""
    metadata, tensors = flagship.metadata(), flagship.tensors()
    model = Model("m", metadata, tensors)
    elements = model.elements
    limit = 71 * GIB
    for preset in ("IQ1_S", "IQ3_M", "Q3_K_L", "Q4_K_S", "Q8_0"):
        recipe = space_recipe({"name": preset, "preset": preset})
        types = ask_preset(model, preset, has_imatrix=True).types
        true = artifact_bytes(model, types)
        counted = space_needed(0, elements, 0, recipe).level_bytes
        assert true <= counted < true + 1.1 * elements / 8, preset
        on_target = space_needed(0, elements, 0, recipe, limit).level_bytes
        expected = 0 if true > limit else min(counted, limit + HEADER_BYTES)
        assert on_target == expected, preset


def test_space_knows_every_preset() -> None:
    for preset in PRESETS:
        recipe = space_recipe({"name": preset, "preset": preset})
        size = space_needed(0, 8_000_000_000, 0, recipe).level_bytes - HEADER_BYTES
        assert 3_000_000_000 < size < 8_600_000_000, preset


def test_too_little_space_is_told_with_what_takes_it(tmp_path: Path) -> None:
    needed = SpaceNeeded(3 << 30, 2 << 30, 1 << 30)
    check_space(needed, 6 << 30, tmp_path)
    with pytest.raises(EnvironmentFault) as caught:
        check_space(needed, 5 << 30, tmp_path)
    words = "5.00 GiB free, but 6.00 GiB are needed (3.00 GiB to download, 2.00 GiB for base.gguf, "
    assert words + "1.00 GiB for the levels), 1.00 GiB more" in str(caught.value)


def test_a_download_that_does_not_fit_begins_nothing(loopback: LoopbackHub, out: Path) -> None:
    loopback.claims = {SHARDS[2]: 1 << 50}
    with pytest.raises(EnvironmentFault, match=r"GiB to download.*--out"):
        fetch(loopback, out)
    assert loopback.names() == ["config.json", INDEX]
    assert not (out).exists()


def test_partial_files_count_as_downloaded(loopback: LoopbackHub, out: Path) -> None:
    loopback.faults = {SHARDS[0]: [Fault(cut_after=600_000), *[Fault(status=500)] * 4]}
    with pytest.raises(EnvironmentFault):
        fetch(loopback, out, workers=1)
    remote = look_up(client(loopback), REPO, None, out)
    left = survey(remote, out).fetch_bytes
    assert 3 * MIB - 600_000 <= left < 3 * MIB - 500_000


# ---- what a person, or another revision, did in the meantime


def test_a_changed_file_is_seen_kept_aside_and_fetched_again(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    fetch(loopback, out)
    names = [SHARDS[0], "README.md"]
    assert is_whole(out, names)
    content = bytearray((out / SHARDS[0]).read_bytes())
    content[5] ^= 1
    (out / SHARDS[0]).write_bytes(content)
    (out / "README.md").write_text("notes of mine")
    assert not is_whole(out, [SHARDS[0]])
    loopback.served.clear()
    watched = Watched()
    fetch(loopback, out, watched=watched)
    assert sorted(loopback.names()) == sorted(names)
    assert (out / f"{SHARDS[0]}.changed").read_bytes() == content
    assert (out / "README.md.changed").read_text() == "notes of mine"
    assert f"{SHARDS[0]} was changed here: kept as {SHARDS[0]}.changed" in "".join(watched.notes)
    assert wanted(repository).items() <= files_in(out).items()
    (out / "README.md").write_text("more notes")
    fetch(loopback, out)
    assert (out / "README.md.changed").read_text() == "notes of mine"
    assert (out / "README.md.changed-2").read_text() == "more notes"


def test_a_file_that_was_only_touched_is_hashed_and_not_fetched(
    loopback: LoopbackHub, out: Path
) -> None:
    first = fetch(loopback, out)
    os.utime(out / SHARDS[0])
    loopback.served.clear()
    second = fetch(loopback, out)
    assert loopback.served == []
    assert [f.sha256 for f in first.files] == [f.sha256 for f in second.files]
    assert is_whole(out, SHARDS)


def test_another_revision_replaces_ours_and_leaves_what_is_a_persons(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    newer = newer_revision(loopback, repository, ["LICENSE"])
    (newer / SHARDS[1]).write_bytes(os.urandom(MIB))
    fetch(loopback, out)
    (out / "notes.txt").write_text("mine")
    (out / "LICENSE").write_text("mine now")
    (out / STATE / "old.0123.partial").write_text("of no use any more")
    loopback.served.clear()
    done = fetch(loopback, out, "v2")
    assert done.commit == commit_of("v2")
    assert loopback.names() == [SHARDS[1]]
    mine = {"notes.txt", "LICENSE"}  # changed since: not ours to remove
    assert {n: s for n, s in files_in(out).items() if n not in mine} == wanted(newer)
    assert (out / "LICENSE").read_text() == "mine now"
    assert not list((out / STATE).rglob("*.partial"))
    loopback.served.clear()
    fetch(loopback, out, "v2")
    assert loopback.served == []
    (out / "LICENSE").unlink()
    fetch(loopback, out)  # back to main
    assert wanted(repository).items() <= files_in(out).items()


def test_files_that_the_new_revision_lacks_are_removed_when_nobody_changed_them(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    newer = newer_revision(loopback, repository, (*SHARDS, INDEX, "consolidated.safetensors"))
    (newer / "model.safetensors").write_bytes(os.urandom(MIB))
    fetch(loopback, out)
    remote = look_up(client(loopback), REPO, "v2", out)
    given_back = sum(kept.size_bytes for kept in survey(remote, out).obsolete)
    assert given_back > 3 * MIB
    fetch(loopback, out, "v2")
    assert files_in(out) == wanted(newer)


# ---- what a person put there


def newer_revision(loopback: LoopbackHub, repository: Path, lacks: Sequence[str] = ()) -> Path:
    """A revision v2, to be changed."""
    newer = repository.with_name("newer")
    shutil.copytree(repository, newer)
    for name in lacks:
        (newer / name).unlink()
    loopback.repos[REPO]["v2"] = newer
    return newer


def test_shards_that_a_person_brought_outlive_a_revision_without_them(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    newer = newer_revision(loopback, repository, (*SHARDS, INDEX, "consolidated.safetensors"))
    (newer / "model.safetensors").write_bytes(os.urandom(MIB))
    out.mkdir()
    for name in SHARDS:
        shutil.copy(repository / name, out / name)
    fetch(loopback, out)
    assert not set(SHARDS) & set(loopback.names())
    before = files_in(out)
    with pytest.raises(InputError, match=r"holds model-00001-of-00003.safetensors and 2 more"):
        fetch(loopback, out, "v2")
    assert files_in(out) == before


def test_a_persons_file_outlives_a_revision_that_has_none_or_another(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    newer = newer_revision(loopback, repository, ["LICENSE"])
    out.mkdir()
    for name in ("LICENSE", SHARDS[0]):
        shutil.copy(repository / name, out / name)
    fetch(loopback, out)
    fetch(loopback, out, "v2")
    assert (out / "LICENSE").read_text() == "LICENSE"
    for size in (MIB, MIB + 5):  # the first is as large as what is here
        (newer / SHARDS[0]).write_bytes(os.urandom(size))
        with pytest.raises(InputError, match=f"{SHARDS[0]} is not the file.*did not download it"):
            fetch(loopback, out, "v2")
        assert (out / SHARDS[0]).read_bytes() == (repository / SHARDS[0]).read_bytes()


def test_an_edited_file_is_kept_aside_when_the_revision_changes(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    newer = newer_revision(loopback, repository)
    (newer / SHARDS[1]).write_bytes(os.urandom(MIB))
    (newer / "README.md").write_text("newer")
    fetch(loopback, out)
    edited = os.urandom((out / SHARDS[1]).stat().st_size)
    (out / SHARDS[1]).write_bytes(edited)
    (out / "README.md").write_text("notes of mine")
    watched = Watched()
    fetch(loopback, out, "v2", watched)
    assert f"{SHARDS[1]} was changed here: kept as" in "".join(watched.notes)
    assert wanted(newer).items() <= files_in(out).items()
    assert (out / f"{SHARDS[1]}.changed").read_bytes() == edited
    assert (out / "README.md.changed").read_text() == "notes of mine"


def test_a_file_that_appears_during_the_run_is_kept_aside(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:

    class Meddler(Watched):
        def advance(self, amount: float) -> None:
            super().advance(amount)
            for name in ("README.md", SHARDS[2]):
                under_way = list((out / STATE).glob(f"{name}.*.partial"))
                if under_way and not (out / name).is_symlink():
                    (out / name).symlink_to("/nowhere")

    watched = Meddler()
    fetch(loopback, out, watched=watched, workers=1)
    assert files_in(out) == wanted(repository)
    assert os.readlink(out / f"{SHARDS[2]}.changed") == "/nowhere"
    assert os.readlink(out / "README.md.changed") == "/nowhere"
    words = f"{SHARDS[2]} appeared here meanwhile: kept as {SHARDS[2]}.changed"
    assert words in "".join(watched.notes)


@pytest.mark.parametrize("name", ["README.md", "config.json", SHARDS[0]])
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "dangling link"])
def test_what_is_no_file_is_not_replaced(
    name: str, folder: bool, loopback: LoopbackHub, out: Path
) -> None:
    path = out / name
    path.parent.mkdir()
    if folder:
        path.mkdir()
    else:
        path.symlink_to("/nowhere")
    refused(loopback, path.parent, f"{name} is not the file that someone/demo has")
    assert path.is_dir() if folder else path.is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja", "chat_template.json", "tokenizer.model", "added_tokens.json",
        "special_tokens_map.json", "tokenizer_config.json", "generation_config.json", INDEX,
        "additional_chat_templates/mine.jinja", "README.md", "adapter.safetensors",
    ],
)  # fmt: skip
def test_files_of_another_model_that_would_be_read_as_of_this_one(
    name: str, loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    (repository / name).unlink(missing_ok=True)
    if name == INDEX:
        (repository / SHARDS[0]).rename(repository / "model.safetensors")
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("{}")
    refused(loopback, out, f"holds {name}, not of someone/demo.*move them away")


def test_what_is_kept_aside_is_not_read_as_of_the_model(loopback: LoopbackHub, out: Path) -> None:
    fetch(loopback, out)
    for name in ("tokenizer.json", "chat_template.jinja", TEMPLATE, INDEX, SHARDS[0]):
        (out / name).write_text("mine")
    fetch(loopback, out)
    fetch(loopback, out)
    assert (out / "tokenizer.json.changed").read_text() == "mine"
    assert (out / f"{TEMPLATE}.changed").read_text() == "mine"


# ---- what several runs leave


def test_a_second_run_is_refused_while_one_is_at_work(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    loopback.bytes_per_second = MIB // 30
    running = subprocess.Popen(
        run_command(loopback, REPO, "--out", out, "--json"),
        env=environment(loopback, out),
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: loopback.sent_bytes(SHARDS[0]), running)
    with pytest.raises(InputError, match=r"another run is writing to .*out"):
        fetch(loopback, out)
    loopback.bytes_per_second = None
    answer, _ = running.communicate()
    assert running.returncode == 0
    assert json.loads(answer)["files"][SHARDS[0]]["size_bytes"] == MIB
    assert files_in(out) == wanted(repository)


def test_bytes_that_something_else_adds_are_not_verified(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:

    class Meddler(Watched):
        met = False

        def advance(self, amount: float) -> None:
            super().advance(amount)
            for partial in (out / STATE).glob(f"{SHARDS[0]}.*.partial"):
                if not self.met:
                    self.met = True
                    with partial.open("ab") as file:
                        file.write(b"more")

    watched = Meddler()
    fetch(loopback, out, watched=watched, workers=1)
    assert watched.met
    assert files_in(out) == wanted(repository)
    assert f"{SHARDS[0]} arrived with a wrong hash and is fetched again" in watched.notes


def test_a_file_that_arrived_just_before_a_kill_is_known_as_ours(
    loopback: LoopbackHub, repository: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = newer_revision(loopback, repository)
    (newer / SHARDS[0]).write_bytes(os.urandom(MIB))

    def publish_and_stop(partial: Path, path: Path) -> None:
        publish(partial, path)
        if path.name == SHARDS[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr("quantkit.models.download.publish", publish_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(loopback, out, workers=1)
    monkeypatch.undo()
    fetch(loopback, out, "v2")
    assert files_in(out) == wanted(newer)


def test_a_recorded_file_of_another_size_is_not_kept(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    """As two runs at once left it, before they excluded each other."""
    fetch(loopback, out)
    with (out / SHARDS[0]).open("ab") as file:
        file.write(b"more")
    known, stat = read_record(out).kept[SHARDS[0]], (out / SHARDS[0]).stat()
    wrong = dataclasses.replace(known, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
    CommitJournal(out, REPO, COMMIT).add(wrong)
    assert wrong.is_unchanged(out)
    fetch(loopback, out)
    assert wanted(repository).items() <= files_in(out).items()


def test_of_several_records_the_one_that_agrees_with_the_file_counts(
    loopback: LoopbackHub, repository: Path, out: Path
) -> None:
    """Switching to and fro with stops in between leaves journals of both, in any order."""
    fetch(loopback, out)
    known = read_record(out).kept[SHARDS[0]]
    other = dataclasses.replace(known, identity="sha256:" + "0" * 64, modified_ns=1)
    CommitJournal(out, REPO, "f" * 40).add(other)
    os.utime(out / STATE / f"{COMMIT}.journal", (1, 1))
    assert read_record(out).kept[SHARDS[0]] == known
    loopback.served.clear()
    watched = Watched()
    fetch(loopback, out, watched=watched)
    assert not loopback.served
    assert not watched.notes
    assert not list(out.glob("*.changed"))


def test_leftovers_of_other_revisions_count_as_free(loopback: LoopbackHub, out: Path) -> None:
    fetch(loopback, out)
    leftover = out / STATE / f"{SHARDS[0]}.deadbeefdeadbeef.partial"
    leftover.write_bytes(b"x" * 5000)
    found = survey(look_up(client(loopback), REPO, None, out), out)
    assert found.leftovers == (leftover,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.models.local_copy.free_bytes", lambda folder: 100)
        found = survey(look_up(client(loopback), REPO, None, out), out)
    assert found.free_bytes == 5100


def test_a_repository_in_other_letters_is_the_same(loopback: LoopbackHub, out: Path) -> None:
    fetch(loopback, out)
    loopback.served.clear()
    fetch(loopback, out, repo="Someone/Demo")
    assert not loopback.served


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"No space left on device; .* free on its disk: make room, then run again"),
        (errno.EDQUOT, "make room, then run again"),
        (errno.EACCES, "Permission denied; check its permissions, then run again"),
        (errno.EISDIR, "move it away, then run again"),
        (errno.ENOENT, "No such file or directory; check the disk, then run again"),
    ],
)
def test_a_fault_of_the_disk_is_called_by_its_name(
    number: int, words: str, loopback: LoopbackHub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(partial: Path, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("quantkit.models.download.publish", fail)
    with pytest.raises(EnvironmentFault, match=f"cannot write .*{words}: finished files are kept"):
        fetch(loopback, out)


def test_a_token_is_used(loopback: LoopbackHub, out: Path) -> None:
    loopback.private = {REPO}
    refused(loopback, out, "no repository someone/demo for you")
    reader = Hub(loopback.address, token=GOOD_TOKEN)
    remote = look_up(reader, REPO)
    assert len(download(remote, reader, out, Watched()).files) == len(remote.files)
