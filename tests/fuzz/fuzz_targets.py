"""Every reader of files that anybody may have written, with files of quantkit's own writers.

A target is made in a folder of its own, best in memory, where each input is written as a file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

import fuzz_inputs as forms
import numpy as np
import yaml
from checkpoints import write_llama, write_nemotron
from finished_levels import answers_of, finish_level
from fuzz_target import Target, put
from granite_checkpoints import write_granite
from qwen_checkpoints import QWEN2, QWEN3, QWEN3_MOE, write_qwen

from quantkit.config.recipe import known_recipes, load_recipe, recipe_for
from quantkit.config.target import known_targets, load_target
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.paths import DEMO_MODEL, resource
from quantkit.core.progress import SILENT
from quantkit.core.receipts import (
    finished_receipts,
    read_receipt,
    stale_reason,
    write_receipt,
)
from quantkit.core.work_folders import Journal, resumable
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.formats.logits_file import LogitsFile, header_of
from quantkit.formats.safetensors_files import SafetensorsFolder, weight_paths
from quantkit.formats.tensors import MetaValue
from quantkit.hub.downloads import Kept
from quantkit.models.checkpoint import open_checkpoint

DATA = Path(__file__).parents[1] / "data"
COMMIT = "c" * 40
Make = Callable[[Path], Target]

TARGETS: dict[str, Make] = {}
"""Name → what makes the target in a folder."""


def target(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        TARGETS[name] = make
        return make

    return add


def of_file(
    path: Path,
    read: Callable[[Path], object],
    form: forms.Mutation,
    *seeds: bytes,
    slow: bool = False,
) -> Target:
    """Of a reader of one path; a file that is there already is a seed."""
    known = (path.read_bytes(),) if path.is_file() else ()
    return Target(lambda data: read(put(path, data)), (*seeds, *known), form, slow)


class _Offline:
    """A Hub that cannot be reached, so that only what is kept of it counts."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def fail(*_: object, **__: object) -> NoReturn:
            raise EnvironmentFault("no network")

        return fail


# --- weights ---


@target("gguf")
def _gguf(folder: Path) -> Target:
    from models import llama_metadata, write_gguf
    from models import write_llama as write_llama_gguf

    from quantkit.models.end_tokens import end_ids, stop_texts, unread_stop_texts
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.models.model import Model
    from quantkit.release.card.front_matter import from_metadata

    path = write_llama_gguf(folder / "model.gguf")
    start, size = path.read_bytes()[:60_000], path.stat().st_size
    path.unlink()
    kinds = {
        "a.u8": MetaValue("u8", 1), "a.i64": MetaValue("i64", -1), "a.f64": MetaValue("f64", 0.5),
        "a.bool": MetaValue("bool", True), "a.floats": MetaValue("f32", (1.0, 2.0)),
        "tokenizer.ggml.tokens": MetaValue("str", ("a", "</s>")),
        "tokenizer.ggml.eos_token_id": MetaValue("u32", 1),
        "tokenizer.ggml.eot_token_id": MetaValue("u32", 0),
        "tokenizer.chat_template": MetaValue("str", "{{ m }}"),
        "general.tags": MetaValue("str", ("text-generation", "x")),
        "general.license": MetaValue("str", "apache-2.0"),
    }  # fmt: skip
    arrays = {"token_embd.weight": np.ones((4, 32), np.float32)}
    small = write_gguf(
        folder / "small.gguf", llama_metadata() | kinds, arrays, {"token_embd.weight": "Q4_0"}
    )

    def read(path: Path) -> None:
        source = GGUFSource(path)
        model = Model.of("model", source)
        assert model.geometry.layers is not None
        end_ids(source.metadata), stop_texts(source.metadata), unread_stop_texts(source.metadata)
        from_metadata(source.metadata)
        for info in source.tensors[:3]:
            if info.rows and info.row_elements < 1 << 20:
                source.read_rows(info.name, 0, 1)

    return of_file(path, read, forms.as_gguf, small.read_bytes(), _with_hole(start, size))


def _with_hole(start: bytes, size: int) -> bytes:
    return start + forms.SPARSE + struct.pack("<Q", size)


@target("gguf shard")
def _shard(folder: Path) -> Target:
    from models import write_gguf

    from quantkit.models.gguf_source import GGUFSource

    names = [f"m-{n:05}-of-00002.gguf" for n in (1, 2)]
    for number, name in enumerate(names):
        said = {
            "general.architecture": MetaValue("str", "llama"),
            "split.no": MetaValue("u16", number),
            "split.count": MetaValue("u16", 2),
            "split.tensors.count": MetaValue("i32", 2),
        }
        made = write_gguf(folder / "m.gguf", said, {f"{number}.w": np.ones((1, 32), np.float32)})
        made.rename(folder / name)
    first = folder / names[0]
    return of_file(folder / names[1], lambda _: GGUFSource(first), forms.as_gguf)


