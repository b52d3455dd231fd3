"""What the front matter of a model card says: the source's words, and what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from quantkit.hub.card_text import CardHeader, CardScore
from quantkit.release.card.source_card import SourceCard
from quantkit.report.results import LevelResult

OWN_TAGS = ("gguf", "imatrix", "quantkit", "llama.cpp")

# What the Hub or a library of the original puts there; it does not hold for GGUF files.
_FOREIGN_TAGS = frozenset({
    "autotrain_compatible", "compressed-tensors", "conversational", "custom_code", "diffusers",
    "endpoints_compatible", "eval-results", "exl2", "exl3", "generated_from_trainer", "ggml",
    "has_space", "inference_endpoints", "jax", "model-index", "mlx", "nemo", "onnx", "openvino",
    "peft", "pytorch", "safetensors", "sentence-transformers", "tensorboard",
    "text-generation-inference", "tf", "transformers", "transformers.js", "unsloth", "vllm",
})  # fmt: skip
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
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


def card_header(
    repository: str, model: str, source: SourceCard, results: Iterable[LevelResult]
) -> CardHeader:
    """The front matter of a release.

    Args:
        repository: OWNER/NAME that it is published to.
        results: the published levels.
    """
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
        scores=card_scores(list(results)),
    )


def card_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """The source's own tags that hold for GGUF files too, and those of every release."""
    kept = [
        tag
        for tag in tags
        # region:us, arxiv:2307.09288, base_model:…, license:…: made by the Hub
        if ":" not in tag and tag.lower() not in _FOREIGN_TAGS
    ]
    seen = {tag.lower(): tag for tag in reversed((*kept, *OWN_TAGS))}
    return tuple(reversed(seen.values()))


def card_scores(results: Sequence[LevelResult]) -> tuple[CardScore, ...]:
    """The hit rate of each task at the longest context, then the KLD; level by level in each."""
    found = []
    for level in results:
        for score in level.retrieval.longest:
            length = score.context_tokens
            found.append(
                CardScore(
                    dataset="quantkit-needle-in-a-haystack",
                    dataset_name=(
                        f"quantkit needle-in-a-haystack, {score.name}, {length:,} tokens"
                    ),
                    configuration=f"{score.name}-{length}",
                    metric="accuracy",
                    metric_name=f"{level.name} hit rate",
                    value=round(score.hits / score.trials, 6),
                    details={
                        "level": level.name,
                        "hits": score.hits,
                        "trials": score.trials,
                        "lower_bound": round(score.lower_bound, 6),
                        "confidence": level.retrieval.confidence,
                    },
                )
            )
    for level in results:
        if level.kld is not None and math.isfinite(level.kld.mean):
            found.append(
                CardScore(
                    dataset="quantkit-held-out-text",
                    dataset_name=f"text outside the calibration, {level.kld.tokens:,} tokens",
                    configuration=f"{level.kld.tokens}-tokens",
                    metric="kl_divergence",
                    metric_name=f"{level.name} mean KLD from the base model, nats",
                    value=float(f"{level.kld.mean:.6g}"),
                    details={"level": level.name, "tokens": level.kld.tokens},
                )
            )
    return tuple(found)


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
