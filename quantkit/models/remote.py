"""A checkpoint on the Hub: the files that a build needs, and whether it can be converted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.safetensors_files import INDEX, WHOLE, no_weights, weight_names
from quantkit.hub.downloads import FileDigest, RemoteFiles, cached_file, wrong_twice
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.models.families.base import without_prediction
from quantkit.models.families.registry import check_not_quantized, described
from quantkit.models.json_files import parse_json

CONFIG = "config.json"
BESIDE_WEIGHTS = (
    "*.json", "tokenizer.model", "merges.txt", "*.jinja", "additional_chat_templates/*.jinja",
    "LICENSE*", "LICENCE*", "NOTICE*", "README.md",
)  # fmt: skip
"""Configuration, tokenizer, chat templates, licence, model card."""
READ_BY_CONVERSION = (
    "*.safetensors", INDEX, CONFIG, "generation_config.json", "tokenizer.model",
    "tokenizer*.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja", "README.md",
)  # fmt: skip
"""Files that count as part of the model if they are in its folder."""
SMALL_BYTES = 256 << 20
"""Size limit of config.json and the index, which are read into memory."""
_SAFE_NAME = re.compile(r"(additional_chat_templates/)?(?!\.)[^/\\\x00-\x1f\x7f]+")
"""No other folders, hidden files or control characters."""


@dataclass(frozen=True, kw_only=True)
class RemoteCheckpoint(RemoteFiles):
    """A repository that can be converted, checked before any weights are downloaded.

    Attributes:
        files: small ones first.
        config: config.json, with the defaults of transformers.
    """

    config: Mapping[str, Any]
    foreign: tuple[str, ...] = READ_BY_CONVERSION
    removable: tuple[str, ...] | None = ("*.safetensors", *BESIDE_WEIGHTS)

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight, by the dtype of config.json."""
        dtype = self.config.get("dtype") or self.config.get("torch_dtype")
        return 4 if dtype == "float32" else 2

    @property
    def elements(self) -> int:
        """Weights, estimated from the size of their files."""
        weights = sum(f.size_bytes for f in self.files if f.name.endswith(".safetensors"))
        return weights // self.element_bytes


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` is of this name; `*` stands for no folder."""
    near = (pattern for pattern in patterns if pattern.count("/") == name.count("/"))
    return any(fnmatchcase(name, pattern) for pattern in near)


def wanted_files(listing: Listing, shards: Iterable[str] | None) -> tuple[HubFile, ...]:
    """The files of a repository that a build needs, small ones first.

    Args:
        shards: the files that the index names; None without an index.

    Raises:
        InputError: no safetensors, or a shard of the index is not in the repository.
    """
    files = {file.name: file for file in listing.files if _SAFE_NAME.fullmatch(file.name)}
    weights = weight_names((name for name in files if "/" not in name), shards)
    if not weights:
        raise no_weights(listing.repository, (file.name for file in listing.files))
    missing = [name for name in weights if name not in files]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{listing.repository}: {INDEX} names {missing[0]!r}{more}, which the repository "
            "does not have; its upload is unfinished or broken: choose another revision"
        )
    beside = [
        name
        for name in files
        if matches(name, BESIDE_WEIGHTS)
        and (".index." not in name or (name == INDEX and weights != [WHOLE]))
    ]
    beside.sort(key=lambda name: (name != CONFIG, name))
    return tuple(files[name] for name in (*beside, *weights))


def look_up(
    hub: Hub,
    repository: str,
    revision: str | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> RemoteCheckpoint:
    """Find a checkpoint on the Hub and check everything but its weights.

    Args:
        folder: may already hold files of it; those with the right hash are not fetched again.

    Raises:
        InputError: no such repository or revision, no access, no safetensors, or an architecture
            that is not converted.
        EnvironmentFault: the network or the Hub failed.
    """
    listing = hub.listing(repository, revision, progress.note)
    listed = {file.name: file for file in listing.files}
    wanted_files(listing, None)
    if CONFIG not in listed:
        raise InputError(f"{repository} has no {CONFIG}; choose the repository of a whole model")
    contents = {CONFIG: read_small(hub, listing, listed[CONFIG], folder)}
    advice = "choose another revision"
    raw = parse_json(contents[CONFIG], f"{repository}: {CONFIG}", advice)
    found = described(raw)
    check_not_quantized(found.config, f"{repository}: {CONFIG}")
    found.family.metadata(without_prediction(found.config))
    shards = None
    if INDEX in listed and WHOLE not in listed:
        contents[INDEX] = read_small(hub, listing, listed[INDEX], folder)
        index = parse_json(contents[INDEX], f"{repository}: {INDEX}", advice)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{repository}: {INDEX} names no shards; choose another revision")
        shards = {str(shard) for shard in weight_map.values()}
    files = wanted_files(listing, shards)
    return RemoteCheckpoint(listing=listing, files=files, config=found.config, contents=contents)


def read_small(hub: Hub, listing: Listing, file: HubFile, folder: Path | None) -> bytes:
    """The verified content of a small file.

    From `folder` or the Hub's cache if it is there with the right hash, and else from the Hub.
    """
    if file.size_bytes > SMALL_BYTES:
        raise InputError(
            f"{listing.repository}: {file.name} has {file.size_bytes} bytes, {SMALL_BYTES} are the "
            "limit; choose the repository of a whole model"
        )
    here = []
    for path in (folder and folder / file.name, cached_file(listing, file)):
        with suppress(OSError):
            here += [[path.read_bytes()]] if path is not None else []
    for source in (*here, hub.read(listing, file), hub.read(listing, file)):
        digest, content = FileDigest(file), bytearray()
        for piece in source:
            digest.update(piece)
            content += piece
        if digest.is_right:
            return bytes(content)
    raise wrong_twice(file, digest.identity)
