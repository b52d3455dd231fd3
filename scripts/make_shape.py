"""Write a model's exact geometry without its weights: sparse files, large only to look at.

    python scripts/make_shape.py checkpoint OUT      247 GB long, 10 MB on disk
    python scripts/make_shape.py checkpoint OUT --layers 'ME*' --experts 8 --fill random
    python scripts/make_shape.py gguf OUT.gguf --types Q4_K

Configuration and headers are the model's, the data is a hole that reads as zeros: opening,
planning, laying out and llama.cpp's loading with `no_alloc` work as with the real model, on any
machine. Only the tokenizer is another one. With `--fill random` there are numbers, for benchmarks:
take few layers or experts then.

Benchmarks and tests import the functions: `model_config`, `checkpoint_tensors` and `gguf_tensors`
touch no files, `write_checkpoint` and `write_gguf` do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.config.recipe import MeasureRecipe
from quantkit.core.errors import InputError, QuantkitError
from quantkit.core.paths import DEMO_MODEL
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.formats.safetensors_files import DTYPE_BYTES
from quantkit.formats.tensor_types import BY_NAME, quant_type
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.llamacpp import ggml_kernels
from quantkit.models.families.base import Config, StoredTensor
from quantkit.models.families.registry import family_for
from quantkit.models.general_metadata import general_metadata
from quantkit.models.tokenizers.vocabulary import tokenizer_metadata
from quantkit.plan.allocation_file import AllocationFile
from quantkit.quantize.candidates import admissible, is_quantizable
from quantkit.quantize.encode import write_shards

Fill = Literal["zeros", "random"]
Shapes = dict[str, tuple[int, ...]]
"""Tensor name, or its end → row-major shape."""

SHARD_BYTES = 5 * 10**9  # about NVIDIA's: Super comes to 50 files
SEED = 1
STANDARD_DEVIATION = 0.02
BLOCK_ELEMENTS = 4 << 20  # of random data that a thread holds at once
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_NEMOTRON_3: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "attention_bias": False,
    "bos_token_id": 1,
    "chunk_size": 128,
    "conv_kernel": 4,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "expand": 2,
    "head_dim": 128,
    "layer_norm_epsilon": 1e-5,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "max_position_embeddings": 262144,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "n_group": 1,
    "n_groups": 8,
    "n_shared_experts": 1,
    "norm_eps": 1e-5,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "partial_rotary_factor": 1.0,
    "rope_theta": 10000,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 131072,
}
MODELS: Mapping[str, dict[str, Any]] = {
    "nemotron-3-super": _NEMOTRON_3
    | {
        "hidden_size": 4096,
        "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*"
        "EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
        "intermediate_size": 2688,  # assumed: without dense layers nothing depends on it
        "mamba_num_heads": 128,
        "moe_intermediate_size": 2688,
        "moe_latent_size": 1024,
        "moe_shared_expert_intermediate_size": 5376,
        "mtp_hybrid_override_pattern": "*E",
        "n_routed_experts": 512,
        "num_experts_per_tok": 22,
        "num_nextn_predict_layers": 1,
        "routed_scaling_factor": 5.0,
    },
    "nemotron-3-nano": _NEMOTRON_3
    | {
        "hidden_size": 2688,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "intermediate_size": 1856,
        "mamba_num_heads": 64,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "routed_scaling_factor": 2.5,
    },
}
"""config.json of models whose parameter counts are published; a test holds the shapes to them."""


def model_config(
    model: str = "nemotron-3-super",
    layers: str | None = None,
    experts: int | None = None,
    mtp: bool | None = None,
) -> dict[str, Any]:
    """config.json of `model`, or of one that is smaller only in its number of layers or experts.

    Args:
        layers: a pattern of M (Mamba), E (experts) and * (attention) instead of the model's own.
        experts: routed experts a layer; no more than these are then used for a token.
        mtp: with a head that predicts a second token; by default as the model has it, but without
            for `layers` of one's own.
    """
    config = dict(MODELS[model])
    has_mtp = layers is None and "num_nextn_predict_layers" in config if mtp is None else mtp
    config["num_nextn_predict_layers"] = int(has_mtp)
    if has_mtp:
        config["mtp_hybrid_override_pattern"] = "*E"
    else:
        config.pop("mtp_hybrid_override_pattern", None)
    if layers is not None:
        config["hybrid_override_pattern"] = layers
    config["num_hidden_layers"] = len(config["hybrid_override_pattern"])
    if experts is not None:
        config["n_routed_experts"] = experts
        config["num_experts_per_tok"] = min(experts, config["num_experts_per_tok"])
    return config


def checkpoint_tensors(config: Config) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint, in the order of the model.

    From the configuration alone, without the family's own arithmetic, so that each checks the
    other. Counts, elements and bytes equal those published for Nemotron 3 Ultra (51,023 tensors,
    see the test), so just the routers' correction bias is F32; that Super's and Nano's are stored
    alike is assumed.

    Raises:
        KeyError: a layer is neither M, E nor *, or `config` lacks a size.
    """
    mixers = {"M": _mamba_shapes(config), "*": _attention_shapes(config), "E": _moe_shapes(config)}
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {"backbone.embeddings.weight": (vocabulary, hidden)}
    for index, kind in enumerate(config["hybrid_override_pattern"]):
        shapes |= _layer(f"backbone.layers.{index}.", mixers[kind], hidden)
    shapes |= {"backbone.norm_f.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    if config["num_nextn_predict_layers"]:
        shapes |= _prediction_head(mixers, hidden)
    return {
        name: StoredTensor(shape, "F32" if name.endswith("correction_bias") else "BF16")
        for name, shape in shapes.items()
    }


def _layer(prefix: str, mixer: Shapes, hidden: int) -> Shapes:
    named = {f"{prefix}mixer.{name}": shape for name, shape in mixer.items()}
    return {f"{prefix}norm.weight": (hidden,)} | named


def _mamba_shapes(config: Config) -> Shapes:
    hidden, heads = config["hidden_size"], config["mamba_num_heads"]
    inner = heads * config["mamba_head_dim"]
    channels = inner + 2 * config["n_groups"] * config["ssm_state_size"]
    return {
        "in_proj.weight": (inner + channels + heads, hidden),
        "conv1d.weight": (channels, 1, config["conv_kernel"]),
        "conv1d.bias": (channels,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (inner,),
        "out_proj.weight": (hidden, inner),
    }


def _attention_shapes(config: Config) -> Shapes:
    hidden = config["hidden_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    return {
        "q_proj.weight": (query, hidden),
        "k_proj.weight": (key, hidden),
        "v_proj.weight": (key, hidden),
        "o_proj.weight": (hidden, query),
    }


def _moe_shapes(config: Config) -> Shapes:
    """Of the mixture: routed experts work in the latent space, where there is one."""
    hidden, latent = config["hidden_size"], config.get("moe_latent_size")
    experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    shared, width = config["moe_shared_expert_intermediate_size"], latent or hidden
    shapes: Shapes = {
        "gate.weight": (experts, hidden),
        "gate.e_score_correction_bias": (experts,),
    }
    if latent:
        shapes["fc1_latent_proj.weight"] = (latent, hidden)
        shapes["fc2_latent_proj.weight"] = (hidden, latent)
    for expert in range(experts):
        shapes[f"experts.{expert}.up_proj.weight"] = (inner, width)
        shapes[f"experts.{expert}.down_proj.weight"] = (width, inner)
    shapes["shared_experts.up_proj.weight"] = (shared, hidden)
    shapes["shared_experts.down_proj.weight"] = (hidden, shared)
    return shapes


def _prediction_head(mixers: Mapping[str, Shapes], hidden: int) -> Shapes:
    """`mtp.*`: an attention layer that also takes the next token in, and a layer of experts.

    Names and shapes are those that llama.cpp's conversion/nemotron.py and nemotron-h.cpp expect.
    """
    return (
        {
            "mtp.layers.0.enorm.weight": (hidden,),
            "mtp.layers.0.hnorm.weight": (hidden,),
            "mtp.layers.0.eh_proj.weight": (hidden, 2 * hidden),
        }
        | _layer("mtp.layers.0.", mixers["*"], hidden)
        | _layer("mtp.layers.1.", mixers["E"], hidden)
        | {"mtp.layers.1.final_layernorm.weight": (hidden,)}
    )


def stored_elements(tensor: StoredTensor) -> int:
    """Number of elements."""
    return int(np.prod(tensor.shape, dtype=np.int64))


def stored_bytes(tensor: StoredTensor) -> int:
    """Bytes of its data."""
    return stored_elements(tensor) * DTYPE_BYTES[tensor.dtype]


def gguf_tensors(config: Config) -> list[TensorInfo]:
    """The tensors of the unquantized GGUF that quantkit makes of such a checkpoint."""
    rules = family_for(config).rules(config, checkpoint_tensors(config))
    return [rule.info for rule in rules]


def gguf_metadata(config: Config, name: str) -> Metadata:
    """All metadata that quantkit writes for such a checkpoint, the tokenizer's included."""
    family = family_for(config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(
            temporary, name
        )  # its name tells general_metadata the model's size and version
        folder.mkdir()
        _write_side_files(folder, config)
        own, general = family.metadata(config), general_metadata(folder, gguf_tensors(config), None)
        # in the order of `open_checkpoint`, so that headers are equal byte for byte
        first = {"general.architecture": own["general.architecture"]}
        return first | general | own | tokenizer_metadata(folder, config)


def with_types(tensors: Sequence[TensorInfo], types: str | None) -> list[TensorInfo]:
    """The tensors in the types of an allocation.json, or in one type wherever rows can have it.

    Where rows do not divide into its blocks, a tensor gets the smallest of quantkit's candidates
    that has at least as many bits.

    Raises:
        InputError: no such type, or the allocation is of another model.
    """
    if types is None:
        return list(tensors)
    if types.endswith(".json"):
        chosen = AllocationFile.read(Path(types)).types
        missing = [info.name for info in tensors if info.name not in chosen]
        if missing:
            raise InputError(f"{types} has no type for {missing[0]}; is it of this model?")
    else:
        chosen = {info.name: _nearest(info, types) for info in tensors}
    return [info.with_type(chosen[info.name]) for info in tensors]


def _nearest(info: TensorInfo, type_name: str) -> str:
    wanted = quant_type(type_name)
    if not is_quantizable(info):
        return info.type_name
    if wanted.fits_row(info.row_elements):
        return wanted.name
    possible = admissible(info, False, MeasureRecipe().candidates)
    large = [kind for kind in possible if kind.bits_per_weight >= wanted.bits_per_weight]
    return min(large, key=lambda kind: kind.bits_per_weight).name if large else info.type_name


def write_checkpoint(
    folder: Path, config: Config, fill: Fill = "zeros", shard_bytes: int = SHARD_BYTES
) -> Path:
    """A checkpoint in the new folder `folder`: configuration, tokenizer, index, safetensors.

    Raises:
        FileExistsError: the folder is there and not empty; nothing is ever overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder")
    _write_side_files(folder, config)
    tensors = checkpoint_tensors(config)
    shards = list(_shards(tensors, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / file_name).open("xb") as file:
            _write_safetensors(file, shard, fill)
        weight_map |= dict.fromkeys(shard, file_name)
    index = {
        "metadata": {"total_size": sum(map(stored_bytes, tensors.values()))},
        "weight_map": weight_map,
    }
    _write_json(folder / "model.safetensors.index.json", index)
    return folder


def _write_side_files(folder: Path, config: Config) -> None:
    """config.json, and the demo model's tokenizer: byte-level BPE, split as in the real one.

    Its 2048 tokens are the first of the vocabulary, the rest is padding.
    """
    _write_json(folder / "config.json", dict(config))
    for name in _TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / name, folder / name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(
    tensors: Mapping[str, StoredTensor], shard_bytes: int
) -> Iterator[dict[str, StoredTensor]]:
    """Tensors in order, at most `shard_bytes` together, but at least one."""
    shard: dict[str, StoredTensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        size = stored_bytes(tensor)
        if shard and filled + size > shard_bytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += size
    yield shard


def _write_safetensors(file: BinaryIO, tensors: Mapping[str, StoredTensor], fill: Fill) -> None:
    # The order of the safetensors library: large elements first, so that all are aligned.
    ordered = sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name].dtype], name))
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name in ordered:
        tensor, offsets[name] = tensors[name], end
        end += stored_bytes(tensor)
        described[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data_start = 8 + len(text)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(data_start + end)  # a hole, which reads as zeros
    if fill == "random":
        file.flush()
        with ThreadPoolExecutor() as pool:
            jobs = [
                pool.submit(_fill, file.fileno(), data_start + offsets[name], name, tensors[name])
                for name in ordered
            ]
            for job in jobs:
                job.result()


def _fill(descriptor: int, at: int, name: str, tensor: StoredTensor) -> None:
    elements, kind = stored_elements(tensor), BY_NAME[tensor.dtype]
    for start in range(0, elements, BLOCK_ELEMENTS):
        values = random_values(name, start, min(BLOCK_ELEMENTS, elements - start))
        data = ggml_kernels.quantize(kind, values.reshape(1, -1), None).data
        written = os.pwrite(descriptor, data, at + kind.size_bytes(start))
        assert written == data.nbytes, "the disk is full"


def random_values(name: str, start: int, count: int) -> NDArray[np.float32]:
    """Normal values of tensor `name`, the same whenever they are asked for from `start` on."""
    generator = np.random.default_rng([SEED, start, *name.encode()])
    values = generator.standard_normal(count, np.float32)
    values *= STANDARD_DEVIATION
    return values


class RandomSource:
    """A TensorSource of random values."""

    def __init__(self, metadata: Metadata, tensors: Sequence[TensorInfo]) -> None:
        self.metadata = metadata
        self.tensors = tensors
        self._width = {info.name: info.row_elements for info in tensors}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of tensor `name` as F32, shape (stop - start, row elements)."""
        width = self._width[name]
        return random_values(name, start * width, (stop - start) * width).reshape(-1, width)

    def read_stored(self, name: str, start: int, stop: int) -> None:
        """Nothing is stored."""


def write_gguf(
    path: Path,
    config: Config,
    types: str | None = None,
    fill: Fill = "zeros",
    shard_bytes: int = 1 << 62,
) -> list[Path]:
    """A GGUF, or shards that are called after `path`; returns the files.

    Args:
        types: a type or an allocation.json, see `with_types`; by default an unquantized GGUF.

    Raises:
        FileExistsError: a file is there; nothing is ever overwritten.
        InputError: see `with_types`.
    """
    metadata, base = gguf_metadata(config, path.stem), gguf_tensors(config)
    if types is not None:
        del metadata["general.file_type"]  # no name for a mixture, as in quantkit's artifacts
    layouts = lay_out(path.stem, metadata, with_types(base, types), shard_bytes)
    paths = [path.parent / layout.file_name for layout in layouts]
    for existing in filter(Path.exists, paths):
        raise FileExistsError(f"{existing} exists; give another name")
    if fill == "random":
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            source, workers = RandomSource(metadata, base), os.cpu_count() or 1
            return write_shards(path.parent, Path(work), layouts, source, {}, SILENT, workers)
    for file, layout in zip(paths, layouts, strict=True):
        with open_shard(file, layout):
            pass  # header and length are all
    return paths


def main() -> None:
    options = _parse()
    if options.form == "gguf" and options.mtp is None:
        options.mtp = False  # as quantkit converts
    config = model_config(options.model, options.layers, options.experts, options.mtp)
    try:
        if options.form == "checkpoint":
            write_checkpoint(options.out, config, options.fill, options.shard_bytes or SHARD_BYTES)
            files = sorted(options.out.iterdir())
        else:
            shard_bytes = options.shard_bytes or 1 << 62
            files = write_gguf(options.out, config, options.types, options.fill, shard_bytes)
    except (QuantkitError, FileExistsError) as error:
        sys.exit(str(error))
    length = sum(file.stat().st_size for file in files)
    on_disk = sum(512 * file.stat().st_blocks for file in files)
    print(
        f"{options.out}: {len(files)} files, {length / 1e9:.2f} GB, {on_disk / 1e6:.1f} MB on disk"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    forms = parser.add_subparsers(dest="form", required=True)
    for form in ("checkpoint", "gguf"):
        options = forms.add_parser(form)
        options.add_argument("out", type=Path, metavar="OUT")
        options.add_argument("--model", choices=MODELS, default="nemotron-3-super")
        options.add_argument("--layers", type=_pattern, help="just these: M, E and *")
        options.add_argument("--experts", type=int, metavar="N", help="routed experts a layer")
        options.add_argument(
            "--mtp",
            action=argparse.BooleanOptionalAction,
            help="default: the model's in a checkpoint, none in a GGUF",
        )
        options.add_argument("--fill", choices=("zeros", "random"), default="zeros")
        options.add_argument("--shard-bytes", type=int, metavar="N")
        if form == "gguf":
            options.add_argument("--types", help="a tensor type, or an allocation.json")
    return parser.parse_args()


def _pattern(text: str) -> str:
    if not text or set(text) - set("ME*"):
        raise argparse.ArgumentTypeError("a text of M (Mamba), E (experts) and * (attention)")
    return text


if __name__ == "__main__":
    main()
