"""llama-server and llama-cli: their arguments, and scripts that start them.

The options are those of the llama.cpp inside the installed llama-cpp-python (`common/arg.cpp`).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from quantkit.config.target import DRAFT_KV_TYPE
from quantkit.plan.launch.settings import Launch

HOST, PORT = "127.0.0.1", 8080

# More than any model has. Only with all layers and the output on the GPUs does llama.cpp let the
# GPUs work on different batches at once (pipeline_parallel in llama-context.cpp).
ALL_LAYERS = 999
NO_PIPELINE = "no-tensor=CPU"
"""Overrides no tensor; any override switches llama.cpp's pipelining off (llama-context.cpp)."""
DRAFT_TYPE = "draft-mtp"
"""Of `common_speculative_type_from_name_map`; llama-cli runs llama-server, so it drafts alike."""


def server_arguments(launch: Launch, model_path: str | None = None) -> tuple[str, ...]:
    """Arguments of `llama-server`; `model_path` is the file's own name by default."""
    slots = ["-np", str(launch.run.sequences)]
    if launch.run.sequences > 1:
        slots.append("-kvu")  # otherwise each sequence gets its own part of the cells
    # llama-server splits the value of --alias at commas
    alias = launch.model_name.replace(",", "_")
    return (
        *_model_arguments(launch, model_path or launch.model_file),
        *slots,
        "--jinja",
        "--alias",
        alias,
    )


def served_arguments(launch: Launch) -> tuple[str, ...]:
    """`server_arguments`, with the address on this machine only."""
    return (*server_arguments(launch), "--host", HOST, "--port", str(PORT))


def cli_arguments(launch: Launch) -> tuple[str, ...]:
    """Arguments of `llama-cli`: one conversation with the whole context."""
    return (*_model_arguments(launch, launch.model_file), "-np", "1", "--jinja")


def _model_arguments(launch: Launch, path: str) -> tuple[str, ...]:
    run = launch.run
    arguments = ["-m", f"./{path}" if path.startswith("-") else path, "-ngl", str(ALL_LAYERS)]
    if len(launch.shares) > 1:
        arguments += ["-sm", "layer", "-ts", ",".join(map(str, launch.shares))]
        if not run.pipeline:
            arguments += ["-ot", NO_PIPELINE]
    arguments += ["-c", str(run.context_tokens)]
    arguments += ["-ctk", run.kv_type, "-ctv", run.kv_type]
    arguments += ["-fa", "on" if run.flash_attention else "off"]
    arguments += ["-b", str(run.batch_tokens), "-ub", str(run.ubatch_tokens)]
    if run.drafted_tokens:
        arguments += ["--spec-type", DRAFT_TYPE, "--spec-draft-n-max", str(run.drafted_tokens)]
        arguments += ["-ctkd", DRAFT_KV_TYPE, "-ctvd", DRAFT_KV_TYPE]
    # By default llama.cpp changes options that are not given to fit the memory free right now.
    arguments += ["--fit", "off"]
    if launch.needs_longer_context:
        key = f"{launch.architecture}.context_length"
        arguments += ["--override-kv", f"{key}=int:{launch.placement.trained_context_tokens}"]
    return tuple(arguments)


def environment(launch: Launch) -> dict[str, str]:
    """Which GPUs CUDA shows, and in which order: `-ts` counts by position."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(launch.shown_devices),
    }


def server_command(launch: Launch) -> str:
    """One line for a shell; with `environment()` unless all GPUs are shown in CUDA's own order."""
    line = shlex.join(("llama-server", *server_arguments(launch)))
    gpus = launch.placement.gpus
    all_alike = len({gpu.name for gpu in gpus}) == 1  # else CUDA's own order is another, by speed
    if all_alike and launch.shown_devices == tuple(map(str, range(len(gpus)))):
        return line
    return " ".join([*(f"{name}={value}" for name, value in environment(launch).items()), line])


def server_script(launch: Launch) -> str:
    """A shell script for a folder; `launch.model_folder` is the model's folder as seen from it."""
    return _script(launch, "llama-server", served_arguments(launch), launch.run.sequences)


def cli_script(launch: Launch) -> str:
    """As `server_script`."""
    return _script(launch, "llama-cli", cli_arguments(launch), sequences=1)


def _script(launch: Launch, program: str, arguments: Sequence[str], sequences: int) -> str:
    variable = program.upper().replace("-", "_")
    shown = environment(launch)
    defaults = " ".join(f'"${{{name}={value}}}"' for name, value in shown.items())
    there = "" if launch.model_folder == "." else f"{launch.model_folder}/"
    # the script does not change the folder, so relative paths in "$@" keep their meaning
    lines = [f'-m "$folder"/{there}{shlex.quote(launch.model_file)}', *_lines(arguments[2:])]
    return "\n".join(
        [
            "#!/bin/sh",
            *(f"# {line}" for line in summary(launch, sequences)),
            f"# The script passes its arguments on; set {variable} to run another program.",
            "set -eu",
            'folder=$(dirname -- "$0")',
            f": {defaults}",
            f"export {' '.join(shown)}",
            f'exec "${{{variable}:-{program}}}" \\',
            *(f"  {line} \\" for line in lines),
            '  "$@"',
            "",
        ]
    )


def _lines(arguments: Sequence[str]) -> list[str]:
    """Arguments for a shell, each option and its value on one line.

    A value may begin with a dash (an alias), so lines are found by counting: every option has one
    value, except two flags.
    """
    lines, at = [], 0
    while at < len(arguments):
        size = 1 if arguments[at] in ("-kvu", "--jinja") else 2
        lines.append(shlex.join(arguments[at : at + size]))
        at += size
    return lines


def summary(launch: Launch, sequences: int | None = None) -> list[str]:
    """Lines that describe the launch; `sequences` replaces the plan's where it is given."""
    run = launch.run
    count = sequences or run.sequences
    names = zip(launch.shown_devices, launch.used_gpus, strict=True)
    gpus = ", ".join(f"{device} {launch.placement.gpus[index].name}" for device, index in names)
    shared = "" if count == 1 else f" shared by {count} sequences"
    drafts = f", {run.drafted_tokens} tokens drafted at a time" if run.drafted_tokens else ""
    return [
        f"{launch.model_name}: {run.context_tokens:,} tokens{shared}, "
        f"{run.kv_type} KV cache{drafts}",
        f"GPUs as nvidia-smi numbers them: {gpus}",
    ]
