"""`quantkit plan`: what it prints, writes and refuses, of models and targets of every kind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import make_shape
import pytest
import yaml
from checkpoints import NEMOTRON, nemotron_arrays, with_prediction_head, write_checkpoint
from demo_artifacts import write_demo
from forked import quantkit, refused
from loopback_hub import hub
from small_recipes import write_recipe
from terminals import written_in_terminal

from quantkit.core.errors import InputError
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.units import MIB
from quantkit.models.choose import choose_model, open_source
from quantkit.plan.plan import plan as plan_model

CONFIG = make_shape.model_config("nemotron-3-super", mtp=False)
DEMO = ("--model", "demo", "--recipe", "demo")
ONE = ("--target", "1x3090", "--context", "32768")
NARROW, WIDE = 80, 160


def plan(*given: object) -> dict[str, Any]:
    """The facts of a plan that succeeds."""
    found: dict[str, Any] = forked.facts("plan", *given)
    return found


def told(*given: object) -> str:
    done = quantkit("plan", *given)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def write_target(path: Path, *mib: float, **changes: object) -> Path:
    """Small made-up GPUs; `changes` are fields of the target."""
    gpus = [{"name": f"GPU {m}", "memory_gib": m / 1024, "reserve_gib": 0.001} for m in mib]
    content: dict[str, Any] = {
        "name": "mine", "gpus": gpus, "context_tokens": 131_072, "ubatch_tokens": 64,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def flagship(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flagship's shape in Q4_K where its rows allow it: 68 GB long, 3 MB on the disk."""
    path = tmp_path_factory.mktemp("flagship") / "super.gguf"
    (file,) = make_shape.write_gguf(path, CONFIG, "Q4_K")
    return file


def test_the_demo_on_one_gpu() -> None:
    facts = plan(*DEMO, *ONE)
    assert facts["model"] == "quantkit-demo"
    assert facts["target"] == "1x3090"
    by_name = {level["level"]: level for level in facts["levels"]}
    assert list(by_name) == ["Q6", "Q4", "Q3", "IQ2_XXS"]
    for name, bits in (("Q6", 6.6), ("Q4", 4.8), ("Q3", 3.2)):
        assert by_name[name]["bits_per_weight"] == pytest.approx(bits, rel=0.01)
    for level in by_name.values():
        placement = level["placement"]
        (gpu,) = placement["gpus"]
        assert placement["run"]["context_tokens"] == 32_768
        assert not placement["compute_is_estimated"]
        assert gpu["capacity_bytes"] == 24 << 30
        weights = gpu["weights_bytes"] + placement["host_bytes"]
        assert weights == pytest.approx(level["total_bytes"], rel=0.1)  # the rest is tokenizer
        assert f"-m quantkit-demo-{level['level']}.gguf " in level["command"]
        assert " -c 32768 " in level["command"]
    assert facts["budget"]["target_bytes"] is None
    assert 22 << 30 < facts["budget"]["gpus_leave_bytes"] < 23 << 30
    assert facts["alternatives"]["beside"] == "Q6"
    assert facts["alternatives"]["largest_bytes"] > by_name["Q6"]["total_bytes"]
    assert facts["alternatives"]["context_tokens"] == 1 << 20
    assert facts["alternatives"]["ubatch_tokens"] == 4096


