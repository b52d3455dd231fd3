"""TensorSource + imatrix → sensitivity.json: the error of each tensor at each type.

The error is relative: Σ w·(x − q(x))² / Σ w·x², with the imatrix' mean squared activation as the
weight w of a column, so it is the share of the output's energy that quantization loses if inputs
are uncorrelated (the imatrix' own assumption). What an error costs the whole model is not measured
here; until it is, tensors count alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.source import TensorSource
from quantkit.journal import Journal
from quantkit.native import kernels
from quantkit.progress import SILENT, Progress
from quantkit.quant_types import BY_NAME, QuantType
from quantkit.receipts import write_json
from quantkit.recipe import MeasureRecipe
from quantkit.values import TensorInfo

_KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_", "attn_rel_b.weight", ".position_embd.", ".patch_embd.",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_WEIGHT_KINDS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Sensitivity:
    """Errors by tensor and type; tensors that stay as they are have no entry."""

    errors: Mapping[str, Mapping[str, float]]

    @staticmethod
    def load(path: Path) -> Sensitivity:
        """Read sensitivity.json."""
        return Sensitivity(json.loads(path.read_text(encoding="utf-8"))["errors"])


def is_quantizable(info: TensorInfo) -> bool:
    """Whether llama.cpp may hold the tensor in a block type.

    After `tensor_allows_quantization` in llama-quant.cpp: matrices called `*weight`, but no norms,
    routers, small convolutions, or tables of integers. Where that rule depends on the
    architecture, this one keeps more tensors as they are.
    """
    kind = BY_NAME[info.type_name]
    dimensions = len(info.shape) - next((i for i, n in enumerate(info.shape) if n != 1), 0)
    return (
        dimensions >= 2
        and (kind.is_quantized or kind.name in _WEIGHT_KINDS)
        and info.name.endswith("weight")
        and info.name not in _KEPT_NAMES
        and not any(part in info.name for part in _KEPT_PARTS)
    )


def admissible(info: TensorInfo, has_imatrix: bool, candidates: tuple[str, ...]) -> list[QuantType]:
    """The candidate types that this tensor can really have: no silent fallback anywhere."""
    kinds = [BY_NAME[name] for name in candidates]
    return [
        kind
        for kind in kinds
        if kind.fits_row(info.row_elements) and (has_imatrix or not kind.needs_imatrix)
    ]


def sample(
    source: TensorSource, info: TensorInfo, recipe: MeasureRecipe
) -> list[tuple[int, NDArray[np.float32]]]:
    """(matrix, rows): all rows, or a seeded sample of rows and experts of a large tensor."""
    random = np.random.default_rng([recipe.seed, *info.name.encode()])
    matrices = np.arange(info.matrices)
    if 0 < recipe.sample_experts < info.matrices:
        matrices = np.sort(random.choice(info.matrices, recipe.sample_experts, replace=False))
    rows_each = info.rows // info.matrices
    wanted = rows_each
    if recipe.sample_rows:
        wanted = min(rows_each, max(1, recipe.sample_rows // len(matrices)))
    picked = []
    for matrix in matrices:
        base = int(matrix) * rows_each
        if wanted == rows_each:
            rows = source.read_rows(info.name, base, base + rows_each)
        else:
            chosen = np.sort(random.choice(rows_each, wanted, replace=False))
            rows = np.concatenate(
                [source.read_rows(info.name, base + int(r), base + int(r) + 1) for r in chosen]
            )
        picked.append((int(matrix), rows))
    return picked


def relative_error(
    kind: QuantType,
    pieces: list[tuple[int, NDArray[np.float32]]],
    importance: NDArray[np.float32] | None,
) -> float:
    """Σ w·(x − q(x))² / Σ w·x² over the sampled rows; 0 for an all-zero tensor."""
    lost = total = 0.0
    for matrix, rows in pieces:
        weights = None if importance is None else importance[matrix]
        raw = kernels.quantize(kind, rows, weights)
        restored = kernels.dequantize(kind, raw, rows.shape[1])
        column = np.ones(rows.shape[1]) if weights is None else weights.astype(np.float64)
        lost += float(np.square(rows - restored, dtype=np.float64).sum(axis=0) @ column)
        total += float(np.square(rows, dtype=np.float64).sum(axis=0) @ column)
    return lost / total if total > 0 else 0.0


def measure(
    source: TensorSource,
    importance: Mapping[str, NDArray[np.float32]],
    recipe: MeasureRecipe,
    out: Path,
    work: Path,
    workers: int,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Measure every quantizable tensor at every admissible type, and write `out`.

    One line a finished tensor is kept in `work`, so a killed run goes on with the next tensor.
    """
    infos = [info for info in source.tensors if is_quantizable(info)]
    purpose = json.dumps(recipe.model_dump(mode="json"))
    journal = Journal(work / "errors.jsonl", purpose)
    entries = [json.loads(line) for line in journal.lines]
    errors: dict[str, dict[str, float]] = {entry["name"]: entry["errors"] for entry in entries}
    for kind in {BY_NAME[name] for name in recipe.candidates}:
        kernels.prepare(kind)
    progress.start(len(infos), "tensors")
    with ThreadPoolExecutor(workers) as pool:
        for info in infos:
            if info.name not in errors:
                weights = importance.get(info.name)
                pieces = sample(source, info, recipe)
                kinds = admissible(info, weights is not None, recipe.candidates)
                results = pool.map(lambda k, p=pieces, w=weights: relative_error(k, p, w), kinds)
                errors[info.name] = dict(zip((k.name for k in kinds), results, strict=True))
                journal.append(json.dumps({"name": info.name, "errors": errors[info.name]}))
            progress.advance(1)
    # a tensor whose rows fit no candidate keeps its type
    ordered = {info.name: errors[info.name] for info in infos if errors[info.name]}
    write_json(out, {"seed": recipe.seed, "sample_rows": recipe.sample_rows, "errors": ordered})
    return Sensitivity(ordered)
