"""The launch files of a model, written beside it."""

from __future__ import annotations

from pathlib import Path

from quantkit.launch.compose import compose_file
from quantkit.launch.llama_cpp import cli_script, server_script
from quantkit.launch.ollama import modelfile
from quantkit.launch.settings import Launch
from quantkit.launch.systemd import systemd_unit
from quantkit.receipts import atomic, write_text

SERVER_SCRIPT = "run-llama-server.sh"
CLI_SCRIPT = "run-llama-cli.sh"
COMPOSE_FILE = "compose.yaml"
MODELFILE = "Modelfile"
SYSTEMD_UNIT = "llama-server.service"


def write_launch_files(launch: Launch, folder: Path) -> tuple[Path, ...]:
    """Write every way to start the model into `folder`, where its GGUF file lies.

    The same bytes wherever the folder is: nothing in them names it.
    """
    scripts = {SERVER_SCRIPT: server_script(launch), CLI_SCRIPT: cli_script(launch)}
    texts = {
        COMPOSE_FILE: compose_file(launch),
        MODELFILE: modelfile(launch),
        SYSTEMD_UNIT: systemd_unit(launch),
    }
    for name, script in scripts.items():
        with atomic(folder / name) as partial:
            partial.write_text(script, encoding="utf-8")
            partial.chmod(0o755)
    for name, text in texts.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in (*scripts, *texts))