@target("safetensors")
def _safetensors(folder: Path) -> Target:
    write_llama(folder)

    def read(path: Path) -> None:
        found = SafetensorsFolder(path.parent)
        for name, entry in found.entries.items():
            if entry.dtype in ("BF16", "F16", "F32") and 0 < entry.elements < 1 << 20:
                found.file_of(name).read_raw(name, 0, entry.elements)

    small = json.dumps({"a": {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]}}).encode()
    seed = len(small).to_bytes(8, "little") + small + bytes(4)
    return of_file(folder / "model.safetensors", read, forms.as_safetensors, seed)


@target("index of shards")
def _index(folder: Path) -> Target:
    write_llama(folder, shards=2)

    def read(path: Path) -> None:
        weight_paths(path.parent)
        SafetensorsFolder(path.parent)

    return of_file(folder / "model.safetensors.index.json", read, forms.as_json)


# --- a checkpoint's other files ---


class _Enough(Exception):
    """Raised where the tokenizer would be read."""


def _config(write: Callable[[Path], Path], folder: Path) -> Target:
    write(folder)

    def stop(*_: object) -> NoReturn:
        raise _Enough

    def read(path: Path) -> None:
        with suppress(_Enough):
            open_checkpoint(path.parent, on_shape=stop)

    return of_file(folder / "config.json", read, forms.as_json)


for _name, _write in {
    "llama": write_llama,
    "nemotron_h": write_nemotron,
    "granite": write_granite,
    "qwen2": lambda folder: write_qwen(folder, QWEN2),
    "qwen3": lambda folder: write_qwen(folder, QWEN3),
    "qwen3_moe": lambda folder: write_qwen(folder, QWEN3_MOE),
}.items():
    TARGETS[f"config.json of {_name}"] = partial(_config, _write)


@target("config.json of a repository")
def _remote_config(folder: Path) -> Target:
    """As it is checked before any weights are downloaded."""
    from quantkit.models.families.base import without_prediction
    from quantkit.models.families.registry import check_not_quantized, described
    from quantkit.models.json_files import parse_json

    def read(data: bytes) -> None:
        raw = without_prediction(parse_json(data, "config.json"))
        found = described(raw)
        check_not_quantized(raw, "config.json")
        found.family.metadata(found.config)

    seeds = tuple(path.read_bytes() for path in sorted((DATA / "configs").glob("*.json")))
    return Target(read, seeds, forms.as_json)


def _tokenizer(name: str, folder: Path) -> Target:
    """Of one file of the tokenizer, beside the others as they should be."""
    shutil.copytree(DEMO_MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_bytes())
    path = folder / name
    seeds = [] if path.is_file() else [EXTRA[name]]

    def read(_: Path) -> None:
        from quantkit.models.tokenizers.vocabulary import tokenizer_metadata

        tokenizer_metadata(folder, config)

    if name == "tokenizer.json":  # the demo's is large: this one has all kinds of parts
        from checkpoints import byte_level_tokenizer

        (folder / "tokenizer_config.json").write_text("{}")
        config["vocab_size"] = 320
        seeds = [json.dumps(byte_level_tokenizer()).encode()]
        path.unlink()
    form = forms.as_json if path.suffix == ".json" else forms.bytewise
    return of_file(path, read, form, *seeds, slow=True)


EXTRA = {
    "special_tokens_map.json": b'{"eos_token": {"content": "<|im_end|>", "lstrip": false, '
    b'"rstrip": false, "single_word": false, "normalized": false}, "unk_token": "<unk>"}',
    "added_tokens.json": b'{"<think>": 511, "<|tool|>": 510}',
    "chat_template.json": b'{"chat_template": "{{ messages }}"}',
}
for _name in (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *EXTRA,
):  # fmt: skip
    TARGETS[_name] = partial(_tokenizer, _name)


