"""`quantkit publish`: shows what a release consists of, sends it, and says where it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console, marked
from quantkit.core.errors import InputError
from quantkit.core.units import bytes_text, gb_text, gib_text

if TYPE_CHECKING:
    from quantkit.core.console import Cell
    from quantkit.release.card.front_matter import SourceCard
    from quantkit.release.publish import Prepared, Published, PublishJob

SHOWN = 6
"""Names of files that a line has."""
SOURCE_FACTS = ("repository", "commit", "licence", "licence_name", "licence_link", "gated")


def publish(
    folder: Annotated[Path, Argument(help="Folder of a finished build.")],
    to: Annotated[
        str,
        Option(help="Hub repository to publish to: OWNER, or OWNER/NAME; -GGUF is added to NAME."),
    ],
    levels: Annotated[
        str | None,
        Option(help="Levels to publish, as in Q6,Q4. Default: all that passed, without baselines."),
    ] = None,
    private: Annotated[bool, Option("--private", help="Make the new repository private.")] = False,
    dry_run: Annotated[
        bool,
        Option(
            "--dry-run",
            help="Show what would be published and write the model card; change nothing on the "
            "Hub.",
        ),
    ] = False,
    branch: Annotated[str | None, Option(help="Branch to commit to. Default: main.")] = None,
    pr: Annotated[bool, Option("--pr", help="Open a pull request instead of committing.")] = False,
    allow_failed: Annotated[
        bool,
        Option(
            "--allow-failed", help="Also publish levels that failed their gate; the card says so."
        ),
    ] = False,
    replace: Annotated[
        bool,
        Option(
            "--replace",
            help="Overwrite files that quantkit did not write, and remove files of an earlier "
            "release.",
        ),
    ] = False,
    base_model: Annotated[
        str | None,
        Option(
            help="Hub repository (OWNER/NAME) of a model that was built from a folder; for the "
            "model card and the licence."
        ),
    ] = None,
    exact_name: Annotated[
        bool, Option("--exact-name", help="Do not add -GGUF to the repository's name.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.release.publish import PublishJob

    if pr and branch is not None:
        raise InputError("--pr opens a pull request to main; leave it or --branch")
    named = None
    if levels is not None:
        named = tuple(name.strip() for name in levels.split(",") if name.strip())
        if not named:
            raise InputError("--levels names none; give levels of the build, as in Q6,Q4")
    job = PublishJob(
        folder, to, exact_name, named, private, branch, pr, allow_failed, replace, base_model,
        dry_run,
    )  # fmt: skip
    console = Console(quiet=quiet or as_json)
    facts = publish_build(job, console)
    if as_json:
        console.json(facts)


def publish_build(job: PublishJob, console: Console) -> dict[str, object]:
    """Show what a release consists of, send it to the Hub, say where it is; returns the facts."""
    from quantkit.core.work_folders import build_folder
    from quantkit.release.contents import read_build
    from quantkit.release.publish import prepare, send

    read_build(job.folder)  # a folder that holds no build is not written to
    with build_folder(job.folder, "copy the build to where it can be"):
        prepared = prepare(job, console)
        _show(prepared, job, console)
        began = time.monotonic()
        done = None if job.dry_run else send(prepared)
    if done is not None:
        _tell(prepared, done, time.monotonic() - began, console)
    else:
        console.line(
            f"Nothing was changed on the Hub. The release is in {job.folder / 'release'}; its "
            "model card is README.md."
        )
    return _facts(prepared, done)


def _show(prepared: Prepared, job: PublishJob, console: Console) -> None:
    to, changes = prepared.destination, prepared.changes
    if to.listing is None:
        where = f"new repository, {'private' if job.private else 'public'}"
    else:
        where = "private" if to.listing.private else "public"
        where = f"{where} repository at {to.listing.commit[:12]}"
    if to.opens:
        where += ", in a new pull request"
    elif to.revision != "main":
        where += f", {to.revision}"
    console.line(f"  source   {_source_words(prepared.source)}")
    console.line(f"  licence  {_licence_words(prepared.source)}")
    console.line(f"  to       {where}")
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
        return "not stated by the source: check that you may publish it"
    name = f" ({source.licence_name})" if source.licence_name else ""
    link = f", {source.licence_link}" if source.licence_link else ""
    return f"{source.licence}{name}{link}"


def _levels_table(prepared: Prepared, console: Console) -> None:
    rows: list[Sequence[Cell]] = []
    for level in prepared.levels:
        result, files = level.result, list(level.files)
        gate = result.retrieval.gated[0]
        color = "green" if result.passed else "bold red"
        name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        rows.append(
            (
                result.name,
                marked("{}\n[dim]{}[/]", gib_text(result.size_bytes), gb_text(result.size_bytes)),
                f"{gate.hits}/{gate.trials} at {gate.context_tokens:,}",
                f"≥ {gate.lower_bound:.1%}",
                marked(f"[{color}]{{}}[/]", result.verdict),
                name,
            )
        )
    published = {level.name for level in prepared.levels}
    rows += [
        (
            marked("[dim]{}[/]", level.name),
            "",
            "",
            "",
            level.result.verdict,
            marked("[dim]not published[/]"),
        )
        for level in prepared.build.levels
        if level.name not in published
    ]
    console.table(("level", "size", "retrieval", "proven", "gate", "file"), rows)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _tell(prepared: Prepared, done: Published, seconds: float, console: Console) -> None:
    count = len(prepared.files)
    if done.made:
        console.done("publish", f"{count} files, verified on the Hub, {done.commit[:12]}", seconds)
    else:
        console.skipped("publish", f"all {count} files are there already ({done.commit[:12]})")
    console.line(f"Release: {done.address}")
    revision = done.proposal or prepared.destination.revision
    at = "" if revision == "main" else f"@{revision}"
    console.line(f"Verify:  quantkit verify {prepared.destination.repository}{at}")


def _facts(prepared: Prepared, done: Published | None) -> dict[str, object]:
    to, source = prepared.destination, prepared.source
    return {
        "repository": to.repository,
        "revision": (done and done.proposal) or to.revision,
        "commit": done and done.commit,
        "made": done is not None and done.made,
        "address": done and done.address,
        "levels": [level.name for level in prepared.levels],
        "source": {name: getattr(source, name) for name in SOURCE_FACTS},
        "files": {
            file.name: {"size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in prepared.files
        },
        "sent": [file.name for file in prepared.changes.sent],
        "removed": list(prepared.changes.removed),
    }
