"""The KL divergence of the demo model's artifacts, against what llama-perplexity printed for them.

How that was recorded, and what may differ between CPUs, is in tests/data/perplexity/README.md.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from demo_artifacts import WANTS_BOS, write_demo
from models import CPU
from places import DATA
from watched import Killed, Recorder

from quantkit.config.recipe import DivergenceRecipe
from quantkit.core.errors import InputError
from quantkit.core.paths import haystack_text
from quantkit.core.progress import told_to
from quantkit.core.work_folders import Journal
from quantkit.formats.logits_file import LogitsFile, decode_rows
from quantkit.formats.tensors import MetaValue
from quantkit.llamacpp import devices, llama
from quantkit.llamacpp.llama import ChunkLogits, Model
from quantkit.study import divergence
from quantkit.study.divergence import measure_kld
from quantkit.study.kld_statistics import KLDStatistics, PositionStatistics, compare
from quantkit.study.run import collect_base_logits

RECORDED = DATA / "perplexity"
CHUNKS = 8
ANY_CPU_PERPLEXITY = 4e-4
SAME_CPU = 2e-5
"""Relative; two digits of what is printed are beyond llama-perplexity's own 16 bits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded text, the models, and the logits of both bases."""
    folder = tmp_path_factory.mktemp("divergence")
    (folder / "text.txt").write_text(haystack_text()[:14_000])
    for name, changes in (("demo", {}), ("demo-bos", WANTS_BOS)):
        write_demo(folder / f"{name}.gguf", changes=changes)
        write_demo(folder / f"{name}-q4.gguf", "Q4_0", changes)
        collected(folder, folder / f"{name}.gguf", folder / f"{name}.logits", chunks=99)
    write_demo(folder / "demo-q8.gguf", "Q8_0")
    return folder


def collected(
    folder: Path, base: Path, out: Path, chunks: int, tokens: int = 512, texts: Path | None = None
) -> Path:
    work = folder / f"work-{out.name}"
    work.mkdir()
    recipe = DivergenceRecipe(chunks=chunks, chunk_tokens=tokens)
    collect_base_logits(base, recipe, (texts or folder) / "text.txt", out, work, CPU)
    return out


def measured(folder: Path, base: str, artifact: str, kept: Path) -> KLDStatistics:
    logits, model = folder / f"{base}.logits", folder / f"{artifact}.gguf"
    return measure_kld(logits, model, kept, CPU).summary()


def statistics_in(logits: Path, cache: Path) -> PositionStatistics:
    base = LogitsFile(logits)
    chunks = divergence.finished_chunks(Journal(cache, "a purpose"), base.header)
    return divergence.read_statistics(base, chunks)


def printed(text: str) -> dict[str, tuple[float, float]]:
    """Figure → (value, its ±; 0 where none is printed) of llama-perplexity's tables."""
    rows = re.findall(r"^(.+?) *: +(-?[\d.]+)(?: ± +([\d.]+))?", text, re.M)
    return {re.sub(r" +", " ", name): (float(v), float(e or 0)) for name, v, e in rows}


def check(found: KLDStatistics, text: str) -> None:
    """`found` against llama-perplexity's figures: closely where this CPU rounds as that one."""
    wanted = printed(text)
    base, base_error = wanted["Mean PPL(base)"]
    assert found.base_perplexity == pytest.approx(base, rel=ANY_CPU_PERPLEXITY)
    same_cpu = found.base_perplexity == pytest.approx(base, rel=SAME_CPU)
    mean, mean_error = wanted["Mean KLD"]
    ratio, ratio_error = wanted["Mean ln(PPL(Q)/PPL(base))"]
    share, share_error = wanted["Same top p"]
    figures = [
        # ours, llama-perplexity's, what may differ on any CPU, on the same
        (found.perplexity, *wanted["Mean PPL(Q)"], base * SAME_CPU),
        (found.base_perplexity, base, base_error, base * SAME_CPU),
        (found.mean, mean, mean_error, 2e-6),
        (found.mean_error, mean_error, mean_error / 4, 2e-6),
        (found.ln_ratio, ratio, ratio_error, 5e-6),
        (found.ln_ratio_error, ratio_error, ratio_error / 4, 2e-6),
        (found.median, wanted["Median KLD"][0], 0.05 * wanted["Median KLD"][0], 4e-6),
        (found.p99, wanted["99.0% KLD"][0], 0.15 * wanted["99.0% KLD"][0], 2e-4),
        (found.p999, wanted["99.9% KLD"][0], 0.15 * wanted["99.9% KLD"][0], 1e-4),
        (found.maximum, wanted["Maximum KLD"][0], 0.15 * wanted["Maximum KLD"][0], 1e-4),
        (100 * found.same_top, share, share_error, 0.11),
        (100 * found.same_top_error, share_error, share_error / 4, 0.002),
    ]
    for ours, theirs, on_any, on_same in figures:
        assert ours == pytest.approx(theirs, abs=on_same if same_cpu else on_any), figures
    if same_cpu:
        assert found.p99 == pytest.approx(wanted["99.0% KLD"][0], rel=1e-2)


