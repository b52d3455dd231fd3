"""llama-server's and llama-cli's command lines, read back by a shell and by llama.cpp's parser."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launches import AWKWARD, FLAGSHIP, SINGLE, launched, named
from models import write_llama

from quantkit.config.target import DRAFT_KV_TYPE, DRAFTED_TOKENS
from quantkit.core.errors import InputError
from quantkit.plan.launch.files import CLI_SCRIPT, SERVER_SCRIPT, write_launch_files
from quantkit.plan.launch.llama_cpp import (
    cli_arguments,
    environment,
    server_arguments,
    server_command,
    server_script,
)
from quantkit.plan.launch.settings import Launch

LLAMA_CPP = Path(os.environ.get("QUANTKIT_LLAMA_CPP", "") or "/nonexistent")
TOOLS = Path(os.environ.get("QUANTKIT_LLAMA_TOOLS", "") or "/nonexistent")
SHORT_GGUF = launched(FLAGSHIP, gguf_context_tokens=262144)
SPARE = launched(FLAGSHIP, tensor_split=(50, 39, 0, 0))
SHARED = launched(FLAGSHIP, sequences=4, kv_type="f16", flash_attention=False)
DRAFTS = launched(named("drafts"), draft="mtp")
WAITING = launched(FLAGSHIP, pipeline=False, model_name="waiting")
LAUNCHES = (FLAGSHIP, SINGLE, SHORT_GGUF, SPARE, SHARED, DRAFTS, WAITING, *map(named, AWKWARD))


def value(arguments: tuple[str, ...], option: str) -> str:
    assert arguments.count(option) == 1
    return arguments[arguments.index(option) + 1]


def test_the_flagship_as_it_was_published() -> None:
    assert server_command(FLAGSHIP) == (
        "llama-server -m Nemotron-3-Super-Q4_K_S-00001-of-00002.gguf -ngl 999 "
        "-sm layer -ts 23,22,22,22 -c 516096 -ctk q8_0 -ctv q8_0 -fa on -b 2048 -ub 512 "
        "--fit off -np 1 --jinja --alias Nemotron-3-Super-Q4_K_S"
    )
    assert int(value(server_arguments(FLAGSHIP), "-c")) >= 504_482


def test_a_file_that_says_less_is_overridden() -> None:
    for arguments in (server_arguments(SHORT_GGUF), cli_arguments(SHORT_GGUF)):
        override = "nemotron_h_moe.context_length=int:1048576"
        assert value(arguments, "--override-kv") == override
    enough = launched(FLAGSHIP, gguf_context_tokens=516096)
    assert "--override-kv" not in server_arguments(enough)


def test_gpus_without_layers_are_left_alone() -> None:
    assert value(server_arguments(SPARE), "-ts") == "50,39"
    shown = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1 llama-server "
    assert server_command(SPARE).startswith(shown)
    last = launched(FLAGSHIP, tensor_split=(0, 0, 89, 0))
    assert "-ts" not in server_arguments(last)
    assert "CUDA_VISIBLE_DEVICES=2 llama-server" in server_command(last)


def test_prediction_layers_draft_with_a_cache_of_their_own() -> None:
    for arguments in (server_arguments(DRAFTS), cli_arguments(DRAFTS)):
        assert value(arguments, "--spec-type") == "draft-mtp"
        assert value(arguments, "--spec-draft-n-max") == "3"
        assert value(arguments, "-ctkd") == value(arguments, "-ctvd") == "f16"
        assert value(arguments, "-ctk") == "q8_0"
    assert not {"--spec-type", "-ctkd"} & set(server_arguments(FLAGSHIP))


def test_an_alias_is_one_name() -> None:
    assert value(server_arguments(named("a,b")), "--alias") == "a_b"


@pytest.mark.parametrize("name", AWKWARD)
def test_one_line_for_a_shell(name: str) -> None:
    launch = named(name)
    path = f"some folder/{launch.model_file}"
    assert tuple(shlex.split(server_command(launch))[1:]) == server_arguments(launch)
    assert value(server_arguments(launch, path), "-m") == path
    bare = value(server_arguments(launch), "-m")
    assert Path(bare) == Path(launch.model_file)
    assert not bare.startswith("-")


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A program that writes its arguments, and what it is told of GPUs, as JSON."""
    path = tmp_path / "a program"
    body = path.with_suffix(".py")
    body.write_text(
        "import json, os, sys\n"
        "GPUs = {n: v for n, v in os.environ.items() if n.startswith('CUDA_')}\n"
        "print(json.dumps([sys.argv[1:], GPUs]))\n"
    )
    # through a shell: a checkout's path may have spaces, which a #! line cannot
    path.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(body))} "$@"\n'
    )
    path.chmod(0o755)
    return path


