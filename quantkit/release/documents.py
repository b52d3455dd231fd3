"""recipe.yaml and target.yaml of a release, from which `quantkit build` makes it again.

Every field is written, defaults too, since a later version may have other defaults. Paths of
calibration texts and of the model, and the devices of the GPUs, are left out: they belong to the
builder's machine.
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
from quantkit.release.layout import RECIPE, TARGET
from quantkit.study.calibration.sources import is_dataset, shipped_name
from quantkit.study.imatrix import Calibration, SourceRead

_PUBLIC_MODEL = re.compile(r"demo|[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*(?:@[\w.-]+)?", re.ASCII)


def public_recipe(recipe: Recipe, calibration: Calibration | None = None) -> Recipe:
    """`recipe` without paths: only the names of calibration files and folders remain.

    `quantkit build` looks for them in its current folder. A name that a shipped text also has is
    prefixed with `./`; the second of two equal names is in a folder `2`. A folder that the recipe
    calls `.` has its name from calibration.json. `model` remains if it is OWNER/NAME or `demo`.
    """
    names = _public_names(recipe, calibration)
    given = recipe.imatrix
    mixture = {names[name]: share for name, share in given.mixture.items()}
    # with a mixture, the texts are not read and have no record
    texts = tuple(names.get(name) or _public_name(name, name) for name in given.texts)
    imatrix = given.model_copy(update={"mixture": mixture, "texts": texts})
    model = recipe.model if _PUBLIC_MODEL.fullmatch(recipe.model or "") else None
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
        calibration: has the hashes of texts that are needed again.
        model: what was built, OWNER/NAME@COMMIT; the recipe's own if it is a path or None.
        imatrix: name of the importance matrix beside the document.
    """
    public = public_recipe(recipe, calibration)
    named = model if _PUBLIC_MODEL.fullmatch(model or "") else public.model or "MODEL"
    ready = calibration is not None and calibration.ready is not None
    command = f"quantkit build --model {named} --recipe {RECIPE} --target {TARGET}"
    file = "FILE" if imatrix is None else _quoted(imatrix)
    if ready:
        command += f" --imatrix {file}"
    head = f"Made by quantkit {__version__}. To build it again, run in this file's folder:"
    lines = [head, "", f"  {command}", ""]
    if ready:
        lines += [f"{file} is the importance matrix, which was given to the build.", ""]
    elif imatrix is not None:
        lines += [
            f"Add --imatrix {file} to use the importance matrix in this folder instead of",
            "collecting it again.",
            "",
        ]
    lines += _own_texts(recipe, calibration)
    return _document(lines, public.model_dump(mode="json"))


def own_texts(recipe: Recipe, *, ready: bool) -> tuple[str, ...]:
    """The calibration texts that a build reads and that quantkit does not ship.

    With an importance matrix that is `ready`, texts are read only to measure the costs of errors.
    """
    if ready and not recipe.measure.measures_costs:
        return ()
    return tuple(name for name in dict.fromkeys(recipe.imatrix.sources) if _is_own(name))


def public_target(target: Target) -> Target:
    """`target` without `devices`, the numbers or UUIDs of the builder's GPUs."""
    return target.model_copy(update={"devices": ()})


def target_document(target: Target) -> str:
    """target.yaml: the GPUs and how they are used."""
    lines = [
        f"Made by quantkit {__version__}: the GPUs that the artifacts were built for.",
        "",
        f"  quantkit build --model MODEL --recipe {RECIPE} --target {TARGET}",
        "",
    ]
    return _document(lines, public_target(target).model_dump(mode="json", exclude={"devices"}))


def _document(comments: Sequence[str], content: Mapping[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Double-quotes texts whose line breaks, such as U+0085, other styles would lose."""

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        style = None if value.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments).removesuffix("#\n")
    body: str = yaml.dump(
        dict(content), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return head + body


def _is_own(name: str) -> bool:
    """Whether a source is a file or folder of the builder."""
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
        last = "calibration"
    return f"./{last}" if shipped_name(last) is not None else last


def _recorded(recipe: Recipe, calibration: Calibration | None) -> dict[str, SourceRead]:
    """Source → its record in calibration.json; empty if the imatrix was not collected.

    A name that exactly one source and one record have identifies both. The others, texts with
    equal names and folders such as `.`, are matched by their order.
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
    head = "These calibration texts are not published. Put them beside this file:"
    return [head, *lines, ""]


def _quoted(text: str) -> str:
    """`text` on one line; quoted unless it has only letters, digits and a few other characters."""
    if re.fullmatch(r"[\w.+/@-]+", text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
