"""The interface of a family, and the helpers that families share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.safetensors_files import CONVERTIBLE
from quantkit.formats.tensor_types import FILE_TYPES
from quantkit.formats.tensors import Metadata, MetaKind, MetaScalar, MetaValue, TensorInfo

Config = Mapping[str, Any]
"""A parsed config.json, with the defaults of transformers: see `config_with_defaults`."""

Keys = dict[str, str | bool | int | float | list[int]]
"""Metadata without the architecture's prefix; `with_prefix` gives each value its GGUF type."""
_KINDS: dict[type, MetaKind] = {str: "str", bool: "bool", int: "u32", float: "f32", list: "i32"}

Fixed = Mapping[str, tuple[object, ...]]
"""Keys of config.json with the only values that llama.cpp computes; the usual one first."""

DECODER_FIXED: Fixed = {
    "hidden_act": ("silu", "swish"),  # two names for one function
    "is_causal": (True,),  # false in models that embed
}
"""`Family.fixed` of decoders with a gated feed-forward network."""

PREDICTION_LAYERS = "num_nextn_predict_layers"
"""config.json's key for multi-token prediction (MTP) layers; `without_prediction` sets it to 0."""

# Endings of tensors that llama.cpp computes in F32 whatever the file's type is.
_F32_NAMES = ("_norm.weight", ".ffn_gate_inp.weight", ".ssm_conv1d.weight")


RowOrder = Callable[[], NDArray[np.intp]]
"""Makes `TensorRule.row_order`, as large as config.json says."""


@dataclass(frozen=True)
class TensorRule:
    """How one GGUF tensor is made from the checkpoint's tensors.

    Attributes:
        info: the GGUF name, row-major shape, and the type of an unquantized GGUF: see `base_type`.
        parts: checkpoint tensors; more than one are stacked along a new first axis (experts).
        row_order: source row of each GGUF row where rows are permuted (rotary layouts); of a tensor
            of one axis, source element of each element.
        values: an elementwise function on F32 values, A_log → −exp(A_log) for example.
        constant: the whole tensor, where the configuration alone determines it; without parts.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    row_order: NDArray[np.intp] | None = None
    values: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    constant: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint: row-major `shape` and safetensors `dtype` (BF16, F16, F32)."""

    shape: tuple[int, ...]
    dtype: str


ABSENT = StoredTensor((), "absent")
"""A tensor that the checkpoint's index names and no file holds: an error only where it is needed.

Optional tensors, biases for example, are needed where the index names them.
"""


class Family(Protocol):
    """One model architecture; a newcomer adds one file with these and lists it in `registry`."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Values of config.json's `architectures[0]` that this family converts."""

    @property
    def reads(self) -> frozenset[str]:
        """Keys of config.json that it reads or checks, or that its graph does not depend on."""

    @property
    def fixed(self) -> Fixed:
        """Keys that may have one of these values only, whatever the rest of the file says."""

    def metadata(self, config: Config) -> Metadata:
        """Architecture metadata (`general.architecture`, `{arch}.*`), without the tokenizer.

        Raises:
            InputError: the configuration lacks a key, or describes what is not supported; it is
                the place to refuse that, and is called before `rules`.
        """

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        """A rule for every GGUF tensor, in file order; errors are those of `Rules`."""


def without_prediction(config: Config) -> Config:
    """The configuration of the same model without its multi-token prediction layers."""
    return {**config, PREDICTION_LAYERS: 0} if config.get(PREDICTION_LAYERS) else config


_WRAPPERS = {
    "_module.": "FSDP or DeepSpeed adds that; save the model inside of it",
    "_orig_mod.": "torch.compile adds that; save the model that was compiled, model._orig_mod",
    "module.": "DataParallel adds that; save the model inside of it, model.module",
    "base_model.": "PEFT adds that; save the model that merge_and_unload() returns",
    "language_model.": "it is the language model in a multimodal checkpoint; save that one alone "
    "(model.language_model), or convert it with llama.cpp and give the GGUF to --model",
}
"""Part of a prefix of tensors' names → where it comes from, and what to do."""


