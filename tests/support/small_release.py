"""A small release as it is downloaded: real tensors and answers, one level of two in shards.

Made by hand, from quantkit's own stages, so that each of its parts can be made wrong.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finished_levels import answers_of, finish_level
from models import WIDTH, llama_arrays, llama_metadata, write_gguf

from quantkit import __version__
from quantkit.core.files import file_sha256
from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import MetaValue, TensorInfo
from quantkit.llamacpp.ggml import library_version
from quantkit.models.checkpoint_file import CheckpointFile, SourceFile
from quantkit.models.choose import choose_model
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import Model
from quantkit.plan.allocation_file import AllocatedTensor, AllocationFile
from quantkit.plan.gpu_memory import padded_bytes
from quantkit.quantize.encode import write_shards
from quantkit.quantize.quantize import artifact_metadata, overhead_bytes
from quantkit.release.layout import Manifest, ReleasedLevel, ReleaseSource, sums_text
from quantkit.release.verifying.description import open_release
from quantkit.release.verifying.verify import Origin, Verified, verify

EXPERTS = 16
STACK = "blk.0.ffn_up_exps.weight"
LEVELS = {"Q4": "Q4_K", "Q8": "Q5_0"}
SHARD_BYTES = 300_000
"""Of Q8, so that it has several."""


@dataclass(frozen=True)
class SmallRelease:
    """A release in `folder`, and the GGUF file that it was made from."""

    folder: Path
    source: Path

    def copy(self, to: Path) -> SmallRelease:
        """One that a test may break."""
        shutil.copytree(self.folder, to)
        return SmallRelease(to, self.source)

    def path(self, name: str) -> Path:
        return self.folder / name

    def files(self, level: str) -> list[str]:
        return list(json.loads(self.path("release.json").read_text())["levels"][level]["files"])

    def sum_of(self, name: str) -> str:
        """What SHA256SUMS says of a file."""
        lines = self.path("SHA256SUMS").read_text().splitlines()
        return next(line.split("  ")[0] for line in lines if line.endswith(f"  {name}"))

    def edit(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change what a JSON file holds, or the bytes of another, with hashes that agree."""
        path = self.path(name)
        if path.suffix == ".json":
            change(content := json.loads(path.read_text()))
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(change(path.read_bytes()))
        (self.forge if path.suffix == ".gguf" else self.sign)()

    def forge(self) -> None:
        """Make all hashes agree with what is there, those of what was asked too."""
        for level in LEVELS:
            _say_what_was_asked(self.folder, level, self.files(level))
        self.sign()

    def sign(self) -> None:
        """Make SHA256SUMS agree with what is there."""
        self.path("SHA256SUMS").unlink(missing_ok=True)
        names = [p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file()]
        hashes = {name.as_posix(): file_sha256(self.folder / name) for name in names}
        self.path("SHA256SUMS").write_text(sums_text(hashes))


def verified(folder: Path, source: Path | None = None, *, full: bool = False) -> Verified:
    files, said = open_release(str(folder), 2)
    origin = None if source is None else Origin(choose_model(str(source)), 1, full)
    return verify(files, said, origin, workers=2)


def faults(release: SmallRelease) -> tuple[str, ...]:
    """Without the source."""
    return verified(release.folder).faults


def set_to(*keys: Any, to: Any) -> Callable[[Any], None]:  # noqa: ANN401
    """A change of a JSON file: the value at the end of `keys`."""

    def change(content: Any) -> None:  # noqa: ANN401
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def write_small_release(folder: Path, source: Path) -> SmallRelease:
    """Make the model in the file `source`, and the release in `folder`."""
    rng = np.random.default_rng(7)
    arrays = llama_arrays() | {STACK: rng.standard_normal((EXPERTS, WIDTH, WIDTH), np.float32)}
    metadata = llama_metadata() | {"tokenizer.chat_template": MetaValue("str", "{{ m }}")}
    write_gguf(source, metadata, arrays, {"blk.0.attn_v.weight": "BF16"})
    model = GGUFSource(source)
    folder.mkdir()
    entries = {
        info.name: ImatrixEntry(
            rng.random((info.matrices, info.row_elements), np.float32) * 64,
            np.full(info.matrices, 64, np.float32),
        )
        for info in model.tensors
        if len(info.shape) > 1 and info.name.startswith("blk.")
    }
    name = "tiny-imatrix.gguf"
    write_imatrix(folder / name, Imatrix(entries, 512, 4, ("text.txt",)))
    imatrix = read_imatrix(folder / name)
    elements = sum(info.elements for info in model.tensors)
    levels = {}
    for level, kind in LEVELS.items():
        answers = answers_of(0.0 if level == "Q8" else 0.15)
        result = finish_level(folder, level, answers)
        files = _write_level(folder, level, kind, model, imatrix)
        size = sum((folder / file).stat().st_size for file in files)
        _say_what_was_asked(folder, level, files)
        levels[level] = ReleasedLevel(
            files=tuple(files), evidence=f"levels/{level}", passed=result.passed,
            baseline=False, size_bytes=size, bits_per_weight=8 * size / elements,
        )  # fmt: skip
    Manifest(
        model="tiny", architecture="llama", parameters=elements, source=ReleaseSource(),
        mtp="drop", imatrix=name, levels=levels,
        versions={"quantkit": __version__, "llama-cpp-python": library_version()},
    ).write(folder / "release.json")  # fmt: skip
    file = SourceFile(size_bytes=source.stat().st_size, sha256=file_sha256(source))
    CheckpointFile(model="tiny", commit=None, files={source.name: file}).write(
        folder / "checkpoint.json"
    )
    (folder / "README.md").write_text("# tiny\n")
    made = SmallRelease(folder, source)
    made.sign()
    return made


def _write_level(
    folder: Path, level: str, kind: str, model: GGUFSource, imatrix: Imatrix
) -> list[str]:
    """The level's files and its allocation.json; returns the files' names."""
    types = {info.name: _type(info, kind) for info in model.tensors}
    metadata = artifact_metadata(model.metadata, imatrix, "tiny-imatrix.gguf")
    infos = [i.with_type(types[i.name]) for i in model.tensors]
    shard_bytes = SHARD_BYTES if level == "Q8" else 1 << 40
    layouts = lay_out(f"tiny-{level}", metadata, infos, shard_bytes)
    place = folder / level if len(layouts) > 1 else folder
    work = folder.parent / f"{folder.name}-{level}.work"
    importance = imatrix.importance()
    work.mkdir()
    paths = write_shards(place, work, layouts, model, importance, SILENT, 1)
    shutil.rmtree(work)
    padded = sum(padded_bytes(info, info.type_name) for info in infos)
    tensors = {
        info.name: AllocatedTensor(
            type=info.type_name, bytes=BY_NAME[info.type_name].size_bytes(info.elements)
        )
        for info in infos
    }
    total = overhead_bytes(Model(f"tiny-{level}", metadata, model.tensors)) + padded
    AllocationFile(total_bytes=total, tensors=tensors).write(
        folder / "levels" / level / "allocation.json"
    )
    return [path.relative_to(folder).as_posix() for path in paths]


def _say_what_was_asked(folder: Path, level: str, files: list[str]) -> None:
    path = folder / "levels" / level / "validation.json"
    hashes = {Path(file).name: file_sha256(folder / file) for file in files}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"artifact": hashes}))


def _type(info: TensorInfo, kind: str) -> str:
    """Matrices in `kind`, but for one that keeps its own type; vectors as they are."""
    kept = len(info.shape) == 1 or info.type_name == "BF16"
    return info.type_name if kept else kind
