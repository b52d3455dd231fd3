"""The one reader of JSON and the one of YAML, for text that anybody may have written.

Both have limits, so that a small file cannot take all memory or time, and each refusal is one
sentence: what the parsers themselves raise depends on where in the text they are.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.core.files import open_file
from quantkit.core.units import shown

MOST_JSON_BYTES = 48 << 20
"""The largest tokenizers have 33 MB, an index of shards 10. Short texts take 18 times their bytes
in memory: below 1 GB in all."""
MOST_YAML_BYTES = 1 << 20
"""With libyaml read in 3 seconds at the worst; model cards with hundreds of results have 500 KB."""
MOST_TEXT_BYTES = 512 << 20
"""Of a text: 100 million tokens, days of work for any model."""
MOST_DEPTH = 100
"""Below where Python's own functions, as json.dumps and copy.deepcopy, give up on a value."""
MOST_DIGITS = 19
"""Of a whole number: JSON allows thousands, which no float holds and no message should print."""
FLOAT_DIGITS = 100
"""Of whole numbers in foreign files: transformers writes 10^30 for 'no limit'."""
MOST_ALIASES = 1000
MOST_MERGED = 1000
"""Keys of a mapping that others are merged into (`<<`), and aliases: each may double a file."""
MOST_PARTS = 1_000_000
"""Lists and mappings on one level of a file, aliases followed."""
MOST_BRACKETS = 4 * MOST_PARTS
"""Of JSON, in texts too: an empty list has 2 bytes, and takes 80 in memory."""


def read_bounded(path: Path, most_bytes: int, advice: str = "") -> bytes:
    """The content of a file of at most `most_bytes`; `advice` is for one that cannot be read.

    Raises:
        InputError: it cannot be read, or is larger.
    """
    try:
        with open_file(path) as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}{_and(advice)}") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(f"cannot read {path}: {error}{_and(advice)}") from None
    if len(content) > most_bytes:
        raise _too_large(path, most_bytes)
    return content


def read_text(path: Path) -> str:
    """The UTF-8 text in a file of at most MOST_TEXT_BYTES, its lines ended by "\\n".

    Raises:
        InputError: it cannot be read, is larger, or is not UTF-8.
    """
    content = read_bounded(path, MOST_TEXT_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path} as UTF-8 text: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_size(path: Path, most_bytes: int) -> None:
    """That a file which a library reads as a whole has at most `most_bytes`.

    Raises:
        InputError: it has more.
    """
    if path.stat().st_size > most_bytes:
        raise _too_large(path, most_bytes)


def _too_large(where: Path | str, most_bytes: int) -> InputError:
    return InputError(f"{where} has more than {most_bytes:,} bytes, which are the limit")


def bounded_json(
    content: bytes | str, name: str, advice: str = "", *, foreign: bool = False, nan: bool = True
) -> Any:  # noqa: ANN401 - any JSON
    """The value in `content`, which errors call `name`.

    Args:
        advice: what to do with a broken one.
        foreign: not written by quantkit: whole numbers may have FLOAT_DIGITS digits.
        nan: allow NaN, as rows of datasets have it; infinities are what transformers writes.

    Raises:
        InputError: it is not JSON in UTF-8, is nested too deeply, has a key twice in one object,
            or a number that it cannot have.
    """
    if len(content) > MOST_JSON_BYTES:
        raise _too_large(name, MOST_JSON_BYTES)

    digits = FLOAT_DIGITS if foreign else MOST_DIGITS

    def whole(text: str) -> int:
        if len(text.lstrip("-")) > digits:
            raise ValueError(f"a whole number of more than {digits} digits")
        return int(text)

    def constant(word: str) -> float:
        if not nan and word == "NaN":
            raise ValueError("NaN is not a number")
        return float(word)

    try:
        text = content if isinstance(content, str) else content.decode()
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError(f"more than {MOST_BRACKETS:,} lists and objects")
        value = json.loads(
            text, parse_int=whole, parse_constant=constant, object_pairs_hook=_distinct
        )
        _check_depth(value)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{name} is not valid JSON: {_words(reason)}{_and(advice)}") from None
    return value


