"""The files themselves: none half written, the same bytes everywhere."""

from __future__ import annotations

import dataclasses
import stat
import subprocess
from pathlib import Path

import pytest
from launches import AWKWARD, FLAGSHIP, SINGLE, launched, named
from models import write_llama

from quantkit.plan.launch.files import (
    CLI_SCRIPT,
    SERVER_SCRIPT,
    launch_texts,
    write_launch_files,
)


def test_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "levels" / "Q4"
    paths = write_launch_files(FLAGSHIP, folder)
    assert [path.name for path in paths] == [
        "run-llama-server.sh",
        "run-llama-cli.sh",
        "compose.yaml",
        "Modelfile",
        "llama-server.service",
    ]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        assert bool(path.stat().st_mode & stat.S_IXUSR) == (path.suffix == ".sh")
        assert str(tmp_path) not in path.read_text()
    assert launch_texts(FLAGSHIP) == {path.name: path.read_text() for path in paths}


def test_only_where_the_model_lies_is_another() -> None:
    """Line by line: a file of a release says what the build's does, but for the model's folder."""
    for launch in (SINGLE, FLAGSHIP, named("it's 100% $HOME"), named("-00001-of-00003")):
        here = launch_texts(launch)
        there = launch_texts(launched(launch, model_folder="../../Q4"))
        changed = {}
        for name, text in here.items():
            pairs = zip(text.split("\n"), there[name].split("\n"), strict=True)
            changed[name] = [(a, b) for a, b in pairs if a != b]
        for script in ("run-llama-server.sh", "run-llama-cli.sh"):
            ((a, b),) = changed.pop(script)
            assert b == a.replace('"$folder"/', '"$folder"/../../Q4/')
        for _, b in changed["Modelfile"] + changed["compose.yaml"]:
            assert "../../Q4" in b
        assert len(changed.pop("compose.yaml")) == 2
        assert len(changed.pop("Modelfile")) == (1 if len(launch.files) == 1 else 2)
        assert changed == {"llama-server.service": []}


@pytest.mark.parametrize("name", AWKWARD)
def test_the_same_bytes_again_and_elsewhere(name: str, tmp_path: Path) -> None:
    launch = named(name)
    first = [path.read_bytes() for path in write_launch_files(launch, tmp_path / "a")]
    write_launch_files(named("other"), tmp_path / "b")
    assert [path.read_bytes() for path in write_launch_files(launch, tmp_path / "b")] == first


def test_what_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    old = {path.name: path.read_bytes() for path in write_launch_files(FLAGSHIP, tmp_path)}
    (tmp_path / "compose.yaml.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_launch_files(named("other"), tmp_path)
    assert (tmp_path / "compose.yaml").read_bytes() == old["compose.yaml"]


@pytest.mark.parametrize("script", [SERVER_SCRIPT, CLI_SCRIPT])
@pytest.mark.parametrize("shards", [False, True])
def test_scripts_find_the_model_of_a_release(shards: bool, script: str, tmp_path: Path) -> None:
    """Wherever the release lies and whoever is where; a Hub's client keeps no executable bit."""
    release, elsewhere = tmp_path / "my release", tmp_path / "elsewhere"
    file = "demo-Q4-00001-of-00002.gguf" if shards else "demo-Q4.gguf"
    there = release / "Q4" / file if shards else release / file
    there.parent.mkdir(parents=True)
    write_llama(there.with_name("whole.gguf")).rename(there)
    evidence = release / "levels" / "Q4"
    evidence.mkdir(parents=True)
    elsewhere.mkdir()
    folder = "../../Q4" if shards else "../.."
    launch = dataclasses.replace(FLAGSHIP, model_file=file, model_folder=folder)
    (evidence / script).write_text(launch_texts(launch)[script])
    server = tmp_path / "a server"
    server.write_text('#!/bin/sh\ntest "$1" = -m && head -c 4 -- "$2" && echo " $PWD $3 $4"\n')
    server.chmod(0o755)
    at = evidence / script
    for cwd, path in (
        (elsewhere, at),
        (evidence, Path(script)),
        (tmp_path, at.relative_to(tmp_path)),
    ):
        done = subprocess.run(
            ["/bin/sh", path],
            env={"PATH": "/usr/bin:/bin", "LLAMA_SERVER": str(server), "LLAMA_CLI": str(server)},
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"GGUF {cwd} -ngl 999\n"
