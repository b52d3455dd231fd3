"""`quantkit` in a process of its own, forked from one that has imported it already.

A start with all imports takes 0.6 s, that of a build 2 s. Here only a server takes that time, once.
It runs nothing but imports, so a command finds what a new interpreter would find. Arguments,
environment, folder, streams, exit code and signals are the process's own.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from quantkit.cli.app import COMMANDS

PROGRAM = (
    sys.executable, "-c",
    "import sys; sys.argv[0] = 'quantkit'; from quantkit.cli.app import main; main()",
)  # fmt: skip
"""The command in a new interpreter."""
_IMPORTED = (
    "gguf", "matplotlib.backends.backend_agg", "matplotlib.figure", "psutil", "rich.progress",
    "rich.table", "scipy.optimize", "scipy.sparse", "scipy.stats", "yaml",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    *(f"transformers.models.{name}.configuration_{name}" for name in (
        "granitemoehybrid", "llama", "mistral", "nemotron_h", "qwen2", "qwen3", "qwen3_moe",
    )),
    *(f"quantkit.{name}" for name in (
        "api", "cli.app", *(f"cli.{module}" for module, _ in COMMANDS.values()), "cli.tables",
        "cli.plan_table", "llamacpp.presets", "study.divergence", "study.run",
    )),
)  # fmt: skip
"""No native library; huggingface_hub, which transformers brings, is imported again: `_command`."""


def _command(
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    folder: Path,
    output: str,
    errors: str,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads the environment when it is imported
    for path, descriptor in ((output, 1), (errors, 2)):
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["quantkit", *arguments]
    from quantkit.cli.app import main

    main()


@functools.cache
def _start_server() -> None:
    forkserver.set_forkserver_preload(list(_IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        # transformers says that torch is missing, which quantkit silences where it imports it
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        forkserver.ensure_running()


def start(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: str = os.devnull,
    errors: str = os.devnull,
) -> BaseProcess:
    """Start a command; environment and folder are this process's where they are not given.

    It ends with this process at the latest.
    """
    _start_server()
    context = multiprocessing.get_context("forkserver")
    environment = dict(os.environ if env is None else env)
    given = (tuple(map(str, arguments)), environment, cwd or Path.cwd(), output, errors)
    process = context.Process(target=_command, args=given, daemon=True)
    process.start()
    return process


def quantkit(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does with its output captured as text."""
    words = ["quantkit", *map(str, arguments)]
    with tempfile.NamedTemporaryFile("r") as output, tempfile.NamedTemporaryFile("r") as errors:
        process = start(*arguments, env=env, cwd=cwd, output=output.name, errors=errors.name)
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, output.read(), errors.read())


def printed(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """The output of a command that must succeed."""
    done = quantkit(*arguments, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts(*arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Any:  # noqa: ANN401 - any JSON
    """What a command that must succeed prints with --json: one document and nothing else."""
    return json.loads(printed(*arguments, "--json", env=env, cwd=cwd))


def refused(*arguments: object, code: int = 2, cwd: Path | None = None) -> str:
    """The one line of a command that must exit with `code` and print nothing else."""
    done = quantkit(*arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line
