"""Next-token logits of a base model on a text, 16 bits each: quantkit's own file format.

A row is one scored position. Stored exactly are the F32 logits of the `kept_tokens` most likely
tokens, in descending order, and the negative log-likelihood of the next token in F64. All other
logits are linear in 16 bits, from FLOOR_NATS below the row's highest to the lowest of the exact
ones. Values below that floor (-inf too) are raised to it: at most vocabulary · exp(-40) of the
probability, 6e-13 for 131072 tokens.

So a logit is off by at most h = 40 / 65535 / 2 = 3.1e-4 nats, only in the tail of mass r outside
the exact tokens, and a KLD from these rows by at most h·√(2·r·KLD) + r·h²/2 nats: 5e-8 if the true
one is 0. The roundings are independent, so the error of a position is far smaller, and of a mean
smaller still.

Layout, little-endian: MAGIC, U32 version, U32 length of the header, the header as JSON, the tokens
as I32, then the rows of each chunk in order as `row_type` says.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_header import MAX_ITEMS
from quantkit.formats.tensors import Metadata

MAGIC, VERSION = b"QKLOGITS", 1
FLOOR_NATS = 40.0
STEPS = 65535
MAX_HEADER_BYTES = 1 << 20
"""Of the JSON, which has names, hashes and counts."""
MAX_VOCABULARY = MAX_ITEMS
"""No GGUF that is read has more tokens."""
MAX_TOKENS = 1 << 26
"""Of all chunks, which are in memory together; their rows take a thousand times as much disk."""
VOCABULARY_KEYS = ("model", "pre", "tokens", "merges")
_START = struct.Struct("<8sII")

Logits = NDArray[np.float32]
Tokens = NDArray[np.int32]
Rows = NDArray[np.void]  # of a `row_type`, shape (positions,)


@dataclass(frozen=True)
class LogitsHeader:
    """Describes the logits of the file `model` on the text that is called `text`.

    Attributes:
        vocabulary: see `vocabulary_id`.
        bos: token that replaces each chunk's first; None if the model wants no BOS.
        kept_tokens: number of tokens per row whose logits are exact.
        tokens_sha256: hash of all chunks' tokens as stored.
    """

    model: str
    text: str
    vocabulary: Mapping[str, str]
    vocabulary_size: int
    bos: int | None
    chunks: int
    chunk_tokens: int
    kept_tokens: int
    tokens_sha256: str

    @property
    def rows(self) -> int:
        """Scored positions of a chunk."""
        return len(scored_positions(self.chunk_tokens))

    @property
    def positions(self) -> int:
        """Scored positions of all chunks."""
        return self.chunks * self.rows

    @property
    def row_type(self) -> np.dtype[np.void]:
        """One position; `align` keeps its size a multiple of 8 for any vocabulary."""
        return _row_type(self.vocabulary_size, self.kept_tokens)

    def start_bytes(self, tokens: Tokens) -> bytes:
        """The bytes of the file before the rows."""
        text = json.dumps(asdict(self), ensure_ascii=False).encode()
        text += b" " * (-(_START.size + len(text)) % 64)
        return _START.pack(MAGIC, VERSION, len(text)) + text + tokens.astype("<i4").tobytes()


def _row_type(vocabulary: int, kept_tokens: int) -> np.dtype[np.void]:
    kept = (kept_tokens,)
    fields = [
        ("nll", "<f8"), ("low", "<f4"), ("step", "<f4"), ("kept", "<i4", kept),
        ("exact", "<f4", kept), ("codes", "<u2", (vocabulary,)),
    ]  # fmt: skip
    return np.dtype(fields, align=True)


def _kept_tokens(vocabulary: int) -> int:
    return min(vocabulary, 64 + vocabulary // 256)  # a 64th part of the file, or less


def rows_bytes(vocabulary: int, chunks: int, chunk_tokens: int) -> int:
    """Bytes of the rows of `chunks`, which are nearly all of a file."""
    row = _row_type(vocabulary, _kept_tokens(vocabulary))
    return chunks * len(scored_positions(chunk_tokens)) * row.itemsize


def header_of(
    model: str, text: str, vocabulary: Mapping[str, str], size: int, bos: int | None, tokens: Tokens
) -> LogitsHeader:
    """The header for `tokens`, (chunks, chunk tokens), and a vocabulary of `size` tokens."""
    digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
    chunks, chunk_tokens = tokens.shape
    return LogitsHeader(
        model, text, vocabulary, size, bos, chunks, chunk_tokens, _kept_tokens(size), digest
    )


def vocabulary_id(metadata: Metadata) -> dict[str, str]:
    """Identifies a GGUF file's tokens: tokenizer.ggml key → SHA-256 of its value."""
    found = {}
    for name in VOCABULARY_KEYS:
        value = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None:
            found[name] = hashlib.sha256(json.dumps(value.value).encode()).hexdigest()
    return found


def check_vocabulary(
    name: str, vocabulary: Mapping[str, str], base: str, base_vocabulary: Mapping[str, str]
) -> None:
    """Check that an artifact has its base's tokens.

    Raises:
        InputError: names the key that differs.
    """
    for key in VOCABULARY_KEYS:
        if vocabulary.get(key) != base_vocabulary.get(key):
            raise InputError(
                f"{name} and {base} have different tokenizers (tokenizer.ggml.{key}), so their "
                "probabilities cannot be compared; use artifacts of one base"
            )


