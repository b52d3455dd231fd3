"""recipe.yaml and target.yaml of a release load again to the same build, and name no path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantkit import __version__
from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe, Recipe, known_recipes, load_recipe
from quantkit.config.target import GPUSpec, Target, known_targets, load_target
from quantkit.core.files import file_sha256
from quantkit.release.documents import (
    own_texts,
    public_recipe,
    public_target,
    recipe_document,
    target_document,
)
from quantkit.study.calibration.sources import local_sources
from quantkit.study.calibration.texts import chunk_order
from quantkit.study.imatrix import Calibration, FileRead, SourceRead

LEVELS = (LevelRecipe(name="Q4", bits_per_weight=4.5),)
ODD = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
"""Line breaks of every kind, quotes, colons, signs of YAML: all that a name may have."""
WRITES_A_FILE = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def of_texts(*texts: str, model: str | None = None) -> Recipe:
    return Recipe(name="own", model=model, levels=LEVELS, imatrix=ImatrixRecipe(texts=texts))


def of_mixture(**shares: float) -> Recipe:
    return Recipe(name="own", levels=LEVELS, imatrix=ImatrixRecipe(mixture=shares))


def written(document: str, folder: Path) -> Path:
    path = folder / "document.yaml"
    path.write_text(document, encoding="utf-8")
    return path


def loaded(document: str, folder: Path) -> Recipe:
    return load_recipe(written(document, folder))


def comments(document: str) -> str:
    return "".join(line for line in document.splitlines(True) if line.startswith("#"))


def own_files(folder: Path, *names: str) -> dict[str, Path]:
    """Texts, each with its own content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return {name: folder / name for name in names}


def recorded_of(*sources: SourceRead, ready: str | None = None) -> Calibration:
    return Calibration(
        chunks=2, tokens=1024, weights=1, unseen_experts=0, sources=sources, ready=ready
    )


def calibration_of(recipe: Recipe, *more: SourceRead) -> Calibration:
    """calibration.json of a build whose texts lie here."""
    sources = [
        SourceRead(
            Path(source.name).resolve().name if source.origin == "disk" else source.name,
            source.origin,
            source.licence,
            None,
            tuple(FileRead(p.name, p.stat().st_size, file_sha256(p)) for p in source.files),
        )
        for source in local_sources(recipe.imatrix)
    ]
    return recorded_of(*sources, *more)


