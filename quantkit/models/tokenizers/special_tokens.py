"""Special token ids, whether they are added to a prompt, and the chat template, as GGUF metadata.

Follows llama.cpp's converter (gguf-py `SpecialVocab` of October 2026), which gguf 0.19 does not
equal yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, meta

_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # The GGUF key is spelled so.
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
_ADD_KINDS = ("bos", "eos", "sep")


def special_token_metadata(
    folder: Path, config: Config, tokenizer: Mapping[str, Any], tokens: int
) -> Metadata:
    """`tokenizer.ggml.*_token_id`, `add_*_token` and `tokenizer.chat_template*`.

    Args:
        folder: the checkpoint, for tokenizer_config.json and the chat template files.
        config: config.json, whose `*_token_id` are used where the tokenizer names no token.
        tokenizer: tokenizer.json; empty for a SentencePiece model.
        tokens: the number of tokens; ids must be below.

    Raises:
        InputError: a file is no JSON object, or an id is outside the vocabulary.
    """
    options = read_json(folder / "tokenizer_config.json", optional=True)
    contents = {token.text: token.token_id for token in added_tokens(tokenizer)}
    adds = _added_by_post_processor(tokenizer, options)
    result: Metadata = {}
    for kind, key in _ID_KEYS.items():
        declared = options.get(f"add_{kind}_token")
        if isinstance(declared, bool):
            adds.setdefault(kind, declared)
        token_id = contents.get(_content(options.get(f"{kind}_token")) or "")
        if token_id is None:
            token_id = config.get(f"{kind}_token_id")
        if type(token_id) is not int:  # Absent, or a list of several: left to generation settings.
            continue
        if not 0 <= token_id < tokens:
            raise InputError(
                f"the {kind} token has id {token_id}, but there are {tokens} tokens; "
                "check config.json and tokenizer_config.json"
            )
        result[f"tokenizer.ggml.{key}"] = meta("u32", token_id)
    for kind in _ADD_KINDS:
        if kind in adds:
            result[f"tokenizer.ggml.add_{kind}_token"] = meta("bool", adds[kind])
    return result | _chat_templates(folder, options)


@dataclass(frozen=True)
class AddedToken:
    """A token beside the model's own vocabulary.

    Attributes:
        text: as the file spells it.
        token_id: its row of the embedding.
        special: control, not text; None where the file does not say.
        normalized: looked for in the normalized text; `text` is what it stands for.
        takes_space: takes white space beside it, or is found only where no word goes on.
    """

    text: str
    token_id: int
    special: bool | None = None
    normalized: bool = False
    takes_space: bool = False


def added_tokens(tokenizer: Mapping[str, Any]) -> list[AddedToken]:
    """The `added_tokens` of a tokenizer.json.

    Raises:
        InputError: an entry lacks its id or content.
    """
    found = []
    entries = tokenizer.get("added_tokens") or []
    if not isinstance(entries, list):
        raise InputError("tokenizer.json: added_tokens is no list; download it again")
    for entry in entries:
        match entry:
            case {"id": int(token_id), "content": str(text), **rest}:
                special, normalized = bool(rest.get("special")), bool(rest.get("normalized"))
                takes_space = any(rest.get(key) for key in ("lstrip", "rstrip", "single_word"))
                found.append(AddedToken(text, token_id, special, normalized, takes_space))
            case _:
                raise InputError(f"tokenizer.json: {entry!r} is no token; download it again")
    return found


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in `path`; an empty one where an optional file is absent.

    Raises:
        InputError: the file is missing, unreadable, or holds no JSON object.
    """
    if optional and not path.is_file():
        return {}
    try:
        # decoded at once: read_text looks for line ends, which takes longer than decoding
        value = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); is this the folder of a checkpoint?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; download it again")
    return value


def _content(entry: object) -> str | None:
    """The text of a special token, which is written as a string or as {"content": …}."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _added_by_post_processor(
    tokenizer: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, bool]:
    """Which special tokens the post-processor puts around a text: {"bos": True, "eos": False}."""
    adds: dict[str, bool] = {}
    post = tokenizer.get("post_processor")
    match post:
        case {"type": "Sequence", "processors": list(processors)}:
            pass
        case _:
            processors = [post]
    for processor in processors:
        match processor:
            case {"type": "ByteLevel"}:
                adds.setdefault("bos", False)
                adds.setdefault("eos", False)
            case {"type": "RobertaProcessing"}:
                adds |= {"bos": True, "eos": True, "sep": True}
            case {"type": "TemplateProcessing", "single": list(single), "pair": list(pair)}:
                adds |= _added_by_template(single, pair, options)
    return adds


def _added_by_template(
    single_items: Sequence[object], pair_items: Sequence[object], options: Mapping[str, Any]
) -> dict[str, bool]:
    """The same for a template such as `<s> $A </s>` and, for pairs, `<s> $A <s> $B`."""
    adds: dict[str, bool] = {}
    single = [_special(item) for item in single_items]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    bos, eos = _content(options.get("bos_token")), _content(options.get("eos_token"))
    separators = (_content(options.get("sep_token")), eos)
    if first:
        adds["bos"] = first in (bos or first, _content(options.get("cls_token")))
    if last:
        adds["eos"] = last == (eos or last)
    pair = [_special(item) for item in pair_items]
    if first and pair and pair[0] == first:
        pair = pair[1:]
    if last and pair and pair[-1] == last:
        pair = pair[:-1]
    if len(pair) > 2 and pair[0] is None and pair[-1] is None:
        between = pair[1:-1]
        adds["sep"] = (between[0] in separators and not last) or (
            len(between) == 2 and between[1] in separators
        )
    return adds


def _special(item: object) -> str | None:
    """The special token of a template's item, None for a sequence."""
    match item:
        case {"SpecialToken": {"id": str(text)}}:
            return text
        case _:
            return None


def _chat_templates(folder: Path, options: Mapping[str, Any]) -> Metadata:
    """`tokenizer.chat_template`, and further named ones where a model has several."""
    template: object = options.get("chat_template")
    if template is None and (folder / "chat_template.jinja").is_file():
        template = [{"name": "default", "template": _text(folder / "chat_template.jinja")}]
        for extra in sorted(folder.glob("additional_chat_templates/*.jinja")):
            template.append({"name": extra.stem, "template": _text(extra)})
    elif template is None:
        template = read_json(folder / "chat_template.json", optional=True).get("chat_template")
    if isinstance(template, str):
        template = [{"name": "default", "template": template}]
    if not isinstance(template, list):
        return {}
    named: dict[str, str] = {}
    for choice in template:
        match choice:
            case {"name": str(name), "template": str(text)} if name:
                named[re.sub("[^A-Za-z0-9]", "_", name)] = text
    result: Metadata = {
        f"tokenizer.chat_template.{name}": meta("str", text)
        for name, text in named.items()
        if name != "default"
    }
    if result:
        names = sorted(name for name in named if name != "default")
        result["tokenizer.chat_templates"] = meta("str", names)
    if "default" in named:
        result["tokenizer.chat_template"] = meta("str", named["default"])
    return result


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); download it again") from error