def _pieces(name: str, folder: Path) -> Target:
    """Of a tokenizer without a tokenizer.json: SentencePiece's, or a BPE in two files."""
    from quantkit.models.tokenizers.vocabulary import tokenizer_metadata

    pieces = ((b"<unk>", 0.0, 2), (b"a", -1.0, 1), (b"<0x0A>", 0.0, 6), (b"ab", -2.0, 1))
    messages = [
        b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
        + b"\x18" + bytes([kind])
        for text, score, kind in pieces
    ]  # fmt: skip
    trained_as_bpe = b"\x12\x02\x18\x02"
    model = b"".join(b"\x0a" + bytes([len(m)]) + m for m in messages) + trained_as_bpe
    vocabulary = json.loads((DEMO_MODEL / "tokenizer.json").read_bytes())["model"]["vocab"]
    kind = "llama" if name == "tokenizer.model" else "qwen2"
    config = {"model_type": kind, "vocab_size": 2 * len(vocabulary)}
    seeds = {
        "tokenizer.model": model,
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": "#version: 0.2\n\u0120 t\ne r\n".encode(),
    }
    for other in seeds.keys() - {name}:
        if (other == "tokenizer.model") == (name == "tokenizer.model"):
            (folder / other).write_bytes(seeds[other])
    form = forms.as_json if name == "vocab.json" else forms.bytewise

    def read(path: Path) -> None:
        tokenizer_metadata(path.parent, config)

    return of_file(folder / name, read, form, seeds[name], slow=True)


for _name in ("tokenizer.model", "vocab.json", "merges.txt"):
    TARGETS[_name] = partial(_pieces, _name)


@target("generation_config.json")
def _generation(folder: Path) -> Target:
    from quantkit.models.general_metadata import general_metadata

    shutil.copy(DEMO_MODEL / "config.json", folder)
    seeds = (
        (DEMO_MODEL / "generation_config.json").read_bytes(),
        b'{"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.95, "top_k": 20, '
        b'"repetition_penalty": 1.05, "min_p": 0.0}',
    )
    path = folder / "generation_config.json"
    return of_file(path, lambda p: general_metadata(p.parent, (), None), forms.as_json, *seeds)


@target("model card")
def _card(folder: Path) -> Target:
    from quantkit.models.general_metadata import general_metadata

    shutil.copy(DEMO_MODEL / "config.json", folder)
    front = {
        "license": "apache-2.0", "language": ["en", "de"], "tags": ["a", "b"],
        "base_model": ["owner/name"], "datasets": ["owner/data"], "model_name": "X 7B",
        "pipeline_tag": "text-generation", "license_link": "LICENSE",
        "model-index": [{"name": "x", "results": [{"task": {"type": "t"}}]}],
    }  # fmt: skip
    seeds = (
        (DEMO_MODEL / "README.md").read_bytes(),
        f"---\n{yaml.safe_dump(front)}---\n# X\n".encode(),
    )
    path = folder / "README.md"
    return of_file(path, lambda p: general_metadata(p.parent, (), None), forms.as_card, *seeds)


@target("chat template")
def _template(_: Path) -> Target:
    """Compiled only: it runs in a process of its own, with limits."""
    from quantkit.models import chat_rendering

    def read(data: bytes) -> None:
        try:
            chat_rendering._compiled.__wrapped__(data.decode("utf-8", "replace"))
        except Exception as error:  # noqa: BLE001 - as `render` does
            raise chat_rendering._failure(error) from None

    return Target(read, ((DEMO_MODEL / "chat_template.jinja").read_bytes(),), forms.bytewise)


# --- what quantkit writes and others may send ---


def _small_imatrix(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    entries = {
        "blk.0.attn_q.weight": ImatrixEntry(
            rng.random((1, 32), np.float32), np.full(1, 8, np.float32)
        ),
        "blk.1.ffn_up_exps.weight": ImatrixEntry(
            rng.random((4, 8), np.float32), np.array([3, 0, 1, 9], np.float32)
        ),
    }
    write_imatrix(folder / "imatrix.gguf", Imatrix(entries, 512, 4, ("a.txt", "hf://x")))
    return folder / "imatrix.gguf"


def _use_imatrix(path: Path) -> None:
    """As a build, `quantkit imatrix` and the report use it."""
    from quantkit.study.imatrix_coverage import coverage_of, top_weights, weight_statistics

    rows = {"blk.0.attn_q.weight": 32, "blk.1.ffn_up_exps.weight": 8}
    for known in (rows, None):
        found = read_imatrix(path, known)
        found.importance(), [entry.is_usable for entry in found.entries.values()]
        coverage_of(found.entries), weight_statistics(found), top_weights(found)
        assert found.dataset_names is not None


@target("imatrix")
def _imatrix(folder: Path) -> Target:
    return of_file(_small_imatrix(folder), _use_imatrix, forms.as_gguf)


@target("legacy imatrix")
def _legacy(folder: Path) -> Target:
    def entry(name: bytes, values: int) -> bytes:
        numbers = struct.pack(f"<{values}f", *range(1, values + 1))
        return struct.pack("<i", len(name)) + name + struct.pack("<ii", 4, values) + numbers

    whole = struct.pack("<i", 2) + entry(b"blk.0.attn_q.weight", 32)
    whole += entry(b"blk.1.ffn_up_exps.weight", 16) + struct.pack("<ii", 4, 5) + b"a.txt"
    return of_file(folder / "imatrix.dat", _use_imatrix, forms.as_dat, whole)


def _logits(path: Path, vocabulary: Mapping[str, str] | None = None) -> LogitsFile:
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8) % 5
    header = header_of("base.gguf", "text.txt", vocabulary or {"model": "x"}, 5, 1, tokens)
    path.write_bytes(
        header.start_bytes(tokens) + bytes(header.positions * header.row_type.itemsize)
    )
    return LogitsFile(path)


