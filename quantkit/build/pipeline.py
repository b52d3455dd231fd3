"""Runs the ordered stages of a build: run what is stale, skip the rest, and say why.

A stage's fingerprint covers its version, the settings it depends on, the native library where it
matters, and the hashes of the outputs of every stage that it needs. There is no `--resume`:
running again is resuming.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.console import Console
from quantkit.core.progress import Progress
from quantkit.core.receipts import (
    Receipt,
    forget_receipt,
    read_receipt,
    stale_reason,
    write_receipt,
)
from quantkit.core.work_folders import resumable
from quantkit.llamacpp.ggml import library_version


@dataclass(frozen=True)
class Done:
    """The files a stage wrote, the text of its line, and numbers for the table and the report."""

    outputs: tuple[Path, ...]
    detail: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One step of a build.

    Attributes:
        version: raised when the same input would give other bytes.
        needs: stages whose outputs it reads, all of them and not the previous one alone.
        settings: what it depends on beside those: its part of recipe and target, as plain data.
        native: whether the native library's version matters to its result.
        run: does the work; its first argument is a folder that survives a kill.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    native: bool
    run: Callable[[Path, Progress], Done]


@dataclass(frozen=True)
class Pipeline:
    """Runs stages in a build folder."""

    folder: Path
    console: Console

    def receipt(self, stage: str) -> Receipt:
        """The receipt of a stage that has run."""
        receipt = read_receipt(self.folder, stage)
        if receipt is None:
            raise LookupError(f"stage {stage} has not run in {self.folder}")
        return receipt

    def has_run(self, stage: str) -> bool:
        """Whether a stage has a receipt, valid or stale."""
        return read_receipt(self.folder, stage) is not None

    def forget(self, stage: str) -> None:
        """Make a stage run again whatever its receipt says."""
        forget_receipt(self.folder, stage)

    def parts(self, stage: Stage) -> dict[str, Any]:
        """All that the stage's result depends on, by name."""
        parts: dict[str, Any] = {"stage version": stage.version, "settings": stage.settings}
        if stage.native:
            parts["llama-cpp-python"] = library_version()
        for name in stage.needs:
            parts[name] = self.receipt(name).output_hashes
        return parts

    def run(self, stage: Stage) -> None:
        """Run `stage` unless its receipt still holds."""
        parts = self.parts(stage)
        reason = stale_reason(self.folder, stage.name, parts)
        if reason is None:
            detail = self.receipt(stage.name).facts["detail"]
            self.console.skipped(stage.name, f"up to date ({detail})")
            return
        if reason != "not done yet":
            self.console.note(f"{stage.name} runs again: {reason}")
        began = time.monotonic()
        work = self.folder / ".work" / stage.name.replace(":", ".")
        with resumable(work, parts), self.console.stage(stage.name) as progress:
            done = stage.run(work, progress)
            facts = {**done.facts, "detail": done.detail}
            seconds = time.monotonic() - began
            write_receipt(self.folder, stage.name, parts, done.outputs, seconds, facts)
        self.console.done(stage.name, done.detail, seconds)