def recorded(recorder: Path, *command: str | Path, cwd: Path, **environment: str) -> list[Any]:
    """The arguments, and the GPUs, that a script starts a program with."""
    programs = {"LLAMA_SERVER": str(recorder), "LLAMA_CLI": str(recorder), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, env=programs | environment, cwd=cwd, check=True, capture_output=True, text=True
    )
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.model_name)
def test_scripts_run(launch: Launch, tmp_path: Path, recorder: Path) -> None:
    folder = tmp_path / "it's 100% $HOME"
    write_launch_files(launch, folder)
    for script, expected in (
        (SERVER_SCRIPT, (*server_arguments(launch), "--host", "127.0.0.1", "--port", "8080")),
        (CLI_SCRIPT, cli_arguments(launch)),
    ):
        arguments, gpus = recorded(recorder, folder / script, "--port", "9 0", cwd=tmp_path)
        path = f"{folder}/{launch.model_file}"
        assert arguments == ["-m", path, *expected[2:], "--port", "9 0"]
        visible = ",".join(map(str, launch.used_gpus))
        assert gpus == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}


def test_scripts_leave_the_callers_gpus(tmp_path: Path, recorder: Path) -> None:
    write_launch_files(FLAGSHIP, tmp_path)
    shown = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    arguments, gpus = recorded(recorder, "sh", SERVER_SCRIPT, cwd=tmp_path, **shown)
    assert gpus["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert arguments[1] == f"./{FLAGSHIP.model_file}"


def test_llama_cpp_takes_the_override(tmp_path: Path) -> None:
    """What the option becomes in llama.cpp, on a real file that says 512 tokens."""
    import llama_cpp

    launch = launched(
        named("tiny", SINGLE), architecture="llama", gguf_context_tokens=512, context_tokens=4096
    )
    key, _, number = value(server_arguments(launch), "--override-kv").partition("=int:")
    override = llama_cpp.llama_model_kv_override(
        tag=llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, key=key.encode()
    )
    override.value.val_i64 = int(number)
    overrides = (llama_cpp.llama_model_kv_override * 2)(override)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    path = str(write_llama(tmp_path / launch.model_file)).encode()
    plain = llama_cpp.llama_model_load_from_file(path, params)
    params.kv_overrides = overrides
    longer = llama_cpp.llama_model_load_from_file(path, params)
    assert llama_cpp.llama_model_n_ctx_train(plain) == 512
    assert llama_cpp.llama_model_n_ctx_train(longer) == launch.placement.trained_context_tokens
    for model in (plain, longer):
        llama_cpp.llama_model_free(model)


needs_source = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (LLAMA_CPP / "common" / "arg.cpp").is_file(),
        reason="needs QUANTKIT_LLAMA_CPP: make oracle",
    ),
]


