"""The files themselves: none half written, the same bytes everywhere."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from launches import AWKWARD, FLAGSHIP, named

from quantkit.launch.files import write_launch_files


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
