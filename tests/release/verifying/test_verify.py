"""Whole releases: good ones pass, and each thing that can be wrong with one is found and named."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import broken_artifacts
import pytest
from loopback_hub import Fault, LoopbackHub, hub
from small_release import EXPERTS, STACK, SmallRelease, faults, set_to, verified

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.gguf_file import GGUFFile
from quantkit.hub.reading import Hub
from quantkit.models.choose import choose_model
from quantkit.release.verifying.description import describe_release
from quantkit.release.verifying.files import HubFiles
from quantkit.release.verifying.verify import Origin, Verified, verify

Q4, IMATRIX, ANSWERS = "tiny-Q4.gguf", "tiny-imatrix.gguf", "levels/Q4/niah.jsonl"
NORM = "blk.0.attn_norm.weight"


def fact(found: Verified, check: str, name: str) -> Any:  # noqa: ANN401
    (facts,) = (c.facts for c in found.checks if c.name == check)
    return facts[name]


def test_a_good_release_passes_and_says_what_was_compared(whole_release: SmallRelease) -> None:
    found = verified(whole_release.folder, whole_release.source, full=True)
    assert found.faults == ()
    assert [check.name for check in found.checks] == [
        "files", "structure", "types", "claims", "source",
    ]  # fmt: skip
    every = [p for p in whole_release.folder.rglob("*") if p.is_file()]
    assert fact(found, "files", "files") == len(every) - 1  # not SHA256SUMS
    gguf = whole_release.files("Q4") + whole_release.files("Q8")
    assert fact(found, "structure", "files") == len(gguf)
    tensors = len(GGUFFile(whole_release.source).stored)
    for check in ("structure", "types", "source"):
        assert fact(found, check, "tensors") == 2 * tensors
    lines = sum(
        len(whole_release.path(f"levels/{level}/niah.jsonl").read_text().splitlines())
        for level in ("Q4", "Q8")
    )
    assert fact(found, "claims", "answers") == lines
    assert fact(found, "source", "rows") == fact(found, "source", "all_rows")
    assert (found.not_here, found.not_covered) == ((), ())


def test_one_level_of_a_release_is_enough(release: SmallRelease) -> None:
    shutil.rmtree(release.path("Q8"))
    shutil.rmtree(release.path("levels/Q8"))
    release.path("README.md").unlink()
    found = verified(release.folder, release.source)
    assert found.faults == ()
    assert fact(found, "structure", "levels") == 1
    assert {"README.md", "levels/Q8/niah.jsonl", *release.files("Q8")} <= set(found.not_here)


def test_without_the_importance_matrix_no_weights_are_verified(release: SmallRelease) -> None:
    release.path(IMATRIX).unlink()
    assert faults(release) == ()
    with pytest.raises(InputError, match=r"without tiny-imatrix\.gguf: download it too"):
        verified(release.folder, release.source)
    with hub({"someone/tiny-GGUF": release.folder}) as served:
        found = of_hub(served, release.source).faults
        assert len(found) == 2
        assert any("has no tiny-imatrix.gguf" in fault for fault in found)


def test_a_part_of_a_level_or_no_level_is_not_enough(release: SmallRelease) -> None:
    _first, second, *more = release.files("Q8")
    release.path(second).unlink()
    assert faults(release) == (f"Q8: 1 of {2 + len(more)} files are missing: {second}",)
    shutil.rmtree(release.path("Q8"))
    release.path(Q4).unlink()
    assert faults(release) == ("no GGUF file of any level is here",)


def test_what_no_hash_covers_is_named(release: SmallRelease) -> None:
    release.path(".cache").mkdir()
    for name in ("notes.txt", ".gitattributes", ".cache/x.lock"):
        release.path(name).write_text("mine")
    found = verified(release.folder)
    assert (found.faults, found.not_covered) == ((), ("notes.txt",))


@pytest.mark.parametrize("name", ["tiny-Q4_K_M.gguf", "more/other.GGUF"])
def test_a_gguf_file_on_the_hub_that_no_hash_covers(release: SmallRelease, name: str) -> None:
    """llama.cpp's -hf takes what is there; a folder is a person's own."""
    release.path(name).parent.mkdir(exist_ok=True)
    shutil.copyfile(release.path(Q4), release.path(name))
    found = verified(release.folder)
    assert (found.faults, found.not_covered) == ((), (name,))
    with hub({"someone/tiny-GGUF": release.folder}) as served:
        (fault,) = of_hub(served).faults
        assert fault.startswith(f"{name} is in the repository, and no hash of SHA256SUMS covers it")


def test_a_file_that_is_cut_or_none_is_a_fault_beside_others(release: SmallRelease) -> None:
    os.truncate(release.path(Q4), 100_000)
    release.path(IMATRIX).write_bytes(b"<html>")
    shard = release.files("Q8")[0]
    release.path(shard).write_bytes(b"GGML" + release.path(shard).read_bytes()[4:])
    text = "\n".join(faults(release))
    assert f"{Q4} is truncated" in text
    assert f"{IMATRIX} is not a GGUF file" in text
    assert f"{shard} is not a GGUF file" in text
    assert text.count("has the SHA-256") == 3


@pytest.mark.parametrize(
    ("name", "claim", "fault"),
    [
        ("tiny.gguf", {"size_bytes": 5, "sha256": 64 * "0"}, "the source's tiny.gguf has .*says 5"),
        ("tiny.gguf", {"sha256": 64 * "0"}, "the source's tiny.gguf is not the file that check"),
        ("config.json", {"size_bytes": 5, "sha256": 64 * "0"}, "the source has no config.json, wh"),
        ("../tiny.gguf", {"size_bytes": 5, "sha256": 64 * "0"}, "names ../tiny.gguf, which is no"),
    ],
)
def test_a_checkpoint_file_that_is_not_of_the_source(
    release: SmallRelease,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    claim: dict[str, object],
    fault: str,
) -> None:
    def change(content: Any) -> None:  # noqa: ANN401
        content["files"][name] = content["files"].get(name, {}) | claim

    release.edit("checkpoint.json", change)
    (found,) = verified(release.folder, release.source).faults
    assert re.search(fault, found)
    if list(claim) == ["sha256"]:  # a large file is hashed only when all is compared
        monkeypatch.setattr("quantkit.release.verifying.verify.SMALL_BYTES", 5)
        assert verified(release.folder, release.source).faults == ()
        assert verified(release.folder, release.source, full=True).faults == (found,)


def test_another_source(release: SmallRelease, tmp_path: Path) -> None:
    other = tmp_path / release.source.name
    at = GGUFFile(release.source).stored["blk.0.attn_q.weight"]
    content = bytearray(release.source.read_bytes())
    content[at.offset : at.offset + 8000] = b"\0\0\x80\x3f" * 2000
    other.write_bytes(content)
    found = verified(release.folder, other, full=True).faults
    assert f"the source's {other.name} is not the file that checkpoint.json lists" in found
    assert sum("blk.0.attn_q.weight" in fault for fault in found) == 2  # of each level
    assert len(found) == 3
    os.truncate(other, other.stat().st_size - 32)
    with pytest.raises(InputError, match="truncated"):
        verified(release.folder, other)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("levels/Q4/validation.json", set_to("passed", to=True), "passed is True in "),
        ("levels/Q4/validation.json", set_to("niah", "scores", 3, "hits", to=33), "hits is 33"),
        ("levels/Q4/validation.json", lambda c: c.pop("passed"), "json is damaged: passed: "),
        ("levels/Q4/allocation.json", set_to("total_bytes", to=1), "allocation.json says 1"),
        ("levels/Q4/allocation.json", set_to("total_bytes", to="1"), "damaged: total_bytes: "),
        ("levels/Q4/allocation.json", set_to("tensors", NORM, "type", to="I32"),
         f"Q4: {NORM} is F32, allocation.json says I32"),
        (ANSWERS, lambda old: old.replace(b'"hit": false', b'"hit": true'), "scored wrongly"),
        (ANSWERS, lambda old: old.replace(b'"hit": false', b'"hit": true'), "by niah.jsonl"),
        (ANSWERS, lambda _: b'{"seed": 1}\n', f"{ANSWERS}, line 1 is "),
        (ANSWERS, lambda _: b"\xff\n", f"{ANSWERS}, line 1 is "),
        (ANSWERS, lambda _: bytes(65 << 20), "has 68157440 bytes, 67108864 are the limit"),
        ("release.json", set_to("levels", "Q4", "passed", to=True), "True in release.json"),
        ("release.json", set_to("levels", "Q4", "size_bytes", to=5), "bytes, not 5"),
        ("release.json", set_to("levels", "Q4", "bits_per_weight", to=3.9), "weight, not 3.9000"),
        ("release.json", set_to("levels", "Q4", "files", to=[IMATRIX]),
         f"Q4: {IMATRIX} is a file of the importance matrix too"),
        ("release.json", set_to("parameters", to=7), "parameters, not 7"),
        ("release.json", set_to("architecture", to="qwen3"), "architecture is llama, not qwen3"),
        ("release.json", set_to("imatrix", to=Q4), "general.type is not 'imatrix'"),
        ("release.json", lambda c: c["levels"].pop("Q4"), f"{Q4} is of no level in release.json"),
        ("release.json", lambda c: c["levels"]["Q8"]["files"].reverse(), ": split.no is "),
        (Q4, lambda old: old + 70 * b"x", f"{Q4}: 70 bytes after the last tensor belong to none"),
        (Q4, lambda old: old.replace(b"general.architecture", b"general.architectura"),
         "Q4: its architecture is missing, not llama"),
        (IMATRIX, lambda old: old + 70 * b"x", f"{IMATRIX}: 70 bytes after the last tensor"),
        (IMATRIX, lambda old: old.replace(f"{STACK}.counts".encode(), f"{STACK}.kounts".encode()),
         f"{IMATRIX}: {STACK} has sums but no counts"),
    ],
)  # fmt: skip
def test_claims_that_do_not_agree_though_all_hashes_do(
    release: SmallRelease, name: str, change: Callable[[Any], Any], fault: str
) -> None:
    release.edit(name, change)
    assert any(fault in one for one in faults(release)), faults(release)


def flipped(path: Path, out: Path) -> Path:
    """The last byte of the experts' stack is another."""
    content, at = bytearray(path.read_bytes()), GGUFFile(path).stored[STACK]
    content[at.offset + at.size_bytes - 1] ^= 0xAA
    out.write_bytes(content)
    return out


