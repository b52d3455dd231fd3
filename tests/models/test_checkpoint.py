"""A checkpoint as a TensorSource: every GGUF tensor against the arrays that were written."""

from __future__ import annotations

import gc
import getpass
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    LLAMA,
    NEMOTRON,
    llama_arrays,
    nemotron_arrays,
    write_checkpoint,
    write_llama,
    write_nemotron,
    write_safetensors,
)
from hypothesis import given
from hypothesis import strategies as st

from quantkit.config.recipe import recipe_for
from quantkit.core.errors import InputError
from quantkit.formats.tensor_types import quant_type
from quantkit.llamacpp.ggml_kernels import quantize
from quantkit.models.checkpoint import CheckpointSource, open_checkpoint
from quantkit.models.choose import choose_model, open_source


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointSource]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "nemotron": open_checkpoint(write_nemotron(folder / "nemotron", shards=3)),
        "llama": open_checkpoint(write_llama(folder / "llama", "F16", attention_bias=True)),
    }


@given(data=st.data())
def test_any_row_range_is_the_slice_of_the_whole_and_stored_as_the_base_gguf_has_it(
    sources: dict[str, CheckpointSource], data: st.DataObject
) -> None:
    source = sources[data.draw(st.sampled_from(sorted(sources)))]
    info = data.draw(st.sampled_from(source.tensors))
    start = data.draw(st.integers(0, info.rows))
    stop = data.draw(st.integers(start, info.rows))
    whole = source.read_rows(info.name, 0, info.rows)
    rows = source.read_rows(info.name, start, stop)
    assert rows.dtype == np.float32
    assert rows.shape == (stop - start, info.row_elements)
    np.testing.assert_array_equal(rows, whole[start:stop])
    stored = source.read_stored(info.name, start, stop)
    if stored is not None:
        expected = quantize(quant_type(info.type_name), rows, None)
        np.testing.assert_array_equal(stored, expected.reshape(stored.shape))


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 10**9), (2, 1)])
def test_rows_outside_the_tensor_are_a_bug_of_the_caller(
    sources: dict[str, CheckpointSource], start: int, stop: int
) -> None:
    with pytest.raises(IndexError, match="token_embd"):
        sources["nemotron"].read_rows("token_embd.weight", start, stop)


def test_experts_are_stacked_in_order(sources: dict[str, CheckpointSource]) -> None:
    arrays, source = nemotron_arrays(NEMOTRON), sources["nemotron"]
    for name, rows in (("down", 4 * 16), ("up", 4 * 24)):
        parts = [f"backbone.layers.3.mixer.experts.{e}.{name}_proj.weight" for e in range(4)]
        read = source.read_rows(f"blk.3.ffn_{name}_exps.weight", 0, rows)
        np.testing.assert_array_equal(read, np.concatenate([arrays[part] for part in parts]))


