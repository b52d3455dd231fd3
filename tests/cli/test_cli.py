"""The command line: bad input gets one line and exit 2; facts come as JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
from checkpoints import (
    LLAMA,
    NEMOTRON,
    llama_arrays,
    nemotron_arrays,
    with_prediction_head,
    write_checkpoint,
)
from forked import PROGRAM, facts, printed, quantkit, refused
from loopback_hub import COMMIT, Fault, hub
from models import write_llama
from small_recipes import write_recipe

from quantkit.cli.app import COMMANDS, app
from quantkit.core.paths import DEMO_MODEL
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, write_imatrix
from quantkit.models.gguf_source import GGUFSource

BUILD = ("build", "--target", "4x3090", "--out")


def test_a_forked_command_does_what_a_new_interpreter_does(tmp_path: Path) -> None:
    """Which is what all other tests rely on: environment, folder, streams and exit code."""
    write_llama(tmp_path / "m.gguf")
    environment = os.environ | {"QUANTKIT_KERNELS": "ggml"}
    for arguments, exit_code in (
        (("doctor", "--json"), 0),
        (("inspect", "m.gguf"), 0),
        (("inspect", "none.gguf"), 2),
        (("inspect", "--none"), 2),
    ):
        done = subprocess.run(
            [*PROGRAM, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == exit_code, done.stderr
        forked = quantkit(*arguments, env=environment, cwd=tmp_path)
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            done.returncode, done.stdout, done.stderr,
        )  # fmt: skip


SHARD = "x-00001-of-00002.gguf"
"""The name of one shard, which no file of a whole model may have."""


def test_an_imatrix_is_not_named_as_a_shard(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    assert SHARD in refused("imatrix", "m.gguf", "--out", SHARD, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "--target", "9x9999", "--model", "demo"), ("4x3090", "dgx-spark")),
        ((*BUILD, "/proc/nope", "--model", "demo"), ("--out",)),
        (("convert", "--model", "demo", "--out", "/proc/nope/x.gguf"), ("--out",)),
        ((*BUILD, "o", "--model", "none"), ("none",)),
        ((*BUILD, "o", "--model", "foo"), ("FooForCausalLM", "NemotronHForCausalLM", "GGUF")),
        (("plan", "--target", "4x3090", "--model", "junk.gguf"), ("junk.gguf",)),
        (("niah", "junk.gguf"), ("junk.gguf",)),
        (("inspect", "junk.gguf"), ("junk.gguf",)),
        (("imatrix", "junk.gguf"), ("junk.gguf",)),
        (("imatrix", "--show", "junk.gguf"), ("junk.gguf",)),
        (("imatrix",), ("--show",)),
        (("convert", "--model", "demo", "--out", SHARD), (SHARD,)),
        (("quantize", "--model", "demo", "--types", "Q8_0", "--out", SHARD), (SHARD,)),
    ],
)
def test_bad_input_is_refused_by_its_name(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"\x00" * 1000)
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "config.json").write_text('{"architectures": ["FooForCausalLM"]}')
    message = refused(*arguments, cwd=tmp_path)
    assert [word for word in words if word not in message] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foo", "junk.gguf"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("levels: []", ("levels",)),
        ("name: x\nlevels: [{name: a b}]", ("levels.0.name",)),
        ("name: x\nlevles: []\nlevels: [{name: a}]", ("levles",)),
        ("name: x\nlevels: [{name: a, minimum: {w: Q9}}]", ("Q9",)),
        (": :", ("YAML",)),
        ("- a", ("mapping",)),
        ({"levels": [{"name": "Q1", "bits_per_weight": 1.0, "minimum": {}}]}, ("Q1", "1 bits")),
        ({"retrieval": {"needles": 3, "minimum_lower_bound": 0.95}}, ("36.8%", "59")),
    ],
)
def test_recipe_mistakes_name_the_field(
    recipe: str | dict[str, object], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    if isinstance(recipe, str):
        path.write_text(recipe)
    else:
        write_recipe(path, **recipe)
    message = refused(*BUILD, tmp_path / "o", "--model", "demo", "--recipe", path)
    assert [word for word in words if word not in message] == []


def test_truncated_safetensors_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(DEMO_MODEL, model)
    (weights,) = model.glob("*.safetensors")
    whole = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:100_000])
    message = refused(*BUILD, tmp_path / "o", "--model", model)
    assert str(whole) in message
    assert "100000" in message


def test_convert_says_what_it_rounds_and_refuses_what_becomes_infinite(tmp_path: Path) -> None:
    arrays, out = llama_arrays(LLAMA), tmp_path / "m.gguf"
    arrays["model.embed_tokens.weight"][0, :3] = 1 + 2**-10  # F16 holds that, BF16 does not
    model = write_checkpoint(tmp_path / "m", LLAMA, arrays, "F32")
    command = ("convert", "--model", model, "--out", out)
    for kind, options in (("F32", ()), ("F16", ("--type", "F16")), ("BF16", ("--type", "BF16"))):
        *notes, _ = printed(*command, *options).splitlines()
        assert {info.name: info.type_name for info in GGUFSource(out).tensors}[
            "token_embd.weight"
        ] == kind
        assert len(notes) == (kind == "BF16")
    assert {"1", "3"} <= set(notes[0].split())
    arrays["model.embed_tokens.weight"][7, 7] = 1e5
    write_checkpoint(tmp_path / "m", LLAMA, arrays, "F32")
    message = refused(*command, "--type", "F16")
    assert [said for said in ("token_embd.weight", "100000", "65504") if said not in message] == []
    assert "source" in refused(*command, "--type", "bf17")


def test_the_prediction_head_is_converted_on_request(tmp_path: Path) -> None:
    config = NEMOTRON | {"num_nextn_predict_layers": 1}
    arrays = with_prediction_head(nemotron_arrays(NEMOTRON))
    model, out = write_checkpoint(tmp_path / "m", config, arrays), tmp_path / "m.gguf"
    command = ("convert", "--model", model, "--out", out)
    assert "--mtp" in refused(*command, "--mtp", "both")
    for choice, blocks in (("drop", 4), ("keep", 5)):
        printed(*command, "--mtp", choice)
        source = GGUFSource(out)
        assert source.metadata["nemotron_h_moe.block_count"].value == blocks
        assert ("blk.4.nextn.eh_proj.weight" in {t.name for t in source.tensors}) is (blocks == 5)
        plan = ("plan", "--model", out, "--target", "1x3090", "--draft", "mtp", "--kv", "f16")
        if choice == "drop":
            assert "MTP" in refused(*plan)
    found = facts(*plan, "--verify", "--on", "stand-ins")
    for one in found["verified"][0]["gpus"]:  # a small model's tensors are mostly padding
        assert one["planned_bytes"] == pytest.approx(one["llama_cpp_bytes"], rel=0.01)
    (level,) = found["levels"]
    assert level["placement"]["run"]["draft"] == "mtp"
    assert "--spec-type draft-mtp --spec-draft-n-max 3 -ctkd f16 -ctvd f16" in level["command"]
    assert "draft" in refused(*plan[:-4], "--draft", "eagle")


def test_model_that_cannot_fit_says_by_how_much_and_what_would(tmp_path: Path) -> None:
    target = tmp_path / "t.yaml"
    target.write_text(
        "name: small\ncards: [{name: tiny, memory_gib: 0.4, reserve_gib: 0.1}]\n"
        "context_tokens: 1024\nweight_budget_gib: 0.001\n"
    )
    message = refused("build", "--target", target, "--model", "demo", "--out", tmp_path / "o")
    assert "small" in message
    assert re.search(r"[\d.]+ MiB", message)


def test_an_imatrix_of_another_model_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    entry = ImatrixEntry(np.ones((1, 64), np.float32), np.array([8], np.float32))
    write_imatrix(path, Imatrix({"blk.77.attn_q.weight": entry}, 512, 2, ("a.txt",)))
    build = (*BUILD, tmp_path / "out", "--model", "demo", "--imatrix", path)
    assert "another model" in refused(*build)
    assert "--imatrix" in refused(*build, "--calibration", "code")
    assert not (tmp_path / "out").exists()


def test_inspect_counts_what_is_there(tmp_path: Path) -> None:
    found = facts("inspect", write_llama(tmp_path / "m.gguf"))
    assert found["architecture"] == "llama"
    assert found["types"]["F32"]["tensors"] == 12


def test_imatrix_on_a_dataset_of_the_hub_records_where_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = tmp_path / "rows"
    rows.mkdir()
    row = json.dumps({"text": " ".join(f"line{n}" for n in range(600))})
    (rows / "train.jsonl").write_text(row + "\n")
    model, out = tmp_path / "demo.gguf", tmp_path / "imatrix.gguf"
    printed("convert", "--model", "demo", "--out", model)
    name = "datasets/someone/talks"
    with hub({name: rows}, cards={name: {"license": "cc-by-4.0"}}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        chosen = ("--calibration", f"hf://{name}", "--chunks", "2")
        collected = facts("imatrix", model, "--out", out, *chosen)
    (source,) = collected["sources"]
    origin = f"hf://{name}@{COMMIT}"
    assert (source["origin"], source["licence"]) == (origin, "cc-by-4.0")
    assert source["tokens"] == collected["tokens"] == 1024
    assert [file["name"] for file in source["files"]] == ["train.jsonl"]
    assert facts("imatrix", "--show", out)["datasets"] == [origin]


@pytest.mark.parametrize("arguments", [("--help",), ("plan", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from quantkit.cli.app import COMMANDS, main\n"
        f"try: sys.argv = ['quantkit', *{arguments!r}]; main()\n"
        "except SystemExit: pass\n"
        "heavy = {'llama_cpp', 'scipy', 'matplotlib', 'numpy', 'rich', 'huggingface_hub'}\n"
        "heavy |= {'quantkit.config.recipe', 'quantkit.models', 'quantkit.plan'}\n"
        "heavy |= {'quantkit.cli.' + module for module, _ in COMMANDS.values()}\n"
        "heavy.discard('quantkit.cli.' + sys.argv[1])\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_every_option_has_a_phrase_and_no_command_s_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = printed("--help").partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line] == list(COMMANDS)
    assert "..." not in listed
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in command.params:
            words = (parameter.help or "").split()
            assert len(words) > 2, (name, parameter.name)
            assert words[-1].endswith((".", "]")), (name, parameter.name)


def test_help_offers_a_repository_only_where_one_is_taken() -> None:
    for command in ("build", "plan", "convert", "quantize"):
        parameters = typer.main.get_command(app).commands[command].params
        (words,) = (parameter.help for parameter in parameters if parameter.name == "model")
        assert ("OWNER/NAME" in words) == (command in ("build", "plan")), command


def test_doctor_says_which_settings_work() -> None:
    found = facts("doctor")
    assert isinstance(found["use_extra_buffers"], bool)
    assert "kernels" in found["finding"]
    assert isinstance(found["compiled_kernels"], bool)
    assert found["kernels_finding"]


def test_download_says_what_came_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    super_120b = "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"
    with hub({"someone/demo-BF16": DEMO_MODEL, super_120b: DEMO_MODEL}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        first = printed("download", "someone/demo-BF16")
        assert f"someone/demo-BF16 at {COMMIT[:12]} → demo-BF16" in first
        assert "to fetch" in first
        last = first.splitlines()[-1]
        assert last == "Next:  quantkit build --target 4x3090 --model demo-BF16"
        again = facts("download", "someone/demo-BF16")
        assert (again["commit"], again["fetched_bytes"]) == (COMMIT, 0)
        sizes = {path.name: path.stat().st_size for path in DEMO_MODEL.iterdir()}
        assert {n: f["size_bytes"] for n, f in again["files"].items()} == sizes
        assert again["size_bytes"] == sum(sizes.values())
        assert printed("download", "someone/demo-BF16", "--quiet") == ""
        with_recipe = printed("download", super_120b, "--out", "a folder")
        assert with_recipe.endswith("--model 'a folder' --recipe nemotron-3-super\n")
        assert "someone/none" in refused("download", "someone/none")
        assert not (tmp_path / "none").exists()
        (tmp_path / "f" / "config.json").mkdir(parents=True)
        in_the_way = refused("download", "someone/demo-BF16", "--out", "f")
        assert "f/config.json is not the file that someone/demo-BF16 has" in in_the_way
        monkeypatch.setenv("HF_TOKEN", "hf_S\xe9cret")
        assert "cret" not in refused("download", "someone/demo-BF16")
        monkeypatch.setenv("HF_ENDPOINT", "http://host:abc")
        assert "http://host:abc" in refused("download", "someone/demo-BF16")


def test_download_warns_of_a_build_that_the_disk_will_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with hub({"someone/large": DEMO_MODEL}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        served.claims = {"model.safetensors": free * 6 // 10}
        served.always = {"model.safetensors": Fault(status=404, at_hub=True)}
        finished = quantkit("download", "someone/large", "--out", tmp_path / "out")
        assert "base.logits" in finished.stdout
        assert finished.returncode == 3
        assert finished.stderr.startswith("error: downloading someone/large")
        served.claims = {"model.safetensors": free * 2}
        assert "GiB" in refused("download", "someone/large", "--out", tmp_path / "new", code=3)
        assert not (tmp_path / "new").exists()