@pytest.mark.parametrize("name", known_recipes())
def test_a_shipped_recipe_comes_back_whole(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(known_recipes()[name])
    document = recipe_document(recipe)
    assert loaded(document, tmp_path) == recipe
    assert list(loaded(document, tmp_path).imatrix.mixture) == list(recipe.imatrix.mixture)
    assert document == recipe_document(recipe)
    content = yaml.safe_load(document)
    assert list(content) == list(Recipe.model_fields)
    assert list(content["imatrix"]) == list(ImatrixRecipe.model_fields)
    assert list(content["measure"]) == list(MeasureRecipe.model_fields)
    head = comments(document)
    assert document.startswith(head)
    assert f"quantkit {__version__}" in head
    model = recipe.model or "MODEL"
    assert f"quantkit build --model {model} --recipe recipe.yaml --target target.yaml" in head


@pytest.mark.parametrize("name", known_targets())
def test_a_shipped_target_comes_back_whole(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    document = target_document(target)
    assert load_target(str(written(document, tmp_path))) == target
    assert list(yaml.safe_load(document)) == [f for f in Target.model_fields if f != "devices"]


def test_a_target_loses_its_devices_and_nothing_else(tmp_path: Path) -> None:
    uuids = ("GPU-7f1ac5d2-0000-1111-2222-333344445555", "GPU-8f1ac5d2-0000-1111-2222-333344445555")
    target = Target(
        name="2xmine", gpus=(GPUSpec(name="RTX", memory_gib=24, reserve_gib=0.25, count=2),),
        context_tokens=1000, kv_type="bf16", ubatch_tokens=256, sequences=3, flash_attention=False,
        pipeline=False, draft="mtp", devices=uuids, layers="in_order", weight_budget_gib=12.125,
    )  # fmt: skip
    document = target_document(target)
    assert not any(uuid in document for uuid in uuids)
    public = target.model_copy(update={"devices": ()})
    assert load_target(str(written(document, tmp_path))) == public_target(target) == public


def test_paths_become_names_with_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "me"
    files = own_files(home, "mine.txt", "texts/a.md", "texts/b.txt")
    recipe = of_mixture(
        **{str(home / "mine.txt"): 1.0, "chat": 2.0, str(home / "texts"): 1.5},
        **{"hf://datasets/someone/talks@main/a.txt": 0.25},
    )
    calibration = calibration_of(
        of_mixture(**dict(list(recipe.imatrix.mixture.items())[:3])),
        SourceRead("hf://datasets/someone/talks@main/a.txt"),
    )
    document = recipe_document(recipe, calibration, model="someone/model@c0ffee")
    assert str(tmp_path) not in document
    assert "home" not in document
    again = loaded(document, tmp_path)
    assert again.imatrix.mixture == {
        "mine.txt": 1.0, "chat": 2.0, "texts": 1.5, "hf://datasets/someone/talks@main/a.txt": 0.25,
    }  # fmt: skip
    assert again == public_recipe(recipe)
    head = comments(document)
    assert "--model someone/model@c0ffee " in head
    assert all(f"{path.name} SHA-256 {file_sha256(path)}" in head for path in files.values())
    assert "chat" not in head

    # beside the texts, which `quantkit build` looks for where it is run, all of them are found
    monkeypatch.chdir(home)
    found = local_sources(again.imatrix)
    assert [source.origin for source in found] == ["disk", "quantkit", "disk"]
    assert [path.name for path in found[2].files] == ["a.md", "b.txt"]


def test_a_text_called_like_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = own_files(tmp_path, "english-prose.txt").values()
    again = loaded(recipe_document(of_texts("english-prose.txt", str(own))), tmp_path)
    assert again.imatrix.texts == ("english-prose.txt", "./english-prose.txt")
    monkeypatch.chdir(tmp_path)
    shipped, mine = local_sources(again.imatrix)
    assert shipped.origin == "quantkit"
    assert mine.files[0].samefile(own)


def hashes_of(document: str) -> dict[str, str]:
    """What each own text of one file is called → the hash that the comment has for it."""
    found = re.findall(r"^#   (\S+)\n#     \S+ SHA-256 (\w+)$", comments(document), re.MULTILINE)
    return dict(found)


def test_an_unsorted_mixture_keeps_its_hashes(tmp_path: Path) -> None:
    """Also where the recipe comes sorted by name, as receipts have it."""
    files = own_files(tmp_path, "zz.txt", "aa.txt")
    true = of_mixture(**{str(files["zz.txt"]): 1.0, "chat": 3.0, str(files["aa.txt"]): 2.0})
    order = sorted(true.imatrix.mixture.items())
    for recipe in (true, of_mixture(**dict(order)), of_mixture(**dict(reversed(order)))):
        document = recipe_document(recipe, calibration_of(true))
        assert hashes_of(document) == {name: file_sha256(path) for name, path in files.items()}
        again = loaded(document, tmp_path).imatrix.mixture
        assert again == {"zz.txt": 1.0, "chat": 3.0, "aa.txt": 2.0}


def test_texts_of_one_name_have_the_hashes_of_their_order(tmp_path: Path) -> None:
    files = own_files(tmp_path, "zz/a.txt", "b.txt", "aa/a.txt", "own/chat")
    recipe = of_mixture(**dict.fromkeys(map(str, files.values()), 1.0), chat=1.0)
    document = recipe_document(recipe, calibration_of(recipe))
    first, b, second, chat = map(file_sha256, files.values())
    assert hashes_of(document) == {"a.txt": first, "b.txt": b, "2/a.txt": second, "./chat": chat}


def test_a_folder_that_is_called_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = own_files(tmp_path, "here/x.txt", "b.txt")
    monkeypatch.chdir(tmp_path / "here")
    recipe = of_mixture(**{".": 1.0, str(files["b.txt"]): 2.0})
    recorded = calibration_of(recipe)
    assert [source.name for source in recorded.sources] == ["here", "b.txt"]
    found = hashes_of(recipe_document(recipe, recorded))
    assert found == {"here": file_sha256(files["here/x.txt"]), "b.txt": file_sha256(files["b.txt"])}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chunks_keep_their_order_under_the_new_names(seed: int) -> None:
    paths = ("/home/me/a.txt", "/home/me/old/a.txt", "b/chat.jsonl", "/x/texts/", "chat", "code")
    before = dict.fromkeys(paths, 1.0)
    after = public_recipe(of_mixture(**before)).imatrix.mixture
    called = dict(zip(before, after, strict=True))
    assert called["b/chat.jsonl"] == "./chat.jsonl"
    order = chunk_order(before, dict.fromkeys(before, 9), 20, seed)
    assert [called[name] for name in order] == chunk_order(after, dict.fromkeys(after, 9), 20, seed)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("texts/mine.txt", "mine.txt"),
        ("~/mine.txt", "mine.txt"),
        ("C:\\Users\\me\\mine.txt", "mine.txt"),
        ("\\\\nas\\share\\mine.txt", "mine.txt"),
        ("/home/me/texts/", "texts"),
        ("..", "calibration"),
        ("/", "calibration"),
    ],
)
def test_a_path_keeps_its_last_part(path: str, name: str) -> None:
    assert public_recipe(of_texts(path)).imatrix.texts == (name,)


