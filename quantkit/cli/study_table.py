"""What a finished study says, as facts and as lines and a table."""

from __future__ import annotations

from typing import Any

from quantkit.core.console import Console
from quantkit.core.units import bytes_text
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.logits_file import LogitsFile
from quantkit.study.imatrix_coverage import coverage_of
from quantkit.study.kld_statistics import kld_with_error
from quantkit.study.sensitivity import Sensitivity, Study

SHOWN = 10
"""Of the most sensitive tensors."""


def study_facts(study: Study) -> dict[str, Any]:
    """The facts of a study, as JSON has them."""
    found, imatrix = study.sensitivity, read_imatrix(study.imatrix)
    coverage = coverage_of(imatrix.entries)
    files = [study.imatrix, study.imatrix.with_name("sensitivity.json"), study.logits]
    facts: dict[str, Any] = {
        "folder": str(study.imatrix.parent),
        "files": {path.name: path.stat().st_size for path in files if path is not None},
        "imatrix": {
            "weights": len(imatrix.entries),
            "chunks": imatrix.chunks,
            "tokens": imatrix.chunks * imatrix.chunk_tokens,
            "texts": list(imatrix.dataset_names),
            "experts": coverage.experts,
            "unseen_experts": coverage.missed(1),
        },
        "errors": {
            "tensors": len(found.errors),
            "pairs": sum(len(kinds) for kinds in found.errors.values()),
            "median_relative_standard_error": found.median_relative_standard_error,
        },
        "costs": {
            "units": len(found.costs),
            "tokens": found.cost_tokens,
            "restored_kld": found.restored_kld,
            "of_1_percent_error": {
                name: {"kld": cost.mean, "standard_error": cost.known_error}
                for name, cost in found.dearest()
            },
        },
        "logits": None,
    }
    if study.logits is not None:
        header = LogitsFile(study.logits).header
        facts["logits"] = {"positions": header.positions, "text": header.text}
    return facts


def print_study(console: Console, study: Study, facts: dict[str, Any]) -> None:
    """Print `facts`, a line for each file, and the units whose errors cost the most."""
    imatrix, errors, costs = facts["imatrix"], facts["errors"], facts["costs"]
    sizes = {name: bytes_text(size) for name, size in facts["files"].items()}
    console.line(f"Study in {facts['folder']}")
    experts = ""
    if imatrix["experts"]:
        experts = f", {imatrix['unseen_experts']:,} of {imatrix['experts']:,} experts unseen"
    console.line(
        f"  imatrix.gguf      {sizes['imatrix.gguf']}: {imatrix['weights']} weights, "
        f"{imatrix['tokens']:,} tokens{experts}"
    )
    console.line(
        f"  sensitivity.json  {sizes['sensitivity.json']}: {errors['pairs']} errors of "
        f"{errors['tensors']} tensors, sampled to {errors['median_relative_standard_error']:.1%}"
    )
    if costs["units"]:
        console.line(
            f"                    {costs['units']} costs on {costs['tokens']:,} tokens; the "
            f"model against itself: {costs['restored_kld']:.1g}"
        )
    if facts["logits"] is not None:
        console.line(
            f"  base.logits       {sizes['base.logits']}: {facts['logits']['positions']:,} "
            f"positions of {facts['logits']['text']}"
        )
    if study.sensitivity.costs:
        print_costs(console, study.sensitivity)


def print_costs(console: Console, found: Sensitivity) -> None:
    """Print the tensors whose errors cost the most, beside the median tensor."""
    dearest = found.dearest()
    middle = dearest[len(dearest) // 2][1].mean
    rows = [
        (
            name,
            kld_with_error(cost.mean, cost.known_error),
            f"{cost.mean / middle:.3g} ×" if middle > 0 else "–",
        )
        for name, cost in dearest[:SHOWN]
    ]
    console.table(("most sensitive tensors", "KLD of 1 % error", "of the median"), rows)