@pytest.mark.parametrize(
    ("base", "artifact"), [("demo", "demo-q4"), ("demo", "demo-q8"), ("demo-bos", "demo-bos-q4")]
)
def test_equal_to_llama_perplexity(folder: Path, tmp_path: Path, base: str, artifact: str) -> None:
    found = measured(folder, base, artifact, tmp_path / "kept.jsonl")
    assert found.tokens == CHUNKS * 255
    check(found, (RECORDED / f"{artifact}.txt").read_text())


@pytest.mark.slow
def test_equal_to_llama_perplexity_run_now(folder: Path, tmp_path: Path) -> None:
    """The program itself, on chunks of another length."""
    tools = os.environ.get("QUANTKIT_LLAMA_TOOLS")
    if not tools or not (Path(tools) / "llama-perplexity").exists():
        pytest.skip("needs QUANTKIT_LLAMA_TOOLS: make oracle-tools")
    size = 200
    theirs, ours = tmp_path / "theirs.logits", tmp_path / "ours.logits"
    program: list[str | Path] = [Path(tools) / "llama-perplexity", "-t", "1", "-nr"]
    program += ["-c", str(size), "-b", str(size), "--kl-divergence-base", theirs]
    text, base, artifact = (folder / n for n in ("text.txt", "demo-bos.gguf", "demo-bos-q4.gguf"))
    subprocess.run([*program, "-m", base, "-f", text], check=True, capture_output=True)
    ran = subprocess.run(
        [*program, "-m", artifact, "--kl-divergence"], check=True, capture_output=True, text=True
    )
    collect_base_logits(
        base, DivergenceRecipe(chunks=999, chunk_tokens=size), text, ours, tmp_path, CPU
    )
    found = measure_kld(ours, artifact, tmp_path / "kept.jsonl", CPU).summary()
    assert found.tokens == LogitsFile(ours).header.chunks * 99
    check(found, ran.stdout)


def test_the_base_is_no_distance_from_itself(folder: Path, tmp_path: Path) -> None:
    found = measured(folder, "demo", "demo", tmp_path / "kept.jsonl")
    assert 0 <= found.mean <= found.maximum < 5e-8  # the bound of 16 bits
    assert found.same_top == 1.0
    assert abs(found.ln_ratio) < 1e-7
    model = Model(folder / "demo.gguf", CPU)
    tokens = model.vocab.first_tokens((folder / "text.txt").read_text(), 128)
    runner = ChunkLogits(model, 128, None)
    first, again = ([z.copy() for _, z in runner.of(tokens)] for _ in range(2))
    assert [z.shape for z in first] == [(63, model.vocab.size)]
    kld, _ = compare(first[0], again[0], tokens[65:128])
    assert kld.max() == 0.0  # what was not kept in 16 bits


def test_every_chunk_begins_with_bos_where_the_model_wants_one(folder: Path) -> None:
    bos = LogitsFile(folder / "demo-bos.logits")
    assert bos.header.bos == 11
    assert LogitsFile(folder / "demo.logits").header.bos is None
    chunk = bos.tokens[1].copy()
    assert chunk[0] != 11
    model = Model(folder / "demo-bos.gguf", CPU)
    ((_, wanted),) = ChunkLogits(model, 512, 11).of(chunk)
    wanted = wanted.copy()
    chunk[0] = 11
    ((_, found),) = ChunkLogits(model, 512, None).of(chunk)
    np.testing.assert_array_equal(found, wanted)
    kept = decode_rows(bos.read_rows(1, 0, 255))
    assert np.abs(kept - found).max() < 1e-3  # of 16 bits


