"""Run with a Python that has transformers: tokenizers of every kind, and how they encode lines.

usage: oracle_tokenizers.py FOLDER LINES

LINES is a JSON list of texts. Every kind gets a folder with its tokenizer files, and beside it
KIND.json: {"plain": ids of every line, "added": ids of every tenth line with special tokens put
around, "there": as "plain" where the tokenizer is known to be another in llama.cpp, and is given
its normalizer and expression}.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from lines import ADDED, SPECIAL, lines

from quantkit.models.tokenizers.pre_tokenizers import (
    GPT4O,
    LLAMA3,
    MINICPM5,
    QWEN2,
    QWEN35,
    SEED_CODER,
    TEKKEN,
)

EVERY = 10
TRAINING_SEED = 99


def main() -> None:
    root, texts = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    training = lines(6000, TRAINING_SEED)
    for name, make in KINDS.items():
        folder = root / name
        folder.mkdir(parents=True)
        encode, there = make(folder, training)
        found = {
            "plain": [encode(text, False) for text in texts],
            "added": [encode(text, True) for text in texts[::EVERY]],
        }
        if there is not None:
            found["there"] = [there(text, False) for text in texts]
        (root / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


Encode = Callable[[str, bool], list[int]]
Make = Callable[[Path, Iterable[str]], tuple[Encode, Encode | None]]


def byte_level(
    *splits: pre_tokenizers.PreTokenizer,
    gpt2: bool = False,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
    lost_merges: bool = False,
    template: bool = False,
    there: str | None = None,
) -> Make:
    """A byte-level BPE: `splits`, then bytes.

    With `lost_merges` no sequence of merges leads to some tokens, so `ignore_merges` matters; a
    `template` puts BOS before a text. `there` is llama.cpp's expression in place of the only one
    of `splits`, where it differs; llama.cpp never normalizes.
    """

    def make(folder: Path, training: Iterable[str]) -> tuple[Encode, Encode | None]:
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=6000,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(training, trainer)
        add_tokens(tokenizer)
        if template:
            tokenizer.post_processor = bos_template()
        encode = saved(tokenizer, folder, lose_merges if lost_merges else None)
        if there is None:
            return encode, None
        loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
        loaded.normalizer = normalizers.Sequence([])
        loaded.pre_tokenizer = pre_tokenizers.Sequence([split(there), last])
        return encode, lambda text, add: loaded.encode(text, add_special_tokens=add).ids

    return make


def add_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])


def bos_template() -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 0)]
    )


def lose_merges(stored: dict[str, Any]) -> None:
    merges = stored["model"]["merges"]
    del merges[500::7]


def saved(
    tokenizer: Tokenizer, folder: Path, edit: Callable[[dict[str, Any]], None] | None = None
) -> Encode:
    """As transformers saves and loads it."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="</s>"
    )
    wrapped.save_pretrained(folder)
    if edit is not None:
        path = folder / "tokenizer.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        edit(stored)
        path.write_text(json.dumps(stored), encoding="utf-8")
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    return lambda text, add: loaded.encode(text, add_special_tokens=add)


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(regex), behavior="isolated")


def digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Digits(individual_digits=True)


def sentencepiece_model(training: Iterable[str]) -> bytes:
    """As Llama 2's was trained: BPE with bytes for what is rare, text taken as it is."""
    import sentencepiece

    trained = io.BytesIO()
    texts = (text.replace("\x00", "") for text in training)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(t for text in texts for t in text.split("\n") if t.strip()),
        model_writer=trained,
        vocab_size=5000,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.995,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return trained.getvalue()


