"""A recipe's calibration: its texts, or its mixture of domains, as one row of tokens.

Pure: the tokenizer and the chat template are passed in. Equal input gives equal tokens on every
machine.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.chat_template import Message
from quantkit.errors import InputError
from quantkit.recipe import ImatrixRecipe
from quantkit.resources import resource

Tokens = NDArray[np.int32]
Tokenize = Callable[[str], Tokens]

ENDINGS = (".txt", ".jsonl", ".md")


class RenderChat(Protocol):
    """Messages, and tools where there are some → the text that the model's template makes.

    Raises:
        InputError: the template refuses them.
    """

    def __call__(self, messages: list[Message], tools: list[Any] | None = None, /) -> str: ...


@dataclass(frozen=True)
class DomainTaken:
    """What the calibration holds of one domain; `share` is of all its tokens."""

    name: str
    tokens: int
    share: float


@dataclass(frozen=True)
class CalibrationTokens:
    """The calibration.

    Attributes:
        tokens: with a mixture whole chunks, each of one domain; else all tokens of the texts.
        taken: one entry a domain, in the recipe's order; one in all for texts.
        notes: what the user should know: domains that ran out, conversations left out.
    """

    tokens: Tokens
    taken: tuple[DomainTaken, ...]
    notes: tuple[str, ...] = ()


def calibration_files(recipe: ImatrixRecipe) -> list[Path]:
    """Every file that `calibration_tokens` reads, in the recipe's order.

    Raises:
        InputError: one does not exist.
    """
    if recipe.mixture:
        return [path for name in recipe.mixture for path in _domain_files(name)]
    return [_text_file(name) for name in recipe.texts]


def calibration_tokens(
    recipe: ImatrixRecipe,
    tokenize: Tokenize,
    render_chat: RenderChat | None,
    *,
    tokenize_special: Tokenize | None = None,
) -> CalibrationTokens:
    """The tokens that the importance matrix is collected on.

    Args:
        recipe: its `mixture`, or without one its `texts`, joined by an empty line.
        tokenize: for texts, without BOS.
        render_chat: `ChatTemplate.render` of the model's template; None for a model without one,
            whose conversations become lines of "role: content".
        tokenize_special: for rendered conversations: special tokens are recognised. Without it
            `tokenize` serves for them too.

    Raises:
        InputError: a file is missing, cannot be read, or is too short for one chunk.
    """
    if not recipe.mixture:
        joined = "\n\n".join(_read(path) for path in calibration_files(recipe))
        tokens = tokenize(joined)
        return CalibrationTokens(tokens, (DomainTaken(", ".join(recipe.texts), len(tokens), 1.0),))
    notes: list[str] = []
    domains: dict[str, Tokens] = {}
    for name in recipe.mixture:
        parts = []
        for path in _domain_files(name):
            if path.suffix == ".jsonl":
                special = tokenize_special or tokenize
                rendered = _rendered(path, render_chat, notes)
                parts += [special(text) for text in rendered]
            else:
                parts.append(tokenize(_read(path) + "\n\n"))
        domains[name] = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    size = recipe.chunk_tokens
    room = {name: len(tokens) // size for name, tokens in domains.items()}
    order = chunk_order(recipe.mixture, room, recipe.chunks, recipe.seed)
    if not order:
        raise InputError(
            f"no domain of the calibration mixture has the {size} tokens of one chunk; "
            "give longer texts or a smaller chunk_tokens"
        )
    places = {name: spread_out(room[name]) if recipe.spread else range(room[name]) for name in room}
    used = dict.fromkeys(domains, 0)
    chunks = []
    for name in order:
        begin = places[name][used[name]] * size
        chunks.append(domains[name][begin : begin + size])
        used[name] += 1
    total = sum(map(Fraction, map(str, recipe.mixture.values())))
    for name, share in recipe.mixture.items():
        wanted = int(Fraction(str(share)) / total * recipe.chunks)
        if used[name] == room[name] < wanted:
            notes.append(
                f"the calibration text {name} holds {room[name]} of the {wanted} chunks of its "
                "share; the others make up for it"
            )
    taken = tuple(
        DomainTaken(name, count * size, count / len(order)) for name, count in used.items()
    )
    return CalibrationTokens(np.concatenate(chunks).astype(np.int32), taken, tuple(notes))


def chunk_order(
    shares: Mapping[str, float], room: Mapping[str, int], chunks: int, seed: int
) -> list[str]:
    """The domain of each chunk, `chunks` of them or as many as there are.

    Until a domain has no chunk left, the first k chunks hold less than one chunk more or less of
    each domain than its share of k: the chairman assignment of Tijdeman (1980), which takes the
    domain whose next chunk is due first. The seed decides between equals. Then the others go on in
    the same way, by their shares of what is left.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    left = {name: room[name] for name in sorted(shares, key=rank) if room[name] > 0}
    order: list[str] = []
    while left and len(order) < chunks:
        weights = {name: Fraction(str(shares[name])) for name in left}
        total = sum(weights.values())
        share = {name: weight / total for name, weight in weights.items()}
        slack = Fraction(1, max(2 * len(left) - 2, 1))
        taken = dict.fromkeys(left, 0)
        step = 0
        while len(order) < chunks and all(taken[name] < left[name] for name in left):
            step += 1
            owed = {name: share[name] * step - taken[name] for name in left}
            due = [name for name in left if owed[name] >= slack]
            chosen = min(due, key=lambda name: (1 - slack - owed[name]) / share[name])
            taken[chosen] += 1
            order.append(chosen)
        left = {name: left[name] - taken[name] for name in left if left[name] > taken[name]}
    return order


