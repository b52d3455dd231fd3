"""Downloads through the real huggingface_hub client, over HTTP from a hub on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import COMMIT, hub

from quantkit.receipts import file_sha256
from quantkit.resources import DEMO_MODEL

CALL = """
import sys
from pathlib import Path
from quantkit.errors import QuantkitError
from quantkit.hub import download_checkpoint
repo, _, revision = sys.argv[1].partition("@")
try:
    print(download_checkpoint(repo, revision or None, Path(sys.argv[2])))
except QuantkitError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def download(address: str, repo: str, folder: Path) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-c", CALL, repo, str(folder / "model")],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def test_checkpoint_arrives_whole_and_without_pickle(repository: Path, tmp_path: Path) -> None:
    with hub({"someone/demo": repository}) as (address, served):
        finished = download(address, "someone/demo", tmp_path)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip() == COMMIT
        for path in DEMO_MODEL.iterdir():
            assert file_sha256(tmp_path / "model" / path.name) == file_sha256(path)
        assert "pytorch_model.bin" not in served
        before = len(served)
        assert download(address, "someone/demo", tmp_path).returncode == 0
        assert len(served) == before  # complete files stay as they are


@pytest.mark.parametrize(
    ("repo", "error"),
    [
        ("someone/nothing", "InputError: no repository someone/nothing"),
        ("someone/demo@v9", "InputError: someone/demo has no revision 'v9'"),
        ("someone/gated", "InputError: someone/gated is gated: accept its terms"),
    ],
)
def test_refusals_say_what_to_do(repo: str, error: str, repository: Path, tmp_path: Path) -> None:
    repos = {"someone/demo": repository, "someone/gated": repository}
    with hub(repos, gated={"someone/gated"}) as (address, _):
        finished = download(address, repo, tmp_path)
    assert finished.stderr.strip().splitlines()[-1].startswith(error), finished.stderr


def test_no_network_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    finished = download("http://127.0.0.1:9", "someone/demo", tmp_path)
    assert "EnvironmentFault: downloading someone/demo failed" in finished.stderr