def sentencepiece(folder: Path, training: Iterable[str]) -> tuple[Encode, None]:
    """tokenizer.model, encoded by the SentencePiece library between special tokens."""
    import sentencepiece as library

    model = sentencepiece_model(training)
    (folder / "tokenizer.model").write_bytes(model)
    processor = library.SentencePieceProcessor(model_proto=model)
    ids = {"<s>": 1, "</s>": 2, "<unk>": 0}
    more = [text for text in (*SPECIAL, *ADDED) if text not in ids]
    ids |= {text: processor.vocab_size() + i for i, text in enumerate(more)}
    options = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "added_tokens_decoder": {
            str(token_id): {"content": text, "special": text not in ADDED}
            for text, token_id in ids.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    special = re.compile("(" + "|".join(map(re.escape, ids)) + ")")

    def encode(text: str, add: bool) -> list[int]:
        found = [1] if add else []
        for part in special.split(text):
            found += [ids[part]] if part in ids else processor.encode(part)
        return found

    return encode, None


def byte_fallback_from_sentencepiece(folder: Path, training: Iterable[str]) -> tuple[Encode, None]:
    """Llama 2's tokenizer.json: every way to split a piece is a merge, and texts get a space."""
    import sentencepiece as library

    processor = library.SentencePieceProcessor(model_proto=sentencepiece_model(training))
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(pieces):
        for at in range(1, len(piece)):
            if not processor.is_byte(i) and piece[:at] in vocab and piece[at:] in vocab:
                merges.append((-processor.get_score(i), at, piece[:at], piece[at:]))
    pairs = [(left, right) for _, _, left, right in sorted(merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return finish_byte_fallback(tokenizer, folder, strip=True), None


def byte_fallback_trained(folder: Path, training: Iterable[str]) -> tuple[Encode, None]:
    """The same form as the tokenizers library trains it: one merge for each token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=5000, special_tokens=first, limit_alphabet=900, show_progress=False
    )
    tokenizer.train_from_iterator(
        (t for text in training for t in re.split("[ \\0]", text)), trainer
    )
    stored = json.loads(tokenizer.to_str())
    keep = {"<unk>", "<s>", "</s>"}
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["content"] in keep]
    return finish_byte_fallback(Tokenizer.from_str(json.dumps(stored)), folder, strip=False), None


def finish_byte_fallback(tokenizer: Tokenizer, folder: Path, strip: bool) -> Encode:
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in ("<unk>", *SPECIAL)]
    )
    add_tokens(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    return saved(tokenizer, folder)


# llama.cpp's own expressions, where they are not the tokenizer's (llama-vocab.cpp, the constructor
# of llm_tokenizer_bpe). Its \p{L} in a lookahead stands for every class of letters.
ASCII = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
START, UPPER, LOWER = r"[^\r\n\p{L}\p{N}]?", r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_THERE = rf"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*|\p{{N}}{TAIL}"
GPT4O_THERE = (
    rf"{START}{UPPER}*{LOWER}+{ASCII}?|{START}{UPPER}+{LOWER}*{ASCII}?|\p{{N}}{{1,3}}{TAIL}"
)

BOS_FIRST = {"ignore_merges": True, "lost_merges": True, "template": True}
LLAMA3_THERE, QWEN2_THERE = LLAMA3.replace(CASELESS, ASCII), QWEN2.replace(CASELESS, ASCII)
KINDS: dict[str, Make] = {
    "llama-3": byte_level(split(LLAMA3), **BOS_FIRST, there=LLAMA3_THERE),
    "granite-4": byte_level(split(LLAMA3), lost_merges=True, there=LLAMA3_THERE),
    "tekken": byte_level(split(TEKKEN), **BOS_FIRST, there=TEKKEN_THERE),
    "tekken-merging": byte_level(split(TEKKEN), there=TEKKEN_THERE),
    "qwen2": byte_level(split(QWEN2), normalizer=normalizers.NFC(), there=QWEN2_THERE),
    "qwen35": byte_level(split(QWEN35), there=QWEN35.replace(CASELESS, ASCII)),
    "seed-coder": byte_level(split(SEED_CODER), there=SEED_CODER.replace(CASELESS, ASCII)),
    "minicpm5": byte_level(split(r"\p{N}{1,3}"), split(MINICPM5), ignore_merges=True),
    "gpt-4o": byte_level(split(GPT4O), there=GPT4O_THERE),
    "gpt-2": byte_level(gpt2=True),
    "smollm": byte_level(digits(), gpt2=True),
    "sentencepiece": sentencepiece,
    "byte-fallback": byte_fallback_from_sentencepiece,
    "byte-fallback-trained": byte_fallback_trained,
}


if __name__ == "__main__":
    main()
