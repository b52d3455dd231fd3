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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import flagship
import pytest
from forked import quantkit
from loopback_hub import COMMIT, GOOD_TOKEN, Fault, LoopbackHub, commit_of
from waiting import KILLED_BEHIND_BYTES, kill_while_it_waits, wait_until
from watched import Watched

from quantkit.config.levels import PRESETS
from quantkit.config.recipe import Recipe
from quantkit.core.errors import DiskFullError, EnvironmentFault, InputError
from quantkit.core.files import file_sha256, publish
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.units import GIB
from quantkit.hub.downloads import STATE, CommitJournal, Kept, is_whole, read_record
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.choose import choose_local, choose_model, open_shapes
from quantkit.models.download import Downloaded, download
from quantkit.models.local_copy import (
    HEADER_BYTES,
    SpaceNeeded,
    check_build_space,
    check_space,
    partial_path,
    space_needed,
    survey,
)
from quantkit.models.model import Model
from quantkit.models.remote import RemoteCheckpoint, look_up, wanted_files
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


@dataclass
class Case:
    """A repository on a Hub of this machine, and the folder to download it into."""

    repository: Path
    hub: LoopbackHub
    out: Path
    watched: Watched = field(default_factory=Watched)

    def client(self, timeout_s: float = 30) -> Hub:
        return Hub(self.hub.address, token=False, timeout_s=timeout_s, delays_s=(0.01,) * 3)

    def look_up(self, revision: str | None = None) -> RemoteCheckpoint:
        return look_up(self.client(), REPO, revision, self.out)

    def fetch(
        self,
        revision: str | None = None,
        watched: Watched | None = None,
        workers: int = 8,
        repo: str = REPO,
        timeout_s: float = 30,
    ) -> Downloaded:
        """A download; `hub.served` and `watched` are then of this one alone."""
        self.hub.served.clear()
        self.watched = watched or Watched()
        client = self.client(timeout_s)
        remote = look_up(client, repo, revision, self.out)
        return download(remote, client, self.out, self.watched, workers)

    def refused(self, words: str) -> None:
        """The download is refused with `words`, and neither weights nor a folder came of it."""
        before = self.here if self.out.exists() else None
        with pytest.raises(InputError, match=words):
            self.fetch()
        assert not [name for name in self.hub.names() if name.endswith(".safetensors")]
        assert (self.here if self.out.exists() else None) == before

    @property
    def here(self) -> dict[str, str]:
        """Hashes of what a person sees in the folder."""
        return files_in(self.out)

    @property
    def wanted(self) -> dict[str, str]:
        return wanted(self.repository)

    def newer_revision(self, lacks: Sequence[str] = ()) -> Path:
        """A revision v2, to be changed."""
        newer = self.repository.with_name("newer")
        shutil.copytree(self.repository, newer)
        for name in lacks:
            (newer / name).unlink()
        self.hub.repos[REPO]["v2"] = newer
        return newer

    def start(
        self, *options: str, before: Callable[[], object] | None = None, **settings: str
    ) -> subprocess.Popen[str]:
        """The command in a process of its own; `before` runs in it first."""
        code = "from quantkit.cli.app import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "download", REPO, "--out", self.out, *options],
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )

    @property
    def environment(self) -> dict[str, str]:
        settings = {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.out.with_name("hf"))}
        return {k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | settings


@pytest.fixture
def case(repository: Path, loopback: LoopbackHub, tmp_path: Path) -> Case:
    return Case(repository, loopback, tmp_path / "out")


def files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and STATE not in path.parts
    }


def wanted(repository: Path) -> dict[str, str]:
    return {name: sha for name, sha in files_in(repository).items() if name not in UNWANTED}


# ---- what arrives


def test_what_is_wanted_arrives_verified_and_nothing_else(case: Case) -> None:
    done = case.fetch()
    assert case.here == case.wanted
    assert {file.name: file.sha256 for file in done.files} == case.wanted
    assert done.commit == COMMIT
    assert done.size_bytes == done.fetched_bytes == case.watched.total == case.watched.done
    assert sorted(case.hub.names()) == sorted(case.wanted)
    assert case.hub.names()[:2] == ["config.json", INDEX]  # looked at before anything large
    assert not list(case.out.rglob("*.partial"))


