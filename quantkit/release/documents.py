"""recipe.yaml and target.yaml of a release: what `quantkit build` takes to make it again.

Every field is written, whether it has its default or not: a later version may have others. What
belongs to the builder's machine is left out: paths of calibration texts and of the model, and the
devices of the GPUs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.release.names import RECIPE, TARGET
from quantkit.study.calibration.datasets import is_dataset
from quantkit.study.calibration.sources import shipped_name
from quantkit.study.imatrix import Calibration, SourceRead

_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*(?:@[\w.-]+)?", re.ASCII)
_DEMO = "demo"
_NO_NAME = "calibration"
"""What a text is called whose path ends in no name, such as `..`."""


def public_recipe(recipe: Recipe, calibration: Calibration | None = None) -> Recipe:
    """`recipe` without paths: only the names of calibration files and folders remain.

    The names are looked for where `quantkit build` is run. One that a shipped text has gets `./`
    in front, and of two equal names the second lies in a folder `2`. `model` stays where it is
    OWNER/NAME or `demo`.

    Args:
        calibration: the build's calibration.json, which knows the name of a folder that the
            recipe calls `.` or `..`.
    """
    names = _public_names(recipe, calibration)
    given = recipe.imatrix
    mixture = {names[name]: share for name, share in given.mixture.items()}
    # texts that are not read, because there is a mixture, have no record
    texts = tuple(names.get(name) or _public_name(name, name) for name in given.texts)
    imatrix = given.model_copy(update={"mixture": mixture, "texts": texts})
    model = recipe.model if recipe.model is not None and _is_public(recipe.model) else None
    return recipe.model_copy(update={"imatrix": imatrix, "model": model})


def recipe_document(
    recipe: Recipe,
    calibration: Calibration | None = None,
    *,
    model: str | None = None,
    imatrix: str | None = None,
) -> str:
    """recipe.yaml: a recipe that builds the same artifacts, without the builder's paths.

    Args:
        calibration: the build's calibration.json. From it are the hashes of the texts that
            whoever remakes the artifacts must have.
        model: what was built, OWNER/NAME@COMMIT; where it is a path, or None, the recipe's own.
        imatrix: name of the importance matrix beside the document: a build that took a ready one
            takes it again, and another may take it instead of collecting it.
    """
    public = public_recipe(recipe, calibration)
    named = next((m for m in (model, public.model) if m is not None and _is_public(m)), "MODEL")
    ready = calibration is not None and calibration.ready is not None
    command = f"quantkit build --model {named} --recipe {RECIPE} --target {TARGET}"
    file = "FILE" if imatrix is None else _quoted(imatrix)
    if ready:
        command += f" --imatrix {file}"
    lines = [f"Made by quantkit {__version__}. Build it again in the folder of this file:", ""]
    lines += [f"  {command}", ""]
    if ready:
        lines += [f"{file} is the importance matrix, a ready one that was given to the build.", ""]
    elif imatrix is not None:
        lines += [
            "The importance matrix is in this folder.",
            f"With --imatrix {file} it is not collected again.",
            "",
        ]
    lines += _own_texts(recipe, calibration)
    return _document(lines, public.model_dump(mode="json"))


def own_texts(recipe: Recipe, *, ready: bool) -> tuple[str, ...]:
    """The calibration texts that a build reads and that are the builder's own.

    Args:
        ready: the build takes a ready importance matrix; then the texts are read only for what
            errors cost.
    """
    if ready and not recipe.measure.cost_chunks:
        return ()
    return tuple(name for name in dict.fromkeys(recipe.imatrix.sources) if _is_own(name))


def public_target(target: Target) -> Target:
    """`target` without `devices`: numbers and UUIDs of the builder's own GPUs."""
    return target.model_copy(update={"devices": ()})


def target_document(target: Target) -> str:
    """target.yaml: the GPUs, and how they are used."""
    lines = [
        f"Made by quantkit {__version__}. The GPUs that the artifacts were built for:",
        "",
        f"  quantkit build --model MODEL --recipe {RECIPE} --target {TARGET}",
        "",
    ]
    return _document(lines, public_target(target).model_dump(mode="json", exclude={"devices"}))


def _document(comments: Sequence[str], content: Mapping[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """A plain or single-quoted scalar would lose line breaks such as U+0085."""

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        style = None if value.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments).removesuffix("#\n")
    body: str = yaml.dump(
        dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return head + body


def _is_public(model: str) -> bool:
    return model == _DEMO or _REPOSITORY.fullmatch(model) is not None


def _is_own(name: str) -> bool:
    """Whether a source is a file or a folder of the builder's."""
    return not is_dataset(name) and shipped_name(name) is None


def _public_names(recipe: Recipe, calibration: Calibration | None) -> dict[str, str]:
    """Source → its name without folders, unique among all."""
    sources = dict.fromkeys(recipe.imatrix.sources)
    recorded = _recorded(recipe, calibration)
    taken = {name for name in sources if not _is_own(name)}
    found = {}
    for name in sources:
        public = plain = _public_name(name, recorded[name].name if name in recorded else name)
        number = 1
        while _is_own(name) and public in taken:
            number += 1
            public = f"{number}/{plain.removeprefix('./')}"
        taken.add(public)
        found[name] = public
    return found


def _public_name(name: str, recorded: str) -> str:
    if not _is_own(name):
        return name
    last = re.split(r"[/\\]", recorded.rstrip("/\\"))[-1]
    if last in ("", ".", "..", "~"):
        last = _NO_NAME
    return f"./{last}" if shipped_name(last) is not None else last


def _recorded(recipe: Recipe, calibration: Calibration | None) -> dict[str, SourceRead]:
    """Source → its record in calibration.json; empty if the imatrix was not collected.

    A name that one source and one record have is both's. What is left, texts of equal names and
    folders such as `.`, is told apart by its order.
    """
    if calibration is None or calibration.ready is not None:
        return {}
    sources, records = list(recipe.imatrix.sources), calibration.sources
    called = [(_is_own(name), Path(name).name if _is_own(name) else name) for name in sources]
    said = [(record.origin == "disk", record.name) for record in records]
    unique = {key for key in called if called.count(key) == said.count(key) == 1}
    found = {sources[called.index(key)]: records[said.index(key)] for key in unique}
    others = [name for name, key in zip(sources, called, strict=True) if key not in unique]
    left = [record for record, key in zip(records, said, strict=True) if key not in unique]
    return found | dict(zip(others, left, strict=True))


def _own_texts(recipe: Recipe, calibration: Calibration | None) -> list[str]:
    """The texts that must be beside the document, with the hashes of their files."""
    recorded, called = _recorded(recipe, calibration), _public_names(recipe, calibration)
    lines = []
    for name in own_texts(recipe, ready=calibration is not None and calibration.ready is not None):
        lines.append(f"  {_quoted(called[name])}")
        for file in recorded[name].files if name in recorded else ():
            lines.append(f"    {_quoted(file.name)} SHA-256 {_quoted(file.sha256)}")
    if not lines:
        return []
    return ["These calibration texts are the builder's own. Put them beside this file:", *lines, ""]


def _quoted(text: str) -> str:
    """`text` on one line: quoted where it has more than letters, digits and a few signs."""
    if re.fullmatch(r"[\w.+/@-]+", text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
