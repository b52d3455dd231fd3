"""Limits of what a server answers with: bytes, seconds, a rate, and no compression.

httpx reads whatever comes: its timeout is that of one read, and a compressed answer of a megabyte
may become a gigabyte. A client gets `ask_plainly` and a `bound` of its answers as event hooks,
which see each answer before its content is read, those with a redirect too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import httpx2

RATE_SECONDS = 30.0
LEAST_BYTES_PER_SECOND = 1000
"""A modem has 7,000; eight files at a time share it."""


def ask_plainly(request: httpx2.Request) -> None:
    """Ask for an answer that is not compressed; a Range of another is not one of the file."""
    request.headers["Accept-Encoding"] = "identity"


def bound(
    response: httpx2.Response, most_bytes: int | None, most_seconds: float | None, *, steady: bool
) -> None:
    """Limit the content of an answer, which is read later.

    Args:
        steady: LEAST_BYTES_PER_SECOND must come, on the average of RATE_SECONDS.

    Raises:
        DecodingError: it is compressed, or has more bytes.
        ReadTimeout: while it is read, it takes too long.
    """
    import httpx2

    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise httpx2.DecodingError(
            f"it answers in the encoding {encoding[:20]!r}, which was not asked for",
            request=response.request,
        )
    stream, request = cast("httpx2.SyncByteStream", response.stream), response.request

    def pieces(content: Iterator[bytes]) -> Iterator[bytes]:
        size, seconds, counted, since = 0, 0.0, 0, 0.0
        while True:
            began = time.monotonic()
            piece = next(content, None)
            if piece is None:
                return
            seconds += time.monotonic() - began  # what the reader does meanwhile is not its time
            size += len(piece)
            if most_bytes is not None and size > most_bytes:
                words = f"it answers with more than {most_bytes >> 20} MiB"
                raise httpx2.DecodingError(words, request=request)
            if most_seconds is not None and seconds > most_seconds:
                words = f"its answer took more than {most_seconds:.0f} s"
                raise httpx2.ReadTimeout(words, request=request)
            if steady and seconds - since > RATE_SECONDS:
                if size - counted < LEAST_BYTES_PER_SECOND * (seconds - since):
                    words = f"less than {LEAST_BYTES_PER_SECOND} bytes a second came"
                    raise httpx2.ReadTimeout(words, request=request)
                since, counted = seconds, size
            yield piece

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return pieces(iter(stream))

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()
