"""Whatever a downloaded JSON file says, the answer is a model or one clear error, never a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import LLAMA3_ROPE, write_llama, write_nemotron

from quantkit.core.errors import InputError
from quantkit.models.checkpoint import open_checkpoint

HOSTILE: list[Any] = [None, [], {}, [[]], [{}], {"a": 1}, "x", -1, 0, 1.5, True, 10**30, "\ud800"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("hostile")
    llama = write_llama(root / "llama", rope_parameters=LLAMA3_ROPE, head_dim=8)
    options = {
        "bos_token": "<s>",
        "add_bos_token": True,
        "chat_template": [{"name": "default", "template": "x"}],
    }
    (llama / "tokenizer_config.json").write_text(json.dumps(options))
    (llama / "generation_config.json").write_text('{"top_p": 0.5, "repetition_penalty": 1.0}')
    return [write_nemotron(root / "nemotron"), llama]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: json.dumps(value)[:20])
def test_any_value_in_any_place(folders: list[Path], value: object) -> None:
    crashes: list[str] = []
    for folder in folders:
        # Both have the same kind of tokenizer: one is enough.
        for path in sorted(folder.glob("config.json" if folder.name == "nemotron" else "*.json")):
            original = path.read_text(encoding="utf-8")
            try:
                for place in _places(json.loads(original)):
                    document = json.loads(original)
                    _put(document, place, value)
                    path.write_text(json.dumps(document), encoding="utf-8")
                    try:
                        open_checkpoint(folder)
                    except InputError:
                        continue
                    except Exception as error:  # noqa: BLE001 all of them are listed
                        crashes.append(f"{path.name}: {place} = {value!r}: {error!r}")
            finally:
                path.write_text(original, encoding="utf-8")
    assert crashes == []


def _places(document: object, depth: int = 0) -> list[list[str | int]]:
    """The way to every member; of long lists and tables only to the first two."""
    if depth > 6:
        return []
    if isinstance(document, dict):
        pairs: list[tuple[str | int, Any]] = list(document.items())
    elif isinstance(document, list):
        pairs = list(enumerate(document))
    else:
        return []
    found: list[list[str | int]] = []
    for key, member in pairs if len(pairs) < 60 else pairs[:2]:
        found.append([key])
        found += [[key, *place] for place in _places(member, depth + 1)]
    return found


def _put(document: Any, place: list[str | int], value: object) -> None:  # noqa: ANN401 any JSON
    *parents, last = place
    for key in parents:
        document = document[key]
    document[last] = value


def test_the_models_are_good_to_begin_with(folders: list[Path]) -> None:
    assert [len(open_checkpoint(folder).tensors) for folder in folders] == [35, 21]
