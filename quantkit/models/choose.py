"""`--model`: `demo`, a checkpoint folder, a GGUF file, or a Hub repository."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quantkit.core.errors import InputError
from quantkit.core.paths import DEMO_MODEL, HubAddress, cached_snapshot
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.safetensors_files import weight_paths
from quantkit.formats.tensors import TensorSource
from quantkit.hub.downloads import cached_folder, is_offline
from quantkit.hub.reading import Hub

if TYPE_CHECKING:
    from quantkit.models.checkpoint import OnShape

BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".md")
"""Files that a GGUF is made from beside the weights; the model card gives names and licence."""

_REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")


@dataclass(frozen=True)
class ModelChoice:
    """A model as the person named it: `given`.

    Attributes:
        name: what artifacts are called after.
        path: the folder or file; for a repository, None until it is downloaded.
        repository: OWNER/NAME on the Hub; None for a folder or a file.
        revision: branch, tag or commit of the repository; None for its main branch.
    """

    given: str
    kind: Literal["checkpoint", "gguf", "repository"]
    name: str
    path: Path | None = None
    repository: str | None = None
    revision: str | None = None


def choose_model(model: str) -> ModelChoice:
    """Find out what `model` is, without reading it.

    Raises:
        InputError: it is neither on this disk nor the name of a repository.
    """
    if model == "demo":
        if not DEMO_MODEL.is_dir():
            raise InputError(f"the demo model is not in this installation ({DEMO_MODEL})")
        return ModelChoice(model, "checkpoint", "quantkit-demo", DEMO_MODEL)
    path = Path(model).expanduser()
    if path.is_dir():
        cached = HubAddress.of_cached(path)
        name = path.resolve().name if cached is None else cached.name
        return ModelChoice(model, "checkpoint", artifact_name(name), cached_snapshot(path))
    if path.is_file():
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
        return ModelChoice(model, "gguf", artifact_name(stem), path)
    if _REPOSITORY.match(model) and path.suffix != ".gguf" and not path.parent.is_dir():
        address = HubAddress.parse(model)
        name = artifact_name(address.name)
        return ModelChoice(model, "repository", name, None, address.repository, address.revision)
    raise InputError(
        f"no model at {model}: give a folder with config.json and safetensors files, a GGUF file, "
        "a Hub repository (OWNER/NAME), or 'demo'"
    )


def choose_local(model: str, option: str = "--model") -> tuple[ModelChoice, Path]:
    """A model on this disk, and where it is.

    Raises:
        InputError: it is a repository, of which the Hub's cache has nothing; `option` is named.
    """
    choice = _in_cache(choose_model(model))
    if choice.path is None:
        raise InputError(
            f"{option} {model} is a repository on the Hub, and its weights are needed here: run "
            f"'quantkit download {model}' first, then give its folder"
        )
    return choice, choice.path


def _in_cache(choice: ModelChoice) -> ModelChoice:
    """A repository of which the Hub's cache has all weights as the folder there."""
    if choice.repository is None:
        return choice
    folder = cached_folder(choice.repository, choice.revision)
    if folder is None:
        return choice
    try:
        weight_paths(folder)
    except InputError:  # other programs bring configurations and tokenizers alone
        return choice
    return ModelChoice(choice.given, "checkpoint", choice.name, folder)


def artifact_name(name: str) -> str:
    """A model's name without precision: `X-BF16` → `X`."""
    plain = re.sub(r"[-_.](bf16|f16|fp16|f32|q8_0|q4_1)$", "", name, flags=re.I)
    return re.sub(r"[^\w.-]+", "-", plain).strip("-.") or "model"


def imatrix_name(model: str) -> str:
    """The file name of a published importance matrix; it is in the metadata of artifacts too."""
    return f"{model}-imatrix.gguf"


def model_files(choice: ModelChoice, path: Path) -> list[Path]:
    """The files that the model at `path` consists of: what a build of it depends on."""
    if choice.kind == "gguf":
        from quantkit.formats.gguf_file import shard_paths

        return shard_paths(path)
    found = [*path.iterdir(), *path.glob("additional_chat_templates/*")]
    beside = (p for p in found if p.is_file() and p.suffix in BESIDE_WEIGHTS)
    return sorted((*beside, *weight_paths(path)))


def open_source(
    choice: ModelChoice,
    downloaded: Path | None = None,
    *,
    keep_prediction: bool = False,
    on_shape: OnShape | None = None,
    note: Callable[[str], object] = SILENT.note,
) -> TensorSource:
    """The tensors of a model on this disk.

    Args:
        downloaded: where a repository was downloaded to.
        note: gets the sentences of a checkpoint's `notes`.
        keep_prediction, on_shape: of a checkpoint, as `open_checkpoint` takes them.

    Raises:
        InputError: broken files, or an architecture that is not supported.
    """
    path = downloaded or choice.path
    assert path is not None
    if choice.kind == "gguf":
        from quantkit.models.gguf_source import GGUFSource

        return GGUFSource(path)
    from quantkit.models.checkpoint import open_checkpoint

    source = open_checkpoint(path, choice.name, keep_prediction=keep_prediction, on_shape=on_shape)
    for sentence in source.notes:
        note(sentence)
    return source


def open_shapes(
    choice: ModelChoice,
    progress: Progress = SILENT,
    hub: Callable[[], Hub] = Hub,
    *,
    keep_prediction: bool = False,
    cache: Path | None = None,
    on_shape: OnShape | None = None,
) -> TensorSource:
    """A model's tensors without their rows: only the headers of a repository are downloaded.

    Where HF_HUB_OFFLINE is set, a repository is read in the Hub's cache, if it is there.

    Reading rows of a repository raises `InputError`.

    Args:
        progress, hub, cache: as `fetch_headers` takes them.
        keep_prediction, on_shape: of a checkpoint, as `open_checkpoint` takes them.

    Raises:
        InputError, EnvironmentFault: as `fetch_headers` and `open_checkpoint`.
    """
    if choice.repository is not None and is_offline():
        choice = _in_cache(choice)
    if choice.repository is None:
        return open_source(
            choice, keep_prediction=keep_prediction, on_shape=on_shape, note=progress.note
        )
    from quantkit.models.checkpoint import open_checkpoint
    from quantkit.models.remote_headers import fetch_headers

    headers = fetch_headers(hub, choice.repository, choice.revision, progress, cache)
    source = open_checkpoint(
        headers.checkpoint,
        choice.name,
        keep_prediction=keep_prediction,
        shards=headers.open_shards(),
        on_shape=on_shape,
    )
    for sentence in source.notes:
        progress.note(sentence)
    return source