def test_reading_experts_touches_only_the_parts_that_are_asked_for(
    sources: dict[str, CheckpointSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources["nemotron"]
    asked: list[tuple[str, int]] = []
    for file in set(source._files._file_of.values()):
        read = file.read_raw_into
        monkeypatch.setattr(
            file,
            "read_raw_into",
            lambda n, a, out, read=read: (asked.append((n, out.nbytes // 2)), read(n, a, out)),
        )
    # 16 rows of 24 in each of 4 experts: rows 15 to 33 are one, sixteen and one of them.
    source.read_rows("blk.1.ffn_down_exps.weight", 15, 33)
    assert asked == [
        (f"backbone.layers.1.mixer.experts.{e}.down_proj.weight", rows * 24)
        for e, rows in ((0, 1), (1, 16), (2, 1))
    ]


def test_rows_are_copied_as_stored_wherever_only_their_order_changes(
    sources: dict[str, CheckpointSource],
) -> None:
    nemotron = sources["nemotron"]
    for name in ("blk.0.ssm_in.weight", "blk.1.ffn_up_exps.weight", "blk.2.attn_q.weight"):
        assert nemotron.read_stored(name, 0, 1) is not None
    for name in ("blk.0.attn_norm.weight", "blk.0.ssm_a"):  # BF16 in the file, F32 in the GGUF
        assert nemotron.read_stored(name, 0, 1) is None
    assert sources["llama"].read_stored("blk.0.attn_q.weight", 0, 1) is not None  # F16 in both
    assert sources["llama"].read_stored("blk.0.attn_norm.weight", 0, 1) is None


@pytest.mark.parametrize(("dtype", "file_type"), [("BF16", 32), ("F16", 1), ("F32", 0)])
def test_matrices_keep_the_checkpoint_s_precision(
    tmp_path: Path, dtype: str, file_type: int
) -> None:
    source = open_checkpoint(write_nemotron(tmp_path / "m", dtype))
    types = {t.name: t.type_name for t in source.tensors}
    for name in ("token_embd.weight", "blk.0.ssm_in.weight", "blk.1.ffn_up_exps.weight"):
        assert types[name] == dtype
        assert source.read_stored(name, 0, 1) is not None
    for name in ("blk.0.attn_norm", "blk.0.ssm_conv1d", "blk.1.ffn_gate_inp"):
        assert types[f"{name}.weight"] == "F32"
    stored = source.read_stored("blk.0.attn_norm.weight", 0, 1)
    assert (stored is not None) is (dtype == "F32")
    assert source.metadata["general.file_type"].value == file_type


def test_a_checkpoint_of_several_dtypes_keeps_each(tmp_path: Path) -> None:
    """Experts of two dtypes are stacked in F32, which holds both."""
    arrays = nemotron_arrays(NEMOTRON)
    expert = "backbone.layers.1.mixer.experts.{}.{}_proj.weight".format
    arrays[expert(2, "up")][0, 0] = 1 + 2**-20  # in F32 alone
    arrays[expert(1, "down")][0, 0] = 1 + 2**-10  # in F16, not in BF16
    dtypes = {expert(2, "up"): "F32", expert(1, "down"): "F16", "lm_head.weight": "F16"}
    source = open_checkpoint(write_checkpoint(tmp_path / "m", NEMOTRON, arrays, dtypes))
    types = {t.name: t.type_name for t in source.tensors}
    assert types["output.weight"] == "F16"
    assert types["token_embd.weight"] == "BF16"
    for kind in ("up", "down"):
        name = f"blk.1.ffn_{kind}_exps.weight"
        stack = np.concatenate([arrays[expert(e, kind)] for e in range(4)])
        assert types[name] == "F32"
        assert source.read_stored(name, 0, 1) is None
        for start, stop in ((0, len(stack)), (15, 33), (7, 7)):
            rows = source.read_rows(name, start, stop)
            np.testing.assert_array_equal(rows, stack[start:stop], strict=True)


@pytest.mark.parametrize("copied", [True, False])
def test_an_output_beside_tied_embeddings_is_kept_where_it_differs(
    tmp_path: Path, copied: bool
) -> None:
    arrays = llama_arrays(LLAMA)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    if not copied:
        arrays["lm_head.weight"][-1, -1] += 1
    source = open_checkpoint(write_checkpoint(tmp_path / "m", LLAMA, arrays))
    assert ("output.weight" in {t.name for t in source.tensors}) is not copied


def test_general_metadata(tmp_path: Path) -> None:
    folder = write_nemotron(tmp_path / "NVIDIA-Nemotron-Tiny")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: open\nlanguage: [en, fr]\n---\n# x\n", encoding="utf-8"
    )
    (folder / "generation_config.json").write_text('{"top_p": 0.5, "repetition_penalty": 1.5}')
    metadata = open_checkpoint(folder).metadata
    general = {k: v.value for k, v in metadata.items() if k.startswith("general.")}
    assert general == {
        "general.architecture": "nemotron_h_moe",
        "general.type": "model",
        "general.name": "NVIDIA Nemotron Tiny",
        "general.size_label": "4x36K",
        "general.license": "other",
        "general.license.name": "open",
        "general.languages": ("en", "fr"),
        "general.sampling.top_p": 0.5,
        "general.sampling.penalty_repeat": 1.5,
        "general.file_type": 32,
        "general.quantization_version": 2,
    }
    assert next(iter(metadata)) == "general.architecture"


def test_no_path_and_no_user_name_gets_into_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nemotron(tmp_path / "m")
    monkeypatch.chdir(tmp_path / "m")
    values = str(open_checkpoint(Path()).metadata)
    assert str(tmp_path.parent) not in values
    assert getpass.getuser() not in values
    assert open_checkpoint(Path()).metadata["general.name"].value == "M"
    assert open_checkpoint(Path(), "Given").metadata["general.name"].value == "Given"


@pytest.mark.parametrize(
    "where",
    [
        "/home/somebody/base", "~/runs/somebody", "./somebody", "../somebody/base", "a/somebody/7b",
        "C:\\Users\\somebody", "\\\\host\\somebody", "file:///home/somebody", "from /home/somebody",
        "FILE:///home/somebody", " /home/somebody/x", "'/home/somebody/x'", "$HOME/somebody",
        "C:/somebody", "%HOME%\\somebody", "https://somebody:word@host/x", "somebody@host:/data",
    ],
)  # fmt: skip
def test_no_path_of_others_gets_into_the_metadata(tmp_path: Path, where: str) -> None:
    folder = write_llama(tmp_path / "m", _name_or_path=where)
    card = {
        "base_model": where,
        "datasets": [where, "acme/texts"],
        "tags": ["a", "/home/somebody"],
        "license_name": "as in /home/somebody/LICENSE",
        "license": "file:///home/somebody",
        "author": "C:/Users/somebody/x",
        "model_description": "/home/somebody/notes",
        "license_link": "./LICENSE",
    }
    for value in (
        where,
        [where, "acme/Base-7B"],
        [{"name": "/home/somebody", "url": "https://a"}],
        [{"name": "Base", "repo_url": "../somebody/x"}],
    ):
        (folder / "README.md").write_text(f"---\n{json.dumps(card | {'base_model': value})}\n---\n")
        metadata = open_checkpoint(folder).metadata
        assert "somebody" not in str(metadata)
        assert metadata["general.dataset.0.repo_url"].value == "https://huggingface.co/acme/texts"
        assert metadata["general.license.link"].value == "./LICENSE"
        count = metadata.get("general.base_model.count")
        assert (count and count.value) == (None if value is where else 1)


def _cached(hub: Path, repository: str, sha: str) -> Path:
    """A snapshot in the Hub's cache: links to blobs."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / sha
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    source = write_llama(folder / f"source of {sha}")
    for number, file in enumerate(sorted(source.iterdir())):
        blob = folder / "blobs" / f"{sha}{number}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_a_snapshot_of_the_hubs_cache_is_named_after_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha, other = "9f" * 20, "0a" * 20
    snapshot = _cached(tmp_path, "acme/Tiny-Chat-BF16", sha)
    folder, link = snapshot.parents[1], tmp_path / "link"
    link.symlink_to(snapshot)
    monkeypatch.chdir(snapshot)
    for place in (snapshot, folder, link, Path(), folder.joinpath("..", folder.name)):
        choice = choose_model(str(place))
        assert choice.name == "Tiny-Chat"
        assert choice.path is not None
        assert choice.path.resolve() == snapshot
        metadata = open_source(choice).metadata
        assert metadata["general.name"].value == "Tiny-Chat"
        assert sha not in str(metadata)
    alone = open_checkpoint(snapshot).metadata
    assert alone["general.name"].value == "Tiny-Chat-BF16"
    assert sha not in str(alone)
    _cached(tmp_path, "acme/Tiny-Chat-BF16", other)
    with pytest.raises(InputError, match=other):
        choose_model(str(folder))
    (folder / "refs").mkdir()
    for commit in (sha, other):
        (folder / "refs" / "main").write_text(commit)
        assert choose_model(str(folder)).path == folder / "snapshots" / commit


def test_a_snapshot_of_the_hubs_cache_gets_the_recipe_of_its_repository(tmp_path: Path) -> None:
    model = "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"
    snapshot = _cached(tmp_path, model, "9f" * 20)
    assert recipe_for(snapshot).model == recipe_for(snapshot.parents[1]).model == model


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def _weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    arrays = nemotron_arrays(NEMOTRON)
    change(arrays)
    write_safetensors(folder / "model.safetensors", arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json.*a checkpoint"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "not valid JSON"),
        (lambda f: os.truncate(f / "config.json", 20 << 30), "config.json.*50,331,648"),
        (lambda f: _config(f, architectures=["GPT5"]), "'GPT5'.*NemotronHForCausalLM.*file.gguf"),
        (lambda f: _config(f, architectures="absent", model_type="x"), "architecture None"),
        (lambda f: _config(f, hidden_size="absent"), r"promises \[320, 4096\]"),
        (lambda f: _config(f, hidden_size=-4), "hidden_size is -4"),
        (lambda f: _config(f, hidden_size=True), "hidden_size is True"),
        (lambda f: _config(f, layer_norm_epsilon="x"), "layer_norm_epsilon is 'x'"),
        (lambda f: _config(f, hybrid_override_pattern="MEXE"), "layers of kind X"),
        (lambda f: _config(f, hybrid_override_pattern="ME*-"), r"dense \(mlp\) and MoE"),
        (lambda f: _config(f, hidden_size="absent", model_type="x"), "lacks hidden_size"),
        (lambda f: _config(f, hybrid_override_pattern="absent", model_type="x"), "lacks hybrid"),
        (lambda f: _config(f, num_hidden_layers=10**8), "at most 512"),
        (lambda f: _config(f, head_dim=16), r"q_proj.weight has shape \[32, 32\].*\[64, 32\]"),
        (
            lambda f: _config(f, hybrid_override_pattern="ME*"),
            "unknown to its architecture.*layers.3",
        ),
        (lambda f: _config(f, quantization_config={"quant_method": "fp8"}), "quantized checkpoint"),
        (lambda f: _config(f, vocab_size=100), r"embeddings.weight has shape"),
        (lambda f: _weights(f, lambda t: t.pop("lm_head.weight")), "no lm_head.weight"),
        (
            lambda f: _weights(
                f, lambda t: t.pop("backbone.layers.1.mixer.experts.2.up_proj.weight")
            ),
            "no tensor backbone.layers.1.mixer.experts.2.up_proj.weight, which blk.1.ffn_up_exps",
        ),
        (lambda f: _weights(f, lambda t: t.update(extra=t["lm_head.weight"])), "first is extra"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "front matter"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no"),
    ],
)
def test_a_broken_checkpoint_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write_nemotron(tmp_path / "m")
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def _index(folder: Path, *more: str) -> None:
    names = [*llama_arrays(LLAMA), *more]
    file = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / file)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_what_only_the_index_names_is_an_error_where_the_model_needs_it(tmp_path: Path) -> None:
    """A tied output and buffers are left out of the files, and transformers misses nothing."""
    _index(write_llama(tmp_path / "tied"), "lm_head.weight", "model.layers.0.rotary_emb.inv_freq")
    tied = open_checkpoint(tmp_path / "tied")
    assert "output.weight" not in {info.name for info in tied.tensors}
    for number, name in enumerate(("layers.0.self_attn.q_proj.bias", "layers.1.mlp.up_proj.bias")):
        folder = write_llama(tmp_path / str(number))
        _index(folder, f"model.{name}")
        with pytest.raises(InputError, match=name):
            open_checkpoint(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.model.", "model.language_model.", "module.model."])
def test_another_prefix_is_named(tmp_path: Path, prefix: str) -> None:
    arrays = {k.replace("model.", prefix): v for k, v in llama_arrays(LLAMA).items()}
    with pytest.raises(InputError, match=f"'{prefix}'"):
        open_checkpoint(write_checkpoint(tmp_path / "m", LLAMA, arrays))


def test_an_adapter_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a.lora_A.weight": np.ones((1, 2))})
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="adapter"):
        open_checkpoint(tmp_path)


def test_packed_weights_are_named(tmp_path: Path) -> None:
    arrays = llama_arrays(LLAMA)
    name = "model.layers.1.mlp.up_proj"
    arrays[f"{name}.qweight"] = arrays.pop(f"{name}.weight")
    with pytest.raises(InputError, match=f"{name}.qweight"):
        open_checkpoint(write_checkpoint(tmp_path / "m", LLAMA, arrays))


def test_a_missing_tensor_is_no_matter_of_prefixes(tmp_path: Path) -> None:
    arrays = llama_arrays(LLAMA)
    arrays["mtp.layers.1.mlp.up_proj.weight"] = arrays.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match="is every shard there"):
        open_checkpoint(write_checkpoint(tmp_path / "m", LLAMA, arrays))


def test_quantization_is_told_from_an_entry_that_was_left_over(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match=r"BF16: .*remove quantization_config"):
        open_checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" ', 1))
    with pytest.raises(InputError, match="BF16 release"):
        open_checkpoint(folder)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 17209961\n"
JSON_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "special_tokens_map.json", "model.safetensors.index.json",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [*JSON_FILES, "tokenizer.model", "model-00001-of-00001.safetensors"]
)
def test_a_pointer_or_a_page_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_llama(tmp_path / "m")
    _index(folder)
    for content, word in ((LFS, "git-lfs"), (b"\n<!DOCTYPE html><html>", "web page")):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is a {word}"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_of_windows_before_json_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    folder = write_llama(tmp_path / "m")
    _index(folder)
    path = folder / name
    path.write_bytes((path.read_text() if path.exists() else "{}").encode(encoding))
    with pytest.raises(InputError, match=rf"{name} begins with .*UTF-8"):
        open_checkpoint(folder)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_dtype_that_is_not_converted_is_refused_on_opening(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", NEMOTRON, nemotron_arrays(NEMOTRON))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" ', 1))
    with pytest.raises(InputError, match=r"embeddings\.weight has dtype I16.*BF16 release"):
        open_checkpoint(folder)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_as_before(enabled: bool, tmp_path: Path) -> None:
    folder = write_nemotron(tmp_path / "m")
    try:
        (gc.enable if enabled else gc.disable)()
        open_checkpoint(folder)
        assert gc.isenabled() == enabled
        (folder / "tokenizer.json").unlink()
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            open_checkpoint(folder)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
