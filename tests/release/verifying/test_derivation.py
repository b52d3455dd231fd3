"""Artifacts against their source, byte for byte: what is compared, found and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import broken_artifacts
import numpy as np
import pytest
from demo_artifacts import write_demo
from small_release import EXPERTS, STACK, SmallRelease

from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix
from quantkit.formats.tensors import MetaValue, TensorInfo
from quantkit.models.choose import choose_model, open_source
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import Model
from quantkit.quantize.quantize import artifact_metadata, quantize
from quantkit.release.verifying.checking import Artifact
from quantkit.release.verifying.derivation import (
    Compared,
    Sampling,
    compare,
    metadata_faults,
    shape_faults,
    spans,
)
from quantkit.release.verifying.verify import version_words

FULL = Sampling(1, full=True)
FILE = "tiny-imatrix.gguf"


def artifact_of(*paths: Path) -> Artifact:
    return Artifact({path.name: GGUFFile(path).header for path in paths})


def compared(
    release: SmallRelease,
    path: Path,
    sampling: Sampling = FULL,
    source: Path | None = None,
    imatrix: Imatrix | None = None,
) -> Compared:
    """The one-file artifact at `path` against the release's source and importance matrix."""

    def read(file: str, start: int, stop: int) -> bytes:
        assert file == path.name
        return path.read_bytes()[start:stop]

    known = imatrix or read_imatrix(release.path("tiny-imatrix.gguf"))
    model = GGUFSource(source or release.source)
    return compare("Q4", artifact_of(path), read, model, known, FILE, sampling, 2)


def q4(release: SmallRelease) -> Path:
    return release.path("tiny-Q4.gguf")


def test_every_row_is_what_the_source_gives(whole_release: SmallRelease) -> None:
    found = compared(whole_release, q4(whole_release))
    source = GGUFSource(whole_release.source)
    assert found.faults == ()
    assert found.tensors == len(source.tensors)
    assert found.rows == found.all_rows == sum(info.rows for info in source.tensors)
    assert found.matrices == found.all_matrices == len(source.tensors) - 1 + EXPERTS
    stored = GGUFFile(q4(whole_release)).stored.values()
    assert found.size_bytes == sum(at.size_bytes for at in stored)


def test_a_sample_has_every_matrix_and_every_expert(whole_release: SmallRelease) -> None:
    found = compared(whole_release, q4(whole_release), Sampling(seed=3))
    assert found.faults == ()
    assert found.matrices == found.all_matrices
    matrices = sum(len(info.shape) == 2 for info in GGUFSource(whole_release.source).tensors)
    vectors = found.tensors - matrices - 1
    assert found.rows == vectors + 4 * matrices + EXPERTS


def test_the_seed_chooses_the_rows() -> None:
    infos = [TensorInfo("a", (64, 32), "F32"), TensorInfo("s", (8, 16, 32), "F32")]

    def rows(sampling: Sampling) -> list[tuple[str, int, int]]:
        (batch,) = spans(infos, sampling)
        return [(span.info.name, span.start, span.stop) for span in batch]

    assert rows(Sampling(seed=1)) == rows(Sampling(seed=1))
    assert rows(Sampling(seed=1)) != rows(Sampling(seed=2))
    assert all(16 * n <= start < 16 * (n + 1) for n, (_, start, _) in enumerate(
        row for row in rows(Sampling(seed=5)) if row[0] == "s"))  # fmt: skip


