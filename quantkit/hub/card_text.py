"""README.md of a model repository: metadata as YAML front matter, then the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CardScore:
    """A measured figure; the Hub groups them by dataset and configuration.

    Attributes:
        dataset, configuration, metric: identifiers; `dataset_name` and `metric_name` are shown.
        details: how the figure was measured.
    """

    dataset: str
    dataset_name: str
    configuration: str
    metric: str
    metric_name: str
    value: float
    details: Mapping[str, int | float | str]


@dataclass(frozen=True)
class CardHeader:
    """The metadata of a repository; None and empty fields are left out.

    Attributes:
        name: of the model that was measured.
        base_model: OWNER/NAME that this is a quantization of.
        licences: the Hub's tags; `licence_name` and `licence_link` explain "other".
        owner: the account that publishes it.
    """

    name: str
    owner: str
    base_model: str | None
    licences: tuple[str, ...]
    licence_name: str | None
    licence_link: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    pipeline_tag: str | None
    scores: tuple[CardScore, ...]


def readme_text(header: CardHeader, body: str) -> str:
    """The whole file: YAML between two lines of dashes, and `body`."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.dataset,
            dataset_name=score.dataset_name,
            dataset_config=score.configuration,
            metric_type=score.metric,
            metric_name=score.metric_name,
            metric_value=score.value,
            metric_args=dict(score.details),
        )
        for score in header.scores
    ]
    licences: str | list[str] | None = list(header.licences) or None
    if len(header.licences) == 1:
        licences = header.licences[0]
    data = ModelCardData(
        base_model=header.base_model,
        base_model_relation=None if header.base_model is None else "quantized",
        language=list(header.languages) or None,
        library_name="gguf",
        license=licences,  # type: ignore[arg-type]  # the Hub takes a list too
        license_name=header.licence_name,
        license_link=header.licence_link,
        model_name=header.name,
        pipeline_tag=header.pipeline_tag,
        tags=list(header.tags),
        eval_results=results or None,
        quantized_by=header.owner,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
