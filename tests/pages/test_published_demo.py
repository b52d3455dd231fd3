"""The demo's own build, published, killed, finished, verified, downloaded, run and looked at.

The same as the quick tests of each step, on `make demo`'s recipe and in new interpreters.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from card_pages import check, write_card_page
from loopback_hub import GOOD_TOKEN, LoopbackHub, hub
from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REPOSITORY = "someone/quantkit-demo-GGUF"
QUANTKIT = (sys.executable, "-c", "from quantkit.cli.app import main; main()")


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[LoopbackHub]:
    with hub({}, storage=tmp_path / "hub") as served:
        yield served


def run(env: dict[str, str], cwd: Path, *arguments: object) -> str:
    done = subprocess.run(
        [*QUANTKIT, *map(str, arguments)],
        env=env, cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert GOOD_TOKEN not in done.stdout + done.stderr
    return done.stdout


def answer_of(folder: Path, level: str) -> str:
    """What llama-server says, started by the level's own script, on fewer tokens of context."""
    tools = os.environ.get("QUANTKIT_LLAMA_TOOLS", "")
    server = Path(tools) / "llama-server"
    if not server.is_file():
        pytest.skip("needs llama-server in QUANTKIT_LLAMA_TOOLS: make oracle-tools")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # no cards here: layers and their split are left out by what is given last
    script = ["sh", str(folder / "levels" / level / "run-llama-server.sh"), "-c", "4096"]
    script += ["-ngl", "0", "-sm", "none", "-ctk", "f16", "-ctv", "f16", "--port", str(port)]
    env = dict(os.environ) | {"LLAMA_SERVER": str(server)}
    log = folder.parent / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(script, env=env, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/completion",
            json.dumps({"prompt": "The", "n_predict": 8, "temperature": 0}).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(600):
            assert process.poll() is None, log.read_bytes()[-2000:]
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return str(json.load(answer)["content"])
            except OSError:
                time.sleep(0.1)
        raise AssertionError("llama-server never answered")
    finally:
        process.terminate()
        process.wait(30)


def test_from_a_build_to_somebody_else_s_machine(
    loopback: LoopbackHub, tmp_path: Path, browser: Browser
) -> None:
    env = dict(os.environ) | {
        "HF_ENDPOINT": loopback.address, "HF_TOKEN": GOOD_TOKEN, "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    out = tmp_path / "a build"
    run(env, tmp_path, "build", "--target", "4x3090", "--model", "demo", "--out", out)

    loopback.upload_bytes_per_second = 1_500_000
    command = [*QUANTKIT, "publish", str(out), "--to", "someone"]
    killed = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    while sum(loopback.received.values()) < 8_000_000:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert loopback.commits_made == 0
    whole = {oid for oid in loopback.received if loopback.repository(REPOSITORY).object(oid)}
    before = dict(loopback.received)
    assert whole
    loopback.upload_bytes_per_second = None
    run(env, tmp_path, "publish", out, "--to", "someone")
    assert all(loopback.received[oid] == before[oid] for oid in whole)
    assert "are there already" in run(env, tmp_path, "publish", out, "--to", "someone")
    assert loopback.commits_made == 1

    folder = tmp_path / "some where" / "else"
    plain = {name: value for name, value in env.items() if name != "HF_TOKEN"}
    plain |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    download = "import sys; from huggingface_hub import snapshot_download as get\n"
    download += "get(sys.argv[1], local_dir=sys.argv[2])"
    client = [sys.executable, "-c", download, REPOSITORY, str(folder)]
    subprocess.run(client, env=plain, check=True)
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert "Verified" in run(plain, tmp_path, "verify", REPOSITORY)
    assert "bit for bit" in run(plain, tmp_path, "verify", REPOSITORY, "--source", "demo")
    assert "bit for bit" in run(plain, folder, "verify", ".", "--source", "demo", "--full")

    run(plain, folder, "niah", "quantkit-demo-Q4.gguf", "--context", 4096, "--out", tmp_path / "n")
    again = tmp_path / "quantkit-demo-Q6.gguf"
    run(
        plain, folder, "quantize", "--model", "demo", "--types", "levels/Q6/allocation.json",
        "--imatrix", "quantkit-demo-imatrix.gguf", "--out", again,
    )  # fmt: skip
    assert again.read_bytes() == (folder / "quantkit-demo-Q6.gguf").read_bytes()

    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(write_card_page(folder).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    check(page)
    page.close()
    assert answer_of(folder, "Q6").strip()