def test_requests_are_bounded_where_the_artifact_is_elsewhere() -> None:
    stacks = [TensorInfo(f"s{n}", (512, 16, 32), "Q8_0") for n in range(10)]
    infos = [TensorInfo("a", (64, 32), "Q8_0"), *stacks]
    (batch,) = spans(infos, Sampling(1, most_requests=301))
    assert len(batch) == 301
    assert (batch[0].stop - batch[0].start) == 4  # rows of a matrix in one request
    for stack in stacks:
        experts = [span.matrix for span in batch if span.info is stack]
        assert len(set(experts)) == 30
        assert all(span.start // 16 == span.matrix for span in batch if span.info is stack)
    (few,) = spans(infos, Sampling(1, most_requests=1))
    assert len(few) == 11  # no tensor is left out


def test_one_flipped_bit(release: SmallRelease) -> None:
    path = q4(release)
    at = GGUFFile(path).stored["blk.0.ffn_down.weight"]
    row_bytes = at.size_bytes // at.info.rows
    content = bytearray(path.read_bytes())
    content[at.offset + 100 * row_bytes + 20] ^= 1
    path.write_bytes(content)
    (fault,) = compared(release, path).faults
    assert fault == (
        "Q4: blk.0.ffn_down.weight, Q4_K, is not what the source gives in 1 of 256 rows, 1 of "
        f"{at.size_bytes} bytes; the first is row 100"
    )


def test_another_importance_matrix_gives_other_bytes(whole_release: SmallRelease) -> None:
    known = read_imatrix(whole_release.path("tiny-imatrix.gguf"))
    entry = known.entries[STACK]
    turned = ImatrixEntry(np.ascontiguousarray(entry.sums[:, ::-1]), entry.counts)
    other = dataclasses.replace(known, entries={**known.entries, STACK: turned})
    (fault,) = compared(whole_release, q4(whole_release), imatrix=other).faults
    assert STACK in fault


def test_what_ggml_cannot_encode_again_is_told_first(release: SmallRelease, tmp_path: Path) -> None:
    """ggml ends the process over some types, and refuses others without importance."""
    norm = "blk.0.attn_norm.weight"
    integers = broken_artifacts.mistyped(q4(release), tmp_path / "tiny-Q4.gguf", norm, "I32")
    (fault,) = compared(release, integers).faults
    assert fault == f"Q4: {norm} is I32, the source's is F32"
    known = read_imatrix(release.path("tiny-imatrix.gguf"))
    stack = known.entries[STACK]
    flat = ImatrixEntry(stack.sums[:1], stack.counts[:1])
    few = dataclasses.replace(known, entries={**known.entries, STACK: flat})
    (fault,) = compared(release, q4(release), imatrix=few).faults
    assert f"has importance of the shape (1, 256) in {FILE}, not ({EXPERTS}, 256)" in fault


Q = "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("name", "info", "reason"),
    [
        (Q, None, "is missing"),
        (Q, TensorInfo(Q, (8, 256), "Q4_K"), "has the shape (8, 256), not (256, 256)"),
        (Q, TensorInfo(Q, (256, 256), "IQ2_XXS"),
         f"is IQ2_XXS, which needs importance; {FILE} has none for it"),
        ("more", TensorInfo("more", (8,), "F32"), "is not a tensor of the source"),
    ],
)  # fmt: skip
def test_a_tensor_that_cannot_be_compared_is_told(
    whole_release: SmallRelease, name: str, info: TensorInfo | None, reason: str
) -> None:
    header = GGUFFile(q4(whole_release)).header
    stored = {other: at for other, at in header.stored.items() if other != name}
    if info is not None:
        stored[name] = dataclasses.replace(header.stored[Q], info=info)
    broken = Artifact({"tiny-Q4.gguf": dataclasses.replace(header, stored=stored)})
    known = read_imatrix(whole_release.path("tiny-imatrix.gguf"))
    entries = {other: entry for other, entry in known.entries.items() if other != Q}
    less, source = dataclasses.replace(known, entries=entries), GGUFSource(whole_release.source)
    assert shape_faults(broken, source, less, FILE) == {name: f"{name} {reason}"}


@pytest.mark.parametrize(
    ("sums", "counts"),
    [(3e38, 1e-38), (1e38, 1.0), (1e19, 0.0001)],
    ids=["infinite", "ggml would end the process", "large"],
)
@pytest.mark.parametrize("name", ["blk.0.ffn_down.weight", STACK])
def test_importance_that_no_activation_has_is_no_fault_of_the_source(
    whole_release: SmallRelease, name: str, sums: float, counts: float
) -> None:
    """In one column, which overflows in ggml's sums."""
    known = read_imatrix(whole_release.path("tiny-imatrix.gguf"))
    entry = known.entries[name]
    wild = ImatrixEntry(entry.sums.copy(), entry.counts.copy())
    wild.sums[-1, 3], wild.counts[-1] = sums, counts
    other = dataclasses.replace(known, entries={**known.entries, name: wild})
    (fault,) = compared(whole_release, q4(whole_release), imatrix=other).faults
    assert fault == (
        f"Q4: {name} has importance in {FILE} that no activations give: sums over counts beyond "
        "1e+18"
    )


