"""The metadata at the head of README.md: what the loopback hub makes of it, and what it refuses.

The rules are those that the Hub's own messages tell of; it has more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date

import yaml
from loopback_commits import Commit

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m
    bigscience-bloom-rail-1.0 openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research
    lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 postgresql
    ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
    """.split()
)
_STRINGS = ("license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")
_LISTS = ("license", "base_model", "tags", "language", "datasets", "metrics")
_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NAME = re.compile(r"[a-z0-9.-]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
_LINK = re.compile(r"LICENSE(\.md)?|https?://\S+")
_RELATIONS = ("quantized", "finetune", "adapter", "merge")


def front_matter(commit: Commit) -> object:
    """The metadata of a commit's README.md; None without, and of a folder that a test gave."""
    readme = commit.folder / "README.md"
    if commit.large is None or not readme.is_file():
        return None
    match = _FRONT_MATTER.match(readme.read_text())
    return _plain(yaml.safe_load(match[1])) if match else None


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
    return [*_wrong(card), *_wrong_results(card.get("model-index"))], []


def tags(card: object, commit: Commit) -> list[str]:
    """The tags that the Hub makes of a card and of the files."""
    found = ["gguf"] if any(name.endswith(".gguf") for name in commit.names()) else []
    if not isinstance(card, Mapping):
        return found
    bases = _several(card.get("base_model"))
    found += _several(card.get("tags")) + _several(card.get("language"))
    found += [f"base_model:{base}" for base in bases]
    if relation := card.get("base_model_relation"):
        found += [f"base_model:{relation}:{base}" for base in bases]
    found += [f"license:{licence}" for licence in _several(card.get("license"))]
    return list(dict.fromkeys(found))


def _wrong(card: Mapping[str, object]) -> Iterator[str]:
    for key in _STRINGS:
        if not isinstance(card.get(key, ""), str):
            yield f'"{key}" must be a string'
    for key in _LISTS:
        value = card.get(key, [])
        if not all(
            isinstance(item, str) for item in (value if isinstance(value, list) else [value])
        ):
            yield f'"{key}" must be a string or an array of strings'
    for licence in _several(card.get("license")):
        if licence not in _LICENCES:
            yield f'"license" must be one of [{", ".join(sorted(_LICENCES))}]'
    for base in _several(card.get("base_model")):
        if not _MODEL.fullmatch(base):
            yield f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.'
    for language in _several(card.get("language")):
        if not _LANGUAGE.fullmatch(language):
            yield f'"language" with value "{language}" is not an ISO 639 code'
    if not _NAME.fullmatch(str(card.get("license_name", "x"))):
        yield '"license_name" fails to match the required pattern: /^[a-z0-9-.]+$/'
    if not _LINK.fullmatch(str(card.get("license_link", "LICENSE"))):
        yield '"license_link" must be LICENSE, LICENSE.md or a URL'
    if card.get("base_model_relation", "merge") not in _RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]'


def _wrong_results(index: object) -> Iterator[str]:
    """Of the results that are shown beside a model."""
    if index is not None and not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index or []):
        if not isinstance(model.get("name"), str):
            yield f'"model-index[{i}].name" is required'
        for j, result in enumerate(model.get("results", [])):
            place = f"model-index[{i}].results[{j}]"
            for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance(result.get(part, {}).get(key), str):
                    yield f'"{place}.{part}.{key}" is required'
            for k, metric in enumerate(result.get("metrics", [])):
                for key in ("type", "value"):
                    if metric.get(key) is None:
                        yield f'"{place}.metrics[{k}].{key}" is required'


def _several(value: object) -> list[str]:
    """A value of a card that may stand alone or in a list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [item for item in values if isinstance(item, str)]


def _plain(value: object) -> object:
    """A value as JSON has it: YAML knows dates."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
