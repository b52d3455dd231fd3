"""README.md as huggingface_hub writes it, and as it reads it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard

from quantkit.hub.card_text import CardHeader, CardScore, readme_text

SCORES = (
    CardScore("niah", "niah, multikey", "multikey-4096", "accuracy", "Q4 hit rate", 0.98,
              {"level": "Q4", "hits": 63, "trials": 64}),
    CardScore("niah", "niah, multikey", "multikey-4096", "accuracy", "Q6 hit rate", 1.0,
              {"level": "Q6", "hits": 64, "trials": 64}),
    CardScore("niah", "niah, absent", "absent-4096", "accuracy", "Q4 hit rate", 0.0, {"hits": 0}),
)  # fmt: skip
HEADER = CardHeader(
    name="Some-Model-120B", owner="someone", base_model="nvidia/Some-Model", licences=("other",),
    licence_name="nvidia-open-model-license", licence_link="https://x.org/licence",
    languages=("en", "no"), tags=("gguf", "imatrix"), pipeline_tag="text-generation", scores=SCORES,
)  # fmt: skip
BODY = "# Title\n\ntext\n---\nmore\n"


def test_it_is_read_back_as_it_was_meant(tmp_path: Path) -> None:
    text = readme_text(HEADER, BODY)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text == f"\n{BODY}"
    data = card.data
    assert (data.base_model, data["base_model_relation"]) == ("nvidia/Some-Model", "quantized")
    assert (data.license, data.license_name) == ("other", "nvidia-open-model-license")
    assert data.license_link == "https://x.org/licence"
    assert data.language == ["en", "no"]  # not false, as YAML 1.1 reads a bare no
    stated = data.to_dict()
    assert (stated["library_name"], stated["pipeline_tag"]) == ("gguf", "text-generation")
    assert data.tags == ["gguf", "imatrix"]
    assert data["quantized_by"] == "someone"
    assert data.model_name == "Some-Model-120B"
    assert str(card) == text


def test_scores_of_one_question_stand_together() -> None:
    results = ModelCard(readme_text(HEADER, BODY)).data.eval_results
    assert results is not None
    assert [(r.dataset_config, r.metric_name, r.metric_value) for r in results] == [
        (score.dataset_config, score.metric_name, score.metric_value) for score in SCORES
    ]
    assert results[0].metric_args == {"level": "Q4", "hits": 63, "trials": 64}
    assert {(r.task_type, r.verified, r.source_url) for r in results} == {
        ("text-generation", None, None)
    }
    index = ModelCard(readme_text(HEADER, BODY)).data.to_dict()["model-index"]
    assert [len(result["metrics"]) for result in index[0]["results"]] == [2, 1]


def test_what_is_not_known_is_left_out() -> None:
    header = replace(
        HEADER, base_model=None, licences=(), licence_name=None, licence_link=None, languages=(),
        pipeline_tag=None, scores=(),
    )  # fmt: skip
    data = ModelCard(readme_text(header, BODY)).data.to_dict()
    assert data == {
        "library_name": "gguf", "model_name": "Some-Model-120B", "tags": ["gguf", "imatrix"],
        "quantized_by": "someone",
    }  # fmt: skip


def test_several_licences_stay_several() -> None:
    data = ModelCard(readme_text(replace(HEADER, licences=("mit", "apache-2.0")), BODY)).data
    assert data.license == ["mit", "apache-2.0"]


def test_no_value_ends_the_front_matter() -> None:
    hostile = "--- \n---\ntags: [stolen]\n# "
    card = ModelCard(readme_text(replace(HEADER, licence_name=hostile, name=hostile), BODY))
    assert card.data.license_name == hostile
    assert card.data.model_name == hostile
    assert card.data.tags == ["gguf", "imatrix"]
    assert card.text == f"\n{BODY}"
