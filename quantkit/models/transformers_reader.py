"""Configuration and tokenizer as transformers reads them, without torch and without a network.

The only module that imports transformers, when a checkpoint is opened: the import takes a second.
Whatever transformers raises becomes an `InputError` or the use of the file as it is.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.core.errors import EnvironmentFault, InputError, as_fault
from quantkit.formats.gguf_header import MAX_ITEMS
from quantkit.models.families.base import Config
from quantkit.models.geometry import MAX_LAYERS
from quantkit.models.json_files import read_json

SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "mask", "cls")

_JSON_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")

_NOT_PASSED = ("auto_map", "quantization_config", "num_labels", "id2label", "label2id")
"""Keys that name code to run, or that transformers makes long lists of; no family reads them."""


def config_with_defaults(raw: Config) -> dict[str, Any]:
    """config.json with the defaults and the current key names that AutoConfig gives.

    As in llama.cpp's converter, config.json alone counts where transformers cannot read it: an
    unknown model type, a model type that is not the architecture's, or a value of the wrong type.
    Token ids are only those that config.json names: the defaults belong to other vocabularies.

    Raises:
        InputError: the model has more layers than llama.cpp can load.
    """
    layers = raw.get("num_hidden_layers")  # transformers makes a list of this length
    if type(layers) is int and layers > MAX_LAYERS:
        raise InputError(
            f"config.json: num_hidden_layers is {layers}, but llama.cpp loads at most {MAX_LAYERS} "
            "layers; is it the checkpoint's own?"
        )
    passed = {k: v for k, v in with_infinity(raw).items() if k not in _NOT_PASSED}
    with _quiet():
        try:
            full: dict[str, Any] = _config_class(raw).from_dict(passed).to_dict()
        except Exception:  # noqa: BLE001 transformers raises exceptions of any kind
            return with_infinity(raw)
    known = {k: v for k, v in full.items() if k != "_name_or_path" and not k.endswith("_token_id")}
    return {**with_infinity(raw), **known}


def config_defaults(raw: Config) -> dict[str, Any]:
    """What transformers takes for each key that a config.json of this model type leaves out.

    Empty where config.json alone counts, as in `config_with_defaults`.
    """
    with _quiet():
        try:
            defaults: dict[str, Any] = _config_class(raw)().to_dict()
        except Exception:  # noqa: BLE001 as above
            return {}
    return with_infinity(defaults)


def with_infinity(raw: Config) -> dict[str, Any]:
    """A copy of plain JSON values, with infinity as transformers writes it into config.json."""
    copy: dict[str, Any] = json.loads(
        json.dumps(raw),
        object_hook=lambda v: float(v["__float__"]) if v.keys() == {"__float__"} else v,
    )
    return copy


def causal_model(kind: object) -> str | None:
    """The architecture that AutoModelForCausalLM takes for a `model_type`; None: it knows none."""
    with _quiet():
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    return str(found) if found is not None else None


def _config_class(raw: Config) -> Any:  # noqa: ANN401
    """The class of the configuration; raises exceptions of any kind where there is none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = raw["model_type"]
    named = raw.get("architectures") or [causal_model(kind)]
    if causal_model(kind) != named[0]:
        raise ValueError(kind)
    return CONFIG_MAPPING[kind]


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of a text before the tokenizer's model sees it.

    Attributes:
        text: as the files spell it.
        decoded: the text that it stands for: a byte-level spelling is decoded.
        special: a control token, no text; None where the file does not say.
        normalized: searched in the normalized text.
        takes_space: takes white space beside it, or is found only as a whole word.
    """

    text: str
    decoded: str
    special: bool | None = None
    normalized: bool = False
    takes_space: bool = False


@dataclass(frozen=True)
class LoadedTokenizer:
    """The state of a tokenizer, from all files that hold a part of it.

    Attributes:
        definition: in the form of a tokenizer.json: normalizer, pre_tokenizer, model, …
        ids: every token, added ones too.
        added: the added tokens by id.
        special: the text of each special token that has one: bos, eos, …
        chat_templates: Jinja by name; a model with one template calls it "default".
        options: tokenizer_config.json.
    """

    definition: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[int, AddedToken]
    special: Mapping[str, str]
    chat_templates: Mapping[str, str]
    options: Mapping[str, Any]


def load_tokenizer(
    folder: Path, config: Config, pieces: Mapping[str, int] | None = None
) -> LoadedTokenizer:
    """The tokenizer of the checkpoint in `folder`.

    tokenizer.json is loaded as it is; without one AutoTokenizer builds the tokenizer from
    vocab.json and merges.txt. (AutoTokenizer would ignore the pre-tokenizer of a tokenizer.json
    for some classes, and split the digits of SmolLM2 otherwise than in its training: ADR 16.)

    Args:
        config: config.json, whose model type AutoTokenizer may need.
        pieces: the vocabulary, where it comes from a SentencePiece model.

    Raises:
        InputError: the files are missing or broken, or need code of the repository.
    """
    options = read_json(folder / "tokenizer_config.json", optional=True)
    stored = folder / "tokenizer.json"
    try:
        with _quiet():
            loaded = _loaded(_opened(folder, config, pieces), options)
    except BaseException as error:
        # A panic of the tokenizers library derives from BaseException alone.
        panic = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not panic or isinstance(as_fault(error), EnvironmentFault):
            raise
        for name in _JSON_FILES:  # an error that names the file, where one is not JSON at all
            read_json(folder / name, optional=True)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"transformers cannot read the tokenizer in {folder} ({reason}); download the "
            "tokenizer's files again"
        ) from error
    if pieces is None and stored.is_file():
        return loaded
    # Not the post-processor that transformers made up: llama.cpp's converter reads the file's.
    post = read_json(stored, optional=True).get("post_processor")
    return replace(loaded, definition={**loaded.definition, "post_processor": post})


def can_be_a_word(definition: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a byte-level token can be all of a word that the pre-tokenizer cuts out of a text."""
    from tokenizers import Tokenizer, decoders

    parts: dict[str, Any] = dict.fromkeys(("normalizer", "post_processor", "decoder"))
    parts |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": definition["pre_tokenizer"]}
    parts["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    splitter = Tokenizer.from_str(json.dumps(parts)).pre_tokenizer
    decoder = decoders.ByteLevel()

    def is_one(token: str) -> bool:
        text = decoder.decode([token])  # U+FFFD for a part of a character, which is no word
        return [word for word, _ in splitter.pre_tokenize_str(text)] == [token]

    return is_one


def _opened(folder: Path, config: Config, pieces: Mapping[str, int] | None) -> Any:  # noqa: ANN401
    from tokenizers import Tokenizer, models
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    class OfPieces(PreTrainedTokenizerFast):  # type: ignore[misc]
        """Given pieces and everything that the other files say of tokens."""

        @classmethod
        def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
            kwargs.pop("tokenizer_file", None)
            backend = Tokenizer(models.BPE(vocab=dict(pieces or {}), merges=[]))
            return kwargs | {"tokenizer_object": backend}

    if pieces is not None:
        return OfPieces.from_pretrained(folder, local_files_only=True)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    # Without a given configuration it would read config.json again, unchecked.
    kind = config.get("model_type")
    known = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else PreTrainedConfig
    return AutoTokenizer.from_pretrained(
        folder, config=known(), local_files_only=True, trust_remote_code=False
    )


def _loaded(tokenizer: Any, options: Mapping[str, Any]) -> LoadedTokenizer:  # noqa: ANN401
    backend = tokenizer.backend_tokenizer
    ids = backend.get_vocab(with_added_tokens=True)
    last = max(ids.values(), default=0)
    if last >= MAX_ITEMS:  # before to_str(), which lists the ids that are not there
        raise InputError(f"a token has the id {last}, and the limit is {MAX_ITEMS - 1}")
    added = {
        token_id: AddedToken(
            token.content,
            token.content
            if token.normalized
            else backend.decode([token_id], skip_special_tokens=False),
            token.special,
            token.normalized,
            token.lstrip or token.rstrip or token.single_word,
        )
        for token_id, token in tokenizer.added_tokens_decoder.items()
    }
    named = {kind: getattr(tokenizer, f"{kind}_token") for kind in SPECIAL_KINDS}
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    return LoadedTokenizer(
        definition=json.loads(backend.to_str()),
        ids=ids,
        added=added,
        special={kind: str(text) for kind, text in named.items() if text is not None},
        chat_templates={str(name): str(text) for name, text in templates.items()},
        options=options,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without log lines and warnings, of which importing transformers without torch gives one."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