def test_files_come_side_by_side(case: Case) -> None:
    case.hub.bytes_per_second = 4 * MIB
    case.fetch(workers=3)
    assert case.hub.together >= 3


@pytest.mark.parametrize("repo", [REPO, "Someone/Demo"])
@pytest.mark.parametrize("touched", [False, True])
def test_a_second_run_is_served_nothing(case: Case, repo: str, touched: bool) -> None:
    first = case.fetch()
    if touched:  # hashed again
        os.utime(case.out / SHARDS[0])
    second = case.fetch(repo=repo)
    assert case.hub.served == []
    assert [f.sha256 for f in first.files] == [f.sha256 for f in second.files]
    assert touched or second.files == first.files
    assert second.fetched_bytes == 0
    assert case.watched.done == case.watched.total  # what was here counts
    assert is_whole(case.out, SHARDS)


def test_files_that_were_brought_otherwise_are_verified_and_kept(case: Case) -> None:
    case.out.mkdir()
    for name in (SHARDS[0], "README.md"):
        shutil.copy(case.repository / name, case.out / name)
    done = case.fetch()
    assert {SHARDS[0], "README.md"}.isdisjoint(case.hub.names())
    assert {file.name: file.sha256 for file in done.files} == case.wanted


# ---- what is refused before anything large


def test_pickle_only(case: Case) -> None:
    for path in case.repository.rglob("*.safetensors"):
        path.unlink()
    case.refused(r"no \*.safetensors, only pytorch_model.bin: pickle files")
    (case.repository / "pytorch_model.bin").unlink()
    case.refused("choose the repository of the model's original weights")


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
def test_broken_descriptions(case: Case, name: str, content: str | None, words: str) -> None:
    (case.repository / name).unlink()
    if content is not None:
        (case.repository / name).write_text(content)
    case.refused(words)


def test_gated_repository(case: Case) -> None:
    case.hub.gated = {REPO}
    case.refused("is gated: accept its terms")


def test_a_persons_file_with_the_name_of_one_of_the_checkpoint(case: Case) -> None:
    case.out.mkdir()
    (case.out / "README.md").write_text("my project")
    case.refused("README.md is not the file that someone/demo has.*move it away")
    size = (case.repository / "README.md").stat().st_size
    (case.out / "README.md").write_bytes(b"x" * size)  # only its hash tells
    with pytest.raises(InputError, match=r"README.md is not the file"):
        case.fetch()
    assert (case.out / "README.md").read_bytes() == b"x" * size


def test_a_folder_with_another_repository(case: Case) -> None:
    case.fetch()
    before = case.here
    case.hub.repos["other/demo"] = {"main": case.repository}
    with pytest.raises(InputError, match="holds a download of someone/demo"):
        case.fetch(repo="other/demo")
    assert case.here == before


def test_a_folder_that_cannot_be_written(case: Case) -> None:
    case.out.touch()
    case.out = case.out / "deeper"
    words = r"cannot write to .*/out/deeper.*: Not a directory.*--out"
    with pytest.raises(InputError, match=words):
        case.fetch()


def test_names_from_the_hub_stay_in_the_folder() -> None:
    names = (
        "../up.json", "/etc/up.json", "a/../../up.json", "..", ".json", "a\\b.json",
        "bell\x07.json", "x/y.safetensors", "additional_chat_templates/..",
        "additional_chat_templates/../../x.jinja",
    )  # fmt: skip
    files = [HubFile(name, 1, "0" * 64, None) for name in (*names, "config.json", "m.safetensors")]
    found = wanted_files(Listing(REPO, COMMIT, tuple(files)), None)
    assert [file.name for file in found] == ["config.json", "m.safetensors"]


