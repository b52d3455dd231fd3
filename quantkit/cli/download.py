"""`quantkit download`: a checkpoint, verified, and how to go on from it."""

from __future__ import annotations

import shlex
from pathlib import Path

from quantkit.core.console import Console
from quantkit.core.units import bytes_text, gb_text, gib_text


def download(model: str, out: Path | None, quiet: bool, as_json: bool) -> None:
    """Bring a checkpoint here, verified, and say what a build of it needs and how to begin it."""
    import time

    from quantkit.config.recipe import recipe_for
    from quantkit.hub.reading import Hub
    from quantkit.models.disk_space import SpaceNeeded, check_space, space_needed
    from quantkit.models.download import download as run
    from quantkit.models.families.registry import family_for
    from quantkit.models.geometry import geometry_of
    from quantkit.models.local_copy import survey
    from quantkit.models.remote import look_up

    repository, _, revision = model.partition("@")
    folder = out or Path(repository.rpartition("/")[2] or "model")
    console, hub = Console(quiet=quiet), Hub()
    with console.stage("look up") as progress:
        remote = look_up(hub, repository, revision or None, folder, progress)
    repository = remote.listing.repository  # as the Hub spells it
    found = survey(remote, folder)
    check_space(SpaceNeeded(found.fetch_bytes), found.free_bytes, folder)
    console.heading(f"quantkit download {repository} at {remote.listing.commit[:12]} → {folder}")
    here = remote.size_bytes - found.fetch_bytes
    console.line(
        f"{len(remote.files)} files, {gib_text(remote.size_bytes)} ({gb_text(remote.size_bytes)}): "
        + (f"{bytes_text(here)} here already, " if here else "")
        + f"{bytes_text(found.fetch_bytes)} to fetch, {bytes_text(found.free_bytes)} free"
    )
    recipe = recipe_for(repository)
    vocabulary = geometry_of(family_for(remote.config).metadata(remote.config)).vocabulary
    build_takes = space_needed(found.fetch_bytes, remote.elements, vocabulary, recipe)
    if build_takes.total_bytes > found.free_bytes:
        console.note(
            f"this disk will not hold a build as well: recipe {recipe.name} takes another "
            f"{bytes_text(build_takes.base_bytes)} for base.gguf ({recipe.convert.base_type}) and "
            f"about {bytes_text(build_takes.level_bytes + build_takes.logits_bytes)} for its "
            "levels and base.logits; build with --out on another disk"
        )
    began = time.monotonic()
    with console.stage("download") as progress:
        done = run(remote, hub, folder, progress)
    seconds = time.monotonic() - began
    if as_json:
        files = {f.name: {"size_bytes": f.size_bytes, "sha256": f.sha256} for f in done.files}
        facts = {
            "repository": repository,
            "commit": done.commit,
            "folder": str(folder),
            "size_bytes": done.size_bytes,
            "fetched_bytes": done.fetched_bytes,
            "files": files,
        }
        console.json(facts)
    came = f"{bytes_text(done.fetched_bytes)} fetched" if done.fetched_bytes else "nothing to fetch"
    console.done("download", f"{len(done.files)} files verified, {came}", seconds)
    options = "" if recipe.name == "default" else f" --recipe {recipe.name}"
    console.line(
        f"Next:  quantkit build --target 4x3090 --model {shlex.quote(str(folder))}{options}"
    )
