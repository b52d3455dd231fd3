"""What a release would give away of the machine that it was built on, and of who sits at it.

Two kinds are looked for: what is this machine's own, and what looks as if it were somebody's on any
machine. The second is not looked for in chat templates and vocabularies, which come from the
checkpoint, nor in a model's answers: `/home/user` is an ordinary word there. Access tokens are
looked for everywhere.

A name of a user or a host may be an ordinary word (`max`, `demo`, `4x3090`) or the owner of the
repository. So it counts only where a machine is meant: in an absolute path, as USER@HOST, as the
host of an address, as the value of `user:` or `host:`. A host with a domain counts everywhere.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import quantkit
from quantkit.release.searchable_text import Passage, Voice, passages

A_TOKEN = "an access token"
EXCERPT_CHARACTERS = 100
_USER_VARIABLES = ("USER", "LOGNAME", "USERNAME", "SUDO_USER")
_PROGRAMS = (
    "/bin", "/dev", "/models", "/srv/models", "/usr/bin", "/usr/local/bin", "/usr/sbin",
)  # fmt: skip
"""Folders of the launch files: the system's, and where they expect a model."""
_SHARED = (
    "/home", "/media", "/mnt", "/private/tmp", "/root", "/tmp", "/Users", "/var/tmp", "/Volumes",
)  # fmt: skip
"""Folders of which only what lies in them says something, and that is looked for anyway."""
_ORDINARY = frozenset(
    ("admin", "builder", "guest", "host", "localhost", "nobody", "root", "runner", "user")
)
"""Names that say nothing but in a path or as USER@HOST; so do those below three letters."""

_ROOT = r"/(?:(?<![\w.~/})%]/)|(?<=[\s\"'=]-[A-Za-z]/)|(?<=\A-[A-Za-z]/)|(?<=\\[nrt]/))"
"""The slash that a path begins with: not within another, but also after `-v` and a written `\n`.

Here and below what must come before is looked at last: a search for fixed letters is fast.
"""
_NAME_ENDS = r"(?![\w-])(?!\.\w)"
_WORD = r"[^\s/\"'<>:;,|&$(){}\[\]*?`\\…]"
_URL = re.compile(r"(https?://[^\s/\"'<>`|]+)([^\s\"'<>`|]*)")
_SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_ROOT}(?:home|Users)/(?!\.){_WORD}+",
        rf"{_ROOT}root/\.?\w",
        rf"{_ROOT}(?:mnt|media|tmp|Volumes|var/tmp|var/folders|private/(?:var|tmp))/\.?\w",
        r":(?<=[A-Za-z]:)(?<![A-Za-z0-9][A-Za-z]:)[\\/]+Users[\\/]+\w",
        r":(?<=[A-Z]:)(?<![A-Za-z0-9][A-Z]:)\\{1,2}[\w .-]+\\{1,2}\w",
        r"\\\\(?<![\w\\]\\\\)\\{0,2}[A-Za-z0-9][\w.-]+\\{1,2}[\w$][\w$.-]+",
        r"1(?<![\w.-]1)(?:0\.\d{1,3}|92\.168|72\.(?:1[6-9]|2\d|3[01]))"
        r"(?:\.\d{1,3}){2}(?![\w-])(?!\.\d)",
        r"(?:file|ssh|sftp|scp|smb|nfs|afp|rsync)://[^\s\"'<>`|]+",
    )
)
"""Folders of people, temporary ones, drives, shares, private networks (RFC 1918), URLs of files."""
_TOKENS = tuple(
    re.compile(pattern)
    for pattern in (
        r"hf_(?<![A-Za-z0-9_]hf_)[A-Za-z0-9]{30,}",
        r"gh[oprsu]_(?<![A-Za-z0-9_]gh._)[A-Za-z0-9]{36,}",
        r"github_pat_(?<![A-Za-z0-9_]github_pat_)[A-Za-z0-9_]{40,}",
        r"glpat-(?<![A-Za-z0-9_]glpat-)[\w-]{20,}",
        r"sk-(?<![A-Za-z0-9_]sk-)(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}",
        r"A[KS]IA(?<![A-Za-z0-9_]A.IA)[0-9A-Z]{16}(?![A-Za-z0-9])",
        r"xox[abprs]-(?<![A-Za-z0-9_]xox.-)[A-Za-z0-9-]{20,}",
        r"://[^\s/:@\"'<>]+:[^\s/@\"'<>]+(?=@)",
    )
)
"""Of the Hub, GitHub, GitLab, OpenAI and its likes, AWS, Slack; user and password of an address."""
_LOCAL_HOST = (
    r"(?:[A-Za-z][A-Za-z0-9-]*(?:\.(?:local|lan|home|internal|localdomain))?|\d+(?:\.\d+){3})"
)
"""Not that of an e-mail address, nor the number of `pass@1`."""