def test_batches_of_a_chunk_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk longer than a batch is decoded in parts, the first of which has no output."""
    found = []
    logits = collected(tmp_path, folder / "demo.gguf", tmp_path / "base.logits", 2, 300, folder)
    for batch in (512, 70):
        monkeypatch.setattr(llama, "BATCH_TOKENS", batch)
        kept, artifact = tmp_path / f"{batch}.jsonl", folder / "demo-q4.gguf"
        divergence.compare_in_child(logits, artifact, kept, "a purpose", CPU, lambda _: None)
        found.append(statistics_in(logits, kept))
    whole, parts = found
    assert whole.kld.size == parts.kld.size == 2 * 149
    np.testing.assert_allclose(parts.kld.mean(), whole.kld.mean(), rtol=0.05)


def test_layer_by_layer_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file runs that is larger than the memory."""
    found, notes = [], []
    logits = folder / "demo-bos.logits"
    for fits in (True, False):
        monkeypatch.setattr(devices, "can_hold", lambda *_, fits=fits: fits)
        kept, artifact, told = tmp_path / f"{fits}.jsonl", folder / "demo-bos-q4.gguf", Recorder()
        divergence.compare_in_child(logits, artifact, kept, "a purpose", CPU, told_to(told))
        assert told.advances == CHUNKS
        found.append(statistics_in(logits, kept))
        notes.append(told.notes)
    for name, values in asdict(found[0]).items():
        np.testing.assert_array_equal(getattr(found[1], name), values)
    assert [len(told) for told in notes] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False.jsonl", "True.jsonl"]


@pytest.mark.parametrize("fits", [True, False])
def test_a_killed_comparison_gives_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    monkeypatch.setattr(devices, "can_hold", lambda *_: fits)
    logits, artifact = folder / "demo.logits", folder / "demo-q4.gguf"

    def run(cache: Path, told: Recorder) -> PositionStatistics:
        divergence.compare_in_child(logits, artifact, cache, "a purpose", CPU, told_to(told))
        return statistics_in(logits, cache)

    expected = run(tmp_path / "whole.jsonl", Recorder())
    with pytest.raises(Killed):
        run(tmp_path / "killed.jsonl", Recorder(kill_after=2))
    told = Recorder()
    again = run(tmp_path / "killed.jsonl", told)
    assert told.advances == CHUNKS - 2
    for name, values in asdict(expected).items():
        np.testing.assert_array_equal(getattr(again, name), values)


def test_a_finished_artifact_is_not_run_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.jsonl"
    logits = collected(folder, folder / "demo.gguf", tmp_path / "base.logits", 2, 64)
    model = folder / "demo-q8.gguf"
    found = measure_kld(logits, model, kept, CPU)
    content = kept.read_bytes()

    def no_child(*_: object) -> None:
        raise AssertionError("it was run again")

    monkeypatch.setattr(divergence, "run_isolated", no_child)
    again = measure_kld(logits, model, kept, CPU)
    assert kept.read_bytes() == content
    np.testing.assert_array_equal(again.kld, found.kld)
    first, one, two = content.splitlines(keepends=True)
    for damaged in (
        [one, two, two], [one, one[:50] + b"\n"], [one, b"\0" * 60 + b"\n"], [b"{}\n", two],
        [one, b"3\n"], [two.replace(b'"nll": [', b'"nll": [1, ')], [one.replace(b"[", b"[[1],", 1)],
        [one.replace(b'"same_top": [', b'"same_top": [1' + b"0" * 400 + b", ")],
        [re.sub(rb'"same_top": \[.', b'"same_top": [2', one)],
        *([re.sub(rb'"kld": \[[^,]+', b'"kld": [' + word, one)]
          for word in (b"NaN", b"Infinity", b"null", b'"1"', b"true")),
    ):  # fmt: skip
        kept.write_bytes(b"".join([first, *damaged]))
        with pytest.raises(AssertionError, match="run again"):
            measure_kld(logits, model, kept, CPU)
        assert kept.read_bytes() == first
    with pytest.raises(AssertionError, match="run again"):  # another artifact
        measure_kld(logits, folder / "demo-q4.gguf", kept, CPU)


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    logits = folder / "demo.logits"
    other = write_demo(
        tmp_path / "other.gguf", "Q8_0", {"tokenizer.ggml.pre": MetaValue("str", "gpt-2")}
    )
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.pre"):
        measure_kld(logits, other, tmp_path / "kept.jsonl", CPU)
    (tmp_path / "text.txt").write_text("Not many words.")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(InputError, match="512"):
        collect_base_logits(
            folder / "demo.gguf", DivergenceRecipe(), tmp_path / "text.txt",
            tmp_path / "out.logits", work, CPU,
        )  # fmt: skip
    assert not (tmp_path / "out.logits").exists()
