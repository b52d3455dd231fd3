"""Whether a release would reveal the machine that it was built on, or the person who built it.

The search is for this machine's folders, user and host names, and for access tokens of the Hub. A
user or host name may be an ordinary word or the repository's owner, so it counts only in an
absolute path, as USER@HOST, as the host of an address, or as the value of `user:` or `host:`. In
chat templates and vocabularies only folders, host names with a domain, and tokens count.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import quantkit
from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_header import MAGIC
from quantkit.formats.tensors import Metadata
from quantkit.hub.connection import known_tokens

A_TOKEN = "an access token"
EXCERPT_CHARACTERS = 100
_LAUNCH_FOLDERS = (
    "/bin", "/dev", "/models", "/srv/models", "/usr/bin", "/usr/local/bin", "/usr/sbin",
)  # fmt: skip
"""In every release's launch files: system folders, and where those files expect a model."""
_COMMON_NAMES = frozenset(
    ("admin", "builder", "guest", "host", "localhost", "nobody", "root", "runner", "ubuntu", "user")
)
"""Names that reveal nobody."""

_ROOT = r"/(?:(?<![\w.~/})%]/)|(?<=[\s\"'=]-[A-Za-z]/)|(?<=\A-[A-Za-z]/)|(?<=\\[nrt]/))"
r"""The slash that an absolute path begins with, also after `-v` and a written `\n`."""
_END = r"(?![\w-])(?!\.\w)"
_PARENTS = (
    rf"{_ROOT}(?!(?:{'|'.join(name[1:] for name in _LAUNCH_FOLDERS)})(?![\w.-]))"
    r"(?:[^\s/\"'<>:;,|&$(){}\[\]*?`\\…]+/)+"
)
"""An absolute path up to its last name, outside of `_LAUNCH_FOLDERS`."""
_KEY = r"(?i:\b(?:user|login|host|machine|node|computer)(?:[ _-]?name)?[\"']?\s*[:=]\s*[\"']?)"
_LOCAL_HOST = (
    r"(?:[A-Za-z][A-Za-z0-9-]*(?:\.(?:local|lan|home|internal|localdomain))?|\d+(?:\.\d+){3})"
)
"""Not the domain of an e-mail address, and not the number in `pass@1`."""
_HUB_TOKEN = r"hf_(?<![A-Za-z0-9_]hf_)[A-Za-z0-9]{30,}"
_ABSOLUTE = re.compile(r"^(?:/|[A-Za-z]:[\\/]|\\\\).+$", re.MULTILINE)
_PNG = b"\x89PNG\r\n\x1a\n"
_DATA_URL = re.compile(r"data:[\w/+.-]+(?:;[\w=-]+)*;base64,[A-Za-z0-9+/]*=*")
"""Pictures in the report: each is published as a file too, and searched there."""


@dataclass(frozen=True)
class Private:
    """What belongs to this machine and person.

    Attributes:
        folders: absolute paths: the home, the build, the current folder, quantkit's own.
        hosts: names of the machine, with and without domain.
    """

    folders: tuple[str, ...]
    users: tuple[str, ...]
    hosts: tuple[str, ...]
    tokens: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Finding:
    """Something that must not be published.

    Attributes:
        where: a line, a GGUF key, a field of a picture, or "its name".
        what: the word that was found, shortened; `A_TOKEN` instead of a token.
    """

    file: str
    where: str
    what: str


def this_machine(build_folder: Path) -> Private:
    """What belongs to this machine and to whoever runs quantkit on it."""
    folders = {Path.cwd(), build_folder, Path(quantkit.__file__).parents[1]}
    if home := os.environ.get("HOME"):
        folders.add(Path(home))
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    try:
        entry = pwd.getpwuid(os.getuid())
        folders.add(Path(entry.pw_dir))
        users.add(entry.pw_name)
    except KeyError:
        pass  # a container may run with a user id that has no entry
    host = socket.gethostname()
    hosts = {host, host.partition(".")[0], socket.getfqdn()}
    paths = {str(path) for folder in folders for path in (folder.absolute(), folder.resolve())}
    found = [tuple(sorted(some - {""})) for some in (paths, users, hosts)]
    return Private(found[0], found[1], found[2], known_tokens())


def find_private(files: Mapping[str, Path], private: Private) -> list[Finding]:
    """What must not be published in `files`, path in the release → file: each word once a file.

    Raises:
        InputError: a file cannot be read.
    """
    texts = ((name, chain([("its name", name)], _texts(path))) for name, path in files.items())
    return _found(texts, private)


def find_in_metadata(metadata: Metadata, private: Private) -> list[Finding]:
    """What must not be published in the metadata of a model: each word once."""
    return _found([("the model's metadata", _texts_of_metadata(metadata))], private)


def words_of(found: Sequence[Finding]) -> str:
    """The first findings, for a message."""
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(f"{one.file}, {one.where}: {one.what}" for one in found[:3]) + more


def _found(
    texts: Iterable[tuple[str, Iterable[tuple[str, str]]]], private: Private
) -> list[Finding]:
    """`texts`: of each file its name, and (where, text) as `_texts` gives them."""
    search = _Search(private)
    found: dict[tuple[str, str], Finding] = {}
    for name, parts in texts:
        for where, text in parts:
            for offset, what in search.matches(where, text):
                place = where or f"line {text.count(chr(10), 0, offset) + 1}"
                finding = Finding(search.shown(name), search.shown(place), what)
                found.setdefault((name, what), finding)
    return list(found.values())