@target("base.logits")
def _base_logits(folder: Path) -> Target:
    from quantkit.formats.logits_file import check_vocabulary, decode_rows, next_tokens
    from quantkit.report.comparison.run import base_positions

    def read(path: Path) -> None:
        found = LogitsFile(path)
        check_vocabulary("a", {"model": "x"}, found.header.model, found.header.vocabulary)
        next_tokens(found.tokens[0])
        decode_rows(found.read_rows(0, 0, 1))
        base_positions(found).summary()

    path = folder / "base.logits"
    _logits(path)
    return of_file(path, read, forms.as_logits)


@target("kept positions")
def _positions(folder: Path) -> Target:
    """The cache of an artifact's KLD, a line for each chunk."""
    from models import llama_metadata, write_gguf

    from quantkit.core.files import identity
    from quantkit.formats.logits_file import vocabulary_id
    from quantkit.llamacpp.settings import DeviceSettings
    from quantkit.study import divergence

    logits, artifact = folder / "base.logits", folder / "a.gguf"
    write_gguf(artifact, llama_metadata(), {"a": np.ones((1, 32), np.float32)})
    header = _logits(logits, vocabulary_id(llama_metadata())).header
    line = {"kld": [0.1] * header.rows, "nll": [1.5] * header.rows, "same_top": [1] * header.rows}
    purpose = json.dumps([asdict(header), identity([logits, artifact])])

    def again(*_: object) -> NoReturn:
        raise InputError("it is measured again")

    def read(path: Path) -> None:
        with patch.object(divergence, "run_isolated", again), suppress(InputError):
            divergence.measure_kld(logits, artifact, path, DeviceSettings(1, False, 0)).summary()

    seed = f"{purpose}\n".encode() + (json.dumps(line) + "\n").encode() * header.chunks
    return of_file(folder / "kept.jsonl", read, forms.as_lines, seed)


@target("recipe")
def _recipe(folder: Path) -> Target:
    def read(path: Path) -> None:
        recipe = load_recipe(path)
        recipe.model_dump_json(), recipe.imatrix.sources, recipe.retrieval.tasks
        for level in recipe.levels:
            level.bits(10**9)

    seeds = [path.read_bytes() for path in known_recipes().values()]
    return of_file(folder / "recipe.yaml", read, forms.as_yaml, *seeds)


@target("target")
def _target(folder: Path) -> Target:
    def read(path: Path) -> None:
        found = load_target(str(path))
        found.run, found.gpu_bytes, found.weight_budget_bytes, found.model_dump_json()
        found.changed(context_tokens=4096)

    places = [resource("recipes") / "targets" / f"{name}.yaml" for name in known_targets()]
    seeds = [path.read_bytes() for path in places]
    return of_file(folder / "target.yaml", read, forms.as_yaml, *seeds)


@target("sensitivity.json")
def _sensitivity(folder: Path) -> Target:
    from quantkit.study.sensitivity import Probe, SampledRows, Sensitivity, UnitCost

    names = ("blk.0.attn_q.weight", "blk.1.attn_q.weight")
    probe = Probe({names[0]: "Q4_K"}, {names[0]: 1.0}, {names[0]: 0.01}, 0.002, (0.001, 0.003))
    Sensitivity(
        recipe=recipe_for("demo").measure,
        sampling={names[0]: SampledRows(8, 16, 0.1)},
        errors={name: {"Q4_K": 0.01, "Q8_0": 0.0001} for name in names},
        costs=(UnitCost(names[:1], (probe,), 0.0001),),
    ).write(folder / "sensitivity.json")

    def read(path: Path) -> None:
        found = Sensitivity.read(path)
        found.tensor_costs(), found.dearest(), found.text()
        found.predicted({name: kind for name, kinds in found.errors.items() for kind in kinds})

    return of_file(folder / "sensitivity.json", read, forms.as_json)


