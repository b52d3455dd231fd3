"""`quantkit` in a process of its own, forked from one that has imported it already.

A start with all imports takes 0.6 s, that of a build 2 s. Here only a server takes that time, once.
It runs nothing but imports, so a command finds what a new interpreter would find. Arguments,
environment, folder, streams, exit code and signals are the process's own.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

_IMPORTED = (
    "gguf", "matplotlib.backends.backend_agg", "matplotlib.figure", "psutil", "rich.progress",
    "rich.table", "scipy.optimize", "scipy.sparse", "scipy.stats", "yaml",
    *(f"quantkit.{name}" for name in (
        "api", "cli.app", "cli.compare_table", "cli.imatrix_table", "cli.plan_table",
        "cli.retrieval_table", "llamacpp.presets", "study.divergence", "study.run",
    )),
)  # fmt: skip
"""Not huggingface_hub, which reads the environment when it is imported, and no native library."""


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
    for path, descriptor in ((output, 1), (errors, 2)):
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["quantkit", *arguments]
    from quantkit.cli.app import main

    main()


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
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
