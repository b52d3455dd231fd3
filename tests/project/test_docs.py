"""The documentation against the code and the files: commands, fields, hashes, links, examples."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from pydantic import BaseModel

from quantkit.config.recipe import (
    ConvertRecipe,
    DivergenceRecipe,
    ImatrixRecipe,
    LevelRecipe,
    MeasureRecipe,
    Recipe,
    RetrievalRecipe,
)
from quantkit.config.target import GPUSpec, Target

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "calibration" / "README.md"]
)
RECIPE_SECTIONS = (
    Recipe,
    ConvertRecipe,
    ImatrixRecipe,
    MeasureRecipe,
    LevelRecipe,
    RetrievalRecipe,
    DivergenceRecipe,
)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_cli_reference_is_up_to_date() -> None:
    path = ROOT / "scripts" / "make_cli_reference.py"
    spec = importlib.util.spec_from_file_location("make_cli_reference", path)
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert text("docs/cli.md") == script.reference(), "run scripts/make_cli_reference.py"


def test_the_readme_lists_every_command() -> None:
    commands = re.findall(r"^## (quantkit \w+)$", text("docs/cli.md"), re.M)
    assert re.findall(r"^\| `(quantkit \w+)` \|", text("README.md"), re.M) == commands


def test_calibration_hashes_equal_the_files() -> None:
    page = text("calibration/README.md")
    described = {section.split("\n", 1)[0].strip(): section for section in page.split("\n## ")[1:]}
    folder = ROOT / "calibration"
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".txt", ".jsonl"))
    assert sorted(described) == files
    for name in files:
        content = (ROOT / "calibration" / name).read_bytes()
        assert f"`{hashlib.sha256(content).hexdigest()}`" in described[name]
        assert f"| {len(content):,} bytes |" in described[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            broken.append(link)
    assert not broken


def headings(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of `page`."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in found}


@pytest.mark.parametrize(
    ("page", "models"),
    [("docs/targets.md", (Target, GPUSpec)), ("docs/recipes.md", RECIPE_SECTIONS)],
)
def test_every_field_is_described(page: str, models: tuple[type[BaseModel], ...]) -> None:
    rows = [line.split("|")[1] for line in text(page).splitlines() if line.startswith("| `")]
    described = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert described == {field for model in models for field in model.model_fields}


@pytest.mark.parametrize(
    ("page", "model"), [("docs/targets.md", Target), ("docs/recipes.md", Recipe)]
)
def test_examples_are_valid(page: str, model: type[BaseModel]) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```", text(page), re.M | re.S)
    assert examples
    for example in examples:
        model.model_validate(yaml.safe_load(example))


def test_compose_publishes_to_this_machine_only() -> None:
    services = yaml.safe_load(text("compose.yaml"))["services"]
    assert set(services) == {"quantkit", "serve"}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