def _level(name: str, folder: Path) -> Target:
    """Of a file of a finished level, which the report shows."""
    from quantkit.core.receipts import Output, Receipt
    from quantkit.report.results import read_answers, read_level

    answers = [a for a in answers_of(0.2, each=2) if a.index < 2]
    finish_level(folder, "Q4", answers)
    receipt = Receipt("quantize:Q4", {}, (Output("m.gguf", 9, 0, ""),), 1.0, {})

    def read(path: Path) -> None:
        result = read_level(folder, "Q4", receipt, 100, baseline=False)
        result.facts(), result.unchecked, result.retrieval.gated
        if path.suffix == ".jsonl":
            read_answers(path)

    path = folder / "levels" / "Q4" / name
    return of_file(path, read, forms.as_lines if path.suffix == ".jsonl" else forms.as_json)


for _name in ("validation.json", "allocation.json", "placement.json", "niah.jsonl"):
    TARGETS[_name] = partial(_level, _name)


@target("allocation for --types")
def _types(folder: Path) -> Target:
    from quantkit.formats.tensors import TensorInfo
    from quantkit.models.model import Model
    from quantkit.plan.allocation_file import AllocatedTensor, AllocationFile
    from quantkit.plan.type_choice import check_importance, choose_types

    infos = [
        TensorInfo("blk.0.attn_q.weight", (4, 256), "F32"),
        TensorInfo("output_norm.weight", (256,), "F32"),
    ]
    model = Model("m", {"general.architecture": MetaValue("str", "llama")}, infos)
    AllocationFile(
        tensors={
            "blk.0.attn_q.weight": AllocatedTensor(type="Q4_K"),
            "output_norm.weight": AllocatedTensor(type="F32"),
        }
    ).write(folder / "allocation.json")

    def read(path: Path) -> None:
        check_importance(choose_types(str(path), model, has_imatrix=True), ())

    return of_file(folder / "allocation.json", read, forms.as_json)


def _release(name: str, folder: Path) -> Target:
    """Of a file of a release that is verified, its faults being none of the reader."""
    from small_release import verified, write_small_release

    from quantkit.release.verifying.verify import Verified

    release = write_small_release(folder / "release", folder / "source.gguf")

    def read(data: bytes) -> Verified:
        release.path(name).write_bytes(data)  # without a hole, which would be hashed
        return verified(release.folder)

    form = {
        ".json": forms.as_json, ".gguf": forms.as_gguf, ".jsonl": forms.as_lines,
    }.get(Path(name).suffix, forms.bytewise)  # fmt: skip
    return Target(read, (release.path(name).read_bytes(),), form, slow=True)


for _name in (
    "release.json", "SHA256SUMS", "checkpoint.json", "levels/Q8/allocation.json",
    "levels/Q8/validation.json", "levels/Q8/niah.jsonl", "tiny-imatrix.gguf",
    "Q8/tiny-Q8-00001-of-00003.gguf",
):  # fmt: skip
    TARGETS[f"release: {_name}"] = partial(_release, _name)


# --- what a build leaves for its next run ---


def _build(folder: Path) -> Path:
    """Receipts and notes of a build that has come to its levels."""
    for name in ("checkpoint.json", "imatrix.gguf", "m.gguf", "validation.json"):
        (folder / name).write_text(name)
    settings = {"model": "owner/name", "mtp": "drop", "baseline": False}
    parts: dict[str, Any] = {"settings": settings, "version": 1, "llama-cpp-python": "0.3"}

    def finish(stage: str, output: str, **facts: object) -> None:
        made = write_receipt(folder, stage, parts, [folder / output], 1.0, facts)
        parts[stage] = made.output_hashes

    finish("checkpoint", "checkpoint.json", parameters=1000)
    finish("imatrix", "imatrix.gguf")
    finish("quantize:Q4", "m.gguf", bits=4.5)
    finish("validate:Q4", "validation.json", passed=True)
    return folder


def _receipt(stage: str, folder: Path) -> Target:
    from quantkit.release.verifying.description import describe_build

    path = _build(folder) / "receipts" / f"{stage.replace(':', '.')}.json"

    def read(_: Path) -> None:
        read_receipt(folder, stage)
        stale_reason(folder, stage, {"settings": {"mtp": "keep"}})
        assert len(finished_receipts(folder, "")) >= 3
        describe_build(folder)

    return of_file(path, read, forms.as_json)


for _name in ("checkpoint", "imatrix", "quantize:Q4", "validate:Q4"):
    TARGETS[f"receipt: {_name}"] = partial(_receipt, _name)