def test_texts_that_are_not_read_lose_their_path_too() -> None:
    imatrix = ImatrixRecipe(texts=("/home/me/a.txt",), mixture={"chat": 1.0})
    recipe = Recipe(name="own", levels=LEVELS, imatrix=imatrix)
    document = recipe_document(recipe, recorded_of(SourceRead("chat")))
    assert "/home/me" not in document
    assert "not published" not in document


READY = recorded_of(SourceRead("a.txt"), SourceRead("b.txt"), ready="imatrix.gguf")


def test_a_ready_imatrix_is_part_of_the_command() -> None:
    document = recipe_document(of_texts("chat", model="demo"), READY, imatrix="m-imatrix.gguf")
    command = "quantkit build --model demo --recipe recipe.yaml --target target.yaml"
    assert f"#   {command} --imatrix m-imatrix.gguf\n" in document
    assert "m-imatrix.gguf is the importance matrix" in comments(document)
    assert "collecting" not in document
    # the builder's name for it, and what somebody else collected it on
    assert " imatrix.gguf" not in document
    assert "a.txt" not in document
    collected = comments(recipe_document(of_texts("chat", model="demo"), imatrix="m-imatrix.gguf"))
    assert f"#   {command}\n" in collected
    assert "Add --imatrix m-imatrix.gguf" in collected


def test_own_texts_are_asked_for_where_a_build_reads_them() -> None:
    """With a ready matrix that is for what errors cost, if at all."""
    recipe = of_texts("/home/me/mine.txt")
    assert recipe.measure.measures_costs
    assert "#   mine.txt\n" in recipe_document(recipe, READY)
    unread = recipe.model_copy(update={"measure": MeasureRecipe(cost_tokens=0)})
    assert "mine.txt" not in comments(recipe_document(unread, READY))
    assert "#   mine.txt\n" in recipe_document(unread)
    assert own_texts(recipe, ready=True) == own_texts(unread, ready=False) == ("/home/me/mine.txt",)
    assert own_texts(unread, ready=True) == ()


PUBLIC = ["demo", "someone/Some_Model-1.5B", "someone/model@main"]
PATHS = ["/home/me/model", "~/model", "./model", "models/mine/BF16"]


@pytest.mark.parametrize("model", [*PUBLIC, *PATHS])
def test_a_repository_stays_and_a_path_is_left_out(model: str, tmp_path: Path) -> None:
    document = recipe_document(of_texts("chat", model=model), model="/home/me/copy")
    is_public = model in PUBLIC
    assert loaded(document, tmp_path).model == (model if is_public else None)
    assert f"--model {model if is_public else 'MODEL'} " in document
    assert "/home/me" not in document
    assert is_public or model not in document


@WRITES_A_FILE
@example(name="a\x85b\u2028\ufeff \n\n", key=" a ", share=1.0, pattern="yes")
@example(name="1.5", key="\u2029b", share=1.0, pattern="a")
@given(name=ODD, key=ODD, share=st.floats(1e-300, 1e300), pattern=ODD)
def test_names_of_any_letters(
    name: str, key: str, share: float, pattern: str, tmp_path: Path
) -> None:
    recipe = Recipe(
        name=name,
        levels=(LevelRecipe(name="Q4", pin={re.escape(pattern): "Q8_0"}),),
        imatrix=ImatrixRecipe(mixture={key: share, f"/home/me/{key}": 1.0}),
    )
    source = SourceRead(key, files=(FileRead(pattern, 1, "0" * 64),))
    recorded = recorded_of(source, source)
    document = recipe_document(recipe, recorded)
    again = loaded(document, tmp_path)
    assert again == public_recipe(recipe, recorded)
    assert (again.name, len(again.imatrix.mixture)) == (name, 2)
    assert sorted(again.imatrix.mixture.values()) == sorted([share, 1.0])


@WRITES_A_FILE
@given(name=ODD, description=ODD, gpu=ODD, gib=st.floats(0.001, 1e6), budget=st.floats(0.01, 1e9))
def test_targets_of_any_words_come_back(
    name: str, description: str, gpu: str, gib: float, budget: float, tmp_path: Path
) -> None:
    gpus = (GPUSpec(name=gpu, memory_gib=gib), GPUSpec(name=gpu, memory_gib=gib, count=3))
    target = Target(
        name=name, description=description, gpus=gpus, context_tokens=7, weight_budget_gib=budget
    )
    assert load_target(str(written(target_document(target), tmp_path))) == target