def units_are_named(value: object, name: str = "") -> Iterator[str]:
    """Names of numbers that do not say in what they count."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from units_are_named(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from units_are_named(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        counts = ("layers", "sequences", "gpu", "bits_per_weight")
        if not name.endswith(("_bytes", "_tokens")) and name not in counts:
            yield name


def test_all_facts_are_one_document_with_units_in_the_names(flagship: Path, tmp_path: Path) -> None:
    """Everything at once, and the plan of a file agrees with what llama.cpp says of that file."""
    picture, launch = tmp_path / "p.svg", tmp_path / "launch"
    facts = plan(
        "--model", flagship, "--target", "4x3090", "--verify", "--on", "fake",
        "--what-if", "--picture", picture, "--launch", launch,
    )  # fmt: skip
    assert list(units_are_named(facts)) == []
    (level,) = facts["levels"]
    assert level["level"] == "as it is"
    assert level["total_bytes"] == flagship.stat().st_size
    (found,) = facts["verified"]
    assert found["agrees"]
    assert found["fits"]
    assert found["devices"] == "fake"
    assert len(found["gpus"]) == 12
    for one in found["gpus"]:
        gpu = level["placement"]["gpus"][one["gpu"]]
        assert one["planned_bytes"] == gpu[f"{one['part']}_bytes"]
        assert one["llama_cpp_bytes"] == pytest.approx(one["planned_bytes"], rel=0.001)
    cells = {(c["kv_type"], c["context_tokens"]): c for c in facts["what_if"]}
    assert len(cells) == 18
    at_504k = cells["q8_0", 516_096]["largest_bytes"]
    assert at_504k == pytest.approx(facts["alternatives"]["largest_bytes"], rel=0.001)
    longer, shorter = (cells["q8_0", tokens]["largest_bytes"] for tokens in (1 << 20, 32_768))
    assert longer < at_504k < shorter
    assert picture.read_text().startswith("<?xml")
    assert {path.name for path in launch.iterdir()} >= {"Modelfile", "compose.yaml"}
    (script,) = launch.glob("*server.sh")
    assert "super.gguf" in script.read_text()
    layers = [gpu["layers"] for gpu in level["placement"]["gpus"]]
    assert f"-ts {','.join(map(str, layers))}" in script.read_text()


def test_rpc_servers_and_gpus_that_are_not_here() -> None:
    if "CUDA" in os.environ.get("CMAKE_ARGS", ""):
        pytest.skip("this llama.cpp sees GPUs")
    given = ("--model", "demo", *ONE, "--levels", "Q4", "--verify", "--on")
    for where, words in (("present", "sees 0"), ("rpc", "RPC")):
        done = quantkit("plan", *given, where)
        assert done.returncode == 3
        assert words in done.stderr


def test_by_default_fake_gpus_are_asked_where_the_gpus_are_not_here(flagship: Path) -> None:
    text = told("--model", flagship, "--target", "4x3090", "--verify")
    assert "on fake GPUs" in text
    assert "agrees and fits" in text


def test_a_gguf_as_it_is_and_its_shards(tmp_path: Path) -> None:
    """A file's own types are planned, and the command opens that file."""
    whole = write_demo(tmp_path / "demo-Q8_0.gguf", "Q8_0")
    (level,) = plan("--model", whole, *ONE)["levels"]
    assert level["level"] == "as it is"
    assert level["total_bytes"] == whole.stat().st_size
    assert " -m demo-Q8_0.gguf " in level["command"]
    # with levels, its tensors are quantized again
    names = [one["level"] for one in plan("--model", whole, *ONE, "--levels", "4.5,Q4_0")["levels"]]
    assert names == ["4.5bpw", "Q4_0"]


def test_shards_are_planned_by_the_first(tmp_path: Path) -> None:
    shards = make_shape.write_gguf(tmp_path / "super.gguf", CONFIG, "Q8_0", shard_bytes=50 * 10**9)
    assert len(shards) == 3
    target = write_target(tmp_path / "t.yaml", *[80 * 1024] * 4, ubatch_tokens=512)
    (level,) = plan("--model", shards[0], "--target", target)["levels"]
    assert f" -m {shards[0].name} " in level["command"]
    assert level["total_bytes"] == sum(path.stat().st_size for path in shards)


def test_types_of_an_allocation_and_of_a_preset(tmp_path: Path) -> None:
    (stock,) = plan("--model", "demo", *ONE, "--types", "q4_k")["levels"]
    assert stock["level"] == "Q4_K_M"
    assert " -m quantkit-demo-Q4_K_M.gguf " in stock["command"]
    text = told("--model", "demo", *ONE, "--types", "Q4_K_M")
    assert "fell back" in text
    tensors = open_source(choose_model("demo")).tensors
    types = {
        info.name: {"type": "Q8_0" if info.type_name == "BF16" else info.type_name, "bytes": 0}
        for info in tensors
    }
    allocation = tmp_path / "mine.json"
    allocation.write_text(json.dumps({"tensors": types}), encoding="utf-8")
    (own,) = plan("--model", "demo", *ONE, "--types", allocation)["levels"]
    assert own["level"] == "mine"
    assert own["bits_per_weight"] == pytest.approx(8.6, abs=0.2)
    assert " -m quantkit-demo-mine.gguf " in own["command"]
    del types[tensors[0].name]
    allocation.write_text(json.dumps({"tensors": types}), encoding="utf-8")
    message = refused("plan", "--model", "demo", *ONE, "--types", allocation)
    assert tensors[0].name in message


