"""What is known of a model before it is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.study.sensitivity import Sensitivity


@dataclass(frozen=True)
class Study:
    """A model's study, in a folder.

    Attributes:
        folder: a build of the same model and recipe in it goes on from here.
        base: GGUF that it was measured on.
        imatrix: file with the importance matrix.
        sensitivity: errors of the tensors at each type, relative: Σ w·(x − q(x))² / Σ w·x²; and
            what they cost: mean KL divergences in nats.
    """

    folder: Path
    base: Path
    imatrix: Path
    sensitivity: Sensitivity
