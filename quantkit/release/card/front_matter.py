"""The front matter of model cards: what the source's card says, and what a release's card says.

Anybody may have written the source's card, so what is kept of it is printable, on one line and
bounded, and links are http(s).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from quantkit.formats.tensors import Metadata
from quantkit.hub.card_text import CardHeader, CardScore
from quantkit.report.results import LevelResult

HUB = "https://huggingface.co"
Gated = Literal["auto", "manual", False] | None

PIPELINES = frozenset({
    "any-to-any", "audio-text-to-text", "feature-extraction", "fill-mask", "image-text-to-text",
    "question-answering", "sentence-similarity", "summarization", "table-question-answering",
    "text-classification", "text-generation", "text-ranking", "text2text-generation",
    "token-classification", "translation", "video-text-to-text", "visual-question-answering",
    "zero-shot-classification",
})  # fmt: skip
"""The Hub's tasks of models that read text (huggingface.js, packages/tasks/src/pipelines.ts)."""

OWN_TAGS = ("gguf", "imatrix", "quantkit", "llama.cpp")
# What the Hub or a library of the original puts there; it does not hold for GGUF files.
_FOREIGN_TAGS = frozenset({
    "autotrain_compatible", "compressed-tensors", "conversational", "custom_code", "diffusers",
    "endpoints_compatible", "eval-results", "exl2", "exl3", "generated_from_trainer", "ggml",
    "has_space", "inference_endpoints", "jax", "model-index", "mlx", "nemo", "onnx", "openvino",
    "peft", "pytorch", "safetensors", "sentence-transformers", "tensorboard",
    "text-generation-inference", "tf", "transformers", "transformers.js", "unsloth", "vllm",
})  # fmt: skip
_HUB_LICENCES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0",
    "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa",
    "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "other", "pddl",
    "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
})  # fmt: skip
"""Of huggingface.co/docs/hub/repositories-licenses; the Hub refuses a card with another one."""
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")

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
        licence: the Hub's tag, or several joined by commas; None: not stated.
        licence_link: absolute.
        tags: without the task, `pipeline_tag`.
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

    An unknown repository is the one that the header names as the model's own or as its origin.
    `general.base_model` is not it: that is what the model was itself trained from.
    """
    values = {key: value.value for key, value in metadata.items()}
    for key in _ORIGINS:
        name = (_text(values.get(key), _LINK_CHARACTERS) or "").removeprefix(f"{HUB}/").strip("/")
        if repository is None and _REPOSITORY.fullmatch(name):
            repository = name
    tags = _texts(values.get("general.tags"))
    content = {
        "license": values.get("general.license"),
        "license_name": values.get("general.license.name"),
        "license_link": values.get("general.license.link"),
        "language": values.get("general.languages"),
        "tags": tags,
        # gguf's Metadata appends the card's pipeline_tag to its tags
        "pipeline_tag": next((tag for tag in reversed(tags) if tag in PIPELINES), None),
    }
    return from_card(repository, commit, content, None)


def from_card(
    repository: str | None, commit: str | None, card: Mapping[str, object], gated: object
) -> SourceCard:
    """What the front matter of a model's card says; what is not of the expected kind is left out.

    Args:
        gated: the Hub's word for it: False, "auto" or "manual".
    """
    if repository is None or not _REPOSITORY.fullmatch(repository):
        repository = commit = None
    if commit is not None and not _COMMIT.fullmatch(commit):
        commit = None
    task = _text(card.get("pipeline_tag"))
    return SourceCard(
        repository=repository,
        commit=commit,
        licence=",".join(_texts(card.get("license"))) or None,
        licence_name=_text(card.get("license_name")),
        licence_link=_absolute(card.get("license_link"), repository, commit),
        languages=_texts(card.get("language")),
        tags=tuple(tag for tag in _texts(card.get("tags")) if tag not in PIPELINES),
        pipeline_tag=task if task in PIPELINES else None,
        gated=gated if gated is False or gated == "auto" or gated == "manual" else None,
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


def card_header(
    repository: str, model: str, source: SourceCard, results: Sequence[LevelResult]
) -> CardHeader:
    """The front matter of a release of the levels `results` in `repository`."""
    licences, name = _licences(source)
    return CardHeader(
        name=model,
        owner=repository.partition("/")[0],
        base_model=source.repository,
        licences=licences,
        licence_name=name,
        licence_link=source.licence_link,
        languages=tuple(code for code in source.languages if _LANGUAGE.fullmatch(code)),
        tags=card_tags(source.tags),
        pipeline_tag=source.pipeline_tag,
        scores=tuple(_scores(results)),
    )


def card_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """The source's own tags that hold for GGUF files too, and those of every release."""
    # the Hub makes region:us, arxiv:2307.09288, base_model:…, license:…
    kept = [tag for tag in tags if ":" not in tag and tag.lower() not in _FOREIGN_TAGS]
    seen = {tag.lower(): tag for tag in reversed((*kept, *OWN_TAGS))}
    return tuple(reversed(seen.values()))


def _scores(results: Sequence[LevelResult]) -> Iterator[CardScore]:
    """The hit rate of each task at the longest context, then the KL divergences."""
    for level in results:
        for score in level.retrieval.longest:
            length = score.context_tokens
            yield CardScore(
                dataset_type="quantkit-needle-in-a-haystack",
                dataset_name=f"quantkit needle-in-a-haystack, {score.name}, {length:,} tokens",
                dataset_config=f"{score.name}-{length}",
                metric_type="accuracy",
                metric_name=f"{level.name} hit rate",
                metric_value=round(score.hits / score.trials, 6),
                metric_args={
                    "level": level.name,
                    "hits": score.hits,
                    "trials": score.trials,
                    "lower_bound": round(score.lower_bound, 6),
                    "confidence": level.retrieval.confidence,
                },
            )
    for level in results:
        if level.kld is not None and math.isfinite(level.kld.mean):
            yield CardScore(
                dataset_type="quantkit-held-out-text",
                dataset_name=f"text outside the calibration, {level.kld.tokens:,} tokens",
                dataset_config=f"{level.kld.tokens}-tokens",
                metric_type="kl_divergence",
                metric_name=f"{level.name} mean KLD from the base model, nats",
                metric_value=float(f"{level.kld.mean:.6g}"),
                metric_args={"level": level.name, "tokens": level.kld.tokens},
            )


def _licences(source: SourceCard) -> tuple[tuple[str, ...], str | None]:
    """The Hub's tags, and a name; a licence that the Hub may not know goes as `other`."""
    if source.licence is None:
        return (), source.licence_name
    tags = tuple(tag.strip() for tag in source.licence.split(",") if tag.strip())
    if source.repository is not None:  # the Hub has taken it
        return tags, source.licence_name
    lowered = tuple(tag.lower() for tag in tags)
    if set(lowered) <= _HUB_LICENCES:
        return lowered, source.licence_name
    slug = re.sub("[^a-z0-9.+-]+", "-", "-".join(lowered)).strip("-")
    return ("other",), source.licence_name or slug or "other"