class TestSource:
    """What the plan relies on, in the source of the llama.cpp that is pinned."""

    pytestmark = needs_source

    @pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.model_name)
    def test_every_option_is_one_of_the_programs(self, launch: Launch) -> None:
        for arguments, example in (
            (server_arguments(launch), "LLAMA_EXAMPLE_SERVER"),
            (cli_arguments(launch), "LLAMA_EXAMPLE_CLI"),
        ):
            used = options_in(arguments)
            assert {"-m", "-ngl", "-c", "-ctk", "-ctv", "-fa", "-b", "-ub", "-np"} <= used
            assert used <= options_of(example)

    def test_all_layers_and_no_more_gpus_than_it_takes(self) -> None:
        source = (LLAMA_CPP / "src" / "llama.cpp").read_text()
        found = re.search(r"size_t llama_max_devices\(void\) \{\s+return (\d+);", source)
        assert found is not None
        assert int(found[1]) == 16
        layers = (LLAMA_CPP / "src" / "llama-hparams.h").read_text()
        most = re.search(r"LLAMA_MAX_LAYERS\s+(\d+)", layers)
        assert most is not None
        assert int(most[1]) < 999

    def test_drafting_is_what_is_planned(self) -> None:
        source = (LLAMA_CPP / "common" / "speculative.cpp").read_text()
        assert '{"draft-mtp",     COMMON_SPECULATIVE_TYPE_DRAFT_MTP}' in source
        assert "cparams.ctx_type = LLAMA_CONTEXT_TYPE_MTP;" in source
        assert "result.n_outputs_max = params.n_parallel;" in source
        header = (LLAMA_CPP / "common" / "common.h").read_text()
        assert f"int32_t n_max = {DRAFTED_TOKENS};" in header
        for cache in "kv":
            kind = f"ggml_type cache_type_{cache} = GGML_TYPE_{DRAFT_KV_TYPE.upper()}; // KV cache"
            assert kind in header[header.index("struct common_params_speculative_draft") :]
        assert "return needs_rs_seq ? draft.n_max : 0u;" in header
        client = (LLAMA_CPP / "tools" / "cli" / "cli-server.h").read_text()
        assert "llama_server(server_params" in client

    def test_a_slot_is_cut_to_what_the_file_says(self) -> None:
        source = (LLAMA_CPP / "tools" / "server" / "server-context.cpp").read_text()
        slot = source[source.index("int n_ctx_slot() const {") :].split("\n    }\n")[0]
        assert "return std::min(res, llama_model_n_ctx_train(model_tgt));" in slot


def options_in(arguments: tuple[str, ...]) -> set[str]:
    """Every second word, but for options without a value."""
    words, used = iter(arguments), set()
    for word in words:
        used.add(word)
        if word not in {"-kvu", "--jinja"}:
            next(words)
    return used


def options_of(example: str) -> set[str]:
    """Names of a program's options, by arg.cpp."""
    source = (LLAMA_CPP / "common" / "arg.cpp").read_text()
    known = set()
    for block in source.split("add_opt(common_arg(")[1:]:
        names = re.match(r"\s*((?:\{[^{}]*\},\s*)+)", block)
        examples = re.search(r"set_examples\(\{(.*?)\}\)", block)
        if names and (not examples or re.search(f"{example}|_COMMON", examples[1])):
            known.update(re.findall(r'"(-[^"]+)"', names[1]))
    return known


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's own parser of arguments, as a program."""
    if not (TOOLS / "libllama-common.so").exists() or shutil.which("g++") is None:
        pytest.skip("needs QUANTKIT_LLAMA_TOOLS and a compiler: make oracle-tools")
    program = tmp_path_factory.mktemp("parser") / "show_params"
    includes = [f"-I{LLAMA_CPP / d}" for d in ("common", "include", "ggml/include", "vendor")]
    libraries = ["-lllama-common", "-lllama", "-lggml", "-lggml-base"]
    source = Path(__file__).with_name("show_params.cpp")
    command = ["g++", "-std=c++17", *includes, str(source), "-o", str(program)]
    subprocess.run([*command, f"-L{TOOLS}", *libraries, f"-Wl,-rpath,{TOOLS}"], check=True)
    return program


