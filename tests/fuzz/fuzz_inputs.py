"""Mutations that know a file's form: a value of JSON or YAML, or a field of a binary header.

A file of another form is changed byte by byte. Every mutation is a function of its bytes and of a
`random.Random`, so that a seed gives the same inputs again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from quantkit.core.errors import InputError
from quantkit.core.parsing import bounded_yaml

Mutation = Callable[[bytes, Random], bytes]

MOST_BYTES = 1 << 17
"""Of an input: limits of sizes are tested by themselves."""
SPARSE = b"\0sparse:"
"""Ends an input whose file goes on with a hole up to the size in the eight bytes after it."""
NUMBERS = (
    0, 1, 2, 3, 7, 8, 31, 32, 64, 127, 128, 255, 256, 513, 65535, 65536, (1 << 20) + 1, 10**8,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 10**18, (1 << 62) + 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 10**19 - 1, 10**19, 10**30, 10**98,
)  # fmt: skip
TEXTS = (
    "", "x", " ", "\0", "\n", "a\nb", "/", "..", "../../etc/passwd", "a/b", "\u202e", "\ufeff",
    "\ud800", "\U0001f600", "é", "1", "1e400", "nan", "inf", "-1", "true", "null", "[", "(",
    "(a+)+$", "{{ x }}", "{% for", "%s%n", "0" * 300, "Q4_K", "F32", "BF16", "llama", "<s>",
    "x" * 5000,
)  # fmt: skip
RAW = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0.0", "5e-324", "1.5", "0.1", "01",
    "9" * 5000, "[" * 2000, '{"a":' * 200 + "1" + "}" * 200, "[" * 90 + "]" * 90, '"\\ud800"',
    "{}", "[]", "[[]]", "[null]", '[{"a":[]}]', "null", "true", "false", "", "}", '"',
)  # fmt: skip
YAML = (
    b"a: &a [x, x]\nb: &b [*a, *a]\n", b"<<: *a", b"&a ", b"*a", b"!!timestamp 2024-13-45",
    b"!!python/object/apply:os.system [true]", b"!!binary 'a'", b"!!set {a, b}", b"!!omap [a: 1]",
    b"? [a]\n: 1\n", b".inf", b".nan", b"0x", b"1_000", b"0o7", b"1:30:00", b"- ", b"|\n  x\n",
    b">-\n", b"\t", b"---\n", b"...\n", b"%YAML 9.9\n---\n", b"!<x> ", b"#", b"? ", b"'", b'"\\x',
    b"~", b"yes", b"=", b"!!int ''", b"!!float x", b"!!null x", b"!!merge x",
)  # fmt: skip


class Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys in order, of which one may be there twice."""


class Raw(str):
    """Text that stands for a value as it is, right or wrong."""


def _dump(value: Any) -> str:  # noqa: ANN401 - any JSON
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value)


def _parse(text: str) -> Any:  # noqa: ANN401 - any JSON
    """`text` with its numbers and words as they are written; ValueError if it is no JSON."""
    return json.loads(
        text, object_pairs_hook=Pairs, parse_int=Raw, parse_float=Raw, parse_constant=Raw
    )


def _containers(value: Any) -> list[list[Any]]:  # noqa: ANN401 - any JSON
    """The lists and objects in `value` that hold something."""
    found, left = [], [value]
    while left:
        part = left.pop()
        if isinstance(part, list) and part:
            found.append(part)
            left += [item for _, item in part] if isinstance(part, Pairs) else part
    return found