class _Search:
    """The patterns for one machine, each with a lower-case word that all its matches contain."""

    def __init__(self, private: Private) -> None:
        self._tokens = _compiled(
            [("hf_", _HUB_TOKEN), *((token, re.escape(token)) for token in private.tokens)]
        )
        domains = (
            (host, rf"(?<![\w.-])(?i:{re.escape(host)})(?![\w-])")
            for host in private.hosts
            if "." in host and "localhost" not in host and not host.endswith(".arpa")
        )
        self._anywhere = _compiled([*_folder_patterns(private.folders), *domains])
        self._names = _compiled(_name_patterns(private))

    def matches(self, where: str, text: str) -> list[tuple[int, str]]:
        """(offset, word) of all that is found, in the text's order; `where`: see `_texts`."""
        found = [(start, A_TOKEN) for start, _ in _spans(self._tokens, text)]
        content = self._without_tokens(text)
        patterns = [*self._anywhere, *(() if where.startswith("tokenizer.") else self._names)]
        spans = _spans(patterns, content)
        if "imatrix." in where:  # llama-imatrix records paths of calibration texts
            spans += [match.span() for match in _ABSOLUTE.finditer(content)]
        found += [(start, self.shown(_word(content, start, stop))) for start, stop in spans]
        return sorted(found)

    def shown(self, text: str) -> str:
        """`text` as it may be printed: without tokens, on one line."""
        plain = re.sub(r"\0+", f"[{A_TOKEN}]", self._without_tokens(text))
        return plain if plain.isprintable() else ascii(plain)[1:-1]

    def _without_tokens(self, text: str) -> str:
        """`text` with zeros for whole tokens, so that no excerpt shows a part of one."""
        for start, stop in _spans(self._tokens, text):
            text = text[:start] + "\0" * (stop - start) + text[stop:]
        return text


def _folder_patterns(folders: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each folder as it is, escaped as in JSON, and percent-encoded."""
    for folder in (folder.rstrip("/") for folder in folders):
        if not folder or any(f"{path}/".startswith(f"{folder}/") for path in _LAUNCH_FOLDERS):
            continue
        if folder.count("/") == 1:  # /root, /tmp: only what lies in it reveals something
            yield folder, rf"{_ROOT}{re.escape(folder[1:])}/\.?\w"
            continue
        for form in {
            folder, json.dumps(folder)[1:-1], folder.replace("/", r"\/"), quote(folder),
            quote(folder, safe=""),
        }:  # fmt: skip
            yield form, re.escape(form) + _END


def _name_patterns(private: Private) -> Iterator[tuple[str, str]]:
    """User and host names, where a machine is meant."""
    for user in private.users:
        if user.lower() not in _COMMON_NAMES:
            name = re.escape(user)
            found = rf"(?<![\w/])~{name}/|(?<![\w.+-]){name}@{_LOCAL_HOST}{_END}"
            yield user, rf"{_PARENTS}{name}{_END}|{_KEY}{name}(?![\w.-])|{found}"
    for host in private.hosts:
        if host.partition(".")[0].lower() not in _COMMON_NAMES and not host.endswith(".arpa"):
            name = f"(?i:{re.escape(host)})"
            found = rf"[\w.+-]@{name}{_END}|://(?:[^\s/@]*@)?{name}(?![\w.-])"
            found += rf"|(?<![\w./-]){name}:/(?!/)"
            yield host, rf"{_PARENTS}{name}{_END}|{_KEY}{name}(?![\w.-])|{found}"


def _compiled(patterns: Iterable[tuple[str, str]]) -> list[tuple[str, re.Pattern[str]]]:
    return [(word.lower(), re.compile(pattern)) for word, pattern in patterns]


def _spans(patterns: Iterable[tuple[str, re.Pattern[str]]], text: str) -> list[tuple[int, int]]:
    lowered = text.lower()
    return [
        match.span()
        for word, pattern in patterns
        if word in lowered  # most texts have none of the words, and looking is fast
        for match in pattern.finditer(text)
    ]


def _word(text: str, start: int, stop: int) -> str:
    """A finding with what surrounds it up to the next space or quote, shortened."""
    before = re.split(r"[\s\"'<>]", text[max(0, start - EXCERPT_CHARACTERS // 4) : start])[-1]
    after = re.split(r"[\s\"'<>]", text[stop : stop + EXCERPT_CHARACTERS])[0]
    word = before + text[start:stop] + after
    return word if len(word) <= EXCERPT_CHARACTERS else f"{word[: EXCERPT_CHARACTERS - 1]}…"


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) for a text file, whose where is empty, or for each of a file's metadata.

    Of GGUF files that is the key, of pictures the field.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_PNG))
        if head.startswith(MAGIC):
            yield from _texts_of_metadata(GGUFFile(path).metadata)
        elif head == _PNG:
            yield from _metadata_of_png(path)
        else:
            text = path.read_bytes().decode("utf-8", errors="replace")
            yield "", _DATA_URL.sub("data:", text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _texts_of_metadata(metadata: Metadata) -> Iterator[tuple[str, str]]:
    for key, stored in metadata.items():
        yield f"the key {key}", key
        if stored.kind == "str":
            values = stored.value if isinstance(stored.value, tuple) else (stored.value,)
            yield key, "\n".join(map(str, values))


def _metadata_of_png(path: Path) -> Iterator[tuple[str, str]]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # texts may follow the pixels
            fields = image.info
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path} is not a readable PNG ({error}); draw it again") from None
    for key, value in fields.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        yield str(key), f"{key}: {text}"
