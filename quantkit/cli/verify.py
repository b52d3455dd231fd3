"""`quantkit verify`: a release against its own claims, and against what it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import GateError, InputError

if TYPE_CHECKING:
    from quantkit.release.verifying.checking import Check
    from quantkit.release.verifying.verify import Origin, Verified

FAULTS_SHOWN = 8
"""Of one check; --json has all."""
FAULTS_TOLD = 3
"""In the last sentence."""
NAMES_SHOWN = 6


def verify(
    release: Annotated[
        str,
        Argument(
            help="Release to verify: a downloaded release, the folder of a build, or "
            "OWNER/NAME[@REVISION] on the Hub."
        ),
    ],
    source: options.Source = None,
    full: Annotated[
        bool,
        Option(
            "--full", help="With --source: compare all rows, not a sample; hash all of its files."
        ),
    ] = False,
    seed: Annotated[
        int | None,
        Option(
            min=0, help="Seed of the sampled rows. Default: a new one each time, which is printed."
        ),
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.core.threads import worker_count
    from quantkit.release.verifying.description import open_release
    from quantkit.release.verifying.verify import verify as run

    console = Console(quiet=quiet or as_json)
    origin, threads = _origin(source, seed, full), worker_count(workers)
    with console.stage("verify") as progress:
        files, said = open_release(release, threads, progress, full=full)
        levels = ", ".join(said.manifest.levels) or "no level"
        console.heading(f"{files.where}: a {said.kind} of {said.manifest.model}, {levels}")

        def on_check(check: Check) -> None:
            progress.close()  # the next check has a bar of its own
            _print(console, check)

        found = run(files, said, origin, threads, progress, on_check)
    _print_rest(console, found)
    if as_json:
        console.json(_facts(found))
    if found.faults:
        count, told = len(found.faults), "; ".join(found.faults[:FAULTS_TOLD])
        more = f"; and {count - FAULTS_TOLD} more" if count > FAULTS_TOLD else ""
        raise GateError(f"{found.where} does not match its own claims: {told}{more}")
    console.line(_verdict(found) + _further(source, full))


def _origin(source: str | None, seed: int | None, full: bool) -> Origin | None:
    """What to compare the weights with; a drawn seed is one that no publisher could know."""
    import secrets

    from quantkit.models.choose import choose_local
    from quantkit.release.verifying.verify import Origin

    if source is None:
        if full:
            raise InputError("--full compares all rows with the model's: give --source too")
        return None
    choice, _ = choose_local(source, "--source")
    return Origin(choice, secrets.randbits(32) if seed is None else seed, full)


def _print(console: Console, check: Check) -> None:
    if check.agrees is None and not check.faults:
        console.skipped(check.name, f"nothing to compare: {check.compared}")
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
    from quantkit.core.units import shown

    listed = {"not here, so not checked": found.not_here, _uncovered(found): found.not_covered}
    for words, names in listed.items():
        if names:
            some = ", ".join(map(shown, names[:NAMES_SHOWN]))
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            console.note(f"{len(names)} file{'s' * (len(names) > 1)} {words}: {some}{more}")
    for note in found.notes:
        console.note(note)


def _uncovered(found: Verified) -> str:
    return "that no hash covers" if found.description.kind == "release" else "of no receipt"


def _verdict(found: Verified) -> str:
    """What agrees, and what could not be compared, where no check found a fault."""
    count = len(found.not_covered)
    but = f", except {count} file{'s' * (count > 1)} {_uncovered(found)}" if count else ""
    empty = ", ".join(check.name for check in found.checks if check.agrees is None)
    nothing = f" There was nothing to compare for: {empty}." if empty else ""
    return f"Verified: everything that was compared agrees{but}.{nothing}"


def _further(source: str | None, full: bool) -> str:
    """What a further run would compare."""
    if source is None:
        return " --source MODEL also compares the weights with the model they were made from."
    if not full:
        return " Another run samples other rows; --full compares all rows of a downloaded release."
    return ""


def _facts(found: Verified) -> dict[str, Any]:
    said = found.description
    return {
        "where": found.where,
        "kind": said.kind,
        "model": said.manifest.model,
        "levels": list(said.manifest.levels),
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
