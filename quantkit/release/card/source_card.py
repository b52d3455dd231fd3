"""What the model's own card says: licence, languages, tags, access.

Anybody may have written it, so what is kept is printable, on one line and bounded, and links are
http(s).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from quantkit.formats.tensors import Metadata

HUB = "https://huggingface.co"
Gated = Literal["auto", "manual", False] | None

PIPELINES = frozenset({
    "any-to-any", "audio-classification", "audio-text-to-text", "audio-to-audio",
    "automatic-speech-recognition", "depth-estimation", "document-question-answering",
    "feature-extraction", "fill-mask", "graph-ml", "image-classification",
    "image-feature-extraction", "image-segmentation", "image-text-to-text", "image-to-3d",
    "image-to-image", "image-to-text", "image-to-video", "keypoint-detection", "mask-generation",
    "multiple-choice", "object-detection", "question-answering", "reinforcement-learning",
    "robotics", "sentence-similarity", "summarization", "table-question-answering",
    "tabular-classification", "tabular-regression", "text-classification", "text-generation",
    "text-ranking", "text-to-3d", "text-to-audio", "text-to-image", "text-to-speech",
    "text-to-video", "text2text-generation", "time-series-forecasting", "token-classification",
    "translation", "unconditional-image-generation", "video-classification", "video-text-to-text",
    "visual-document-retrieval", "visual-question-answering", "voice-activity-detection",
    "zero-shot-classification", "zero-shot-image-classification", "zero-shot-object-detection",
})  # fmt: skip
"""The Hub's tasks (huggingface.js, packages/tasks/src/pipelines.ts)."""

_WORD_CHARACTERS, _LINK_CHARACTERS, _MOST_WORDS = 80, 500, 100
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ORIGINS = (
    "general.source.huggingface.repository", "general.source.repo_url", "general.source.url",
    "general.repo_url", "general.url",
)  # fmt: skip


@dataclass(frozen=True)
class SourceCard:
    """What the model's own card says.

    Attributes:
        repository, commit: on the Hub; None where it was built from a folder or a file.
        licence: the Hub's tag, `other`, `apache-2.0`, or several joined by commas; None: not
            stated.
        licence_name, licence_link: as there; the link is absolute.
        tags: without the task.
        pipeline_tag: one of the Hub's tasks.
        gated: how access is given; False: to all; None: not known.
    """

    repository: str | None
    commit: str | None
    licence: str | None
    licence_name: str | None
    licence_link: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    pipeline_tag: str | None
    gated: Gated = None


def from_metadata(
    metadata: Metadata, repository: str | None = None, commit: str | None = None
) -> SourceCard:
    """What an artifact's header has kept of its model's card.

    Args:
        repository, commit: of the model, where they are known; else the repository is the one
            that the header names as the model's own or as its origin. `general.base_model` is
            not it: that is what the model was itself trained from.
    """
    values = {key: value.value for key, value in metadata.items()}
    if repository is None:
        repository = next(
            filter(None, (_hub_repository(values.get(key)) for key in _ORIGINS)), None
        )
    tags = _texts(values.get("general.tags"))
    # gguf's Metadata appends the card's pipeline_tag to its tags
    pipeline = next((tag for tag in reversed(tags) if tag in PIPELINES), None)
    content = {
        "license": values.get("general.license"),
        "license_name": values.get("general.license.name"),
        "license_link": values.get("general.license.link"),
        "language": values.get("general.languages"),
        "tags": tags,
        "pipeline_tag": pipeline,
    }
    return from_card(repository, commit, content, None)


def from_card(
    repository: str | None, commit: str | None, card: Mapping[str, object], gated: object
) -> SourceCard:
    """What the front matter of a model's card says, as the Hub has it or as it was read.

    Args:
        card: whatever somebody wrote; what is not of the expected kind is left out.
        gated: the Hub's word for it: False, "auto" or "manual".
    """
    if repository is None or not _REPOSITORY.fullmatch(repository):
        repository = commit = None
    if commit is not None and not _COMMIT.fullmatch(commit):
        commit = None
    task = _text(card.get("pipeline_tag"))
    known: Gated = None
    if gated is False or gated == "auto" or gated == "manual":
        known = gated
    return SourceCard(
        repository=repository,
        commit=commit,
        licence=",".join(_texts(card.get("license"))) or None,
        licence_name=_text(card.get("license_name")),
        licence_link=_absolute(card.get("license_link"), repository, commit),
        languages=_texts(card.get("language")),
        tags=tuple(tag for tag in _texts(card.get("tags")) if tag not in PIPELINES),
        pipeline_tag=task if task in PIPELINES else None,
        gated=known,
    )


def _text(value: object, most: int = _WORD_CHARACTERS) -> str | None:
    """One printable line of at most `most` characters; None where nothing is left, or no text."""
    if not isinstance(value, str):
        return None
    printable = "".join(sign if sign.isprintable() else " " for sign in value[: 4 * most])
    return " ".join(printable.split())[:most].rstrip() or None


def _texts(value: object) -> tuple[str, ...]:
    """Those of one text or several, each once."""
    members: Iterable[object] = value if isinstance(value, list | tuple) else (value,)
    found = (_text(member) for member in list(members)[:_MOST_WORDS])
    return tuple(dict.fromkeys(text for text in found if text is not None))


def _absolute(value: object, repository: str | None, commit: str | None) -> str | None:
    """An http(s) link; a file of the repository as its page; None for anything else."""
    text = _text(value, _LINK_CHARACTERS)
    if text is None or " " in text or "\\" in text:
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    if parts.scheme or parts.netloc:
        # what stands before an @ looks like the host, and is not
        honest = parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc
        return quote(text, safe=":/?#[]@!$&'*+,;=%~") if honest else None
    path = parts.path.removeprefix("./")
    if repository is None or not path or path.startswith("/") or ".." in path.split("/"):
        return None
    return f"{HUB}/{repository}/blob/{commit or 'main'}/{quote(path, safe='/%')}"


def _hub_repository(value: object) -> str | None:
    """OWNER/NAME of that, or of the Hub's page of it."""
    text = _text(value, _LINK_CHARACTERS)
    name = None if text is None else text.removeprefix(f"{HUB}/").strip("/")
    return name if name is not None and _REPOSITORY.fullmatch(name) else None
