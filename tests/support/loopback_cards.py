"""Metadata of README.md as the loopback hub reads and refuses it.

The rules are those that the Hub's own messages state, with some of its licences; it has more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from loopback_store import Commit

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LICENCES = ("apache-2.0", "cc0-1.0", "cc-by-4.0", "gemma", "gpl-3.0", "llama3.1", "mit", "other")
_RELATIONS = ("quantized", "finetune", "adapter", "merge")
_ONE_TEXT = {
    "license_name": ("[a-z0-9.-]+", "fails to match the required pattern: /^[a-z0-9-.]+$/"),
    "license_link": (r"LICENSE(\.md)?|https?://\S+", "must be LICENSE, LICENSE.md or a URL"),
    "library_name": (".*", "must be a string"),
    "pipeline_tag": (".*", "must be a string"),
    "base_model_relation": ("|".join(_RELATIONS), f"must be one of [{', '.join(_RELATIONS)}]"),
}
_ONE_OR_SEVERAL = {
    "license": ("|".join(map(re.escape, _LICENCES)), f"must be one of [{', '.join(_LICENCES)}]"),
    "base_model": (
        r"[\w.-]+(/[\w.-]+)?",
        'with value "{}" is not valid. Use a model id from the Hub.',
    ),
    "language": (
        "[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual",
        'with value "{}" is not an ISO 639 code',
    ),
} | dict.fromkeys(
    ("tags", "datasets", "metrics"), (".*", "must be a string or an array of strings")
)
"""Key → pattern, and what is said of a value that is not like it."""


def front_matter(commit: Commit) -> object:
    """The metadata of a commit's README.md; None without, and of a folder that a test gave."""
    readme = commit.folder / "README.md"
    if commit.large is None or not readme.is_file():
        return None
    match = _FRONT_MATTER.match(readme.read_text())
    return yaml.safe_load(match[1]) if match else None


def checked(text: str) -> tuple[list[str], list[str]]:
    """What is wrong with a README.md's metadata: errors, and warnings."""
    match = _FRONT_MATTER.match(text)
    if match is None or not match[1].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [str(error)], []
    if not isinstance(card, dict):
        return ["metadata must be an object"], []
    return [*_wrong(card), *_wrong_results(card.get("model-index", []))], []


def _wrong(card: dict[str, Any]) -> Iterator[str]:
    for key, (pattern, words) in (_ONE_TEXT | _ONE_OR_SEVERAL).items():
        values = [card[key]] if key in card else []
        if key in _ONE_OR_SEVERAL and isinstance(card.get(key), list):
            values = card[key]
        for value in values:
            if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
                yield f'"{key}" {words.format(value)}'


def _wrong_results(index: object) -> Iterator[str]:
    """Of the results that are shown beside a model."""
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        if not isinstance(model.get("name"), str):
            yield f'"model-index[{i}].name" is required'
        for j, result in enumerate(model.get("results", [])):
            place = f"model-index[{i}].results[{j}]"
            wanted = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            parts = {part: result.get(part, {}) for part in ("task", "dataset")}
            for k, metric in enumerate(result.get("metrics", [])):
                parts[f"metrics[{k}]"] = metric
                wanted += [(f"metrics[{k}]", "type"), (f"metrics[{k}]", "value")]
            for part, key in wanted:
                if parts[part].get(key) is None:
                    yield f'"{place}.{part}.{key}" is required'