class TestParser:
    """What the programs themselves would understand."""

    pytestmark = needs_source

    @pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.model_name)
    @pytest.mark.parametrize("program", ["server", "cli"])
    def test_llama_cpp_understands(self, launch: Launch, program: str, parser: Path) -> None:
        arguments = (server_arguments if program == "server" else cli_arguments)(launch)
        found = parsed(parser, program, arguments)
        shares = launch.shares if len(launch.shares) > 1 else ()
        key = f"{launch.architecture}.context_length"
        sequences = launch.run.sequences if program == "server" else 1
        assert found == {
            "model": value(arguments, "-m"),
            "n_gpu_layers": 999,
            "split_mode": 1,
            "tensor_split": [*shares, *[0] * (16 - len(shares))],
            "n_ctx": launch.run.context_tokens,
            "cache_type_k": launch.run.kv_type,
            "cache_type_v": launch.run.kv_type,
            "flash_attn": int(launch.run.flash_attention),
            "n_batch": launch.run.batch_tokens,
            "n_ubatch": launch.run.ubatch_tokens,
            "n_parallel": sequences,
            "kv_unified": int(sequences > 1),
            "fit": 0,
            "jinja": 1,
            "port": 8080,
            "host": "127.0.0.1",
            "aliases": [launch.model_name.replace(",", "_")] if program == "server" else [],
            "spec_types": ["draft-mtp"] if launch.run.drafted_tokens else [],
            "spec_n_max": 3,
            "draft_cache_type_k": "f16",
            "draft_cache_type_v": "f16",
            "overrides": {key: 1048576} if launch is SHORT_GGUF else {},
        }

    def test_without_fit_off_it_would_change_the_plan(self, parser: Path) -> None:
        assert parsed(parser, "server", ("-m", "x.gguf"))["fit"] == 1

    def test_sixteen_shares_are_refused(self, parser: Path) -> None:
        assert parsed(parser, "server", ("-ts", ",".join("1" * 15)))["tensor_split"][14:] == [1, 0]
        with pytest.raises(subprocess.CalledProcessError):
            parsed(parser, "server", ("-ts", ",".join("1" * 16)))


def parsed(parser: Path, program: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    environment = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}  # no LLAMA_ARG_…, no config.ini
    done = subprocess.run(
        [parser, program, *arguments], check=True, capture_output=True, text=True, env=environment
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_without_pipeline_an_override_of_no_tensor_is_given() -> None:
    words = server_arguments(WAITING)
    assert words[words.index("-ot") + 1] == "no-tensor=CPU"
    others = server_arguments(launched(WAITING, pipeline=True))
    at = words.index("-ot")
    assert (*words[:at], *words[at + 2 :]) == others
    assert "-ot" not in server_arguments(launched(SINGLE, pipeline=False))


def test_chosen_gpus_are_shown_in_their_order() -> None:
    chosen = launched(FLAGSHIP, devices=("2", "0", "GPU-12ab", "3"))
    assert environment(chosen)["CUDA_VISIBLE_DEVICES"] == "2,0,GPU-12ab,3"
    assert server_command(chosen).startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2,")
    assert "2 RTX 3090, 0 RTX 3090, GPU-12ab RTX 3090" in server_script(chosen)
    ordered = launched(FLAGSHIP, devices=("0", "1", "2", "3"))
    assert server_command(ordered) == server_command(FLAGSHIP)
    some = launched(chosen, tensor_split=(0, 40, 0, 49))
    assert environment(some)["CUDA_VISIBLE_DEVICES"] == "0,3"


def test_unequal_gpus_are_named_in_the_printed_command_too() -> None:
    mixed = launched(FLAGSHIP, gpus=("RTX 4090", "RTX 3060", "RTX 3060", "RTX 3060"))
    line = server_command(mixed)
    assert line.startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,2,3 llama-server")


@pytest.mark.parametrize("device", ["", "1;2", "$(id)", "a b"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="neither a number nor a UUID"):
        launched(FLAGSHIP, devices=("0", "1", "2", device))