@dataclass(frozen=True)
class Private:
    """What is this machine's own.

    Attributes:
        folders: absolute; the person's, the build's, the current and the temporary one, quantkit's.
        users: names of the person here.
        hosts: names of the machine, with its domain and without.
        token: the Hub's.
    """

    folders: tuple[str, ...]
    users: tuple[str, ...]
    hosts: tuple[str, ...]
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Finding:
    """Something that must not be published.

    Attributes:
        file: its path in the release.
        where: a line, the path of a JSON value, a GGUF key, a chunk of a picture, or "its name".
        what: what is there, shortened; `A_TOKEN` instead of a token.
    """

    file: str
    where: str
    what: str


def this_machine(build_folder: Path, token: str | None = None) -> Private:
    """What a file that was made on this machine by this person may give away."""
    folders = {Path.cwd(), build_folder, Path(tempfile.gettempdir())}
    folders.add(Path(quantkit.__file__).parents[1])
    if home := os.environ.get("HOME"):
        folders.add(Path(home))
    users = {os.environ.get(name, "") for name in _USER_VARIABLES}
    try:
        entry = pwd.getpwuid(os.getuid())
        folders.add(Path(entry.pw_dir))
        users.add(entry.pw_name)
    except KeyError:
        pass  # a container may run with a number that has no entry
    host = socket.gethostname()
    hosts = {host, host.partition(".")[0], socket.getfqdn()}
    every = {str(path) for folder in folders for path in (folder.absolute(), folder.resolve())}
    return Private(
        folders=tuple(sorted(every)),
        users=tuple(sorted(users - {""})),
        hosts=tuple(sorted(hosts - {""})),
        token=token or None,
    )


def find_private(files: Mapping[str, Path], private: Private) -> list[Finding]:
    """Everything in `files` that must not be published, each once a file, in the files' order.

    Args:
        files: path in the release → the file here.

    Raises:
        InputError: a file cannot be read.
    """
    search = _Search(private)
    found: dict[str, dict[str, Finding]] = {name: {} for name in files}
    # answers first: a page may quote them
    for name in sorted(files, key=lambda name: not name.endswith(".jsonl")):
        its_name = Passage(name, [0], lambda _: "its name")
        for passage in (its_name, *passages(files[name], name)):
            for offset, what in search.matches(passage):
                file, where = search.shown(name), search.shown(passage.at(offset))
                found[name].setdefault(what, Finding(file, where, what))
    return [finding for of_file in found.values() for finding in of_file.values()]


class _Search:
    """The patterns of one machine. It remembers what answers said that looks like a path."""

    def __init__(self, private: Private) -> None:
        folders = [f for f in (f.rstrip("/") for f in private.folders) if not _is_everybodys(f)]
        hosts = [host for host in private.hosts if "localhost" not in host]
        self._answered: set[str] = set()
        self._tokens = (*_TOKENS, *_compiled(map(re.escape, filter(None, [private.token]))))
        self._everywhere = _compiled(
            [*_of_folders(f for f in folders if f.count("/") > 1), *_of_whole_hosts(hosts)]
        )
        self._not_of_checkpoint = _compiled(
            [
                *(rf"{_ROOT}{re.escape(f[1:])}{_NAME_ENDS}" for f in folders if f.count("/") == 1),
                *_of_names([*private.users, *hosts]),
                *_of_users(private.users),
                *_of_hosts([host for host in hosts if not _is_ordinary(host)]),
            ]
        )

    def matches(self, passage: Passage) -> list[tuple[int, str]]:
        """(offset, what) of all that is found in `passage`, in its order."""
        tokens = _spans(self._tokens, passage.text)
        text = self._blinded(passage.text)
        spans = _spans(self._everywhere, text)
        if passage.voice != "checkpoint":
            spans += _spans(self._not_of_checkpoint, text) + self._shapes(text, passage.voice)
        found = [(start, A_TOKEN) for start, _ in tokens]
        found += [(start, self.shown(_word(text, start, stop))) for start, stop in spans]
        return sorted((start, _shortened(what)) for start, what in found)

    def shown(self, text: str) -> str:
        """`text` as it may be printed: without tokens, on one line."""
        plain = re.sub(r"\0+", f"[{A_TOKEN}]", self._blinded(text))
        return plain if plain.isprintable() else ascii(plain)[1:-1]

    def _blinded(self, text: str) -> str:
        """`text` with zeros for tokens, in whole: an excerpt of it cannot show a part of one."""
        for start, stop in _spans(self._tokens, text):
            text = text[:start] + "\0" * (stop - start) + text[stop:]
        return text

    def _shapes(self, text: str, voice: Voice) -> list[tuple[int, int]]:
        plain = _URL.sub(lambda match: match[1] + " " * len(match[2]), text)
        found = _spans(_SHAPES, plain)
        if voice == "model":
            self._answered |= {plain[start:stop] for start, stop in found}
            return []
        if voice == "page":
            return [at for at in found if not self._is_quoted(plain[slice(*at)])]
        return found

    def _is_quoted(self, words: str) -> bool:
        """Whether an answer has `words`; a page may have cut them off."""
        return any(answered.startswith(words) for answered in self._answered)


