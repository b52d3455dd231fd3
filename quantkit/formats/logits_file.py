"""Next-token logits of a base model on a text, kept in 16 bits each: a file format of our own.

A row is one position whose next token counts. What divergences are most sensitive to is kept
exactly, in F32: the logits of the most likely tokens, `kept_tokens` of them, the first among them
the top token; and the negative log-probability of the token that follows, in F64. All other logits
are linear in 16 bits, between FLOOR_NATS below the row's highest and the lowest of those kept.
What lies below that floor is raised to it, -inf too: no more than vocabulary · exp(-40) of the
probability, 6e-13 of 131072 tokens.

So a logit is off by at most h = 40 / 65535 / 2 = 3.1e-4 nats, and only in the tail of the mass r
outside the kept tokens. A KLD from these rows is then off by at most h·√(2·r·KLD) + r·h²/2 nats:
by 5e-8 where the true one is 0. The roundings are independent of each other, so that what is left
of them in a position is far smaller, and of a mean over positions less again.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.tensors import Metadata

MAGIC, VERSION = b"QKLOGITS", 1
FLOOR_NATS = 40.0
STEPS = 65535
VOCABULARY_KEYS = ("model", "pre", "tokens", "merges")
_START = struct.Struct("<8sII")

Logits = NDArray[np.float32]
Tokens = NDArray[np.int32]
Rows = NDArray[np.void]
"""Of a `row_type`, shape (positions,)."""


@dataclass(frozen=True)
class LogitsHeader:
    """What the logits are of.

    Attributes:
        model: name of the base's file.
        text: name of the text.
        vocabulary: tokenizer.ggml key → SHA-256 of what the base has there; see `vocabulary_id`.
        bos: token in place of each chunk's first; None where the model wants none.
        kept_tokens: of a row, whose logits are kept exactly.
        tokens_sha256: of all chunks' tokens, as they lie in the file.
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
        """Positions of a chunk."""
        return len(counted(self.chunk_tokens))

    @property
    def positions(self) -> int:
        """Of all chunks."""
        return self.chunks * self.rows

    @property
    def row_type(self) -> np.dtype[np.void]:
        """One position; `align` keeps its size a multiple of 8, whatever the vocabulary."""
        kept = (self.kept_tokens,)
        fields = [
            ("nll", "<f8"), ("low", "<f4"), ("step", "<f4"), ("kept", "<i4", kept),
            ("exact", "<f4", kept), ("codes", "<u2", (self.vocabulary_size,)),
        ]  # fmt: skip
        return np.dtype(fields, align=True)

    def start_bytes(self, tokens: Tokens) -> bytes:
        """The file's beginning, before the rows."""
        text = json.dumps(asdict(self), ensure_ascii=False).encode()
        text += b" " * (-(_START.size + len(text)) % 64)
        return _START.pack(MAGIC, VERSION, len(text)) + text + tokens.astype("<i4").tobytes()


def header_of(
    model: str, text: str, vocabulary: Mapping[str, str], size: int, bos: int | None, tokens: Tokens
) -> LogitsHeader:
    """The header for `tokens`, (chunks, chunk tokens), and a vocabulary of `size` tokens."""
    kept = min(size, 64 + size // 256)  # a 64th part of the file, or less
    digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
    chunks, chunk_tokens = tokens.shape
    return LogitsHeader(model, text, vocabulary, size, bos, chunks, chunk_tokens, kept, digest)


def vocabulary_id(metadata: Metadata) -> dict[str, str]:
    """What makes two GGUF files' tokens the same: tokenizer.ggml key → SHA-256 of its value."""
    found = {}
    for name in VOCABULARY_KEYS:
        value = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None:
            found[name] = hashlib.sha256(json.dumps(value.value).encode()).hexdigest()
    return found


def check_vocabulary(
    name: str, vocabulary: Mapping[str, str], base: str, base_vocabulary: Mapping[str, str]
) -> None:
    """Refuse an artifact whose tokens are not those of its base.

    Raises:
        InputError: says what differs.
    """
    for key in VOCABULARY_KEYS:
        if vocabulary.get(key) != base_vocabulary.get(key):
            raise InputError(
                f"{name} has another tokenizer than {base} (tokenizer.ggml.{key} differs), so "
                "their probabilities are not of the same tokens; compare artifacts of one base"
            )


def counted(chunk_tokens: int) -> range:
    """Positions of a chunk that count: each predicts the token after it; 255 of 512."""
    return range(chunk_tokens // 2, chunk_tokens - 1)


def encode_rows(logits: Logits, targets: Tokens, header: LogitsHeader) -> Rows:
    """Rows of `logits`, shape (positions, vocabulary), followed by the tokens `targets`."""
    rows = np.zeros(len(logits), header.row_type)
    count = header.kept_tokens
    kept = np.argpartition(logits, -count, axis=1)[:, -count:].astype(np.int32)
    kept.sort(axis=1)  # so that of equal logits the first token comes first, as argmax has it
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
    """A finished file: its `header` and `tokens`, (chunks, chunk tokens); rows are read on demand.

    Raises:
        InputError: it cannot be read, is no such file, or is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes = FileBytes(path)
        except OSError as error:
            raise InputError(f"cannot read the base's logits {path}: {error.strerror}") from None
        size = self._bytes.size_bytes
        start = self._bytes.read(0, min(size, _START.size)).tobytes()
        if len(start) < _START.size or not start.startswith(MAGIC):
            raise InputError(f"{path} holds no logits: it does not begin with {MAGIC.decode()!r}")
        _, version, length = _START.unpack(start)
        if version != VERSION:
            raise InputError(f"{path} has version {version} of the format, {VERSION} is read here")
        self.header = self._header(min(length, size - _START.size))
        self._row_type = self.header.row_type
        tokens_at = _START.size + length
        self._rows_at = tokens_at + 4 * self.header.chunks * self.header.chunk_tokens
        whole = self._rows_at + self.header.positions * self._row_type.itemsize
        if size != whole:
            raise self._broken(f"it has {size} bytes and should have {whole}")
        raw = self._bytes.read(tokens_at, self._rows_at - tokens_at)
        if hashlib.sha256(raw.data).hexdigest() != self.header.tokens_sha256:
            raise self._broken("its tokens were changed")
        self.tokens: Tokens = raw.view("<i4").reshape(self.header.chunks, -1)

    def _header(self, length: int) -> LogitsHeader:
        try:
            found: dict[str, Any] = json.loads(self._bytes.read(_START.size, length).tobytes())
            header = LogitsHeader(**found)
            counts = (header.vocabulary_size, header.chunks, header.kept_tokens)
            if min(counts) < 1 or header.chunk_tokens < 4:
                raise ValueError(counts)
            return header
        except (ValueError, TypeError):
            raise self._broken("its header says nothing that can be understood") from None

    def _broken(self, why: str) -> InputError:
        return InputError(f"{self.path} is not readable: {why}; delete it and run again")

    def read_rows(self, chunk: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of a chunk; safe to call from several threads."""
        first = chunk * self.header.rows + start
        size = self._row_type.itemsize
        raw = self._bytes.read(self._rows_at + first * size, (stop - start) * size)
        return raw.view(self._row_type)

    def targets(self, chunk: int) -> Tokens:
        """The token that follows each counted position."""
        return following(self.tokens[chunk])


def following(chunk: Tokens) -> Tokens:
    """The token that follows each counted position of `chunk`."""
    positions = counted(len(chunk))
    return chunk[positions.start + 1 : positions.stop + 1]