def test_how_it_is_used_can_be_changed() -> None:
    given = ("--ubatch", 256, "--sequences", 3, "--kv", "f16", "--budget", "4MiB")
    facts = plan("--model", "demo", *ONE, "--levels", "max", *given)
    (level,) = facts["levels"]
    assert facts["budget"]["target_bytes"] == 4 * MIB
    assert 0.97 * 4 * MIB < level["total_bytes"] <= 4 * MIB
    run = level["placement"]["run"]
    assert (run["ubatch_tokens"], run["sequences"], run["kv_type"]) == (256, 3, "f16")
    for words in ("-ub 256", "-np 3 -kvu", "-ctk f16 -ctv f16", "-c 32768"):
        assert f" {words} " in level["command"]
    fewer = ("--levels", "max", "--kv", "f16", "--ubatch", 256)
    (other,) = plan("--model", "demo", *ONE, *fewer)["levels"]
    assert other["total_bytes"] > level["total_bytes"]
    gpu, of_other = (one["placement"]["gpus"][0] for one in (level, other))
    assert gpu["context_bytes"] > of_other["context_bytes"]


def test_a_context_longer_than_the_metadata_says(tmp_path: Path) -> None:
    config = NEMOTRON | {"head_dim": 64}
    folder = write_checkpoint(tmp_path / "m", config, nemotron_arrays(config))
    long = 2 << 20
    given = ("--model", folder, "--target", "1x3090", "--levels", "8")
    assert "--beyond-training" in refused("plan", *given, "--context", long)
    with pytest.raises(InputError):
        plan_model(folder, "1x3090", levels="8", context_tokens=long)
    text = told(*given, "--context", long, "--beyond-training")
    assert f"--context is {long:,} tokens" in text
    command = next(line for line in text.splitlines() if line.startswith("Run it:"))
    assert f"-c {long} " in command
    assert f"--override-kv nemotron_h_moe.context_length=int:{long}" in command
    (level,) = plan(*given)["levels"]
    assert "--override-kv" not in level["command"]


def test_prediction_layers_that_are_kept_are_planned(tmp_path: Path) -> None:
    config = NEMOTRON | {"head_dim": 64, "num_nextn_predict_layers": 1}
    config |= {"mtp_hybrid_override_pattern": "*E"}
    arrays = with_prediction_head(nemotron_arrays(config))
    folder = write_checkpoint(tmp_path / "m", config, arrays)
    layers, sizes = [], []
    for mtp in ("drop", "keep"):
        recipe = write_recipe(tmp_path / f"{mtp}.yaml", convert={"mtp": mtp})
        given = ("--model", folder, *ONE, "--recipe", recipe, "--types", "Q8_0")
        (level,) = plan(*given)["levels"]
        layers.append(sum(gpu["layers"] for gpu in level["placement"]["gpus"]))
        sizes.append(level["total_bytes"])
    assert layers == [5, 6]  # with the output
    assert sizes[1] > 1.1 * sizes[0]


