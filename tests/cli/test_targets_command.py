"""`quantkit targets`: the list, and the largest artifact of a model for each."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_nemotron
from forked import facts, printed, refused
from loopback_hub import hub
from models import write_llama

from quantkit.config.target import known_targets, load_target

SMALL = """\
name: small
gpus:
  - {name: A2, memory_gib: 0.6, reserve_gib: 0}
context_tokens: 4096
kv_type: f16
"""
MANY = "name: many\ncards:\n  - {name: A2, memory_gib: 16, count: 16}\ncontext_tokens: 4096\n"


def test_the_list_has_what_ships_and_own_files(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    listed = facts("targets", "--target", "small.yaml", cwd=tmp_path)
    names = [one["name"] for one in listed]
    assert [name for name in names if name != "auto"] == [*known_targets(), "small"]
    by_name = dict(zip(names, listed, strict=True))
    assert by_name["4x3090"] == load_target("4x3090").model_dump(mode="json")
    shown = printed("targets")
    assert "Four GeForce RTX 3090" in shown
    assert "small" not in shown


def test_a_model_s_largest_artifacts_are_those_of_plans(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "many.yaml").write_text(MANY)
    chosen = ("--target", "small.yaml", "--target", "many.yaml", "--model", "demo")
    listed = facts("targets", *chosen, cwd=tmp_path)
    assert (listed["model"], listed["estimated"]) == ("quantkit-demo", None)
    by_name = {one["target"]: one for one in listed["targets"]}
    assert by_name.keys() >= {*known_targets(), "small", "many"}
    assert "16 GPUs" in by_name["many"]["refused"]
    small = by_name["small"]
    assert (small["kv_type"], small["refused"]) == ("f16", None)
    contexts = {one["context_tokens"]: one for one in small["budgets"]}
    assert list(contexts) == [32_768, 131_072, 516_096, 1_048_576]
    assert contexts[1_048_576]["largest_bytes"] is None
    assert contexts[1_048_576]["bits_per_weight"] is None
    words = ("plan", "--model", "demo", "--target", "small.yaml", "--levels", "max")
    (level,) = facts(*words, "--context", "32768", cwd=tmp_path)["levels"]
    assert contexts[32_768]["largest_bytes"] == level["total_bytes"]
    assert contexts[32_768]["bits_per_weight"] == level["bits_per_weight"]
    assert "does not fit small" in refused(*words, "--context", "1048576", cwd=tmp_path)
    shown = printed("targets", *chosen, cwd=tmp_path)
    (row,) = (line for line in shown.splitlines() if line.strip().startswith("small "))
    assert row.split()[-2:] == ["-", "f16"]
    assert f"{level['total_bytes'] / 2**20:.2f} {level['bits_per_weight']:.2f}" in row
    (head,) = (line for line in shown.splitlines() if line.strip().startswith("target  "))
    assert head.split() == ["target", "32K", "128K", "504K", "1M", "KV"]
    assert "many: " in shown
    assert "asking llama.cpp" in shown


def test_a_gguf_is_listed_at_the_context_that_it_was_trained_for(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf")
    for one in facts("targets", "--model", model)["targets"]:
        (budget,) = one["budgets"]
        assert budget["context_tokens"] == 512
        assert 0 < budget["largest_bytes"] <= model.stat().st_size


def test_a_repository_is_listed_as_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_nemotron(tmp_path / "small", shards=2, head_dim=32)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with hub({"someone/small": folder}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        of_repository = facts("targets", "--model", "someone/small", cwd=tmp_path)
    assert of_repository == facts("targets", "--model", folder)


def test_what_cannot_be_listed_is_refused() -> None:
    assert "--target 4x3090" in refused("targets", "--target", "4x3090")
    assert "--model" in refused("targets", "--recipe", "default")
    assert "nowhere/at/all" in refused("targets", "--model", "nowhere/at/all")
