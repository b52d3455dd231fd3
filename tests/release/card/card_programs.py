"""The programs that a model card's commands call, as far as their files go: run by a shell.

    python card_programs.py PROGRAM ARGUMENTS…

CARD_RELEASE is the folder of the release that `hf` downloads from, CARD_LOG a file that gets a line
for each call. A path that is not there, or not what the program takes, ends with a traceback.
"""

from __future__ import annotations

import json
import os
import sys
from fnmatch import fnmatch
from pathlib import Path

VERIFIED_BY = ("SHA256SUMS", "release.json", "checkpoint.json")


def options_of(words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What stands alone, and option → its values; an option without one has none."""
    alone: list[str] = []
    options: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            alone.append(word)
            continue
        values = options.setdefault(word, [])
        if rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
    return alone, options


def hf(words: list[str]) -> None:
    (_download, _repository), options = options_of(words)
    release, (folder,) = Path(os.environ["CARD_RELEASE"]), options["--local-dir"]
    names = [p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()]
    for pattern in options["--include"]:
        found = [name for name in names if fnmatch(name, pattern)]
        assert found, f"the release has no {pattern}"
        for name in found:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes((release / name).read_bytes())


def quantkit(words: list[str]) -> None:
    (command, *alone), options = options_of(words)
    given = {name: values[0] for name, values in options.items() if values}
    for name in ("--types", "--imatrix", "--recipe"):
        assert name not in given or Path(given[name]).is_file(), given[name]
    if command == "download":
        Path(given["--out"]).mkdir(parents=True, exist_ok=True)
    elif command == "plan":
        assert Path(given["--model"]).is_file()
        assert Path(given["--launch"]).is_dir()
    elif command == "build":
        assert Path(given["--target"]).is_file()
        is_repository = not given["--model"].startswith("original/")
        assert is_repository or is_model(given["--model"])
    elif command == "quantize":
        assert is_model(given["--model"])
        Path(given["--out"]).write_text("made again")
    else:
        assert command == "verify"
        assert "--source" not in given or is_model(given["--source"])
        (release,) = alone
        if "/" in release:
            assert "--full" not in options  # of a downloaded release only
        else:
            assert all((Path(release) / name).is_file() for name in VERIFIED_BY)
            imatrix = json.loads((Path(release) / "release.json").read_text())["imatrix"]
            assert (Path(release) / imatrix).is_file()


def is_model(path: str) -> bool:
    return path == "demo" or Path(path).exists()


def llama_server(words: list[str]) -> None:
    _alone, options = options_of(words)
    assert "-hf" in options or Path(options["-m"][0]).is_file()


def pip(words: list[str]) -> None:
    assert words[0] == "install"


PROGRAMS = {"hf": hf, "quantkit": quantkit, "llama-server": llama_server, "pip": pip}
"""Beside those that every system has, such as sha256sum."""


if __name__ == "__main__":
    with Path(os.environ["CARD_LOG"]).open("a") as log:
        log.write(" ".join(sys.argv[1:]) + "\n")
    PROGRAMS[sys.argv[1]](sys.argv[2:])
