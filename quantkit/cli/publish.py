"""`quantkit publish`: what is going to be published, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantkit.core.console import Console
from quantkit.core.units import bytes_text, gb_text, gib_text

if TYPE_CHECKING:
    from quantkit.release.card.front_matter import SourceCard
    from quantkit.release.publish import Prepared, Published, PublishJob

SHOWN = 6
"""Names of files that a line has."""


def publish(job: PublishJob, quiet: bool, as_json: bool) -> dict[str, object]:
    """Show what a release consists of, bring it to the Hub, say where it is; returns the facts."""
    from quantkit.core.work_folders import build_folder
    from quantkit.release.contents import read_build
    from quantkit.release.publish import prepare, send

    console = Console(quiet=quiet)
    read_build(job.folder)  # a folder that is no build is not written to
    with build_folder(job.folder, "copy the build to where it can be"):
        prepared = prepare(job, console)
        _show(prepared, job, console)
        began = time.monotonic()
        done = None if job.dry_run else send(prepared, job)
    if done is not None:
        _tell(prepared, done, time.monotonic() - began, console)
    else:
        console.line(
            f"Nothing was changed. The release lies in {job.folder / 'release'}; its card is "
            "README.md."
        )
    facts = _facts(prepared, done)
    if as_json:
        console.json(facts)
    return facts


def _show(prepared: Prepared, job: PublishJob, console: Console) -> None:
    place, changes = prepared.place, prepared.changes
    if place.listing is None:
        where = f"new repository, {'private' if job.private else 'public'}"
    else:
        where = "private" if place.listing.private else "public"
        where = f"{where} repository at {place.listing.commit[:12]}"
    if place.opens:
        where += ", in a new pull request"
    elif place.revision != "main":
        where += f", {place.revision}"
    for label, words in (
        ("source", _source_words(prepared.source)),
        ("licence", _licence_words(prepared.source)),
        ("to", where),
    ):
        console.line(f"  {label:<9}{words}")
    _levels_table(prepared, console)
    sent = sum(file.size_bytes for file in changes.sent)
    total = sum(file.size_bytes for file in prepared.files)
    kept = f", {len(changes.kept)} are there" if changes.kept else ""
    console.line(
        f"{len(prepared.files)} files, {bytes_text(total)}: {len(changes.sent)} to send "
        f"({bytes_text(sent)}){kept}"
    )
    if changes.removed:
        console.line(f"To be removed: {_names(changes.removed)}")


def _source_words(source: SourceCard) -> str:
    if source.repository is None:
        return "not known on the Hub; --base-model OWNER/NAME names it on the card"
    commit = f" at {source.commit[:12]}" if source.commit else ""
    gated = f", gated ({source.gated}): its terms go with it" if source.gated else ""
    return f"{source.repository}{commit}{gated}"


def _licence_words(source: SourceCard) -> str:
    if source.licence is None:
        return "not stated by the source: see that you may publish it"
    name = f" ({source.licence_name})" if source.licence_name else ""
    link = f", {source.licence_link}" if source.licence_link else ""
    return f"{source.licence}{name}{link}"


def _levels_table(prepared: Prepared, console: Console) -> None:
    rows = []
    for level in prepared.levels:
        result = level.result
        gate = result.retrieval.gated[0]
        color = "green" if result.passed else "bold red"
        files = list(level.files)
        name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        rows.append(
            (
                result.name,
                f"{gib_text(result.size_bytes)}\n[dim]{gb_text(result.size_bytes)}[/]",
                f"{gate.hits}/{gate.trials} at {gate.context_tokens:,}",
                f"≥ {gate.lower_bound:.1%}",
                f"[{color}]{result.verdict}[/]",
                name,
            )
        )
    published = {level.name for level in prepared.levels}
    for level in prepared.build.levels:
        if level.name not in published:
            rows.append(
                (f"[dim]{level.name}[/]", "", "", "", level.result.verdict, "[dim]not published[/]")
            )
    console.table(("level", "size", "retrieval", "proven", "gate", "file"), rows)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _tell(prepared: Prepared, done: Published, seconds: float, console: Console) -> None:
    count = len(prepared.files)
    if done.made:
        console.done(
            "publish", f"{count} files there as they are here, {done.commit[:12]}", seconds
        )
    else:
        console.skipped("publish", f"all {count} files are there already ({done.commit[:12]})")
    console.line(f"Release: {done.address}")
    revision = (
        ""
        if prepared.place.revision == "main" and done.proposal is None
        else (f"@{done.proposal or prepared.place.revision}")
    )
    console.line(f"Verify:  quantkit verify {prepared.place.repository}{revision}")


def _facts(prepared: Prepared, done: Published | None) -> dict[str, object]:
    place, changes, source = prepared.place, prepared.changes, prepared.source
    return {
        "repository": place.repository,
        "revision": (done.proposal if done else None) or place.revision,
        "commit": done.commit if done else None,
        "made": done.made if done else False,
        "address": done.address if done else None,
        "levels": [level.name for level in prepared.levels],
        "source": {
            "repository": source.repository,
            "commit": source.commit,
            "licence": source.licence,
            "licence_name": source.licence_name,
            "licence_link": source.licence_link,
            "gated": source.gated,
        },
        "files": {
            file.name: {"size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in prepared.files
        },
        "sent": [file.name for file in changes.sent],
        "removed": list(changes.removed),
    }