def _published(stage: str, folder: Path) -> Target:
    """Of a receipt of a finished build that is to be published."""
    from quantkit.models.checkpoint_file import CheckpointFile
    from quantkit.release.contents import chosen, read_build
    from quantkit.report.results import BuildFile

    level = recipe_for("demo").levels[0]
    finish_level(folder, level.name, [a for a in answers_of(0.0, each=2) if a.index < 2])
    recipe = recipe_for("demo").model_copy(update={"levels": (level,)})
    CheckpointFile(model="owner/name", commit=None, files={}).write(folder / "checkpoint.json")
    BuildFile(recipe=recipe, target=load_target("4x3090"), versions={}).write(folder / "build.json")
    place = folder / "levels" / level.name
    for name in ("imatrix.gguf", "sensitivity.json", "calibration.json", f"m-{level.name}.gguf"):
        (folder / name).write_text(name)
    (place / "heatmap.png").write_text("x")
    outputs = {
        "checkpoint": ["checkpoint.json"], "imatrix": ["imatrix.gguf"],
        "measure": ["sensitivity.json"], "report": ["calibration.json", "build.json"],
        f"allocate:{level.name}": [f"levels/{level.name}/allocation.json"],
        f"place:{level.name}": [f"levels/{level.name}/placement.json"],
        f"quantize:{level.name}": [f"m-{level.name}.gguf"],
        f"validate:{level.name}": [
            f"levels/{level.name}/{n}" for n in ("validation.json", "niah.jsonl", "heatmap.png")
        ],
    }  # fmt: skip
    for name, written in outputs.items():
        paths = [folder / path for path in written]
        write_receipt(folder, name, {"version": 1}, paths, 1.0, {"parameters": 1000})

    def read(_: Path) -> None:
        build = read_build(folder)
        chosen(build, None, allow_failed=True)
        assert build.outputs(build.levels)

    stage = stage.replace("LEVEL", level.name)
    path = folder / "receipts" / f"{stage.replace(':', '.')}.json"
    return of_file(path, read, forms.as_json)


for _name in ("checkpoint", "report", "quantize:LEVEL", "validate:LEVEL"):
    TARGETS[f"published receipt: {_name}"] = partial(_published, _name)


def _document(kind: str, folder: Path) -> Target:
    from quantkit.models.checkpoint_file import CheckpointFile, SourceFile
    from quantkit.report.results import BuildFile
    from quantkit.study.imatrix import Calibration, SourceRead

    path = folder / kind
    made = {
        "checkpoint.json": CheckpointFile(
            model="owner/name", commit=COMMIT, files={"a": SourceFile(size_bytes=1, sha256="x")}
        ),
        "build.json": BuildFile(
            recipe=recipe_for("demo"), target=load_target("4x3090"), versions={"quantkit": "1"}
        ),
        "calibration.json": Calibration(
            chunks=1, tokens=2, weights=3, unseen_experts=0, sources=(SourceRead(name="a"),)
        ),
    }[kind]
    made.write(path)
    return of_file(path, lambda p: type(made).read(p).text(), forms.as_json)


for _name in ("checkpoint.json", "build.json", "calibration.json"):
    TARGETS[_name] = partial(_document, _name)


@target("state of a work folder")
def _work(folder: Path) -> Target:
    def read(path: Path) -> None:
        with resumable(path.parent, {"a": {"b": [1, None]}}):
            pass
        path.parent.mkdir()

    (folder / "work").mkdir()
    return of_file(folder / "work" / "parts.json", read, forms.as_json, b'{"a": {"b": [1, null]}}')


@target("journal")
def _journal(folder: Path) -> Target:
    def read(path: Path) -> None:
        assert Journal(path, "purpose").lines is not None

    return of_file(folder / "a.journal", read, forms.as_lines, b'purpose\n{"a": 1}\n[1]\n')


@target("journal of answers")
def _answers(folder: Path) -> Target:
    from finished_levels import recipe_of

    from quantkit.retrieval.answers import Answers

    asked = [a for a in answers_of(0.0, each=2) if a.index < 2 and a.task == "multikey"]
    recipe = recipe_of()
    branches = [
        SimpleNamespace(question=SimpleNamespace(**vars(a) | {"place": a.place})) for a in asked
    ]
    prompts = SimpleNamespace(branches=branches)
    rung = {"context_tokens": asked[0].context_tokens, "prefill_tokens": 3, "decode_seconds": 0.5}
    tested = {"difference": 0.1, "forces": True, "likeliest": [[1, -0.5]]}
    lines = [{"answer": asdict(a)} for a in asked]
    lines += [{"rung": rung, "seed": asked[0].seed}, {"tested": tested}]

    def read(path: Path) -> None:
        found = Answers(Journal(path, "purpose"), recipe, [prompts])  # type: ignore[list-item]
        found.open(prompts)  # type: ignore[arg-type]

    seed = "".join(f"{line}\n" for line in ("purpose", *map(json.dumps, lines))).encode()
    return of_file(folder / "answers.jsonl", read, forms.as_lines, seed)