def spread_out(count: int) -> list[int]:
    """The numbers below `count`, so that any first few lie evenly: in bit-reversed order."""
    bits = max(count - 1, 0).bit_length()
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [number for number in reversed_bits if number < count]


def _text_file(name: str) -> Path:
    shipped = resource("calibration") / name
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        raise InputError(f"no calibration text {name!r}: give a file, or one of {_known()}")
    return path


def _domain_files(name: str) -> list[Path]:
    """The files of a domain: a calibration file with or without its ending, a file, a folder."""
    folder = resource("calibration")
    for ending in ("", ".txt", ".jsonl"):
        shipped = folder / f"{name}{ending}"
        if shipped.is_file():
            return [shipped]
    path = Path(name)
    if not path.is_dir():
        return [_text_file(name)]
    below = (file.relative_to(path) for file in path.rglob("*") if file.suffix in ENDINGS)
    files = sorted(file for file in below if (path / file).is_file())
    if not files:
        raise InputError(f"no calibration text in the folder {name}: {', '.join(ENDINGS)} are read")
    return [path / file for file in files]


def _known() -> str:
    files = resource("calibration").iterdir()
    return ", ".join(sorted(p.name for p in files if p.suffix in (".txt", ".jsonl")))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the calibration text {path}: {error}") from None


def _conversations(path: Path) -> list[tuple[list[Message], list[Any] | None]]:
    """Messages and tools of each line: a list of messages, or an object with both."""
    found = []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}") from None
        messages, tools = row, None
        if isinstance(row, dict):
            messages, tools = row.get("messages"), row.get("tools") or None
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and isinstance(message.get("role"), str)
            for message in messages
        ):
            raise InputError(f"{path}, line {number} is no list of messages with a role each")
        found.append((messages, tools))
    return found


def _rendered(path: Path, render_chat: RenderChat | None, notes: list[str]) -> list[str]:
    """The conversations of a file as text; `notes` grows by what the template refuses."""
    conversations = _conversations(path)
    if render_chat is None:
        notes.append(f"no chat template: the conversations of {path.name} are plain lines")
        return [_plain_lines(messages, tools) for messages, tools in conversations]
    texts = []
    counts: Counter[str] = Counter()
    reason: InputError | None = None
    for messages, tools in conversations:
        text, missing, why = _accepted(messages, tools, render_chat)
        if missing:
            counts[missing] += 1
            reason = reason or why
        if text is not None:
            texts.append(text)
    if counts:
        what = ", ".join(f"{count} {missing}" for missing, count in sorted(counts.items()))
        notes.append(f"of {len(conversations)} conversations of {path.name} {what}; {reason}")
    return texts


def _accepted(
    messages: list[Message], tools: list[Any] | None, render_chat: RenderChat
) -> tuple[str | None, str, InputError | None]:
    """What the template makes of as much of a conversation as it takes, what is missing, why."""
    why: InputError | None = None
    talk = _without_calls(messages)
    attempts = [(messages, tools, "")]
    if messages and messages[0]["role"] == "system":
        attempts.append((messages[1:], tools, "without the system message"))
    if tools:
        attempts.append((talk, None, "without tools"))
        if talk and talk[0]["role"] == "system":
            attempts.append((talk[1:], None, "without the system message and tools"))
    for some, given, missing in attempts:
        try:
            return (render_chat(some, given) if given else render_chat(some)), missing, why
        except InputError as error:
            why = why or error
    return None, "left out", why


def _without_calls(messages: list[Message]) -> list[Message]:
    """The messages that people read: no calls, no results."""
    spoken = (message for message in messages if message["role"] != "tool")
    kept = [{k: v for k, v in message.items() if k != "tool_calls"} for message in spoken]
    return [message for message in kept if message.get("content")]


def _plain_lines(messages: list[Message], tools: list[Any] | None) -> str:
    lines = [f"tools: {json.dumps(tools, ensure_ascii=False)}"] if tools else []
    for message in messages:
        calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or []]
        said = [str(message["content"])] if message.get("content") else []
        lines.append(f"{message['role']}: " + "\n".join([*said, *calls]))
    return "\n".join(lines) + "\n\n"
