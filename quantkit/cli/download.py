"""`quantkit download`: a checkpoint, verified, and how to go on from it."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.units import bytes_text, gb_text, gib_text

if TYPE_CHECKING:
    from quantkit.config.recipe import Recipe
    from quantkit.models.local_copy import Survey
    from quantkit.models.remote import RemoteCheckpoint


def download(
    repository: Annotated[str, Argument(help="Hub repository: OWNER/NAME or OWNER/NAME@REVISION.")],
    out: Annotated[
        Path | None, Option(help="Folder to download into. Default: the repository's name.")
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.config.recipe import recipe_for
    from quantkit.core.files import chosen_folder
    from quantkit.core.paths import HubAddress
    from quantkit.hub.reading import Hub
    from quantkit.models.download import download as run
    from quantkit.models.local_copy import SpaceNeeded, check_space, survey
    from quantkit.models.remote import look_up

    address = HubAddress.parse(repository)
    repository = address.repository
    folder = chosen_folder(out, repository.rpartition("/")[2] or "model")
    console, hub = Console(quiet=quiet or as_json), Hub()
    with console.stage("look up") as progress:
        remote = look_up(hub, repository, address.revision, folder, progress)
    repository = remote.listing.repository  # as the Hub spells it
    found, recipe = survey(remote, folder), recipe_for(repository)
    check_space(SpaceNeeded(found.fetch_bytes), found.free_bytes, folder)
    console.heading(f"quantkit download {repository} at {remote.listing.commit[:12]} → {folder}")
    _show_sizes(console, remote, found, recipe)
    began = time.monotonic()
    with console.stage("download", folder) as progress:
        done = run(remote, hub, folder, progress)
    if as_json:
        files = {f.name: {"size_bytes": f.size_bytes, "sha256": f.sha256} for f in done.files}
        console.json(
            {
                "repository": repository, "commit": done.commit, "folder": str(folder),
                "size_bytes": done.size_bytes, "fetched_bytes": done.fetched_bytes, "files": files,
            }
        )  # fmt: skip
    came = f"{bytes_text(done.fetched_bytes)} fetched" if done.fetched_bytes else "nothing to fetch"
    detail = f"{len(done.files)} files verified, {came}"
    console.done("download", detail, time.monotonic() - began)
    options = "" if recipe.name == "default" else f" --recipe {recipe.name}"
    console.line(
        f"Next:  quantkit build --target 4x3090 --model {shlex.quote(str(folder))}{options}"
    )


def _show_sizes(console: Console, remote: RemoteCheckpoint, found: Survey, recipe: Recipe) -> None:
    """Print what is fetched, and warn of a disk that will not hold a build as well."""
    from quantkit.models.families.registry import family_for
    from quantkit.models.geometry import geometry_of
    from quantkit.models.local_copy import space_needed

    here = remote.size_bytes - found.fetch_bytes
    console.line(
        f"{len(remote.files)} files, {gib_text(remote.size_bytes)} ({gb_text(remote.size_bytes)}): "
        + (f"{bytes_text(here)} here already, " if here else "")
        + f"{bytes_text(found.fetch_bytes)} to fetch, {bytes_text(found.free_bytes)} free"
    )
    vocabulary = geometry_of(family_for(remote.config).metadata(remote.config)).vocabulary
    needed = space_needed(found.fetch_bytes, remote.elements, vocabulary, recipe)
    if needed.total_bytes > found.free_bytes:
        console.note(
            f"this disk will not hold a build as well: recipe {recipe.name} takes about another "
            f"{bytes_text(needed.level_bytes + needed.logits_bytes)} for its levels and "
            "base.logits; build with --out on another disk"
        )
