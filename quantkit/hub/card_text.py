"""README.md of a model repository: metadata as YAML front matter, then the text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CardScore:
    """A measured figure, in the words of the client's `EvalResult`.

    The Hub groups them by dataset type and configuration; the names are shown. `metric_args` say
    how the figure was measured.
    """

    dataset_type: str
    dataset_name: str
    dataset_config: str
    metric_type: str
    metric_name: str
    metric_value: float
    metric_args: dict[str, int | float | str]


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

    results = [EvalResult(task_type="text-generation", **asdict(score)) for score in header.scores]
    licences: Any = header.licences[0] if len(header.licences) == 1 else list(header.licences)
    data = ModelCardData(
        base_model=header.base_model,
        base_model_relation=None if header.base_model is None else "quantized",
        language=list(header.languages) or None,
        library_name="gguf",
        license=licences or None,  # the Hub takes a list too
        license_name=header.licence_name,
        license_link=header.licence_link,
        model_name=header.name,
        pipeline_tag=header.pipeline_tag,
        tags=list(header.tags),
        eval_results=results or None,
        quantized_by=header.owner,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