def any_value(rng: Random, depth: int = 0) -> Any:  # noqa: ANN401 - any JSON
    """A value of any kind, most often a small one that no field expects."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return Raw(rng.choice(RAW))
    if kind == 1:
        return Raw(str(rng.choice((1, -1)) * rng.choice(NUMBERS)))
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice((None, True, False))
    if kind == 4:
        return Raw(repr(rng.uniform(-10, 10) * 10.0 ** rng.randrange(-20, 20)))
    items = [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind < 7 else Pairs((rng.choice(TEXTS), item) for item in items)


def _change(value: Any, rng: Random) -> Any:  # noqa: ANN401 - any JSON
    """`value` with one of its parts changed, in place where that is possible."""
    places = _containers(value)
    if not places or rng.random() < 0.01:
        return any_value(rng)
    part = rng.choice(places)
    at = rng.randrange(len(part))
    of_pairs = isinstance(part, Pairs)
    key, item = part[at] if of_pairs else ("", part[at])

    def put(changed: Any) -> None:  # noqa: ANN401 - any JSON
        part[at] = (key, changed) if of_pairs else changed

    match rng.randrange(11):
        case 0 | 1 | 2:
            put(any_value(rng))
        case 3:
            del part[at]
        case 4:
            part.insert(rng.randrange(len(part) + 1), part[at])  # in an object, a key twice
        case 5:
            put([item] if rng.random() < 0.5 else Pairs([("a", item)]))
        case 6:  # a value from elsewhere in the document
            other = rng.choice(rng.choice(places))
            put(_copy(other[1] if isinstance(other, tuple) else other))
        case 7 if of_pairs:
            new = rng.choice(TEXTS) if rng.random() < 0.5 else rng.choice(part)[0]
            part[at] = (new, item)
        case 8 if isinstance(item, str) and not isinstance(item, Raw):
            put(_text(item, rng))
        case 9 if isinstance(item, Raw):
            put(_number(item, rng))
        case 10 if isinstance(item, list) and len(item) < 200:
            grown = type(item)(item * rng.choice((2, 3, 40)))
            put(grown)
        case _:
            put(any_value(rng))
    return value


def _copy(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """A value that may be put into itself."""
    if isinstance(value, Pairs):
        return Pairs((key, _copy(item)) for key, item in value)
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _text(text: str, rng: Random) -> str:
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        (
            text[:at], text[at:], text[:at] + rng.choice(TEXTS) + text[at:], text * 2, text.upper(),
            text[:at] + chr(rng.choice((0, 10, 0x7F, 0x9B, 0x2028, 0xD800, 0x10FFFF))) + text[at:],
        )
    )  # fmt: skip


def _number(text: str, rng: Random) -> Raw:
    return Raw(
        rng.choice(
            (f"-{text}", f"{text}0", f"{text}.5", f"{text}e10", f'"{text}"', text[:-1] or "0",
             str(rng.choice(NUMBERS)), f"{text}{text}", "0", "-1")
        )
    )  # fmt: skip


def bytewise(data: bytes, rng: Random) -> bytes:
    """Flip, overwrite, insert, delete, double or cut off bytes; or a hole after them."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    size = min(1 << rng.randrange(8), len(out) - at)
    match rng.randrange(9):
        case 0 if at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            width, code = rng.choice(((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q")))
            value = rng.choice(NUMBERS) % (1 << 8 * width)
            out[at : at + width] = struct.pack(code, value)
        case 2:
            out[at:at] = rng.randbytes(1 + rng.randrange(8))
        case 3:
            del out[at : at + size]
        case 4:
            out[at:at] = out[at : at + size]
        case 5:
            other = rng.randrange(len(out) + 1)
            out[at : at + size] = out[other : other + size]
        case 6:
            del out[at:]
        case 7 if rng.random() < 0.05:
            return bytes(out) + SPARSE + struct.pack("<Q", rng.choice(NUMBERS) % (1 << 42))
        case _:
            out[at : at + size] = bytes([rng.choice((0, 0xFF, 0x22, 0x5B, 0x7B, 0x80))]) * size
    return bytes(out)


def as_json(data: bytes, rng: Random) -> bytes:
    """Of a file that holds one value."""
    try:
        value = _parse(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return bytewise(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _change(value, rng)
    text = _dump(value)
    return text.encode("utf-8", "surrogatepass")


def as_lines(data: bytes, rng: Random) -> bytes:
    """Of a file with a value in each line, and perhaps a first line that is none."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            lines[at] = _dump(any_value(rng)).encode("utf-8", "surrogatepass")
        case _:
            lines[at] = as_json(lines[at], rng)
    return b"\n".join(lines)


def as_yaml(data: bytes, rng: Random) -> bytes:
    """Of a YAML file: a changed value in flow style, or a piece of syntax somewhere."""
    if rng.random() < 0.4:
        at = rng.choice([0, len(data), *(i + 1 for i, b in enumerate(data) if b in b" \n:")])
        return data[:at] + rng.choice(YAML) + data[at:]
    try:
        value = _parse(json.dumps(bounded_yaml(data, "seed", strict=False)))
    except (InputError, ValueError, TypeError, RecursionError):
        return bytewise(data, rng)
    return _dump(_change(value, rng)).encode("utf-8", "surrogatepass")


def as_card(data: bytes, rng: Random) -> bytes:
    """Of a Markdown file whose front matter is YAML."""
    start, mark, rest = data.partition(b"---\n")
    front, end, text = rest.partition(b"\n---\n")
    return start + mark + as_yaml(front, rng) + end + text


def as_safetensors(data: bytes, rng: Random) -> bytes:
    """Of a file that begins with the length of its JSON."""
    if len(data) < 8:
        return bytewise(data, rng)
    size = int.from_bytes(data[:8], "little")
    text = as_json(data[8 : 8 + size], rng)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def as_logits(data: bytes, rng: Random) -> bytes:
    """Of a base.logits: a magic of 8 bytes, version, length of the JSON."""
    size = int.from_bytes(data[12:16], "little")
    text = as_json(data[16 : 16 + size], rng)
    return data[:12] + len(text).to_bytes(4, "little") + text + data[16 + size :]


_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a GGUF value by the number of its type."""


def gguf_fields(data: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where the numbers of a GGUF header lie, and its whole entries; as far as it can be read."""
    numbers, entries, at = [(4, 4), (8, 8), (16, 8)], list[tuple[int, int]](), 24

    def number(width: int) -> int:
        nonlocal at
        if at + width > len(data):
            raise ValueError("it ends")
        numbers.append((at, width))
        at += width
        return int.from_bytes(data[at - width : at], "little")

    def skip(kind: int) -> None:
        nonlocal at
        if kind == 8:
            at += number(8)
        elif kind == 9:
            inner, count = number(4), number(8)
            if inner in _WIDTHS:
                at += count * _WIDTHS[inner]
            else:
                for _ in range(min(count, 64)):
                    skip(8)
        else:
            number(_WIDTHS[kind])

    try:
        for _ in range(min(int.from_bytes(data[16:24], "little"), 1000)):
            began = at
            skip(8)
            skip(number(4))
            entries.append((began, at))
        for _ in range(min(int.from_bytes(data[8:16], "little"), 1000)):
            began = at
            skip(8)
            for _ in range(min(number(4), 8)):
                number(8)
            number(4), number(8)
            entries.append((began, at))
    except (ValueError, KeyError):
        pass
    return numbers, entries


def as_gguf(data: bytes, rng: Random) -> bytes:
    """Another number in a field of the header, an entry more or less, or any bytes."""
    numbers, entries = gguf_fields(data)
    kind = rng.random()
    if kind < 0.55:
        at, width = rng.choice(numbers)
        old = int.from_bytes(data[at : at + width], "little")
        new = rng.choice((*NUMBERS, old + 1, old - 1, 2 * old, old ^ 1)) % (1 << 8 * width)
        return data[:at] + new.to_bytes(width, "little") + data[at + width :]
    if kind < 0.7 and entries:
        start, stop = rng.choice(entries)
        part = b"" if rng.random() < 0.5 else data[start:stop] * 2
        return data[:start] + part + data[stop:]
    return bytewise(data, rng)


def as_dat(data: bytes, rng: Random) -> bytes:
    """Of a legacy importance matrix: mostly its whole numbers, which lie anywhere."""
    if rng.random() < 0.3 and len(data) > 4:
        at = rng.choice((0, rng.randrange(len(data) - 3)))
        return data[:at] + struct.pack("<I", rng.choice(NUMBERS) % (1 << 32)) + data[at + 4 :]
    return bytewise(data, rng)


def mutated(form: Mutation, data: bytes, rng: Random) -> bytes:
    """`data` after one to four mutations, of which few ignore its form."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        try:
            data = (form if rng.random() < 0.9 else bytewise)(data, rng)[:MOST_BYTES]
        except RecursionError:  # it is nested as deeply as Python can go
            data = bytewise(data, rng)[:MOST_BYTES]
    return data


def drawn(form: Mutation, corpus: Sequence[bytes]) -> SearchStrategy[bytes]:
    """Mutations of `corpus`, and a few inputs that are of no file."""

    def of_corpus(number: int) -> bytes:
        rng = Random(number)
        return mutated(form, rng.choice(corpus), rng)

    numbers = st.integers(0, (1 << 64) - 1).map(of_corpus)
    return st.integers(0, 9).flatmap(lambda kind: of_nothing() if kind == 0 else numbers)


def of_nothing() -> SearchStrategy[bytes]:
    """Bytes, and JSON of any kind."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner)
    )
    return st.binary(max_size=300) | values.map(lambda value: json.dumps(value).encode())
