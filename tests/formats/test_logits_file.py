"""Logits in 16 bits: what is exact, how far off the rest may be, and files that are not whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.core.errors import InputError
from quantkit.formats.logits_file import (
    FLOOR_NATS,
    STEPS,
    LogitsFile,
    LogitsHeader,
    check_vocabulary,
    decode_rows,
    encode_rows,
    header_of,
    next_tokens,
    scored_positions,
    vocabulary_id,
)
from quantkit.formats.tensors import MetaValue
from quantkit.study.kld_statistics import Logits, compare

OFF_BY = FLOOR_NATS / STEPS / 2
"""Most that a logit is off by, nats."""


def header(vocabulary: int, chunks: int = 1, chunk_tokens: int = 16) -> LogitsHeader:
    tokens = np.arange(chunks * chunk_tokens, dtype=np.int32).reshape(chunks, chunk_tokens)
    return header_of("base.gguf", "a text", {}, vocabulary, None, tokens % vocabulary)


def kept(logits: Logits) -> Logits:
    targets = np.zeros(len(logits), np.int32)
    return decode_rows(encode_rows(logits, targets, header(logits.shape[1])))


def softmax(logits: Logits) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return wide / wide.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("spread", [0.3, 1.5, 4.0])
def test_the_kld_is_off_by_less_than_the_bound(spread: float) -> None:
    """Flat rows, whose tail is nearly all of them, and peaked ones; KLDs from 1e-8 to 0.1."""
    random = np.random.default_rng(11)
    base = (spread * random.standard_normal((40, 20_000))).astype(np.float32)
    targets = np.zeros(len(base), np.int32)
    rows = encode_rows(base, targets, header(base.shape[1]))
    found = decode_rows(rows)
    tail = 1 - np.take_along_axis(softmax(base), rows["kept"].astype(int), axis=1).sum(axis=1)
    for noise in (0.0, 1e-4, 0.01, 0.3):
        other = base + (noise * random.standard_normal(base.shape)).astype(np.float32)
        kld, nll = compare(base, other, targets)
        our_kld, our_nll = compare(found, other, targets)
        error = np.abs(our_kld - kld)
        worst = OFF_BY * np.sqrt(2 * tail * kld) + tail * OFF_BY**2 / 2
        assert (error <= worst + 1e-9 + 1e-6 * kld).all(), noise
        assert abs((our_kld - kld).mean()) < 1e-7, noise  # far below 1e-6 nats
        np.testing.assert_allclose(our_nll, nll, atol=3e-6)
        if noise == 0:
            assert error.max() < 5e-8


def test_what_decides_is_exact() -> None:
    random = np.random.default_rng(12)
    base = (3 * random.standard_normal((30, 5000))).astype(np.float32)
    base[4, [17, 4000]] = base[4].max() + 1  # a tie: argmax takes the first
    targets = random.integers(0, 5000, 30, dtype=np.int32)
    rows = encode_rows(base, targets, header(5000))
    np.testing.assert_array_equal(rows["kept"][:, 0], base.argmax(axis=1))
    expected = -np.log(softmax(base)[np.arange(30), targets])
    np.testing.assert_allclose(rows["nll"], expected, rtol=1e-6)
    found = decode_rows(rows)
    count = rows["kept"].shape[1]
    best = np.argsort(-base, axis=1)[:, :count]
    np.testing.assert_array_equal(
        np.take_along_axis(found, best, axis=1), np.take_along_axis(base, best, axis=1)
    )
    assert np.abs(found - base).max() <= OFF_BY * 1.01


@settings(max_examples=60)
@given(st.data())
def test_any_finite_row_comes_back(data: st.DataObject) -> None:
    values = (
        st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-50, 50, width=32) | st.just(-np.inf)
    )
    row = np.array([data.draw(st.lists(values, min_size=80, max_size=90))], np.float32)
    row[0, data.draw(st.integers(0, 79))] = data.draw(st.floats(-20, 20, width=32))
    found = kept(row)
    top = row.max()
    near = row >= top - np.float32(FLOOR_NATS)
    assert np.isfinite(found[row > -np.inf]).all()
    assert np.abs(found[near] - row[near]).max() <= OFF_BY * 1.01 + 1e-6 * abs(top)
    assert (found[~near] <= top - np.float32(FLOOR_NATS) * 0.999).all()


def test_one_huge_outlier_does_not_blur_the_others() -> None:
    random = np.random.default_rng(13)
    base = (2 * random.standard_normal((4, 3000))).astype(np.float32)
    base[0, 5], base[1, 5], base[2, 5] = -1e9, -np.inf, 60.0
    other = base + np.float32(0.05) * random.standard_normal(base.shape).astype(np.float32)
    other[1, 5] = -np.inf
    targets = np.zeros(4, np.int32)
    (kld, nll), ours = compare(base, other, targets), compare(kept(base), other, targets)
    np.testing.assert_allclose(ours[0], kld, atol=1e-6)
    np.testing.assert_allclose(ours[1], nll, atol=1e-5)


def test_what_is_no_number_shows() -> None:
    base = np.zeros((3, 100), np.float32)
    base[0, 50], base[1, 50] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        rows = encode_rows(base, np.zeros(3, np.int32), header(100))
    assert np.isfinite(rows["nll"]).tolist() == [False, False, True]


def write(path: Path, vocabulary: int = 301, chunks: int = 3) -> tuple[Logits, LogitsHeader]:
    """A file of three chunks, of a vocabulary that no alignment divides."""
    random = np.random.default_rng(14)
    tokens = random.integers(0, vocabulary, (chunks, 16), dtype=np.int32)
    found = header_of("base.gguf", "ein Text «ß»", {"pre": "x"}, vocabulary, 3, tokens)
    logits = random.standard_normal((chunks, found.rows, vocabulary)).astype(np.float32)
    with path.open("wb") as file:
        file.write(found.start_bytes(tokens))
        for chunk, rows in zip(tokens, logits, strict=True):
            file.write(encode_rows(rows, next_tokens(chunk), found).tobytes())
    return logits, found


def test_a_file_is_read_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "base.logits"
    logits, expected = write(path)
    found = LogitsFile(path)
    assert found.header == expected
    assert found.header.positions == 3 * 7
    assert list(scored_positions(7)) == [3, 4, 5]  # nothing follows the last
    for chunk in range(3):
        rows = found.read_rows(chunk, 2, 6)
        assert np.abs(decode_rows(rows) - logits[chunk, 2:6]).max() < OFF_BY
        # position 8 of 16 is the first that counts, and predicts token 9
        targets = next_tokens(found.tokens[chunk])
        np.testing.assert_array_equal(targets, found.tokens[chunk, 9:])
        whole = softmax(logits[chunk])[np.arange(7), targets]
        np.testing.assert_allclose(found.read_rows(chunk, 0, 7)["nll"], -np.log(whole), rtol=1e-6)


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.logits"
    _, found = write(path)
    whole = path.read_bytes()
    start = len(whole) - found.positions * found.row_type.itemsize
    cases = {
        "QKLOGITS": b"GGUF" + whole[4:],
        "version 7": whole[:8] + b"\x07" + whole[9:],
        f"{len(whole) - 1} bytes": whole[:-1],
        "header": whole[:16] + b"]" + whole[17:],
        "tokens": whole[: start - 4] + b"\xff" + whole[start - 3 :],
    }
    for words, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            LogitsFile(path)
    for length in (0, 7, 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            LogitsFile(path)
    with pytest.raises(InputError, match="none"):
        LogitsFile(tmp_path / "none")
    absurd = replace(found, vocabulary_size=-5)
    path.write_bytes(absurd.start_bytes(np.zeros((3, 16), np.int32)))
    with pytest.raises(InputError, match="header"):
        LogitsFile(path)


@pytest.mark.parametrize(
    "counts",
    [
        {"vocabulary_size": 1 << 31}, {"vocabulary_size": 10**30}, {"vocabulary_size": 0},
        {"kept_tokens": 1 << 31}, {"kept_tokens": 302}, {"kept_tokens": 0},
        {"chunks": 10**12}, {"chunks": 10**30}, {"chunks": 0}, {"chunks": -3}, {"chunks": True},
        {"chunk_tokens": 10**30}, {"chunk_tokens": 3}, {"chunk_tokens": 16.0},
        {"chunk_tokens": "16"}, {"chunks": 1 << 20, "chunk_tokens": 1 << 20},
        {"bos": 301}, {"bos": -1}, {"bos": 10**30}, {"model": 7}, {"vocabulary": {"pre": 7}},
    ],
)  # fmt: skip
def test_counts_beyond_all_limits_are_refused_unread(
    counts: dict[str, object], tmp_path: Path
) -> None:
    """Also of a sparse file, which is as large as its header says."""
    path = tmp_path / "base.logits"
    _, found = write(path)
    path.write_bytes(replace(found, **counts).start_bytes(np.zeros((3, 16), np.int32)))  # type: ignore[arg-type]
    for size in (path.stat().st_size, 1 << 40):
        os.truncate(path, size)
        with pytest.raises(InputError, match="header"):
            LogitsFile(path)


@pytest.mark.parametrize("token", [-1, 301])
def test_a_row_with_a_token_that_is_none_is_refused(tmp_path: Path, token: int) -> None:
    path = tmp_path / "base.logits"
    _, about = write(path)
    content = np.fromfile(path, np.uint8)
    rows = content[len(content) - about.positions * about.row_type.itemsize :].view(about.row_type)
    rows["kept"][-1, -1] = token
    content.tofile(path)
    found, last = LogitsFile(path), about.chunks - 1
    found.read_rows(last, 0, about.rows - 1)
    with pytest.raises(InputError):
        found.read_rows(last, 0, about.rows)


def test_a_header_s_own_length_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "base.logits"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[:12] + b"\xff" * 4 + content[16:])
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match="header"):
        LogitsFile(path)


def test_another_tokenizer_is_told() -> None:
    tokens = MetaValue("str", ("a", "b", "\udcff"))
    ours = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.pre": MetaValue("str", "llama-bpe")}
    base = vocabulary_id(ours)
    check_vocabulary("x.gguf", vocabulary_id(dict(ours)), "base.gguf", base)
    for key, value in (("tokens", ("b", "a", "\udcff")), ("pre", "default")):
        other = vocabulary_id({**ours, f"tokenizer.ggml.{key}": MetaValue("str", value)})
        with pytest.raises(InputError, match=rf"x\.gguf.*tokenizer\.ggml\.{key}\b"):
            check_vocabulary("x.gguf", other, "base.gguf", base)
    with pytest.raises(InputError, match="merges"):
        check_vocabulary("x.gguf", base | {"merges": "0"}, "base.gguf", base)