class Rules:
    """Collects the rules of one checkpoint and checks each against what is `stored`."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = stored
        self._used: set[str] = set()
        self._rules: list[TensorRule] = []

    def add(
        self,
        name: str,
        part: str | Sequence[str],
        shape: tuple[int, ...],
        *,
        stored_shape: tuple[int, ...] | None = None,
        row_order: RowOrder | None = None,
        values: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        """One GGUF tensor `name` of row-major `shape`.

        Several parts are stacked, each of shape `shape[1:]`. `stored_shape` is that of a part
        where the same elements are stored under another shape, (heads,) for (heads, 1).
        """
        parts = (part,) if isinstance(part, str) else tuple(part)
        expected = stored_shape or (shape if isinstance(part, str) else shape[1:])
        for source in parts:
            found = self.stored.get(source)
            if found is None or found is ABSENT:
                why = "its index names it, but no file holds it: download it again"
                if found is None:
                    why = self._other_names(source) or "is every shard there?"
                raise InputError(
                    f"the checkpoint has no tensor {source}, which {name} is made from; {why}"
                )
            if found.dtype not in CONVERTIBLE:
                raise InputError(
                    f"tensor {source} has dtype {found.dtype}, but only {', '.join(CONVERTIBLE)} "
                    "are converted; use the model's BF16 release"
                )
            if found.shape != expected:
                raise InputError(
                    f"tensor {source} has shape {list(found.shape)}, but config.json promises "
                    f"{list(expected)}; the weights and the configuration do not belong together"
                )
        self._used.update(parts)
        dtypes = {self.stored[source].dtype for source in parts}
        info = TensorInfo(name, shape, base_type(name, shape, dtypes))
        order = None if row_order is None else row_order()  # the file has as many rows
        self._rules.append(TensorRule(info, parts, order, values))

    def add_norm(self, name: str, part: str, width: int) -> None:
        """The weights of a norm without bias."""
        self.add(f"{name}.weight", f"{part}.weight", (width,))

    def add_linear(
        self,
        name: str,
        part: str,
        shape: tuple[int, int],
        row_order: RowOrder | None = None,
    ) -> None:
        """A matrix, and its bias where the checkpoint has one."""
        self.add(f"{name}.weight", f"{part}.weight", shape, row_order=row_order)
        if f"{part}.bias" in self.stored:
            self.add(f"{name}.bias", f"{part}.bias", shape[:1], row_order=row_order)

    def add_constant(self, name: str, values: NDArray[np.float32]) -> None:
        """A tensor of one axis that the configuration alone determines."""
        info = TensorInfo(name, values.shape, "F32")
        self._rules.append(TensorRule(info, (), constant=values))

    def drop(self, part: str) -> None:
        """Leave `part` out of the GGUF."""
        self._used.add(part)

    def finish(self) -> list[TensorRule]:
        """All rules; a stored tensor that was neither used nor dropped raises InputError."""
        unused = [
            name
            for name, tensor in self.stored.items()
            if name not in self._used and tensor is not ABSENT
        ]
        if unused:
            raise InputError(
                f"{len(unused)} tensors of the checkpoint are unknown to its architecture, the "
                f"first is {unused[0]}; convert it with llama.cpp and give the GGUF to --model"
            )
        return self._rules

    def _other_names(self, source: str) -> str:
        """A sentence on what is there under another name than `source`, or ""."""
        packed = f"{source.removesuffix('weight')}qweight"
        if packed in self.stored:
            return f"it has {packed} instead, of quantized weights: use the model's BF16 release"
        root, _, tail = source.partition(".")
        if "." not in tail or any(name.startswith(f"{root}.layers.") for name in self.stored):
            return ""
        alike = (name for name in self.stored if f".{name}".endswith(f".{tail}"))
        found = next(alike, None)
        if found is None:
            return ""
        prefix = found.removesuffix(tail)
        why = next((text for part, text in _WRAPPERS.items() if part in prefix), "")
        return (
            f"it has {found} instead, so its names begin with {prefix!r} and not with '{root}.': "
            + (why or "save it again with the names of transformers")
        )


def base_type(name: str, shape: tuple[int, ...], dtypes: Collection[str]) -> str:
    """The type in which an unquantized GGUF stores the tensor, whose parts have these `dtypes`.

    Vectors, norms, routers, convolutions and everything but `.weight` are F32, as llama.cpp's
    converter decides. All else keeps its precision; of parts of several, F32 alone holds all.
    """
    if len(shape) == 1 or name.endswith(_F32_NAMES) or not name.endswith(".weight"):
        return "F32"
    return next(iter(dtypes)) if len(dtypes) == 1 else "F32"


def refuse_if(wrong: bool, message: str) -> None:
    """Refuse config.json with `message` if it is `wrong`."""
    if wrong:
        raise InputError(f"config.json: {message}")


def layer_kinds(given: object, known: Mapping[str, str], keys: str) -> tuple[str, ...]:
    """The kind of each layer of `given`, a list or a string with a letter for each.

    Args:
        known: spelling of config.json → kind.
        keys: where `given` was looked for.
    """
    if not isinstance(given, str | list) or not given:
        raise InputError(f"config.json lacks {keys}, the kind of each layer")
    unknown = sorted({str(kind) for kind in given} - known.keys())
    refuse_if(
        bool(unknown),
        f"layers of kind {', '.join(unknown)} are not supported; known are {', '.join(known)}",
    )
    return tuple(known[str(kind)] for kind in given)


def config_int(config: Config, *keys: str) -> int:
    """The first of `keys` that config.json has, a positive whole number."""
    key, value = _first(config, keys)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise InputError(
            f"config.json: {key} is {value!r}, expected a positive whole number below 2^31"
        )
    return value


def config_float(config: Config, *keys: str) -> float:
    """The first of `keys` that config.json has, a positive number that F32 can hold."""
    key, value = _first(config, keys)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 3e38:
        raise InputError(f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)


def _first(config: Config, keys: Sequence[str]) -> tuple[str, Any]:
    for key in keys:
        if config.get(key) is not None:
            return key, config[key]
    raise InputError(f"config.json lacks {' or '.join(keys)}; is it the checkpoint's own?")


def with_prefix(architecture: str, keys: Keys) -> Metadata:
    """`general.architecture` and `general.file_type`, then `keys` as the architecture's own."""
    general: Keys = {
        "general.architecture": architecture,
        "general.file_type": FILE_TYPES["BF16"],  # until `open_checkpoint` knows the tensors
    }
    named = general | {f"{architecture}.{key}": value for key, value in keys.items()}
    return {key: meta(_KINDS[type(value)], value) for key, value in named.items()}


def meta(kind: MetaKind, value: MetaScalar | Sequence[MetaScalar]) -> MetaValue:
    """A metadata value; a list becomes an array, an f32 is rounded to what a file can hold."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return MetaValue(kind, _as_stored(kind, value))
    if kind == "str":  # a vocabulary has hundreds of thousands, so all are checked at once
        with suppress(TypeError, UnicodeEncodeError):
            "".join(value).encode()  # type: ignore[arg-type]
            return MetaValue(kind, tuple(value))
    return MetaValue(kind, tuple(_as_stored(kind, v) for v in value))


def _as_stored(kind: MetaKind, value: MetaScalar) -> MetaScalar:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{value[:50]!r} is no valid Unicode; download it again") from error
    return float(np.float32(value)) if kind == "f32" else value