def _of_folders(folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        yield re.escape(folder) + _NAME_ENDS


def _of_whole_hosts(hosts: Sequence[str]) -> Iterator[str]:
    """A host with its domain anywhere; any as USER@HOST."""
    for host in hosts:
        if "." in host and not host.endswith(".arpa"):
            yield rf"(?i:{re.escape(host)})(?<![\w.-].{{{len(host)}}})(?![\w-])"
        yield rf"@(?<=[\w.+-]@)(?i:{re.escape(host)}){_NAME_ENDS}"


def _of_names(names: Sequence[str]) -> Iterator[str]:
    """A name in an absolute path that is not everybody's, or as the value of `user:` or `host:`."""
    if names:
        programs = _any(path[1:] for path in _PROGRAMS)
        others = rf"(?!(?:{programs})(?![\w.-]))(?:{_WORD}+/)+"
        yield rf"{_ROOT}{others}(?:{_any(names)}){_NAME_ENDS}"
    if telling := [name for name in names if not _is_ordinary(name)]:
        keys = r"(?:user|login|host|machine|node|computer)(?:[ _-]?name)?"
        yield rf"(?i:\b{keys})[\"']?\s*[:=]\s*[\"']?(?:{_any(telling)})(?![\w.-])"


def _of_users(users: Sequence[str]) -> Iterator[str]:
    """A user's folder as the shell writes it, and USER@HOST."""
    for user in users:
        yield rf"~{re.escape(user)}/(?<![\w/]~{re.escape(user)}/)"
        yield rf"{re.escape(user)}@(?<![\w.+-]{re.escape(user)}@){_LOCAL_HOST}{_NAME_ENDS}"


def _of_hosts(hosts: Sequence[str]) -> Iterator[str]:
    """A host as part of an address: URL, share, `HOST:/path`."""
    if hosts:
        yield rf"://(?:[^\s/@]*@)?(?i:{_any(hosts)})(?![\w.-])"
        yield rf"\\\\(?i:{_any(hosts)})(?=\\)"
        yield rf"(?i:(?<![\w./-])(?:{_any(hosts)}):/(?!/))"


def _any(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


def _compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(map(re.compile, patterns))


def _spans(patterns: Iterable[re.Pattern[str]], text: str) -> list[tuple[int, int]]:
    return [match.span() for pattern in patterns for match in pattern.finditer(text)]


def _is_everybodys(folder: str) -> bool:
    """Whether a folder, or one that is in it, stands in files of everybody."""
    return not folder or any(f"{path}/".startswith(f"{folder}/") for path in (*_PROGRAMS, *_SHARED))


def _is_ordinary(name: str) -> bool:
    return len(name) < 3 or name.lower() in _ORDINARY


def _word(text: str, start: int, stop: int) -> str:
    """A finding with what surrounds it, up to the next space or quote."""
    before = re.split(r"[\s\"'<>]", text[max(0, start - EXCERPT_CHARACTERS // 4) : start])[-1]
    after = re.split(r"[\s\"'<>]", text[stop : stop + EXCERPT_CHARACTERS])[0]
    return before + text[start:stop] + after


def _shortened(text: str) -> str:
    most = EXCERPT_CHARACTERS
    return text if len(text) <= most else f"{text[: most - 1]}…"