@pytest.mark.parametrize("whole", [True, False])
def test_the_weights_that_transformers_takes_and_no_variants(case: Case, whole: bool) -> None:
    """A whole file goes before an index, which may be stale; variants are the weights again."""
    taken = ["model.safetensors"] if whole else SHARDS
    variants = ["model.fp16.safetensors", "model-00001-of-00003.fp16.safetensors"]
    for name in (*taken, *variants, "model.safetensors.index.fp16.json"):
        (case.repository / name).write_bytes(os.urandom(MIB))
    if whole:
        (case.repository / INDEX).write_text('{"weight_map": {"a": "lost.safetensors"}}')
    else:
        (case.repository / INDEX).unlink()
    case.fetch()
    assert sorted(path.name for path in case.out.glob("*.safetensors")) == taken
    assert not list(case.out.glob("*.index*.json"))


def test_variants_alone_are_refused(case: Case) -> None:
    for name in (*SHARDS, INDEX):
        (case.repository / name).unlink()
    (case.repository / "consolidated.safetensors").unlink()
    (case.repository / "model.fp16.safetensors").write_bytes(os.urandom(MIB))
    case.refused("model.fp16.safetensors, a variant")


# ---- what the Hub's own cache has


@pytest.fixture
def cached(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot that huggingface_hub itself downloaded into its cache."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    address = case.hub.address
    snapshot = Path(huggingface_hub.snapshot_download(REPO, endpoint=address, token=False))
    assert snapshot == tmp_path / "hub" / "models--someone--demo" / "snapshots" / COMMIT
    case.hub.served.clear()
    return snapshot


def test_what_the_hubs_cache_has_is_not_fetched(case: Case, cached: Path) -> None:
    done = case.fetch()
    assert case.hub.served == []
    assert case.here == case.wanted
    assert done.fetched_bytes == 0
    assert done.size_bytes == case.watched.done == case.watched.total
    assert {f.name: f.sha256 for f in done.files} == case.wanted
    assert [(case.out / name).readlink() for name in SHARDS] == [cached / name for name in SHARDS]
    assert not (case.out / "config.json").is_symlink()
    assert any("Hub's cache" in note for note in case.watched.notes)
    again = case.fetch()
    assert (again.files, case.hub.served) == (done.files, [])
    assert survey(case.look_up(), case.out).fetch_bytes == 0


def test_what_the_hubs_cache_has_is_local(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    for model in (REPO, f"{REPO}@{COMMIT}"):
        choice, path = choose_local(model)
        assert (choice.kind, choice.name, path) == ("checkpoint", "demo", cached)
    with pytest.raises(InputError, match="download"):
        choose_local("someone/else")

    def hub() -> Hub:
        raise AssertionError("nothing is asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=str(cached)):  # its weights are random bytes
        open_shapes(choose_model(REPO), hub=hub, cache=tmp_path / "headers")
    next(cached.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="download"):
        choose_local(REPO)


def test_of_a_part_in_the_hubs_cache_only_the_rest_is_fetched(case: Case, cached: Path) -> None:
    (cached / SHARDS[1]).unlink()
    remote = case.look_up()
    assert survey(remote, case.out).fetch_bytes == (case.repository / SHARDS[1]).stat().st_size
    case.fetch()
    assert case.hub.names() == [SHARDS[1]]
    assert case.here == case.wanted


def test_the_hubs_cache_is_verified_and_of_the_right_commit(case: Case, cached: Path) -> None:
    blob = (cached / SHARDS[0]).resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    (cached / "config.json").resolve().write_bytes(b"{}")
    case.fetch()
    assert sorted(case.hub.names()) == ["config.json", SHARDS[0]]
    assert case.here == case.wanted
    newer = case.newer_revision()
    (newer / SHARDS[2]).write_bytes(os.urandom(MIB))
    shutil.rmtree(case.out)
    case.fetch("v2")
    assert sorted(case.hub.names()) == sorted(wanted(newer))
    assert case.here == wanted(newer)


def test_a_cache_that_was_emptied_is_replaced_by_a_download(case: Case, cached: Path) -> None:
    case.fetch()
    shutil.rmtree(cached.parents[1])
    assert not is_whole(case.out, SHARDS)
    case.fetch()
    assert sorted(case.hub.names()) == SHARDS
    assert case.here == case.wanted  # and nothing was set aside


# ---- faults on the way


def test_a_wrong_file_is_fetched_once_more(case: Case) -> None:
    case.hub.faults = {SHARDS[1]: [Fault(corrupt=True)], "README.md": [Fault(corrupt=True)]}
    done = case.fetch()
    assert case.here == case.wanted
    assert case.hub.names().count(SHARDS[1]) == case.hub.names().count("README.md") == 2
    assert case.hub.names().count(SHARDS[0]) == 1
    assert f"{SHARDS[1]} arrived with a wrong hash and is fetched again" in case.watched.notes
    assert case.watched.done == case.watched.total == done.size_bytes


@pytest.mark.parametrize("name", [SHARDS[1], "tokenizer.json", "config.json"])
def test_a_file_that_is_always_wrong_is_named_with_both_hashes(case: Case, name: str) -> None:
    case.hub.always = {name: Fault(corrupt=True)}
    with pytest.raises(EnvironmentFault, match=f"{name} arrived wrong twice") as caught:
        case.fetch()
    if name == SHARDS[1]:
        assert f"records sha256:{file_sha256(case.repository / name)}" in str(caught.value)
    assert not (case.out / name).exists()
    assert case.hub.names().count(name) == 2
    case.hub.always.clear()
    case.fetch()
    assert case.here == case.wanted


def test_network_faults_in_the_middle_of_files(case: Case) -> None:
    case.hub.faults = {
        SHARDS[0]: [Fault(status=500), Fault(cut_after=600_000), Fault(status=503)],
        SHARDS[1]: [Fault(stall_after=600_000)],
        SHARDS[2]: [Fault(cut_after=600_000), Fault(ignore_range=True)],
    }
    case.fetch(timeout_s=0.5)
    assert case.here == case.wanted
    assert case.watched.done == case.watched.total
    assert "HTTP 500; trying again in" in case.watched.notes[0]


def test_what_arrived_before_a_fault_that_stays_is_kept(case: Case) -> None:
    case.hub.faults = {SHARDS[0]: [Fault(cut_after=600_000), *[Fault(status=500)] * 4]}
    with pytest.raises(EnvironmentFault, match=r"HTTP 500.*finished files are kept"):
        case.fetch(workers=1)
    case.fetch()
    assert case.here == case.wanted
    assert next(s.start for s in case.hub.served if s.name == SHARDS[0]) > 500_000
    assert "config.json" not in case.hub.names()


def test_killed_in_the_middle_of_a_file_goes_on_from_there(case: Case) -> None:
    (case.repository / SHARDS[0]).write_bytes(os.urandom(12 * MIB))
    case.hub.faults[SHARDS[0]] = [Fault(stall_after=KILLED_BEHIND_BYTES)]
    process = case.start("--quiet", HF_HUB_DOWNLOAD_TIMEOUT="600")
    arrived = kill_while_it_waits(process, case.out / STATE, f"{SHARDS[0]}.*.partial")
    process.communicate()
    assert not (case.out / SHARDS[0]).exists()
    case.hub.served.clear()
    again = quantkit("download", REPO, "--out", case.out, "--json", env=case.environment)
    assert again.returncode == 0, again.stderr
    assert case.here == case.wanted
    assert case.hub.names() == [SHARDS[0]]
    assert case.hub.served[0].start == arrived
    assert case.hub.sent_bytes() == json.loads(again.stdout)["fetched_bytes"] == 12 * MIB - arrived


def test_ctrl_c_ends_at_once_although_a_connection_is_stalled(case: Case) -> None:
    case.hub.always = {SHARDS[0]: Fault(stall_after=600_000)}
    # a shell's background jobs ignore it, and hand that on
    process = case.start(before=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_until(lambda: SHARDS[0] in case.hub.names(), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == "stopped; run the same command again to resume"


def test_a_file_that_cannot_be_written_is_a_fault_of_the_machine(case: Case) -> None:
    """A limit of 256 KiB a file stands for a full disk: write fails in the middle."""
    limit = (1 << 18, 1 << 18)
    process = case.start(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    _, errors = process.communicate()
    assert process.returncode == 3, errors
    assert "error: cannot write" in errors
    assert "finished files are kept" in errors
    assert "make room" not in errors  # there is room
    assert "Traceback" not in errors


# ---- disk space


def test_space_of_a_build() -> None:
    elements = 1_000_000_000
    recipe = space_recipe(
        {"name": "a", "bits_per_weight": 6}, {"name": "b", "size": "500MB"}, {"name": "all"},
        {"name": "c", "bits_per_weight": 12},
    )  # fmt: skip
    needed = space_needed(500, elements, 1000, recipe, 900_000_000)
    assert needed.download_bytes == 500
    assert needed.logits_bytes == 2 * 1000 * 4 * 255 + HEADER_BYTES
    levels = 750_000_000 + 500_000_000 + 900_000_000  # 12 bits a weight exceed the target
    assert needed.level_bytes == levels + 3 * HEADER_BYTES
    assert needed.total_bytes == 500 + needed.level_bytes + needed.logits_bytes
    recipe = space_recipe({"name": "all"}, {"name": "b", "bits_per_weight": 4}, chunks=0)
    unknown = space_needed(0, elements, 1000, recipe)
    assert unknown.level_bytes == 500_000_000 + HEADER_BYTES
    assert unknown.logits_bytes == 0


def space_recipe(*levels: dict[str, object], chunks: int = 4) -> Recipe:
    sections = {"divergence": {"chunks": chunks}}
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
    words = "5.00 GiB free, but 6.00 GiB are needed (3.00 GiB to download, 2.00 GiB for the levels"
    assert words + ", 1.00 GiB for base.logits), 1.00 GiB more" in str(caught.value)


def test_a_build_on_two_disks_needs_room_on_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, home, out = SpaceNeeded(3 << 30, 2 << 30, 1 << 30), tmp_path / "m", tmp_path / "o" / "t"
    free_of_out = 3 << 30

    def is_same_disk(*_: Path) -> bool:
        return one_disk

    monkeypatch.setattr("quantkit.models.local_copy.free_bytes", lambda _: free_of_out)
    monkeypatch.setattr("quantkit.models.local_copy.is_same_disk", is_same_disk)
    one_disk = True
    check_build_space(needed, 6 << 30, home, out)
    with pytest.raises(EnvironmentFault, match="--out"):
        check_build_space(needed, 5 << 30, home, out)
    one_disk = False
    check_build_space(needed, 4 << 30, home, out)
    with pytest.raises(EnvironmentFault, match=r"4\.00 GiB are needed.*--study"):
        check_build_space(needed, 3 << 30, home, out)
    free_of_out = 2 << 30
    with pytest.raises(EnvironmentFault, match=r"3\.00 GiB are needed.*--out"):
        check_build_space(needed, 4 << 30, home, out)


def test_a_download_that_does_not_fit_begins_nothing(case: Case) -> None:
    case.hub.claims = {SHARDS[2]: 1 << 50}
    with pytest.raises(EnvironmentFault, match=r"GiB to download.*--out"):
        case.fetch()
    assert case.hub.names() == ["config.json", INDEX]
    assert not case.out.exists()


def test_partial_files_count_as_downloaded(case: Case) -> None:
    case.hub.faults = {SHARDS[0]: [Fault(cut_after=600_000), *[Fault(status=500)] * 4]}
    with pytest.raises(EnvironmentFault):
        case.fetch(workers=1)
    left = survey(case.look_up(), case.out).fetch_bytes
    assert 3 * MIB - 600_000 <= left < 3 * MIB - 500_000


# ---- what a person, or another revision, did in the meantime


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_a_changed_file_is_seen_kept_aside_and_fetched_again(case: Case, revision: str) -> None:
    newer = case.newer_revision()
    (newer / SHARDS[1]).write_bytes(os.urandom(MIB))
    (newer / "README.md").write_text("newer")
    case.fetch()
    names = [SHARDS[1], "README.md"]
    assert is_whole(case.out, names)
    content = bytearray((case.out / SHARDS[1]).read_bytes())
    content[5] ^= 1
    (case.out / SHARDS[1]).write_bytes(content)
    (case.out / "README.md").write_text("notes of mine")
    assert not is_whole(case.out, [SHARDS[1]])
    case.fetch(revision)
    assert sorted(case.hub.names()) == sorted(names)
    assert (case.out / f"{SHARDS[1]}.changed").read_bytes() == content
    assert (case.out / "README.md.changed").read_text() == "notes of mine"
    note = f"{SHARDS[1]} was changed here: kept as {SHARDS[1]}.changed"
    assert note in "".join(case.watched.notes)
    arrived = wanted(newer if revision == "v2" else case.repository)
    assert arrived.items() <= case.here.items()
    (case.out / "README.md").write_text("more notes")
    case.fetch(revision)
    assert (case.out / "README.md.changed").read_text() == "notes of mine"
    assert (case.out / "README.md.changed-2").read_text() == "more notes"


def test_another_revision_replaces_ours_and_leaves_what_is_a_persons(case: Case) -> None:
    newer = case.newer_revision(["LICENSE"])
    (newer / SHARDS[1]).write_bytes(os.urandom(MIB))
    case.fetch()
    (case.out / "notes.txt").write_text("mine")
    (case.out / "LICENSE").write_text("mine now")
    (case.out / STATE / "old.0123.partial").write_text("of no use any more")
    done = case.fetch("v2")
    assert done.commit == commit_of("v2")
    assert case.hub.names() == [SHARDS[1]]
    mine = {"notes.txt", "LICENSE"}  # changed since: not ours to remove
    assert {n: s for n, s in case.here.items() if n not in mine} == wanted(newer)
    assert (case.out / "LICENSE").read_text() == "mine now"
    assert not list((case.out / STATE).rglob("*.partial"))
    case.fetch("v2")
    assert case.hub.served == []
    (case.out / "LICENSE").unlink()
    case.fetch()  # back to main
    assert case.wanted.items() <= case.here.items()


def test_files_that_the_new_revision_lacks_are_removed_when_nobody_changed_them(case: Case) -> None:
    newer = case.newer_revision((*SHARDS, INDEX, "consolidated.safetensors"))
    (newer / "model.safetensors").write_bytes(os.urandom(MIB))
    case.fetch()
    remote = case.look_up("v2")
    given_back = sum(path.stat().st_size for path in survey(remote, case.out).removed)
    assert given_back > 3 * MIB
    case.fetch("v2")
    assert case.here == wanted(newer)


# ---- what a person put there


def test_shards_that_a_person_brought_outlive_a_revision_without_them(case: Case) -> None:
    newer = case.newer_revision((*SHARDS, INDEX, "consolidated.safetensors"))
    (newer / "model.safetensors").write_bytes(os.urandom(MIB))
    case.out.mkdir()
    for name in SHARDS:
        shutil.copy(case.repository / name, case.out / name)
    case.fetch()
    assert not set(SHARDS) & set(case.hub.names())
    before = case.here
    with pytest.raises(InputError, match=r"holds model-00001-of-00003.safetensors and 2 more"):
        case.fetch("v2")
    assert case.here == before


def test_a_persons_file_outlives_a_revision_that_has_none_or_another(case: Case) -> None:
    newer = case.newer_revision(["LICENSE"])
    case.out.mkdir()
    for name in ("LICENSE", SHARDS[0]):
        shutil.copy(case.repository / name, case.out / name)
    case.fetch()
    case.fetch("v2")
    assert (case.out / "LICENSE").read_text() == "LICENSE"
    for size in (MIB, MIB + 5):  # the first is as large as what is here
        (newer / SHARDS[0]).write_bytes(os.urandom(size))
        with pytest.raises(InputError, match=f"{SHARDS[0]} is not the file.*did not download it"):
            case.fetch("v2")
        assert (case.out / SHARDS[0]).read_bytes() == (case.repository / SHARDS[0]).read_bytes()


class Meddler(Watched):
    """Does something to the partial files whenever some bytes have come."""

    def __init__(self, case: Case, meddle: Callable[[str, Path], object]) -> None:
        super().__init__()
        self._state, self._meddle = case.out / STATE, meddle

    def advance(self, amount: float) -> None:
        super().advance(amount)
        for partial in self._state.glob("*.partial"):
            self._meddle(partial.name.rsplit(".", 2)[0], partial)


def test_a_file_that_appears_during_the_run_is_kept_aside(case: Case) -> None:
    def appear(name: str, _partial: Path) -> None:
        if name in ("README.md", SHARDS[2]) and not (case.out / name).is_symlink():
            (case.out / name).symlink_to("/nowhere")

    case.fetch(watched=Meddler(case, appear), workers=1)
    assert case.here == case.wanted
    assert os.readlink(case.out / f"{SHARDS[2]}.changed") == "/nowhere"
    assert os.readlink(case.out / "README.md.changed") == "/nowhere"
    words = f"{SHARDS[2]} appeared here meanwhile: kept as {SHARDS[2]}.changed"
    assert words in "".join(case.watched.notes)


@pytest.mark.parametrize("name", ["README.md", "config.json", SHARDS[0]])
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "dangling link"])
def test_what_is_no_file_is_not_replaced(case: Case, name: str, folder: bool) -> None:
    path = case.out / name
    case.out.mkdir()
    if folder:
        path.mkdir()
    else:
        path.symlink_to("/nowhere")
    case.refused(f"{name} is not the file that someone/demo has")
    assert path.is_dir() if folder else path.is_symlink()


@pytest.mark.parametrize("kind", ["state", "partial", "journal", "templates"])
def test_links_to_elsewhere_are_refused(case: Case, kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "letter.txt").write_text("precious")
    file = next(file for file in case.look_up().files if file.name == SHARDS[0])
    state = case.out / STATE
    link, target = {
        "state": (state, outside),
        "partial": (partial_path(case.out, file), outside / "letter.txt"),
        "journal": (state / f"{COMMIT}.journal", outside / "letter.txt"),
        "templates": (case.out / "additional_chat_templates", outside),
    }[kind]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    with pytest.raises(InputError):
        case.fetch()
    assert os.listdir(outside) == ["letter.txt"]
    assert (outside / "letter.txt").read_text() == "precious"
    assert link.is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja", "chat_template.json", "tokenizer.model", "added_tokens.json",
        "special_tokens_map.json", "tokenizer_config.json", "generation_config.json", INDEX,
        "additional_chat_templates/mine.jinja", "README.md", "adapter.safetensors",
    ],
)  # fmt: skip
def test_files_of_another_model_that_would_be_read_as_of_this_one(case: Case, name: str) -> None:
    (case.repository / name).unlink(missing_ok=True)
    if name == INDEX:
        (case.repository / SHARDS[0]).rename(case.repository / "model.safetensors")
    (case.out / name).parent.mkdir(parents=True)
    (case.out / name).write_text("{}")
    case.refused(f"holds {name}, not of someone/demo.*move them away")


def test_what_is_kept_aside_is_not_read_as_of_the_model(case: Case) -> None:
    case.fetch()
    for name in ("tokenizer.json", "chat_template.jinja", TEMPLATE, INDEX, SHARDS[0]):
        (case.out / name).write_text("mine")
    case.fetch()
    case.fetch()
    assert (case.out / "tokenizer.json.changed").read_text() == "mine"
    assert (case.out / f"{TEMPLATE}.changed").read_text() == "mine"


# ---- what several runs leave


def test_a_second_run_is_refused_while_one_is_at_work(case: Case) -> None:
    case.hub.bytes_per_second = MIB // 30
    running = case.start("--json")
    wait_until(lambda: case.hub.sent_bytes(SHARDS[0]), running)
    with pytest.raises(InputError, match=r"another run is writing to .*out"):
        case.fetch()
    case.hub.bytes_per_second = None
    answer, _ = running.communicate()
    assert running.returncode == 0
    assert json.loads(answer)["files"][SHARDS[0]]["size_bytes"] == MIB
    assert case.here == case.wanted


def test_bytes_that_something_else_adds_are_not_verified(case: Case) -> None:
    met: list[Path] = []

    def add(name: str, partial: Path) -> None:
        if name == SHARDS[0] and not met:
            met.append(partial)
            with partial.open("ab") as file:
                file.write(b"more")

    case.fetch(watched=Meddler(case, add), workers=1)
    assert met
    assert case.here == case.wanted
    assert f"{SHARDS[0]} arrived with a wrong hash and is fetched again" in case.watched.notes


def test_a_file_that_arrived_just_before_a_kill_is_known_as_ours(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = case.newer_revision()
    (newer / SHARDS[0]).write_bytes(os.urandom(MIB))

    def publish_and_stop(partial: Path, path: Path) -> None:
        publish(partial, path)
        if path.name == SHARDS[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr("quantkit.models.download.publish", publish_and_stop)
    with pytest.raises(KeyboardInterrupt):
        case.fetch(workers=1)
    monkeypatch.undo()
    case.fetch("v2")
    assert case.here == wanted(newer)


def test_a_recorded_file_of_another_size_is_not_kept(case: Case) -> None:
    """As two runs at once left it, before they excluded each other."""
    case.fetch()
    with (case.out / SHARDS[0]).open("ab") as file:
        file.write(b"more")
    known, stat = read_record(case.out).kept[SHARDS[0]], (case.out / SHARDS[0]).stat()
    wrong = dataclasses.replace(known, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
    CommitJournal(case.out, REPO, COMMIT).add(wrong)
    assert wrong.is_unchanged(case.out)
    case.fetch()
    assert case.wanted.items() <= case.here.items()


def test_of_several_records_the_one_that_agrees_with_the_file_counts(case: Case) -> None:
    """Switching to and fro with stops in between leaves journals of both, in any order."""
    case.fetch()
    known = read_record(case.out).kept[SHARDS[0]]
    other = dataclasses.replace(known, identity="sha256:" + "0" * 64, modified_ns=1)
    CommitJournal(case.out, REPO, "f" * 40).add(other)
    os.utime(case.out / STATE / f"{COMMIT}.journal", (1, 1))
    assert read_record(case.out).kept[SHARDS[0]] == known
    case.fetch()
    assert not case.hub.served
    assert not case.watched.notes
    assert not list(case.out.glob("*.changed"))


@pytest.mark.parametrize(
    ("name", "removed"),
    [("notes.txt", False), ("photos/config.json", False), (".env", False), ("old.json", True)],
)
def test_only_what_a_download_writes_is_removed(case: Case, name: str, removed: bool) -> None:
    """A journal may come with somebody's folder, and say that a person's file was downloaded."""
    path = case.out / name
    path.parent.mkdir(parents=True)
    path.write_text("a person's")
    stat = path.stat()
    kept = Kept(name, "git:0", "0", stat.st_size, stat.st_mtime_ns, brought=True)
    (case.out / STATE).mkdir()
    journal = f"{REPO}@{'0' * 40}\n{json.dumps(dataclasses.asdict(kept))}\n"
    (case.out / STATE / f"{'0' * 40}.journal").write_text(journal)
    assert survey(case.look_up(), case.out).removed == ((path,) if removed else ())


def test_leftovers_of_other_revisions_count_as_free(case: Case) -> None:
    case.fetch()
    leftover = case.out / STATE / f"{SHARDS[0]}.deadbeefdeadbeef.partial"
    leftover.write_bytes(b"x" * 5000)
    found = survey(case.look_up(), case.out)
    assert found.removed == (leftover,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.models.local_copy.free_bytes", lambda folder: 100)
        found = survey(case.look_up(), case.out)
    assert found.free_bytes == 5100


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"No space left on device; .* needed, .*: make room, then run again"),
        (errno.EDQUOT, "make room, then run again"),
        (errno.EACCES, "Permission denied; check its permissions, then run again"),
        (errno.EISDIR, "move it away, then run again"),
        (errno.ENOENT, "No such file or directory; check the disk, then run again"),
    ],
)
def test_a_fault_of_the_disk_is_called_by_its_name(
    case: Case, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(partial: Path, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("quantkit.models.download.publish", fail)
    words = f"cannot write .*{words}: finished files are kept"
    with pytest.raises(EnvironmentFault, match=words) as found:
        case.fetch()
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert isinstance(found.value, DiskFullError) == full


def test_a_token_is_used(case: Case) -> None:
    case.hub.private = {REPO}
    case.refused("no repository someone/demo for you")
    reader = Hub(case.hub.address, token=GOOD_TOKEN)
    remote = look_up(reader, REPO)
    assert len(download(remote, reader, case.out, Watched()).files) == len(remote.files)
