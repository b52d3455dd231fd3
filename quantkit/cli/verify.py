"""`quantkit verify`: a release against its own claims, and against what it was made from."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.core.console import Console
from quantkit.core.errors import GateError, InputError
from quantkit.plan.machine import worker_count

if TYPE_CHECKING:
    from quantkit.core.progress import Progress
    from quantkit.release.verifying.checking import Check
    from quantkit.release.verifying.description import Description
    from quantkit.release.verifying.files import ReleaseFiles
    from quantkit.release.verifying.origin import Origin
    from quantkit.release.verifying.verify import Verified

FAULTS_SHOWN = 8
"""Of one check; --json has all."""
FAULTS_TOLD = 3
"""In the last sentence."""
NAMES_SHOWN = 6


@dataclass(frozen=True)
class Asked:
    """What the person asked for.

    Attributes:
        release: a folder, or OWNER/NAME[@REVISION] on the Hub.
        source: what it was made from: a folder, a GGUF file, or `demo`.
        full: all rows, not a sample.
        seed: chooses the rows; None draws one, which nobody who wrote the release can know.
    """

    release: str
    source: str | None
    full: bool
    seed: int | None
    workers: int | None
    quiet: bool
    as_json: bool


def verify(asked: Asked) -> None:
    """Check, print a line a check, and raise when something is not what it says."""
    from quantkit.release.verifying.verify import verify as run

    console = Console(quiet=asked.quiet or asked.as_json)
    origin = _origin(asked)
    with console.stage("verify") as progress:
        files, said = _opened(asked, progress)
        levels = ", ".join(said.levels) or "no level"
        console.heading(f"{files.where}: a {said.kind} of {said.model}, {levels}")
        workers = worker_count(asked.workers)

        def on_check(check: Check) -> None:
            progress.close()  # the next check has a bar of its own
            _print(console, check)

        found = run(files, said, origin, workers, progress, on_check)
    _print_rest(console, found)
    if asked.as_json:
        console.json(_facts(found))
    if found.faults:
        count, told = len(found.faults), "; ".join(found.faults[:FAULTS_TOLD])
        more = f"; and {count - FAULTS_TOLD} more" if count > FAULTS_TOLD else ""
        raise GateError(f"{found.where} is not what it says it is: {told}{more}")
    console.line(_verdict(found) + _unasked(asked))


def _origin(asked: Asked) -> Origin | None:
    from quantkit.models.choose import choose_model
    from quantkit.release.verifying.origin import Origin

    if asked.source is None:
        if asked.full:
            raise InputError("--full compares all rows with the model's: give --source too")
        return None
    choice = choose_model(asked.source)
    if choice.path is None:
        raise InputError(
            f"--source {asked.source} is a repository; download it first: quantkit download "
            f"{asked.source}"
        )
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    return Origin(choice, seed, asked.full)


def _opened(asked: Asked, progress: Progress) -> tuple[ReleaseFiles, Description]:
    """The release's files, and what it says of itself."""
    from quantkit.release.verifying.description import describe_release, open_folder

    folder = Path(asked.release).expanduser()
    if folder.is_dir():
        return open_folder(folder, worker_count(asked.workers))
    repository, _, revision = asked.release.partition("@")
    if folder.exists() or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise InputError(
            f"no release at {asked.release}: give a downloaded release, the folder of a build, or "
            "OWNER/NAME on the Hub"
        )
    if asked.full:
        raise InputError(
            f"--full reads all of {asked.release}: download it first (hf download {repository} "
            "--local-dir DIR) and give the folder; without --full, sampled rows are fetched"
        )
    from quantkit.hub.reading import Hub
    from quantkit.release.verifying.files import HubFiles

    hub = Hub()
    files = HubFiles(hub, hub.listing(repository, revision or None, progress.note), progress.note)
    return files, describe_release(files)


def _print(console: Console, check: Check) -> None:
    if check.agrees is None and not check.faults:
        console.skipped(check.name, f"nothing to be compared: {check.compared}")
        return
    if not check.faults:
        console.done(check.name, f"{check.compared}: {check.agrees}", check.seconds)
        return
    count = f"{len(check.faults)} fault{'s' * (len(check.faults) > 1)}"
    console.failed(check.name, f"{count} in {check.compared}", check.seconds)
    for fault in check.faults[:FAULTS_SHOWN]:
        console.note(fault)
    if len(check.faults) > FAULTS_SHOWN:
        console.note(f"and {len(check.faults) - FAULTS_SHOWN} more; --json has all")


def _print_rest(console: Console, found: Verified) -> None:
    from quantkit.release.verifying.claims import shown

    for names, words in (
        (found.not_here, "not here, so not checked"),
        (found.not_covered, _uncovered(found)),
    ):
        if names:
            some = ", ".join(map(shown, names[:NAMES_SHOWN]))
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            console.note(f"{len(names)} file{'s' * (len(names) > 1)} {words}: {some}{more}")
    for note in found.notes:
        console.note(note)


def _uncovered(found: Verified) -> str:
    return "that no hash covers" if found.description.kind == "release" else "of no receipt"


def _verdict(found: Verified) -> str:
    """Where nothing is wrong: of what that is said, and of what not."""
    count = len(found.not_covered)
    but = f", except {count} file{'s' * (count > 1)} {_uncovered(found)}" if count else ""
    empty = ", ".join(check.name for check in found.checks if check.agrees is None)
    nothing = f" Nothing was here to be compared for: {empty}." if empty else ""
    return f"Verified: everything that was compared agrees{but}.{nothing}"


def _unasked(asked: Asked) -> str:
    """What a further run would compare."""
    if asked.source is None:
        return " --source MODEL compares the weights with those that it was made from."
    if not asked.full:
        return " Another run takes other rows; all rows of a downloaded release: --full."
    return ""


def _facts(found: Verified) -> dict[str, Any]:
    said = found.description
    return {
        "where": found.where,
        "kind": said.kind,
        "model": said.model,
        "levels": list(said.levels),
        "verified": not found.faults,
        "checks": [
            {
                "name": check.name,
                "passed": not check.faults,
                "compared": check.agrees is not None,
                "seconds": round(check.seconds, 3),
                **check.facts,
                "faults": list(check.faults),
            }
            for check in found.checks
        ],
        "not_here": list(found.not_here),
        "not_covered": list(found.not_covered),
        "notes": list(found.notes),
    }
