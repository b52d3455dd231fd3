"""`general.*` metadata: the model's name, size, licence and parents, from its model card."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.core.parsing import bounded_yaml, read_bounded
from quantkit.core.paths import HubAddress
from quantkit.formats.tensors import Metadata, MetaKind, TensorInfo
from quantkit.models.families.base import meta
from quantkit.models.json_files import read_json

MOST_CARD_BYTES = 16 << 20
"""Of README.md, of which only the front matter is parsed."""
CHECKPOINT = "checkpoint"
"""The folder of a downloaded checkpoint; the metadata may have its name."""
_ORIGINS = (
    "base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources",
    "repo_url", "url",
)  # fmt: skip
"""Keys of a model card whose values are repositories."""
_ORIGIN = re.compile(
    r"(?:https?|ssh)://(?:git@)?(?!localhost\b)[^/@\s]+(?:/[^@\s]*)?"
    r"|(?![.~])[^/\\:@$%<>'\"\s][^/\\:@$<>'\"]*(?:/[^/\\:@$<>'\"]+)?"
)
"""An address that names nobody who logs in, a name, or OWNER/NAME."""
_PATH = re.compile(
    r"(?<![\w:/.])(?:/[\w.-]+/|\.\.[\\/]|~[\w.-]*[\\/]|\$\w+[\\/]|%\w+%[\\/]|[a-z]:[\\/]|\\\\|file:)"
    r"|^[^\w.]*/|://[^/\s]*@",
    re.I,
)
"""A path of a machine, or an address with a login, anywhere in a text."""


def general_metadata(folder: Path, tensors: Sequence[TensorInfo], name: str | None) -> Metadata:
    """What gguf derives from README.md, generation_config.json and the folder's name.

    Only the folder's name is used, never its path, and no path that the model card holds.

    Args:
        tensors: the GGUF's, whose sizes give `general.size_label`.
        name: the model's; by default the folder's or the model card's.
    """
    import gguf

    generation = read_json(folder / "generation_config.json", optional=True)
    total = sum(info.elements for info in tensors)
    cached = HubAddress.of_cached(folder)
    # "." has no name of its own; resolve() would take the name of what a link points to.
    folder = Path(os.path.abspath(folder))
    card = _card(folder / "README.md")
    named = folder
    if cached is not None:  # the folder is named after a commit
        name, named = name or cached.name, Path(CHECKPOINT)
    try:
        known, keys = gguf.Metadata(name=name), {"temp": "temperature"}
        for field in vars(known):
            if (option := field.removeprefix("sampling_")) != field:
                setattr(known, field, generation.get(keys.get(option, option)))
        origin = read_json(folder / "config.json").get("_name_or_path")
        known = gguf.Metadata.apply_metadata_heuristic(
            known,
            without_paths(card),
            {"_name_or_path": origin} if is_origin(origin) else {},
            named,
            total,
        )
        known.name = known.name or named.name
        if known.sampling_penalty_repeat is None:  # gguf 0.19 does not know this spelling yet.
            known.sampling_penalty_repeat = generation.get("repetition_penalty")
        known.size_label = known.size_label or _size_label(tensors)
        writer = gguf.GGUFWriter(path=None, arch="")
        writer.add_type(gguf.GGUFType.MODEL)
        known.set_gguf_meta_model(writer)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # It takes every field of a card to have its usual kind.
        raise InputError(
            f"gguf cannot read the front matter of {folder / 'README.md'} ({error!r}); repair or "
            "remove it"
        ) from error
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    result: Metadata = {}
    for key, stored in writer.kv_data[0].items():
        kind, value = _KINDS.get(stored.type.name, "str"), stored.value
        if stored.type.name == "ARRAY":  # All arrays of general.* are of strings.
            value = [str(member) for member in value]
        elif not _fits(kind, value):
            raise InputError(
                f"{folder.name}: {key} would be {value!r}; repair generation_config.json or the "
                "front matter of README.md"
            )
        result[key] = meta(kind, value)
    result.pop("general.architecture", None)  # the family sets it
    return result


def _card(path: Path) -> dict[str, Any]:
    """The front matter as gguf reads it, but with limits; empty where it is no mapping.

    Raises:
        InputError: it is not YAML, or too much of it.
    """
    if not path.is_file():
        return {}
    lines = read_bounded(path, MOST_CARD_BYTES).decode(errors="replace").splitlines()
    if lines[:1] != ["---"]:
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    # the language no, and tabs
    text = "\n".join([*lines[1:end], ""]).replace("- no\n", '- "no"\n').replace("\t", "  ")
    found = bounded_yaml(text, f"the front matter of {path}", strict=False)
    return found if isinstance(found, dict) else {}


def without_paths(card: Mapping[str, Any]) -> dict[str, Any]:
    """A model card's metadata without the paths of anybody's machine.

    Trainers write the folder that they started from as `base_model`.
    """
    found = {}
    for key, value in card.items():
        fits = is_origin if key in _ORIGINS else _is_public
        if isinstance(value, Mapping):
            value = without_paths(value) or None
        elif isinstance(value, list):
            kept = [without_paths(v) if isinstance(v, Mapping) else v for v in value]
            value = [v for v in kept if (v if isinstance(v, Mapping) else fits(v))] or None
        elif not fits(value):
            value = None
        if value is not None:
            found[key] = value
    return found


def is_origin(value: object) -> bool:
    """Whether it names a repository, a name or an address, and no folder."""
    return isinstance(value, str) and _ORIGIN.fullmatch(value) is not None


def _is_public(value: object) -> bool:
    return not isinstance(value, str) or _PATH.search(value) is None


def _size_label(tensors: Sequence[TensorInfo]) -> str:
    """120B, or 512x500M: number of experts, and size of the model with one expert a layer."""
    import gguf

    experts = [info for info in tensors if "_exps." in info.name]
    total = sum(info.elements for info in tensors)
    one_each = sum(info.elements // info.matrices for info in experts)
    shared = total - sum(info.elements for info in experts)
    count = sum(info.matrices for info in experts) // len(experts) if experts else 0
    label: str = gguf.size_label(total, shared, one_each, count)
    return label


def _fits(kind: MetaKind, value: object) -> bool:
    """Whether a value has the right type; gguf does not check those of the files."""
    if kind == "f32":
        return isinstance(value, int | float) and abs(value) < 3e38
    return isinstance(value, str) if kind == "str" else type(value) is int and abs(value) < 1 << 31


_KINDS: dict[str, MetaKind] = {"UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "STRING": "str"}