def own_json(path: Path) -> Any:  # noqa: ANN401 - any JSON
    """The value in a JSON file of quantkit's own.

    Raises:
        InputError: as `read_bounded` and `bounded_json`.
    """
    return bounded_json(read_bounded(path, MOST_JSON_BYTES), str(path))


def bounded_yaml(content: bytes | str, name: str, *, strict: bool = True) -> Any:  # noqa: ANN401 - any YAML
    """The value in `content`, which errors call `name`. Dates stay text.

    Args:
        strict: also refuse a key twice in one mapping, and numbers that no field can have: not
            finite, or of more than MOST_DIGITS digits. Not for the cards of others.

    Raises:
        InputError: it is not YAML in UTF-8, or more than the limits.
    """
    import yaml

    if len(content) > MOST_YAML_BYTES:
        raise _too_large(name, MOST_YAML_BYTES)
    try:
        text = content if isinstance(content, str) else content.decode()
        value = yaml.load(text, Loader=_yaml_loader(strict))
        _check_depth(value)
    except (
        yaml.YAMLError, ValueError, RecursionError,
        # what PyYAML's constructors raise where a tag does not suit its value
        LookupError, TypeError, AttributeError, ArithmeticError,
    ) as reason:  # fmt: skip
        raise InputError(f"{name} is not valid YAML: {_words(reason)}") from None
    return value


@functools.cache
def _yaml_loader(strict: bool) -> Any:  # noqa: ANN401 - a class of a module that is loaded late
    import yaml
    from yaml.composer import Composer
    from yaml.constructor import ConstructorError

    # libyaml's parser takes a quarter of the time; its composer could not be given limits
    bases: Any = (Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)

    class Loader(*bases):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            bases[-1].__init__(self, text)
            Composer.__init__(self)
            self.aliases, self.checked = 0, set[int]()

        def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401
            if self.check_event(yaml.AliasEvent):
                self.aliases += 1
                if self.aliases > MOST_ALIASES:
                    raise ValueError(f"more than {MOST_ALIASES} aliases")
            return super().compose_node(parent, index)

        def flatten_mapping(self, node: Any) -> None:  # noqa: ANN401
            if strict and id(node) not in self.checked:  # a second time its merges are in it
                self.checked.add(id(node))
                self._check_keys(node)
            merges = any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value)
            super().flatten_mapping(node)
            if merges and len(node.value) > MOST_MERGED:
                raise ValueError(f"more than {MOST_MERGED} keys are merged into a mapping")

        def _check_keys(self, node: Any) -> None:  # noqa: ANN401
            found = set()
            for key, _ in node.value:
                if isinstance(key.value, str):
                    if (key.tag, key.value) in found:
                        words = f"the key {shown(key.value)!r} is there twice"
                        raise ConstructorError(None, None, words, key.start_mark)
                    found.add((key.tag, key.value))

        def whole(self, node: Any) -> int:  # noqa: ANN401
            value: int = self.construct_yaml_int(node)
            if strict and abs(value) >= 10**MOST_DIGITS:
                raise ValueError(f"a whole number of more than {MOST_DIGITS} digits")
            return value

        def finite(self, node: Any) -> float:  # noqa: ANN401
            value: float = self.construct_yaml_float(node)
            if strict and not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
            return value

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.whole)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.finite)
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _check_depth(value: object) -> None:
    """Look at the lists and mappings of `value`, level by level, which may contain itself."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_DEPTH):
        if not level:
            return
        if len(level) > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS:,} parts")
        level = [
            item
            for part in level
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, dict | list)
        ]
    raise ValueError(f"nested more than {MOST_DEPTH} deep")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)!r} is there twice in one object")
    return found


def _words(reason: BaseException) -> str:
    """In one line; a recursion and a few of PyYAML's have no words of their own."""
    if isinstance(reason, RecursionError):
        return "nested too deeply"
    words = " ".join(str(reason).split())
    return words if isinstance(reason, ValueError) or " " in words else f"{reason!r}"


def _and(advice: str) -> str:
    return f"; {advice}" if advice else ""
