"""The Modelfile, read by the rules of Ollama's parser (parser/parser.go)."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from launches import AWKWARD, FLAGSHIP, PRINTABLE, SINGLE, launched, named
from models import write_llama

from quantkit.formats.gguf_file import GGUFFile
from quantkit.plan.launch.files import modelfile, server_environment

METADATA_PROGRAM = Path(sys.executable).with_name("gguf-set-metadata")


def commands(text: str) -> list[tuple[str, str]]:
    """Instructions with values, one a line; spaces at the ends and quotes around fall away."""
    found = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition(" ")
            value = value.strip()
            for quote in ('"""', '"'):
                if value.startswith(quote):
                    assert value.endswith(quote)
                    value = value[len(quote) : -len(quote)]
                    break
            found.append((name, value))
    return found


def comment(text: str, begins: str) -> str:
    """The comment that begins so."""
    (line,) = [
        li for li in text.splitlines() if li.startswith("#") and li[1:].strip().startswith(begins)
    ]
    return line[1:].strip()


def test_the_flagship() -> None:
    text = modelfile(FLAGSHIP)
    assert commands(text) == [
        ("FROM", "./Nemotron-3-Super-Q4_K_S.gguf"),
        ("PARAMETER", "num_ctx 516096"),
        ("PARAMETER", "num_gpu 999"),
        ("PARAMETER", "num_batch 512"),
    ]
    assert server_environment(FLAGSHIP) == {
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_NUM_PARALLEL": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "LLAMA_ARG_FIT": "off",
        "OLLAMA_SCHED_SPREAD": "1",
        "LLAMA_ARG_SPLIT_MODE": "layer",
        "LLAMA_ARG_TENSOR_SPLIT": "23,22,22,22",
    }
    drafts = launched(FLAGSHIP, draft="mtp")
    assert server_environment(drafts).items() - server_environment(FLAGSHIP).items() == {
        ("LLAMA_ARG_SPEC_TYPE", "draft-mtp"),
        ("LLAMA_ARG_SPEC_DRAFT_N_MAX", "3"),
        ("LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K", "f16"),
        ("LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V", "f16"),
    }
    for name, value in server_environment(FLAGSHIP).items():
        assert comment(text, f"{name}=") == f"{name}={value}"


def test_generation_ends_at_every_stop_that_can_be_written() -> None:
    stops = ("<|im_end|>", 'a"b', "two words", "a\nb", 'ends"', " ")
    text = modelfile(launched(FLAGSHIP, stops=stops))
    written = [line for line in text.splitlines() if line.startswith("PARAMETER stop ")]
    values = [line.removeprefix("PARAMETER stop ") for line in written]
    assert values == ['"<|im_end|>"', '"""a"b"""', '"two words"']


@pytest.mark.parametrize("folder", [".", "../../Q4"])
@pytest.mark.parametrize("name", AWKWARD)
def test_shards_are_merged_first(name: str, folder: str) -> None:
    text = modelfile(launched(named(f"{name}-00001-of-00003"), model_folder=folder))
    assert "this model has 3" in text
    first, merged = f"{folder}/{name}-00001-of-00003.gguf", f"{folder}/{name}.gguf"
    command = shlex.split(comment(text, "llama-gguf-split"))
    assert command == ["llama-gguf-split", "--merge", first, merged]
    assert commands(text)[0] == ("FROM", merged)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_model_in_another_folder(name: str) -> None:
    text = modelfile(launched(named(name), model_folder="../..", gguf_context_tokens=4096))
    assert commands(text)[0] == ("FROM", f"../../{name}.gguf")
    assert shlex.split(comment(text, "gguf-set-metadata"))[1] == f"../../{name}.gguf"


@given(PRINTABLE)
def test_any_name(name: str) -> None:
    launch = named(name.replace("/", "_"), SINGLE)
    text = modelfile(launch)
    assert commands(text)[0] == ("FROM", f"./{launch.model_file}")
    assert "llama-gguf-split" not in text.replace(launch.model_file, "").replace(name, "")


def test_one_gpu_needs_no_split() -> None:
    assert not {"LLAMA_ARG_TENSOR_SPLIT", "OLLAMA_SCHED_SPREAD"} & set(server_environment(SINGLE))
    assert server_environment(SINGLE)["CUDA_VISIBLE_DEVICES"] == "0"


def test_what_ollama_cannot_do_is_said() -> None:
    assert "may not work" not in modelfile(FLAGSHIP)
    odd = launched(FLAGSHIP, kv_type="q5_1", sequences=4)
    text = modelfile(odd)
    assert "q5_1 may not work" in text
    assert "serves 4 requests at once" in text
    plain = launched(FLAGSHIP, kv_type="f16", flash_attention=False)
    assert server_environment(plain)["OLLAMA_FLASH_ATTENTION"] == "0"


@pytest.mark.skipif(not METADATA_PROGRAM.exists(), reason="needs gguf's programs")
def test_the_files_own_context_is_changed_as_it_says(tmp_path: Path) -> None:
    name = "it's 100% $HOME"
    launch = launched(
        named(name, SINGLE), architecture="llama", gguf_context_tokens=512, context_tokens=4096
    )
    assert "gguf-set-metadata" not in modelfile(launched(launch, context_tokens=512))
    path = write_llama(tmp_path / launch.model_file)
    line = comment(modelfile(launch), "gguf-set-metadata")
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run(
        [shell, "-c", f"{line} --force"],
        env={"PATH": str(METADATA_PROGRAM.parent)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert GGUFFile(path).metadata["llama.context_length"].value == 1048576


def test_without_pipeline_the_server_is_told_too() -> None:
    waiting = launched(FLAGSHIP, pipeline=False)
    assert server_environment(waiting)["LLAMA_ARG_OVERRIDE_TENSOR"] == "no-tensor=CPU"
    assert "LLAMA_ARG_OVERRIDE_TENSOR" not in server_environment(FLAGSHIP)
