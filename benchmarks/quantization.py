"""Quantizing: quantkit against llama.cpp's own `llama_model_quantize`, on the same model and types.

Both get every tensor's type and the same importance matrix, each in a process of its own, one after
the other. Timed is what opens the model, quantizes and writes it, without the start of Python and
the reading of the importance matrix; quantkit also waits until its file is on the disk. Their bytes
are compared tensor by tensor. A ladder is six calls of llama.cpp, and one process of quantkit in
which each level copies what those before it have.
"""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fetch_smollm2 import fetch, rough_copy
from processes import run
from quantkit.study.candidates import is_quantizable

from quantkit.config.recipe import recipe_for
from quantkit.formats.gguf_file import FinishedFile
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.presets import ask_preset
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import Model
from quantkit.quantize.quantize import artifact_metadata, quantize
from quantkit.study.run import collect_file

RUNS = 5
LADDER_RUNS = 3
CHUNKS = 8
LEVELS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M")
MIXED = ("Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL")
Types = Mapping[str, str]


@dataclass(frozen=True)
class Timed:
    """Seconds of the calls, and the largest resident memory of the processes."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Work:
    """What a process is asked to do: `levels` are written to `folder`, under their names."""

    model: Path
    imatrix: Path
    folder: Path
    threads: int
    levels: Mapping[str, Types]

    def timed(self, arm: str, names: Sequence[str]) -> Timed:
        """Let `arm` write the levels `names` in one process."""
        asked = self.folder / "asked.json"
        levels = {name: dict(self.levels[name]) for name in names}
        asked.write_text(
            json.dumps(
                {
                    "model": str(self.model),
                    "imatrix": str(self.imatrix),
                    "threads": self.threads,
                    "levels": {str(self.file(arm, name)): levels[name] for name in names},
                }
            ),
            encoding="utf-8",
        )
        for name in names:
            self.file(arm, name).unlink(missing_ok=True)
        found = run([sys.executable, Path(__file__), arm, asked])
        seconds = json.loads(asked.with_suffix(".seconds").read_text(encoding="utf-8"))
        return Timed(seconds, found.peak_bytes)

    def file(self, arm: str, name: str) -> Path:
        return self.folder / f"{arm}-{name}.gguf"


def quantization_table(folder: Path, devices: DeviceSettings) -> list[str]:
    """A row a level, and one for the ladder."""
    model = rough_copy(fetch(folder), folder)
    imatrix = folder / "quantized.imatrix.gguf"
    recipe = recipe_for("", "smollm2-135m").imatrix.model_copy(update={"chunks": CHUNKS})
    collect_file(model, imatrix, recipe, devices.threads)
    source = GGUFSource(model)
    levels: dict[str, Types] = {
        name: ask_preset(source, name, has_imatrix=True).types for name in LEVELS
    }
    levels["mixed"] = mixed_types(source.tensors)
    work = Work(model, imatrix, folder, devices.threads, levels)
    lines = [
        f"SmolLM2-135M, rough, in BF16, {devices.threads} threads; medians of {RUNS} pairs of runs "
        f"(ladder: {LADDER_RUNS}). Rows of 576 fall back to types of smaller blocks, and both get "
        f"the types that llama.cpp then takes; mixed has {len(MIXED)} types in turn.",
        "",
        "| types of | llama.cpp | quantkit | speed | memory | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("Q8_0", "Q6_K", "Q4_K_M", "Q5_K_M", "mixed"):
        pairs = [(work.timed("theirs", [name]), work.timed("ours", [name])) for _ in range(RUNS)]
        lines.append(_row(name, pairs, _equal(work, [name])))
        print(lines[-1], file=sys.stderr)
    pairs = []
    for _ in range(LADDER_RUNS):
        alone = [work.timed("theirs", [name]) for name in LEVELS]
        theirs = Timed(sum(t.seconds for t in alone), max(t.peak_bytes for t in alone))
        pairs.append((theirs, work.timed("ours", LEVELS)))
    lines.append(_row(f"all of {', '.join(LEVELS)}", pairs, _equal(work, LEVELS)))
    for name in work.levels:
        for arm in ("theirs", "ours"):
            work.file(arm, name).unlink()
    return lines


def mixed_types(tensors: Sequence[TensorInfo]) -> Types:
    """MIXED in turn, each tensor the next type that its rows divide into."""
    types = {info.name: info.type_name for info in tensors}
    at = 0
    for info in tensors:
        if is_quantizable(info):
            while not BY_NAME[MIXED[at % len(MIXED)]].fits_row(info.row_elements):
                at += 1
            types[info.name] = MIXED[at % len(MIXED)]
            at += 1
    return types


def _row(name: str, pairs: Sequence[tuple[Timed, Timed]], equal: str) -> str:
    theirs, ours = zip(*pairs, strict=True)
    ratio = statistics.median(a.seconds / b.seconds for a, b in pairs)
    memory = max(t.peak_bytes for t in ours) / max(t.peak_bytes for t in theirs)
    return (
        f"| {name} | {_words(theirs)} | {_words(ours)} | {ratio:.2f} × faster "
        f"| {memory:.2f} of theirs | {equal} |"
    )


def _words(runs: Sequence[Timed]) -> str:
    seconds = statistics.median(t.seconds for t in runs)
    return f"{seconds:.2f} s, {max(t.peak_bytes for t in runs) / 1e6:,.0f} MB"


def _equal(work: Work, names: Sequence[str]) -> str:
    """Whether all tensors of both have the same bytes."""
    same = total = 0
    for name in names:
        ours, theirs = (GGUFSource(work.file(arm, name)) for arm in ("ours", "theirs"))
        stored = {info.name: info for info in theirs.tensors}
        for info in ours.tensors:
            total += 1
            same += stored[info.name] == info and np.array_equal(
                ours.read_stored(info.name, 0, info.rows),
                theirs.read_stored(info.name, 0, info.rows),
            )
    return f"{same} of {total} tensors equal"


def _ours(asked: Mapping[str, object]) -> float:
    """Body of quantkit's process: the seconds that all levels took."""
    found = read_imatrix(Path(str(asked["imatrix"])))
    importance = found.importance()
    finished: list[FinishedFile] = []
    began = time.perf_counter()
    source = GGUFSource(Path(str(asked["model"])))
    metadata = artifact_metadata(source.metadata, found, "imatrix.gguf")
    for out, types in _levels(asked):
        work = out.with_suffix(".work")
        work.mkdir(exist_ok=True)
        (path,) = quantize(
            source, Model(out.stem, metadata, source.tensors), types, importance, out.parent, work,
            int(str(asked["threads"])), finished=finished,
        )  # fmt: skip
        stat = path.stat()
        finished.append(FinishedFile(path, stat.st_size, stat.st_mtime_ns))
    return time.perf_counter() - began