def scored_positions(chunk_tokens: int) -> range:
    """The second half of a chunk, where each position predicts the next token; 255 of 512."""
    return range(chunk_tokens // 2, chunk_tokens - 1)


def encode_rows(logits: Logits, targets: Tokens, header: LogitsHeader) -> Rows:
    """Rows of `logits`, shape (positions, vocabulary), followed by the tokens `targets`."""
    rows = np.zeros(len(logits), header.row_type)
    count = header.kept_tokens
    kept = np.argpartition(logits, -count, axis=1)[:, -count:].astype(np.int32)
    kept.sort(axis=1)  # of equal logits the first token comes first, as in argmax
    exact = np.take_along_axis(logits, kept, axis=1)
    order = np.argsort(-exact, axis=1, kind="stable")
    rows["kept"] = np.take_along_axis(kept, order, axis=1)
    rows["exact"] = exact = np.take_along_axis(exact, order, axis=1)
    top = exact[:, :1]
    low = np.maximum(logits.min(axis=1, keepdims=True), top - np.float32(FLOOR_NATS))
    step = np.maximum(exact[:, -1:] - low, 0) / np.float32(STEPS)
    scaled = np.maximum(logits, low)
    scaled -= low
    scaled *= 1 / np.where(step > 0, step, np.inf)
    np.rint(np.minimum(scaled, STEPS, out=scaled), out=scaled)
    rows["codes"] = scaled
    rows["low"], rows["step"] = low[:, 0], step[:, 0]
    sums = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    target = np.take_along_axis(logits, targets[:, None], axis=1)
    rows["nll"] = np.log(sums) - (target[:, 0].astype(np.float64) - top[:, 0])
    return rows


def decode_rows(rows: Rows) -> Logits:
    """The logits of `rows`, F32, shape (positions, vocabulary)."""
    logits: Logits = np.multiply(rows["codes"], rows["step"][:, None], dtype=np.float32)
    logits += rows["low"][:, None]
    np.put_along_axis(logits, rows["kept"].astype(np.intp), rows["exact"], axis=1)
    return logits


class LogitsFile:
    """A finished file: its `header` and `tokens` (chunks, chunk tokens); rows are read on demand.

    Raises:
        InputError: it cannot be read, is another format, or is incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes = FileBytes(path)
        except OSError as error:
            raise InputError(f"cannot read the base logits {path}: {error.strerror}") from None
        size = self._bytes.size_bytes
        start = self._bytes.read(0, min(size, _START.size)).tobytes()
        if len(start) < _START.size or not start.startswith(MAGIC):
            raise InputError(
                f"{path} is not a logits file: it does not begin with {MAGIC.decode()!r}"
            )
        _, version, length = _START.unpack(start)
        if version != VERSION:
            raise InputError(f"{path} has format version {version}; supported is {VERSION}")
        try:
            if length > min(MAX_HEADER_BYTES, size - _START.size):
                raise ValueError(length)
            self.header = header = _parse(self._bytes.read(_START.size, length).tobytes())
        except ValueError:
            raise self._broken("its header is invalid") from None
        self._row_type = header.row_type
        tokens_at = _START.size + length
        self._rows_at = tokens_at + 4 * header.chunks * header.chunk_tokens
        whole = self._rows_at + header.positions * self._row_type.itemsize
        if size != whole:
            raise self._broken(f"it has {size} bytes instead of {whole}")
        raw = self._bytes.read(tokens_at, self._rows_at - tokens_at)
        if hashlib.sha256(raw.data).hexdigest() != header.tokens_sha256:
            raise self._broken("its tokens were modified")
        self.tokens: Tokens = raw.view("<i4").reshape(header.chunks, -1)

    def _broken(self, why: str) -> InputError:
        return InputError(f"{self.path} is not readable: {why}; delete it and run again")

    def read_rows(self, chunk: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of a chunk; thread-safe.

        Raises:
            InputError: they name tokens that the vocabulary does not have.
        """
        first = chunk * self.header.rows + start
        size = self._row_type.itemsize
        raw = self._bytes.read(self._rows_at + first * size, (stop - start) * size)
        rows: Rows = raw.view(self._row_type)
        if rows.size and not 0 <= rows["kept"].min() <= rows["kept"].max() < (
            self.header.vocabulary_size
        ):
            raise self._broken("its rows were modified")
        return rows


def _parse(text: bytes) -> LogitsHeader:
    """The header in `text`; ValueError if it is none, or a count is beyond the limits."""
    from pydantic import TypeAdapter

    found = TypeAdapter(LogitsHeader).validate_json(text, strict=True)
    tokens = found.chunks * found.chunk_tokens
    for value, least, most in (
        (found.vocabulary_size, 1, MAX_VOCABULARY),
        (found.kept_tokens, 1, found.vocabulary_size),
        (found.bos or 0, 0, found.vocabulary_size - 1),
        (found.chunks, 1, MAX_TOKENS),
        (found.chunk_tokens, 4, MAX_TOKENS),
        (tokens, 4, MAX_TOKENS),
    ):
        if not least <= value <= most:
            raise ValueError(value)
    return found


def next_tokens(chunk: Tokens) -> Tokens:
    """The token after each scored position of `chunk`."""
    positions = scored_positions(len(chunk))
    return chunk[positions.start + 1 : positions.stop + 1]
