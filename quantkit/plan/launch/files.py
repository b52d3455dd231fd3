"""The launch files of a model, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from quantkit.core.files import atomic, write_text
from quantkit.plan.launch.compose import compose_file
from quantkit.plan.launch.llama_cpp import cli_script, server_script
from quantkit.plan.launch.ollama import modelfile
from quantkit.plan.launch.settings import Launch
from quantkit.plan.launch.systemd import systemd_unit

SERVER_SCRIPT = "run-llama-server.sh"
CLI_SCRIPT = "run-llama-cli.sh"
COMPOSE_FILE = "compose.yaml"
MODELFILE = "Modelfile"
SYSTEMD_UNIT = "llama-server.service"


class LaunchText(NamedTuple):
    """The content of a launch file, and whether it is executable."""

    text: str
    executable: bool


def launch_texts(launch: Launch) -> dict[str, LaunchText]:
    """Name → launch file, for a folder from which the model is in `launch.model_folder`.

    No text names the folder itself, so the files can be moved together with the model.
    """
    return {
        SERVER_SCRIPT: LaunchText(server_script(launch), executable=True),
        CLI_SCRIPT: LaunchText(cli_script(launch), executable=True),
        COMPOSE_FILE: LaunchText(compose_file(launch), executable=False),
        MODELFILE: LaunchText(modelfile(launch), executable=False),
        SYSTEMD_UNIT: LaunchText(systemd_unit(launch), executable=False),
    }


def write_launch_files(launch: Launch, folder: Path) -> tuple[Path, ...]:
    """Write all launch files into `folder`."""
    texts = launch_texts(launch)
    for name, (text, executable) in texts.items():
        if executable:
            with atomic(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")
                partial.chmod(0o755)
        else:
            write_text(folder / name, text)
    return tuple(folder / name for name in texts)