def _swept(folder: Path) -> Callable[[Path], object]:
    """Takes over what a sweep over a tiny model that was interrupted had measured."""
    from models import CPU, write_llama

    from quantkit.config.recipe import MeasureRecipe
    from quantkit.core.progress import Progress
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.study.sweep.cuts import cut
    from quantkit.study.sweep.sweep import Sweep, Texts

    class Stops(Progress):
        def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
            self._left = 0.7 * total

        def advance(self, amount: float) -> None:
            self._left -= amount
            if self._left < 0:
                raise KeyboardInterrupt

    source = GGUFSource(write_llama(folder / "a.gguf"))
    recipe, tokens = MeasureRecipe(candidates=("Q8_0",), sample_rows=2), np.zeros((1, 32), np.int32)

    def sweep() -> Sweep:
        texts = Texts(None, tokens, None, tokens)
        return Sweep(cut(source), source, texts, folder, CPU, Stops(), recipe=recipe)

    with suppress(KeyboardInterrupt):
        sweep().run()
    purpose = (folder / "windows.jsonl").read_text().splitlines()[0]
    return lambda _: sweep().finished(Journal(folder / "windows.jsonl", purpose))


@target("journal of windows")
def _windows(folder: Path) -> Target:
    return of_file(folder / "windows.jsonl", _swept(folder), forms.as_lines)


@target("sums of a window")
def _sums(folder: Path) -> Target:
    return of_file(folder / "sums-1.f64", _swept(folder), forms.bytewise)


@target("journal of a file")
def _encoding(folder: Path) -> Target:
    """Of tensors that are encoded into a file, which goes on from there."""
    from models import write_gguf

    from quantkit.formats.gguf_writer import lay_out
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.quantize.encode import write_shards

    arrays = {name: np.ones((2, 32), np.float32) for name in ("a", "b")}
    said = {"general.architecture": MetaValue("str", "llama")}
    source = GGUFSource(write_gguf(folder / "source.gguf", said, arrays))
    layouts = lay_out("out", source.metadata, [i.with_type("Q8_0") for i in source.tensors])
    (work := folder / "work").mkdir()

    def read(_: Path) -> None:
        write_shards(folder, work, layouts, source, {}, SILENT, 1)

    path = work / f"{layouts[0].file_name}.journal"
    return of_file(path, read, forms.as_lines, f"{layouts[0].digest}\na\n".encode(), slow=True)


@target("download record")
def _record(folder: Path) -> Target:
    from quantkit.hub.downloads import STATE, is_whole, read_record

    (folder / "a.json").write_text("{}")
    stat = (folder / "a.json").stat()
    kept = Kept("a.json", "git:x", "y", stat.st_size, stat.st_mtime_ns, True)
    (folder / STATE).mkdir()
    seed = f"owner/name@{COMMIT}\n{json.dumps(asdict(kept))}\n".encode() * 1

    def read(_: Path) -> None:
        read_record(folder)
        is_whole(folder, ["a.json"])

    return of_file(folder / STATE / f"{COMMIT}.journal", read, forms.as_lines, seed)


def _headers(name: str, folder: Path) -> Target:
    """Of what is kept of a repository's headers, which the network cannot replace."""
    from quantkit.models.remote_headers import fetch_headers

    place = folder / "owner--name"
    kept, revisions = place / COMMIT, place / "revisions"
    write_llama(kept / "checkpoint")
    weights = kept / "checkpoint" / "model.safetensors"
    size, length = weights.stat().st_size, int.from_bytes(weights.read_bytes()[:8], "little")
    (kept / "headers").mkdir()
    (kept / "headers" / "model.safetensors.header").write_bytes(weights.read_bytes()[: 8 + length])
    weights.unlink()
    files = [path for path in kept.rglob("*") if path.is_file()]
    record = {
        "version": 2,
        "repository": "Owner/Name",
        "files": {path.relative_to(kept).as_posix(): path.stat().st_size for path in files},
        "shards": {"model.safetensors": size},
    }
    revisions.mkdir()
    (revisions / "main.json").write_text(json.dumps({"commit": COMMIT}))
    (kept / "headers.json").write_text(json.dumps(record))

    def stop(*_: object) -> NoReturn:
        raise _Enough

    def read(_: Path) -> None:
        found = fetch_headers(_Offline, "owner/name", None, SILENT, folder)  # type: ignore[arg-type]
        with suppress(_Enough):
            open_checkpoint(found.checkpoint, "m", shards=found.open_shards(), on_shape=stop)

    path = {"commit": revisions / "main.json", "record": kept / "headers.json"}[name]
    return of_file(path, read, forms.as_json)


for _name in ("commit", "record"):
    TARGETS[f"kept headers: {_name}"] = partial(_headers, _name)