@pytest.mark.parametrize(
    ("damage", "full", "fault"),
    [
        (flipped, True, f"{STACK}, Q4_K, is not what the source gives in 1 of 4096 rows"),
        (lambda path, out: broken_artifacts.swapped(path, out, STACK, 0, EXPERTS - 1), False,
         f"{STACK}, Q4_K, is not what the source gives in 2 of {EXPERTS} rows"),
        (lambda path, out: broken_artifacts.with_context_length(path, out, 4096), False,
         "its metadata's llama.context_length is not what the source gives"),
        (lambda path, out: broken_artifacts.mistyped(path, out, NORM, "I32"), False,
         f"{NORM} is I32, the source's is F32"),
    ],
)  # fmt: skip
def test_what_only_the_source_can_tell(
    release: SmallRelease,
    tmp_path: Path,
    damage: Callable[[Path, Path], Path],
    full: bool,
    fault: str,
) -> None:
    """What signs a release can sign anything, and write into its allocation.json what it likes."""
    os.replace(damage(release.path(Q4), tmp_path / "b.gguf"), release.path(Q4))
    assert f"{Q4} has the SHA-256 " in str(faults(release))
    release.forge()
    kind = GGUFFile(release.path(Q4)).stored[NORM].info.type_name
    release.edit("levels/Q4/allocation.json", set_to("tensors", NORM, "type", to=kind))
    assert faults(release) == ()
    found = verified(release.folder, release.source, full=full)
    (told,) = found.faults
    assert told.startswith(f"Q4: {fault}")
    assert any("another CPU" in note for note in found.notes) is ("metadata" not in fault)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("release.json", lambda _: b"[]", r"^release\.json .*damaged: "),
        ("release.json", lambda _: b"{", r"^release\.json .*not valid JSON: "),
        ("release.json", lambda _: b'{"format": 1}', r"^release\.json .*format version none"),
        ("release.json", lambda _: b'{"version": 2, "model": 3}', "damaged: model: "),
        ("release.json", lambda _: b"[" * 100_000, "not valid JSON: "),
        ("SHA256SUMS", lambda old: old + b"0" * 64 + b"  ../secret\n", "secret"),
        ("SHA256SUMS", lambda old: old + b"\xff\n", "SHA256SUMS is not text"),
        ("SHA256SUMS", lambda old: re.sub(rb".*  checkpoint\.json\n", b"", old),
         r"SHA256SUMS has no checkpoint\.json"),
    ],
)  # fmt: skip
def test_what_describes_a_release_is_damaged(
    release: SmallRelease, name: str, change: Callable[[bytes], bytes], words: str
) -> None:
    path = release.path(name)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=words):
        verified(release.folder)


