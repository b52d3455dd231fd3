"""Receipts: the inputs and outputs of a finished stage, so that a build resumes.

Outputs are written to `x.partial`, fsynced and renamed; the receipt is written last, so its
existence means that the stage is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256, is_inner_path, link_or_copy, plain_json, write_text
from quantkit.core.parsing import own_json


@dataclass(frozen=True)
class Output:
    """A file that a stage wrote: path relative to the build folder, size, time, SHA-256."""

    path: str
    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """One finished stage.

    Attributes:
        parts: everything that the result depends on, by name: stage version, recipe section,
            native library, hashes of the outputs of earlier stages.
        facts: numbers for the closing table and the report.
    """

    stage: str
    parts: Mapping[str, Any]
    outputs: tuple[Output, ...]
    seconds: float
    facts: Mapping[str, Any]

    @property
    def output_hashes(self) -> dict[str, str]:
        return {output.path: output.sha256 for output in self.outputs}


_RECEIPT = TypeAdapter(Receipt)


def _receipt_path(folder: Path, stage: str) -> Path:
    return folder / "receipts" / f"{stage.replace(':', '.')}.json"


def read_receipt(folder: Path, stage: str) -> Receipt | None:
    """The receipt of `stage`, or None if it is missing, damaged, or of files outside `folder`."""
    try:
        found = _RECEIPT.validate_python(own_json(_receipt_path(folder, stage)))
    except (InputError, ValueError):
        return None
    return found if all(is_inner_path(output.path) for output in found.outputs) else None


def finished_receipts(folder: Path, prefix: str) -> list[Receipt]:
    """The receipts of all stages whose names begin with `prefix`, in the order of their names."""
    some = _receipt_path(folder, f"{prefix}*")
    names = sorted(path.stem for path in some.parent.glob(some.name))
    found = (read_receipt(folder, name) for name in names)
    return [receipt for receipt in found if receipt is not None]


def forget_receipt(folder: Path, stage: str) -> None:
    """Remove the receipt of `stage`, if there is one."""
    _receipt_path(folder, stage).unlink(missing_ok=True)


def write_receipt(
    folder: Path,
    stage: str,
    parts: Mapping[str, Any],
    outputs: Sequence[Path],
    seconds: float,
    facts: Mapping[str, Any],
) -> Receipt:
    """Hash `outputs`, write the receipt of `stage` and return it."""
    records = []
    for path in outputs:
        stat = path.stat()
        relative = path.relative_to(folder).as_posix()
        records.append(Output(relative, stat.st_size, stat.st_mtime_ns, file_sha256(path)))
    receipt = Receipt(stage, plain_json(parts), tuple(records), seconds, plain_json(facts))
    write_text(_receipt_path(folder, stage), json.dumps(asdict(receipt), indent=1) + "\n")
    return receipt


def adopt_receipt(source: Path, folder: Path, stage: str) -> Receipt | None:
    """Have in `folder` the outputs of `stage` in the folder `source` too, with its receipt.

    As links to the same content, which neither folder ever changes in place; as copies on another
    disk.

    Returns:
        The receipt; None where `source` has none.
    """
    found, have = read_receipt(source, stage), read_receipt(folder, stage)
    if found is None:
        return None
    if have is not None and _is_same(have, found) and not _changed(folder, have):
        return have
    for output in found.outputs:
        link_or_copy(source / output.path, folder / output.path)
    paths = [folder / output.path for output in found.outputs]
    modified = [path.stat().st_mtime_ns for path in paths]
    outputs = [replace(o, modified_ns=m) for o, m in zip(found.outputs, modified, strict=True)]
    adopted = replace(found, outputs=tuple(outputs))
    write_text(_receipt_path(folder, stage), json.dumps(asdict(adopted), indent=1) + "\n")
    return adopted


def _is_same(one: Receipt, other: Receipt) -> bool:
    """Whether they say the same; copies have been written at other times."""
    plain, others = (replace(receipt, outputs=()) for receipt in (one, other))
    return plain == others and one.output_hashes == other.output_hashes


def stale_reason(folder: Path, stage: str, parts: Mapping[str, Any]) -> str | None:
    """None if `stage` is done and still valid; else why it runs again."""
    receipt = read_receipt(folder, stage)
    if receipt is None:
        return "not done yet"
    now = plain_json(parts)
    for name in sorted(now.keys() | receipt.parts.keys()):
        old, new = receipt.parts.get(name), now.get(name)
        if old != new:
            return _difference(name, old, new)
    return _changed(folder, receipt)


def _changed(folder: Path, receipt: Receipt) -> str | None:
    """What of its outputs is not as it was written; None if nothing is."""
    changed = (_output_changed(folder / output.path, output) for output in receipt.outputs)
    return next(filter(None, changed), None)


def _difference(name: str, old: Any, new: Any) -> str:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _difference(f"{name}.{key}", old.get(key), new.get(key))
    before, after = json.dumps(old), json.dumps(new)
    if len(before) + len(after) > 80:
        return f"{name} has changed"
    return f"{name} has changed from {before} to {after}"


def _output_changed(path: Path, output: Output) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return f"its output {output.path} is missing"
    if stat.st_size != output.size_bytes:
        return f"its output {output.path} has {stat.st_size} bytes, it wrote {output.size_bytes}"
    if stat.st_mtime_ns != output.modified_ns and file_sha256(path) != output.sha256:
        return f"its output {output.path} was changed by something else"
    return None