def test_a_repository_is_planned_by_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with hub({"someone/demo-BF16": DEMO_MODEL}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        given = ("--model", "someone/demo-BF16", *ONE, "--levels", "Q4")
        (level,) = plan(*given)["levels"]
        whole = (DEMO_MODEL / "model.safetensors").stat().st_size
        assert served.sent_bytes("model.safetensors") < whole / 10
        assert " -m demo-Q4.gguf " in level["command"]
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    forked.printed("plan", *given)  # what is here is enough
    (folder,) = plan("--model", DEMO_MODEL, *ONE, "--levels", "Q4")["levels"]
    assert level["total_bytes"] == pytest.approx(folder["total_bytes"], rel=0.01)


def test_this_machine_s_gpus_where_there_are_none() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has GPUs")
    message = refused("plan", "--model", "demo", "--target", "auto", code=3)
    assert "driver" in message
    assert "quantkit targets" in message


WAY_OUT = re.compile(r"([\d.]+ [GM]iB) with ([\d,]+) tokens of (\w+) context \((--[^)]*)\)")


def test_where_nothing_fits_the_ways_out_do(tmp_path: Path) -> None:
    target = write_target(tmp_path / "t.yaml", 24, 24, kv_type="f16")
    given = ("--model", "demo", "--target", target)
    message = refused("plan", *given)
    assert "nothing fits mine" in message
    found = WAY_OUT.findall(message)
    assert found, message
    for size, tokens, kind, options in found:
        (level,) = plan(*given, *shlex.split(options))["levels"]
        run = level["placement"]["run"]
        assert run["context_tokens"] == int(tokens.replace(",", ""))
        assert run["kv_type"] == kind
        assert level["total_bytes"] <= 1.02 * float(size.split()[0]) * MIB


def test_a_file_that_does_not_fit_names_its_own_longest_context(tmp_path: Path) -> None:
    whole = write_demo(tmp_path / "demo-Q4_0.gguf", "Q4_0")
    target = write_target(tmp_path / "t.yaml", 24, 24, kv_type="f16")
    message = refused("plan", "--model", whole, "--target", target)
    kept = re.search(r"these types with [\d,]+ tokens of f16 context \(--context (\d+)\)", message)
    assert kept, message
    given = ("--model", whole, "--target", target, "--context")
    assert plan(*given, kept[1])["levels"]
    assert "does not fit mine" in refused("plan", *given, int(kept[1]) + 1024)


def test_no_way_out(tmp_path: Path) -> None:
    target = write_target(tmp_path / "t.yaml", 2, 2)
    assert "no context" in refused("plan", "--model", "demo", "--target", target)


def test_levels_that_are_too_large_are_left_out_and_said(tmp_path: Path) -> None:
    text = told("--model", "demo", *ONE, "--levels", "Q4,1GiB,max", "--budget", "4.5MiB")
    assert "4.50 MiB" in text
    assert "\nQ4: " in text
    assert "\nmax: " in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--verify", "--on", "gpu"), "--on gpu"),
        (("--picture", "p.gif"), "--picture p.gif"),
        (("--picture", "/proc/none/p.png"), "/proc/none/p.png"),
        (("--picture", "folder.png"), "folder.png"),
        (("--launch", "file"), "--launch file: "),
        (("--launch", "file/inside"), "--launch file/inside: "),
        (("--types", "Q4_K_M", "--levels", "Q4"), "--types"),
        (("--types", "Q9_9"), "--types Q9_9"),
        (("--levels", "Q4,nonsense"), "nonsense"),
        (("--budget", "much"), "--budget much"),
        (("--kv", "q9_0"), "kv_type"),
        (("--kv", "q8_0", "--recipe", "nonesuch"), "nonesuch"),
    ],
)
def test_wrong_input(given: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert words in refused("plan", "--model", "demo", "--target", "1x3090", *given, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_launch_files_are_of_one_artifact(tmp_path: Path) -> None:
    done = quantkit("plan", *DEMO, *ONE, "--launch", tmp_path / "l")
    assert (done.returncode, "4 are planned" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "l").exists()


def in_terminal(columns: int, *given: object) -> list[str]:
    """Lines that a terminal of so many columns gets, without colours."""
    written = written_in_terminal([*forked.PROGRAM, "plan", *map(str, given)], columns)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in written.splitlines()]


@pytest.mark.parametrize("columns", [NARROW, 100, WIDE])
def test_tables_keep_their_rows_in_a_terminal(columns: int, flagship: Path) -> None:
    """Of a row nothing is cut off or folded; only commands and sentences are longer than a line."""
    swept = columns == 100
    given = ("--model", flagship, "--target", "4x3090", "--verify", "--on", "fake")
    lines = in_terminal(columns, *given, *["--what-if"] * swept)
    rows = [line for line in lines if re.match(r" \d RTX 3090 ", line)]
    assert len(rows) == 4
    for row in rows:
        assert re.search(r"\d+%\s*$", row), row
        assert ("█" in row) is (columns >= 100)
    contexts = [line for line in lines if re.match(r" (32K|64K|128K|256K|504K|1M) ", line)]
    assert len(contexts) == 6 * swept
    assert len([line for line in lines if re.search(r" \d\.\d\d%\s*$", line)]) == 4
    assert len([line for line in lines if line.startswith(" ───")]) == 2 + swept
    for line in lines:
        sentence = ("Run it:", "Room left", "Budget ", "What would fit", "as it is")
        assert line.startswith(sentence) or len(line) <= columns, line