def test_importance_that_a_type_cannot_take_is_told_from_weights_that_it_cannot(
    whole_release: SmallRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of F16 are bounded, so some importance may still end in numbers that are none."""
    name = "blk.0.ffn_down.weight"
    known = read_imatrix(whole_release.path("tiny-imatrix.gguf"))
    entry = known.entries[name]
    wild = ImatrixEntry(np.full_like(entry.sums, 1e38), entry.counts)
    other = dataclasses.replace(known, entries={**known.entries, name: wild})
    monkeypatch.setattr("quantkit.formats.imatrix_file.LARGEST_IMPORTANCE", np.inf)
    found = compared(whole_release, q4(whole_release), imatrix=other)
    assert f"Q4: {name} cannot be encoded as Q4_K with what {FILE} holds for it" in found.faults
    broken = broken_artifacts.with_nan(whole_release.source, tmp_path / "nan.gguf", name)
    with pytest.raises(InputError, match=f"of {name} are not finite"):
        compared(whole_release, q4(whole_release), source=broken)


def test_metadata_is_what_quantkit_writes(whole_release: SmallRelease) -> None:
    imatrix = read_imatrix(whole_release.path("tiny-imatrix.gguf"))
    source = GGUFSource(whole_release.source).metadata
    made = artifact_of(q4(whole_release)).metadata
    assert metadata_faults(made, source, imatrix, FILE, None) == []
    assert metadata_faults(made, source, imatrix, FILE) == []
    template = {**made, "tokenizer.chat_template": MetaValue("str", "{{ evil }}")}
    more = {**made, "tokenizer.chat_template.tool": MetaValue("str", "x")}
    less = {k: v for k, v in made.items() if k != "llama.context_length"}
    for wrong, fault in (
        (template, "its metadata's tokenizer.chat_template is not what the source gives"),
        (more, "its metadata has tokenizer.chat_template.tool, which the source does not give"),
        (less, "its metadata has no llama.context_length"),
    ):
        assert metadata_faults(wrong, source, imatrix, FILE, None) == [fault]
    preset = artifact_metadata(source, imatrix, FILE, "Q4_K_M")
    assert metadata_faults(preset, source, imatrix, FILE, "Q4_K_M") == []
    for name in ("Q4_K_S", "nonsense"):
        (fault,) = metadata_faults(preset, source, imatrix, FILE, name)
        assert "general.file_type" in fault
    assert metadata_faults(preset, source, imatrix, FILE) == []  # it is not known


def test_a_checkpoint_gives_the_bytes_that_a_gguf_of_it_holds(tmp_path: Path) -> None:
    """The demo: stacked experts, types that are kept, values that conversion changes."""
    source = open_source(choose_model("demo"))
    types = {
        info.name: "Q5_0" if info.type_name == "BF16" else info.type_name for info in source.tensors
    }
    none = Imatrix({}, 512, 0, ())
    (path,) = quantize(source, Model.of("demo", source), types, {}, tmp_path, tmp_path, 1)
    artifact = artifact_of(path)
    content = path.read_bytes()

    def found(source_path: Path | None) -> Compared:
        model = source if source_path is None else GGUFSource(source_path)
        return compare(
            "Q5", artifact, lambda _, start, stop: content[start:stop], model, none, FILE, FULL, 1
        )

    of_checkpoint = found(None)
    assert of_checkpoint.faults == ()
    assert of_checkpoint.matrices > of_checkpoint.tensors
    assert found(write_demo(tmp_path / "base.gguf")).faults == ()
    lossy = found(write_demo(tmp_path / "lossy.gguf", "Q8_0"))
    assert len(lossy.faults) == sum(info.type_name == "BF16" for info in source.tensors)


def test_what_may_explain_a_difference() -> None:
    here = {"quantkit": "0.2.0", "llama-cpp-python": "0.3.36"}
    assert "here is 0.3.36" in version_words({"llama-cpp-python": "0.3.35"}, here)
    words = version_words({"llama-cpp-python": "0.3.36", "gguf": "1"}, here)
    assert "another CPU" in words
    assert "llama-cpp-python 0.3.36" in words