def test_links_that_lead_elsewhere(release: SmallRelease, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    release.path("notes.json").symlink_to(outside)
    with pytest.raises(InputError, match=r"notes\.json is a link to .*secret\.json, out of"):
        verified(release.folder)
    release.path("notes.json").unlink()
    release.path("README.md").unlink()
    release.path("README.md").symlink_to("checkpoint.json")
    assert faults(release) == (
        f"README.md has the SHA-256 {release.sum_of('checkpoint.json')[:12]}…, SHA256SUMS says "
        f"{release.sum_of('README.md')[:12]}…",
    )


@pytest.mark.timeout(60)
def test_what_is_no_file_is_not_opened(release: SmallRelease) -> None:
    os.mkfifo(release.path("pipe"))
    release.path("gone").symlink_to("nowhere")
    release.path("README.md").unlink()
    os.mkfifo(release.path("README.md"))
    found = verified(release.folder)
    assert found.faults == ()
    assert (found.not_here, found.not_covered) == (("README.md",), ())


def test_links_of_a_build_and_of_the_hub_s_cache(release: SmallRelease, tmp_path: Path) -> None:
    """BUILD_DIR/release links to the build; a snapshot of the cache links to its blobs."""
    build = tmp_path / "build"
    cache = tmp_path / "models--a--b"
    for folder, kept in ((build / "release", build), (cache / "snapshots" / "c", cache / "blobs")):
        (build / "receipts").mkdir(parents=True, exist_ok=True)
        kept.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(p for p in release.folder.rglob("*") if p.is_file()):
            link = folder / path.relative_to(release.folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept / str(number))
            link.symlink_to(os.path.relpath(kept / str(number), link.parent))
        assert verified(folder).faults == ()
        (folder / "more").symlink_to(release.source)
        with pytest.raises(InputError, match="is a link to"):
            verified(folder)


def test_what_is_no_release(tmp_path: Path, release: SmallRelease) -> None:
    release.path("release.json").unlink()
    with pytest.raises(InputError, match=r"has no release\.json"):
        verified(release.folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="neither a release"):
        verified(empty)
    (empty / "receipts").mkdir()
    with pytest.raises(InputError, match="run the build again"):
        verified(empty)
    (empty / "README.md").write_text("# x")
    with (
        hub({"someone/tiny-GGUF": empty}) as served,
        pytest.raises(InputError, match="someone/tiny-GGUF@0123456789ab has no SHA256SUMS"),
    ):
        of_hub(served)


def of_hub(served: LoopbackHub, source: Path | None = None) -> Verified:
    client = Hub(served.address, delays_s=(0.0,), token=False)
    files = HubFiles(client, client.listing("someone/tiny-GGUF"))
    origin = None if source is None else Origin(choose_model(str(source)), 1)
    return verify(files, describe_release(files), origin)


def test_a_repository_is_verified_without_its_weights(release: SmallRelease) -> None:
    (release.path(".gitattributes")).write_text("*.gguf filter=lfs\n")
    artifacts = [*release.files("Q4"), *release.files("Q8")]
    size = release.path(Q4).stat().st_size
    with hub({"someone/tiny-GGUF": release.folder}) as served:
        found = of_hub(served)
        assert found.faults == ()
        assert (found.not_here, found.not_covered) == ((), ())
        headers = {name: served.sent_bytes(name) for name in artifacts}
        assert headers[Q4] == 64 << 10 < size / 10
        assert all(sent <= 64 << 10 for sent in headers.values())
        assert served.names().count(Q4) == 1
        found = of_hub(served, release.source)
        assert found.faults == ()
        assert fact(found, "source", "matrices") == fact(found, "source", "all_matrices")
        rows = served.sent_bytes(Q4) - 2 * headers[Q4]
        assert 0 < rows < size / 50


def test_a_repository_that_does_not_agree(release: SmallRelease, tmp_path: Path) -> None:
    broken = broken_artifacts.swapped(release.path(Q4), tmp_path / "b.gguf", STACK, 3, 4)
    os.replace(broken, release.path(Q4))
    release.path("levels/Q4/placement.json").write_text("{}")
    release.path("README.md").unlink()
    release.path("extra.bin").write_bytes(b"x")
    with hub({"someone/tiny-GGUF": release.folder}) as served:
        found = of_hub(served)
        assert len(found.faults) == 3
        assert "README.md is in SHA256SUMS, not in the repository" in found.faults
        assert served.sent_bytes(Q4) < release.path(Q4).stat().st_size / 10
        for name in (Q4, "levels/Q4/placement.json"):
            assert any(fault.startswith(f"{name} has the SHA-256 ") for fault in found.faults)
        assert found.not_covered == ("extra.bin",)
        release.forge()
    with hub({"someone/tiny-GGUF": release.folder}) as served:
        (fault,) = of_hub(served, release.source).faults
        assert f"Q4: {STACK}, Q4_K, is not what the source gives in 2 of" in fault


def test_what_arrives_wrong_is_fetched_again(whole_release: SmallRelease) -> None:
    release = whole_release
    with hub({"someone/tiny-GGUF": release.folder}) as served:
        served.faults = {
            "release.json": [Fault(corrupt=True)],
            IMATRIX: [Fault(), Fault(corrupt=True)],  # after its header
        }
        assert of_hub(served, release.source).faults == ()
        served.faults = {IMATRIX: [Fault(), *[Fault(corrupt=True)] * 2]}
        with pytest.raises(EnvironmentFault, match=f"{IMATRIX} arrived wrong twice"):
            of_hub(served, release.source)


def test_what_a_person_did_not_download_is_no_json(release: SmallRelease) -> None:
    """Without evidence, types and verdicts cannot be compared, and that is no fault."""
    shutil.rmtree(release.path("levels"))
    found = verified(release.folder)
    assert found.faults == ()
    assert fact(found, "types", "levels") == 0
    assert fact(found, "claims", "validations") == 0
    agrees = {check.name: check.agrees for check in found.checks}
    assert agrees["types"] is None
    assert agrees["claims"] == "sizes and bits as stated"
    assert len([name for name in found.not_here if name.startswith("levels/")]) == 8