@target("listing of a dataset")
def _dataset(folder: Path) -> Target:
    from quantkit.hub.downloads import STATE
    from quantkit.hub.reading import HubFile, Listing
    from quantkit.study.calibration.sources import fetch_dataset

    listing = Listing("owner/name", COMMIT, (HubFile("a.txt", 1, "s", None),), "dataset")
    place = folder / "owner--name" / COMMIT / STATE
    place.mkdir(parents=True)
    (place.parent / "a.txt").write_text("x")
    stat = (place.parent / "a.txt").stat()
    kept = Kept("a.txt", "sha256:s", "s", 1, stat.st_mtime_ns, True)
    (place / f"{COMMIT}.journal").write_text(f"owner/name@{COMMIT}\n{json.dumps(asdict(kept))}\n")
    (place / "listing.json").write_text(json.dumps(asdict(listing)))
    name = f"hf://datasets/owner/name@{COMMIT}"

    def read(_: Path) -> None:
        fetch_dataset(name, _Offline, folder, SILENT)  # type: ignore[arg-type]

    return of_file(place / "listing.json", read, forms.as_json)


@target("rows of a dataset")
def _rows(folder: Path) -> Target:
    from quantkit.study.calibration.rows import ChatTexts, Conversation, read_rows

    def read(path: Path) -> None:
        chats = ChatTexts(None)
        for row in read_rows(path):
            if isinstance(row, Conversation):
                chats.text(row)
        chats.notes("rows")

    shipped = (resource("calibration") / "tool-calls.jsonl").read_bytes().split(b"\n")[:2]
    rows = [
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]},
        {"conversations": [{"from": "human", "value": "x"}], "tools": '[{"a": 1}]'},
        {"text": "x"},
    ]
    seed = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return of_file(folder / "rows.jsonl", read, forms.as_lines, seed, b"\n".join(shipped))


@target("rows in Parquet")
def _parquet(folder: Path) -> Target:
    import pyarrow
    from pyarrow import parquet

    from quantkit.study.calibration.rows import read_rows

    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), path)
    return of_file(path, lambda p: [*read_rows(p)], forms.bytewise)


@target("result of the self-test")
def _selftest(folder: Path) -> Target:
    from quantkit.llamacpp import selftest

    path = folder / f"selftest-{selftest.machine_key()}.json"
    seed = b'{"use_extra_buffers": true, "finding": "x"}'

    def read(path: Path) -> None:
        with patch.object(selftest, "run_selftest", lambda: selftest.SelfTest(True, "")):
            selftest.working_settings(path.parent)

    return of_file(path, read, forms.as_json, seed)


@target("saved state")
def _state(folder: Path) -> Target:
    from quantkit.llamacpp.saved_state import SavedState

    state = SavedState(folder, "purpose", 1.0, lambda _: None)
    (folder / "state.bin").write_bytes(b"x")
    key = hashlib.sha256(b"purpose").hexdigest()
    about = {"key": key, "tokens": 3, "bytes": 1, "facts": {}}

    def read(_: Path) -> None:
        state.position(8)

    return of_file(folder / "state.json", read, forms.as_json, json.dumps(about).encode())


@target("record of compiled kernels")
def _kernels(folder: Path) -> Target:
    from quantkit.quantize.kernels import simd

    facts = {"usable": True, "finding": "x", "compiler": simd._identity(["/bin/sh"])}
    seed = json.dumps(facts).encode()
    path = folder / "record.json"
    return of_file(path, lambda p: simd._recorded(p, ["/bin/sh"]), forms.as_json, seed)


@target("kept result of a check")
def _kept_check(folder: Path) -> Target:
    """A retrieval check that `quantkit compare` did before."""
    from finished_levels import recipe_of, retrieval

    from quantkit.core.console import Console
    from quantkit.llamacpp.settings import DeviceSettings
    from quantkit.report.comparison import run
    from quantkit.retrieval.results import answer_lines

    def again(*_: object, **__: object) -> NoReturn:
        raise InputError("it is measured again")

    answers = [a for a in answers_of(0.2, each=2) if a.index < 2]
    kept = run.Kept(folder, DeviceSettings(1, False, 0), Console(quiet=True))
    artifact, recipe = folder / "a.gguf", recipe_of(kv_type="q8_0")
    artifact.write_text("x")

    def read(_: Path) -> None:
        with (
            patch.object(run, "_short_hash", lambda _: "parts"),
            patch.object(run, "_kept_name", lambda _: "a"),
            patch.object(run, "check_retrieval", again),
            suppress(InputError),
        ):
            kept.retrieval([artifact], "a", recipe, None)

    place = folder / "retrieval-a"
    place.mkdir()
    (place / "parts.jsonl").write_text(answer_lines(answers))
    seed = retrieval(answers, recipe).model_dump_json().encode()
    return of_file(place / "parts.json", read, forms.as_json, seed)
