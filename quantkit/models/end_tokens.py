"""The tokens at which a model's text ends, as a GGUF says and as llama.cpp reads it."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.formats.tensors import Metadata

EOS, EOT, EOM = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
ALL_ENDS = "tokenizer.ggml.eos_token_ids"
"""Every id, where there are several; Ollama reads it, llama.cpp does not."""

ENDS_BY_TEXT = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
))  # fmt: skip
"""Texts that end a text in llama.cpp whatever the metadata says (`special_eog_ids` in its
llama-vocab.cpp)."""


def end_ids(metadata: Metadata) -> tuple[int, ...]:
    """The ids at which a text ends, the file's EOS first."""
    keys = (key for key in (EOS, EOT, EOM, ALL_ENDS) if key in metadata)
    values = [metadata[key].value for key in keys]
    ids = [i for v in values for i in (v if isinstance(v, tuple) else (v,)) if isinstance(i, int)]
    return tuple(dict.fromkeys(ids))


def stop_texts(metadata: Metadata) -> tuple[str, ...]:
    """The texts of `end_ids` where there are several; of one EOS every program knows itself."""
    ids, tokens = end_ids(metadata), _tokens(metadata)
    return tuple(str(tokens[i]) for i in ids if i < len(tokens)) if len(ids) > 1 else ()


def unread_stop_texts(metadata: Metadata) -> tuple[str, ...]:
    """Those of `stop_texts` at which llama.cpp does not end: it has three keys, and the texts."""
    by_key = {metadata[key].value for key in (EOS, EOT, EOM) if key in metadata}
    tokens, texts = _tokens(metadata), stop_texts(metadata)
    read = {tokens[i] for i in by_key if isinstance(i, int) and i < len(tokens)}
    return tuple(text for text in texts if text not in read | ENDS_BY_TEXT)


def _tokens(metadata: Metadata) -> Sequence[object]:
    found = metadata.get("tokenizer.ggml.tokens")
    return found.value if found is not None and isinstance(found.value, tuple) else ()
