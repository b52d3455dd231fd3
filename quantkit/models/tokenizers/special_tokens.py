"""Special token ids, whether they are added to a prompt, and the chat template, as GGUF metadata.

Key names and rules follow llama.cpp's converter (gguf-py `SpecialVocab` of October 2026), which
gguf 0.19 does not equal yet; which token is special is what transformers says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.end_tokens import ALL_ENDS, ENDS_BY_TEXT, EOM, EOS, EOT
from quantkit.models.families.base import Config, meta
from quantkit.models.json_files import read_json
from quantkit.models.tokenizers.token_types import TokenType
from quantkit.models.transformers_reader import LoadedTokenizer

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
    folder: Path, config: Config, tokenizer: LoadedTokenizer, rows: int
) -> Metadata:
    """`tokenizer.ggml.*_token_id`, `add_*_token` and `tokenizer.chat_template*`.

    Args:
        folder: the checkpoint, for chat_template.json, and generation_config.json, whose
            `eos_token_id` goes before that of config.json, as in transformers.
        config: config.json, whose `*_token_id` are used where the tokenizer names no token: of a
            list the first, and -1 means none.
        rows: of the embedding; ids must be below.
    """
    adds = _added_by_post_processor(tokenizer)
    first = _first_of_template(tokenizer.definition.get("post_processor"))
    if first is not None and not {"bos", "cls"} & tokenizer.special.keys():
        # It is put before every text, although no file calls it BOS.
        tokenizer = replace(tokenizer, special={**tokenizer.special, "bos": first})
    generation = read_json(folder / "generation_config.json", optional=True)
    ends = _ids(generation.get("eos_token_id"), rows) or _ids(config.get("eos_token_id"), rows)
    if ends and not _ids(config.get("eos_token_id"), rows):
        config = {**config, "eos_token_id": ends}
    result: Metadata = {}
    for kind, key in _ID_KEYS.items():
        declared = tokenizer.options.get(f"add_{kind}_token")
        if isinstance(declared, bool):
            adds.setdefault(kind, declared)
        token_id = _token_id(kind, config, tokenizer, rows)
        if token_id is not None:
            result[f"tokenizer.ggml.{key}"] = meta("u32", token_id)
    if EOS in result:
        result |= _further_ends(result[EOS].value, ends, tokenizer)
    for kind in _ADD_KINDS:
        if kind in adds:  # without an id llama.cpp would add an ordinary token, 11 for example
            added = adds[kind] and f"tokenizer.ggml.{_ID_KEYS[kind]}" in result
            result[f"tokenizer.ggml.add_{kind}_token"] = meta("bool", added)
    return result | _chat_templates(folder, tokenizer)


def _token_id(kind: str, config: Config, tokenizer: LoadedTokenizer, rows: int) -> int | None:
    named = tokenizer.ids.get(tokenizer.special.get(kind, ""))
    if named is not None and named < rows:
        return named
    given = config.get(f"{kind}_token_id")
    if ids := _ids(given, rows):
        return ids[0]
    beyond = [i for i in (given if isinstance(given, list) else [given]) if type(i) is int]
    if beyond and max(beyond) >= rows:
        raise InputError(
            f"the {kind} token has id {max(beyond)}, but there are {rows} tokens; "
            "check config.json and tokenizer_config.json"
        )
    return None


def _ids(given: object, rows: int) -> list[int]:
    """The ids that can be generated: one, or a list of them."""
    ids = given if isinstance(given, list) else [given]
    return [i for i in ids if type(i) is int and 0 <= i < rows]


def _further_ends(eos: object, ends: Sequence[int], tokenizer: LoadedTokenizer) -> Metadata:
    """Keys for the ids beside EOS at which generation ends.

    llama.cpp knows some by their text, and reads the keys of two more.
    """
    further = [i for i in dict.fromkeys(ends) if i != eos]
    if not further or not isinstance(eos, int):
        return {}
    texts = {i: text for text, i in tokenizer.ids.items()}
    texts |= {i: token.decoded for i, token in tokenizer.added.items()}
    silent = [i for i in further if texts.get(i) not in ENDS_BY_TEXT]
    keys = {key: meta("u32", i) for key, i in zip((EOT, EOM), silent, strict=False)}
    return keys | {ALL_ENDS: meta("i32", [eos, *further])}


def _added_by_post_processor(tokenizer: LoadedTokenizer) -> dict[str, bool]:
    """Which special tokens the post-processor puts around a text: {"bos": True, "eos": False}."""
    adds: dict[str, bool] = {}
    post = tokenizer.definition.get("post_processor")
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
                adds |= _added_by_template(single, pair, tokenizer.special)
    return adds


def _added_by_template(
    single_items: Sequence[object], pair_items: Sequence[object], special: Mapping[str, str]
) -> dict[str, bool]:
    """The same for a template such as `<s> $A </s>` and, for pairs, `<s> $A <s> $B`."""
    adds: dict[str, bool] = {}
    single = [_special(item) for item in single_items]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    if first:
        adds["bos"] = first in (special.get("bos", first), special.get("cls"))
    if last:
        adds["eos"] = last == special.get("eos", last)
    pair = [_special(item) for item in pair_items]
    if first and pair and pair[0] == first:
        pair = pair[1:]
    if last and pair and pair[-1] == last:
        pair = pair[:-1]
    if len(pair) > 2 and pair[0] is None and pair[-1] is None:
        between, separators = pair[1:-1], (special.get("sep"), special.get("eos"))
        adds["sep"] = (between[0] in separators and not last) or (
            len(between) == 2 and between[1] in separators
        )
    return adds


def _first_of_template(post: object) -> str | None:
    """The special token that a template begins a text with."""
    match post:
        case {"type": "Sequence", "processors": list(processors)}:
            return next(filter(None, map(_first_of_template, processors)), None)
        case {"type": "TemplateProcessing", "single": [first, _, *_]}:
            return _special(first)
        case _:
            return None


def _special(item: object) -> str | None:
    """The special token of a template's item, None for a sequence."""
    match item:
        case {"SpecialToken": {"id": str(text)}}:
            return text
        case _:
            return None