def _theirs(asked: Mapping[str, object]) -> float:
    """Body of llama.cpp's process."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def silent(_level: int, _text: bytes, _user: ctypes.c_void_p) -> None:
        pass

    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    found = read_imatrix(Path(str(asked["imatrix"])))
    arrays = found.importance()
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    seconds = 0.0
    for out, types in _levels(asked):
        overrides = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
        for override, (name, kind) in zip(overrides, types.items(), strict=False):
            override.pattern = f"^{re.escape(name)}$".encode()
            override.type = BY_NAME[kind].ggml_id
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0  # each tensor has an override
        params.nthread = int(str(asked["threads"]))
        params.imatrix, params.tt_overrides = entries, overrides
        began = time.perf_counter()
        failed = llama_cpp.llama_model_quantize(
            str(asked["model"]).encode(), str(out).encode(), params
        )
        seconds += time.perf_counter() - began
        if failed:
            sys.exit(f"llama_model_quantize failed for {out.name}")
    return seconds


def _levels(asked: Mapping[str, object]) -> list[tuple[Path, Types]]:
    levels = asked["levels"]
    assert isinstance(levels, dict)
    return [(Path(out), types) for out, types in levels.items()]


if __name__ == "__main__":
    arm, asked_path = sys.argv[1], Path(sys.argv[2])
    question = json.loads(asked_path.read_text(encoding="utf-8"))
    answer = _ours(question) if arm == "ours" else _theirs(question)
    asked_path.with_suffix(".seconds").write_text(json.dumps(answer), encoding="utf-8")
