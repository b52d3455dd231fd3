"""What is kept of a model's own card: from a header, and from anybody's front matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.formats.tensors import TensorInfo
from quantkit.models.families.base import meta
from quantkit.models.general_metadata import general_metadata
from quantkit.release.card.front_matter import PIPELINES, SourceCard, from_card, from_metadata

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FRONT_MATTER = """\
---
license: other
license_name: nvidia-open-model-license
license_link: LICENSE.pdf
language: [en, de]
tags: [nvidia, reasoning, text-generation]
pipeline_tag: text-generation
base_model: nvidia/Some-Model-Base
---
# A model
"""


def test_the_header_of_an_artifact_keeps_its_models_card(tmp_path: Path) -> None:
    """By gguf's own reading of README.md."""
    (tmp_path / "README.md").write_text(FRONT_MATTER)
    (tmp_path / "config.json").write_text("{}")
    metadata = general_metadata(tmp_path, [TensorInfo("a.weight", (32, 32), "BF16")], "Some Model")
    assert from_metadata(metadata, "nvidia/Some-Model", COMMIT) == SourceCard(
        repository="nvidia/Some-Model",
        commit=COMMIT,
        licence="other",
        licence_name="nvidia-open-model-license",
        licence_link=f"https://huggingface.co/nvidia/Some-Model/blob/{COMMIT}/LICENSE.pdf",
        languages=("en", "de"),
        tags=("nvidia", "reasoning"),
        pipeline_tag="text-generation",
        gated=None,
    )


def test_what_a_model_was_trained_from_is_not_what_it_is() -> None:
    base = {"general.base_model.0.repo_url": meta("str", "https://huggingface.co/nvidia/X-Base")}
    assert from_metadata(base).repository is None
    origin = {"general.source.repo_url": meta("str", "https://huggingface.co/nvidia/X/")}
    assert from_metadata(base | origin).repository == "nvidia/X"
    page = {"general.repo_url": meta("str", "https://huggingface.co/unsloth")}
    assert from_metadata(page).repository is None
    assert from_metadata({}) == SourceCard(None, None, None, None, None, (), (), None, None)


def test_the_hubs_record() -> None:
    card = {"license": ["mit", "apache-2.0"], "language": "en", "pipeline_tag": "fill-mask"}
    found = from_card("google/bert", None, card, "manual")
    assert (found.licence, found.languages, found.pipeline_tag) == (
        "mit,apache-2.0", ("en",), "fill-mask",
    )  # fmt: skip
    assert found.gated == "manual"
    assert from_card("google/bert", None, card, False).gated is False
    for unknown in (None, True, 0, "", "yes", ["auto"]):
        assert from_card("google/bert", None, card, unknown).gated is None


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("LICENSE", "https://huggingface.co/a/b/blob/main/LICENSE"),
        ("./docs/the%20LICENSE.md", "https://huggingface.co/a/b/blob/main/docs/the%20LICENSE.md"),
        ("https://x.org/l?v=1#2", "https://x.org/l?v=1#2"),
        ("http://x.org/a(b)", "http://x.org/a%28b%29"),
        ("javascript:alert(1)", None),
        ("data:text/html,<script>", None),
        ("//x.org/l", None),
        ("/etc/passwd", None),
        ("../../settings", None),
        ("https://huggingface.co@x.org/l", None),
        ("https://[x", None),
        ("two words", None),
        ("https:\\x.org", None),
        ("", None),
        (["LICENSE"], None),
    ],
)  # fmt: skip
def test_links_are_of_the_web_or_of_the_repository(link: object, kept: str | None) -> None:
    assert from_card("a/b", None, {"license_link": link}, None).licence_link == kept
    assert from_card(None, None, {"license_link": "LICENSE"}, None).licence_link is None


def test_junk_is_left_out_or_cut() -> None:
    card: dict[str, object] = {
        "license": {"name": "mit"},
        "license_name": "a\n\u202e# b\x1b[31m   c" + "d" * 5000,
        "language": 7,
        "tags": ["ok", 3, None, ["x"], "ok", "  two \t lines\n", "\x00", "fill-mask", "l" * 300]
        + [f"t{n}" for n in range(10_000)],
        "pipeline_tag": "make-coffee",
    }
    found = from_card("../x", "HEAD", card, "manual")
    assert (found.repository, found.commit, found.licence) == (None, None, None)
    assert found.licence_name is not None
    assert found.licence_name.startswith("a # b [31m cddd")
    assert len(found.licence_name) == 80
    assert found.languages == ()
    assert found.tags[:3] == ("ok", "two lines", "l" * 80)
    assert len(found.tags) < 100
    assert found.pipeline_tag is None
    assert from_card(None, COMMIT, {}, None).commit is None


def test_the_hubs_tasks_are_known() -> None:
    assert {"text-generation", "image-text-to-text", "any-to-any"} <= PIPELINES