def harmless_eos(metadata: Metadata) -> Metadata:
    """An EOS for a model that names none, where llama.cpp would end at an ordinary token.

    Without the key it takes token 11, or 2 of a SentencePiece model.
    """
    kinds, tokens = (metadata[f"tokenizer.ggml.{k}"].value for k in ("token_type", "tokens"))
    assert isinstance(kinds, tuple)
    assert isinstance(tokens, tuple)
    default = 11 if metadata["tokenizer.ggml.model"].value == "gpt2" else 2
    control = [i for i, kind in enumerate(kinds) if kind == TokenType.CONTROL]
    if EOS in metadata or default in control or not control:
        return {}
    known = (i for i in control if tokens[i] in ENDS_BY_TEXT)
    return {EOS: meta("u32", next(known, control[0]))}


def _chat_templates(folder: Path, tokenizer: LoadedTokenizer) -> Metadata:
    """`tokenizer.chat_template`, and further named ones where a model has several."""
    named = {re.sub("[^A-Za-z0-9]", "_", k): v for k, v in tokenizer.chat_templates.items() if k}
    if not named:  # transformers reads this file for processors only, llama.cpp's converter always
        template = read_json(folder / "chat_template.json", optional=True).get("chat_template")
        named = {"default": template} if isinstance(template, str) else {}
    result: Metadata = {}
    if further := sorted(named.keys() - {"default"}):
        result = {f"tokenizer.chat_template.{n}": meta("str", named[n]) for n in further}
        result["tokenizer.chat_templates"] = meta("str", further)
    if "default" in named:
        result["tokenizer.chat_template"] = meta("str", named["default"])
    return result
