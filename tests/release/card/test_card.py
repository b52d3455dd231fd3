"""The model card: figures, links, commands and front matter, and words of others in it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from finished_levels import KEYS, PROBES, answer, finish_level
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from markdown_it import MarkdownIt
from small_cards import (
    CALIBRATION,
    COMMIT,
    COVERAGE,
    MODEL,
    REPOSITORY,
    SOURCE,
    UNKNOWN,
    blocks,
    card_facts,
    card_level,
    commands,
    small_recipe,
)

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import RetrievalRecipe
from quantkit.config.target import load_target
from quantkit.release.card.facts import hub_source, level_patterns
from quantkit.release.card.render import card_text
from quantkit.release.contents import BuiltLevel
from quantkit.release.fits import Fits
from quantkit.retrieval.statistics import hit_rate_bounds
from quantkit.study.imatrix import SourceRead


def tables(card: str) -> list[list[str]]:
    """The rows of all tables, without the spaces that hold figures together."""
    lines = [line.strip() for line in card.splitlines() if line.lstrip().startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.replace("\u00a0", " ").strip() for cell in row] for row in rows]


def test_a_row_a_level_with_all_its_figures(tmp_path: Path) -> None:
    levels = [
        card_level(tmp_path, "Q6", bits=6.6, kld=0.002),
        card_level(tmp_path, "Q4", shards=2, kld=None),
    ]
    card = card_text(card_facts(levels))
    bound = hit_rate_bounds([(32, 32)], clustered=False).lower
    proven = f"32/32, ≥ {100 * bound:.1f} %"
    assert [
        f"**[Q6]({MODEL}-Q6.gguf)**", "92.20 GiB", "99.00 GB", "6.60", "0.00200 ± 0.00010",
        "99.8 %", "× 1.000", proven, "passed",
    ] in tables(card)  # fmt: skip
    assert [
        f"**[Q4](Q4/{MODEL}-Q4-00001-of-00002.gguf)** 2 files", "64.26 GiB", "69.00 GB", "4.60",
        "–", "–", "–", proven, "passed",
    ] in tables(card)  # fmt: skip
    assert "multikey-64 at 504K" in card
    card = card_text(card_facts(levels[1:]))  # of which no level has a KLD
    assert "KLD" not in card
    assert "erplexity" not in card
    rows = tables(card)
    assert len(rows[0]) == len(rows[1]) == len(rows[2]) == 6


def test_every_length_and_task_of_every_level(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6"), card_level(tmp_path, "Q3", 0.3, kld=0.1)]
    card = card_text(card_facts(levels))
    heads = [f"{length}, {KEYS[tokens]} keys" for tokens, length in zip(
        KEYS, ("8K", "32K", "128K", "504K"), strict=True)]  # fmt: skip
    assert ["multikey", *heads] in tables(card)
    for task in PROBES:
        assert [task, "8K", "32K", "128K", "504K"] in tables(card)
    for level in levels:
        for task in ("multikey", *PROBES):
            scores = [s for s in level.result.retrieval.scores if s.task == task]
            cells = [f"{s.hits}/{s.trials}, ≥ {100 * s.lower_bound:.1f} %" for s in scores]
            assert [level.result.name, *cells] in tables(card)


def test_one_length_and_no_probes(tmp_path: Path) -> None:
    answers = [answer("multikey", 32768, i, 32) for i in range(32)]
    level = BuiltLevel(finish_level(tmp_path, "Q4", answers), {f"{MODEL}-Q4.gguf": tmp_path})
    card = card_text(card_facts([level]))
    assert ["multikey", "32K, 32 keys"] in tables(card)
    assert "Harder questions" not in card
    assert "<details>" in card  # launch files for other targets
    assert "at up to 32K tokens" in card
    assert 'width="100%"' in card


def test_a_classic_check(tmp_path: Path) -> None:
    answers = [
        answer("single", context, number, 3, depth=depth, hit=depth != 0.5)
        for context in KEYS
        for number, depth in enumerate((0.1, 0.5, 0.9))
    ]
    recipe = RetrievalRecipe(mode="classic", context_tokens=tuple(KEYS), minimum_lower_bound=None)
    result = finish_level(tmp_path, "Q4", answers, recipe=recipe)
    facts = card_facts([BuiltLevel(result, {f"{MODEL}-Q4.gguf": tmp_path})])
    card = card_text(replace(facts, recipe=facts.recipe.model_copy(update={"retrieval": recipe})))
    assert ["single", "8K", "32K", "128K", "504K"] in tables(card)
    assert "single at 504K" in card
    assert "No gate" in card


def test_predicted_klds_have_standard_errors(tmp_path: Path) -> None:
    card = card_text(card_facts([card_level(tmp_path, "Q6", bits=6.6), card_level(tmp_path, "Q4")]))
    assert "Q6 0.0100 ± 0.0010, Q4 0.0100 ± 0.0010. [sens" in card


def test_a_failed_level_cannot_be_overlooked_and_is_recommended_nowhere(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6", 0.6, bits=6.6), card_level(tmp_path, "Q4")]
    card = card_text(card_facts(levels))
    assert "> **Q6 FAILED its gate**" in card
    (row,) = [row for row in tables(card) if row[0].startswith("**[Q6]")]
    assert row[-1] == "**FAILED**"
    assert "FAILED" not in card_text(card_facts(levels[1:]))
    assert ["**4x3090**", "Four GeForce RTX 3090, the published 504K run", "1M", "1M",
            "Q4 at 504K"] in tables(card)  # fmt: skip


def test_what_was_left_out_and_why(tmp_path: Path) -> None:
    left_out = [
        card_level(tmp_path, "IQ2_XXS", 0.6, baseline=True, kld=0.23).result,
        card_level(tmp_path, "Q2", 0.6, kld=0.1).result,
        card_level(tmp_path, "Q5").result,
    ]
    card = card_text(card_facts([card_level(tmp_path, "Q4")], left_out))
    reasons = {row[0]: row[-1] for row in tables(card) if row[0] in ("IQ2_XXS", "Q2", "Q5")}
    assert "baseline" in reasons["IQ2_XXS"]
    assert "not chosen" in reasons["Q5"]
    gated = left_out[1].retrieval.gated[0]
    assert f"multikey-64 at 504K: {gated.hits}/32, ≥ " in reasons["Q2"]
    assert "not published" not in card_text(card_facts([card_level(tmp_path, "Q8")]))


def test_what_fits_where(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6", bits=6.6), card_level(tmp_path, "Q4", shards=2)]
    facts = card_facts(levels)
    card = card_text(facts)
    assert ["2x3090", "Two GeForce RTX 3090", "–", "256K", "Q4 at 256K"] in tables(card)
    assert ["**4x3090**", "Four GeForce RTX 3090, the published 504K run", "1M", "1M",
            "Q6 at 504K"] in tables(card)  # fmt: skip
    assert "32K, 128K and 1M tokens" in card
    assert "KV cache in q8_0" in card
    assert re.search("dgx-spark .*: no such &lt;card>", card)
    assert [words for words in commands(card) if words[:2] == ["quantkit", "plan"]] == [
        ["quantkit", "plan", "--model", f"{MODEL}/Q4/{MODEL}-Q4-00001-of-00002.gguf", "--target",
         "2x3090", "--launch", f"{MODEL}/Q4"]
    ]  # fmt: skip
    estimated = replace(facts, fits=replace(facts.fits, estimated="buffers are estimated: no x"))
    assert ("not an estimate" in card, "not an estimate" in card_text(estimated)) == (True, False)
    assert "buffers are estimated: no x." in card_text(estimated)
    assert "What fits where" not in card_text(replace(facts, fits=Fits((), ())))
    first, *others = facts.fits.targets
    other = replace(first, target=first.target.changed(kv_type="f16"))
    mixed = card_text(replace(facts, fits=Fits((other, *others), facts.fits.contexts)))
    assert ["2x3090", "Two GeForce RTX 3090", "f16", "–", "256K", "Q4 at 256K"] in tables(mixed)


def test_commands_of_each_level(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6"), card_level(tmp_path, "Q4", shards=2)]
    found = blocks(card_text(card_facts(levels)))
    options = ["-ngl", "999", "-sm", "layer", "-ts", "2,2,2,2", "-c", "516096", "-fa", "on"]
    for name, pattern, file in (
        ("Q6", f"{MODEL}-Q6.gguf", f"{MODEL}-Q6.gguf"),
        ("Q4", "Q4/*", f"Q4/{MODEL}-Q4-00001-of-00002.gguf"),
    ):
        assert [
            ["hf", "download", REPOSITORY, "--include", pattern, "--include", f"levels/{name}/*",
             "--include", f"{MODEL}-imatrix.gguf", "--include", "release.json", "--include",
             "checkpoint.json", "--include", "SHA256SUMS", "--local-dir", MODEL],
            ["sh", f"{MODEL}/levels/{name}/run-llama-server.sh"],
        ] in found  # fmt: skip
        assert [["llama-server", "-m", f"{MODEL}/{file}", *options]] in found
        assert [["llama-server", "-hf", f"{REPOSITORY}:{name}", *options]] in found


def test_the_tokens_at_which_generation_ends(tmp_path: Path) -> None:
    facts = card_facts([card_level(tmp_path, "Q4")])
    assert "Generation ends" not in card_text(facts)
    several = replace(facts, stops=("<|im_end|>", "<|call|>", "a`b"), unread_stops=("a`b",))
    card = card_text(several)
    line = next(line for line in card.splitlines() if line.startswith("Generation ends"))
    for text in ("im_end", "call", "<code>a", "--special"):
        assert text in line


def test_a_command_that_was_not_checked_says_so(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6"), card_level(tmp_path, "Q4")]
    result = levels[1].result
    niah = result.retrieval.model_copy(update={"kv_type": "f16"})
    result = replace(result, validation=result.validation.model_copy(update={"niah": niah}))
    assert result.unchecked is not None
    card = card_text(card_facts([levels[0], replace(levels[1], result=result)]))
    assert card.count(result.unchecked) == 1


def test_a_command_keeps_its_choice_of_gpus(tmp_path: Path) -> None:
    level = card_level(tmp_path, "Q4")
    chosen = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2,3 llama-server -m x.gguf -c 8"
    placed = level.result.placed.model_copy(update={"command": chosen})
    facts = card_facts([replace(level, result=replace(level.result, placed=placed))])
    start = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2,3 llama-server"
    assert f"{start} -m {MODEL}/{MODEL}-Q4.gguf" in card_text(facts).replace(" \\\n  ", " ")


@pytest.mark.parametrize("shards", [1, 3])
def test_a_download_brings_the_level_and_nothing_else(tmp_path: Path, shards: int) -> None:
    """As huggingface_hub itself chooses files by patterns."""
    levels = [card_level(tmp_path, name, shards=shards) for name in ("Q4", "IQ4", "Q4_K")]
    files = [file for level in levels for file in level.files]
    files += [f"levels/{level.result.name}/niah.jsonl" for level in levels]
    verified = ["SHA256SUMS", "checkpoint.json", "release.json", f"{MODEL}-imatrix.gguf"]
    files += ["README.md", "report.html", "recipe.yaml", *verified]
    patterns = level_patterns(levels[0], verified[-1])
    assert sorted(filter_repo_objects(files, allow_patterns=list(patterns))) == sorted(
        [*levels[0].files, "levels/Q4/niah.jsonl", *verified]
    )


def test_llama_cpp_finds_a_level_by_its_name_or_is_told_the_file() -> None:
    files = {"Q4": ["m-Q4.gguf"], "IQ4": ["m-IQ4.gguf"], "Q6": ["Q6/m-Q6-00001-of-00002.gguf"]}
    assert hub_source("o/m", "Q6", files) == ("-hf", "o/m:Q6")
    assert hub_source("o/m", "IQ4", files) == ("-hf", "o/m:IQ4")
    # "Q4." is in m-IQ4.gguf too
    assert hub_source("o/m", "Q4", files) == ("-hf", "o/m", "-hff", "m-Q4.gguf")
    # Q6 without a case is in the model's own name
    assert hub_source("o/m", "Q6", {"Q6": ["a-q6-b-Q6.gguf"], "Q8": ["a-q6-b-Q8.gguf"]}) == (
        "-hf", "o/m", "-hff", "a-q6-b-Q6.gguf",
    )  # fmt: skip
    assert hub_source("o/m", "Q6", {"Q6": ["mtp-Q6.gguf"]})[2:] == ("-hff", "mtp-Q6.gguf")


def test_what_it_was_made_from(tmp_path: Path) -> None:
    level = card_level(tmp_path, "Q4")
    card = card_text(card_facts([level]))
    page = "https://huggingface.co/nvidia/Some-Model-120B"
    assert (
        f"[nvidia/Some-Model-120B]({page}) at commit [0123456789ab]({page}/tree/{COMMIT})" in card
    )
    assert "Licence: [nvidia-open-model-license](https://www.nvidia.com/licence)" in card
    assert "gated: you have to accept its terms" in card
    model = f"nvidia/Some-Model-120B@{COMMIT}"
    words = commands(card)
    assert ["quantkit", "build", "--model", model, "--target", f"{MODEL}/target.yaml",
            "--recipe", f"{MODEL}/recipe.yaml"] in words  # fmt: skip
    assert ["pip", "install", "quantkit-gguf==0.1.0", "llama-cpp-python==0.3.36",
            "gguf==0.19.0"] in words  # fmt: skip
    assert ["quantkit", "quantize", "--model", f"original/{MODEL}", "--types",
            f"{MODEL}/levels/Q4/allocation.json", "--imatrix", f"{MODEL}/{MODEL}-imatrix.gguf",
            "--out", "Q4-again.gguf"] in words  # fmt: skip
    assert ["sha256sum", "Q4-again*.gguf"] in words
    assert "[SHA256SUMS](SHA256SUMS) has for Q4." in card
    mirrored = card_text(card_facts([level], endpoint="https://hub.example.org"))
    assert "](https://hub.example.org/nvidia/Some-Model-120B)" in mirrored


def test_forks_of_the_worst_level(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6"), card_level(tmp_path, "Q4")]
    assert "Forks are exact: " in card_text(card_facts(levels))
    validation = levels[1].result.validation
    niah = validation.niah.model_copy(update={"fork_difference": 2.5e-4})
    validation = validation.model_copy(update={"niah": niah})
    levels[1] = replace(levels[1], result=replace(levels[1].result, validation=validation))
    assert "Forks differ by at most 2.5e-04" in card_text(card_facts(levels))


def test_nothing_known_of_the_source(tmp_path: Path) -> None:
    card = card_text(card_facts([card_level(tmp_path, "Q4")], source=UNKNOWN, coverage=None))
    assert "**Some-Model-120B**, quantized" in card
    assert "states none" in card
    assert "gated" not in card
    assert f"--model original/{MODEL}" in card
    assert "[checkpoint.json](checkpoint.json)" in card
    assert "Experts" not in card
    assert "None" not in card
    data = ModelCard(card).data
    assert (data.base_model, data.license) == (None, None)
    assert "base_model_relation" not in data


def test_what_cannot_be_repeated_is_not_promised(tmp_path: Path) -> None:
    level = card_level(tmp_path, "Q4")
    recipe = small_recipe(["Q4"])
    own = recipe.model_copy(update={"imatrix": recipe.imatrix.calibrated_on(["mine.txt"])})
    card = card_text(card_facts([level], recipe=own))
    assert "quantkit build" not in card
    assert "quantkit quantize" in card
    ready = CALIBRATION.model_copy(update={"ready": "their.dat", "sources": ()})
    # errors cost is measured on the text all the same, or it is not read at all
    assert "quantkit build" not in card_text(card_facts([level], recipe=own, calibration=ready))
    unread = own.model_copy(update={"measure": own.measure.model_copy(update={"cost_tokens": 0})})
    assert "quantkit build" in card_text(card_facts([level], recipe=unread, calibration=ready))
    card = card_text(card_facts([level], calibration=ready))
    (build,) = [words for words in commands(card) if words[1:2] == ["build"]]
    assert build[-2:] == ["--imatrix", f"{MODEL}/{MODEL}-imatrix.gguf"]
    assert "their.dat" not in card


def test_the_model_that_comes_with_quantkit(tmp_path: Path) -> None:
    """Whatever recipe it was built by, and no other model that was built by its recipe."""
    facts = card_facts([card_level(tmp_path, "Q4")], source=UNKNOWN, model="quantkit-demo")
    card = card_text(replace(facts, is_demo=True))
    words = commands(card)
    assert ["quantkit", "verify", REPOSITORY, "--source", "demo"] in words
    assert "--model demo --types" in card.replace(" \\\n  ", " ")
    assert ["quantkit", "download"] not in [some[:2] for some in words]
    assert "original/" not in card
    recipe = small_recipe(["Q4"]).model_copy(update={"model": "demo"})
    assert "--source demo" not in card_text(replace(facts, recipe=recipe))


def test_calibration_and_experts(tmp_path: Path) -> None:
    card = card_text(card_facts([card_level(tmp_path, "Q4")]))
    assert ["code (ships with quantkit)", "4,800", "MIT"] in tables(card)
    page = f"https://huggingface.co/datasets/a/b/tree/{COMMIT}"
    assert [f"[a/b]({page})", "200,000", "not stated"] in tables(card)
    assert "20,400 of 20,480 experts (99.6 %), and 98.0 % of all experts with 100 tokens" in card
    uncounted = card_facts([card_level(tmp_path, "Q5")], coverage=COVERAGE | {"counted": None})
    assert "of all experts with" not in card_text(uncounted)


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (("MIT", "CC0-1.0"), "table above lists the licences of the calibration texts."),
        (("MIT", None), "table above lists the licences of the calibration texts, as far as"),
        ((None, None), "calibration texts come without"),
        ((), ""),
    ],
)
def test_licences_of_the_texts(tmp_path: Path, licences: tuple[str | None, ...], said: str) -> None:
    texts = tuple(SourceRead(f"{n}", licence=licence) for n, licence in enumerate(licences))
    calibration = CALIBRATION.model_copy(update={"sources": texts})
    facts = card_facts([card_level(tmp_path, "Q4")], calibration=calibration)
    card = card_text(facts)
    last = card[card.index("## Licence and attribution") :]
    assert said in last
    assert last.count("calibration texts") == bool(said)


def test_types_chosen_by_a_preset_and_by_measurement(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6"), card_level(tmp_path, "Q4_K_M")]
    chosen = (LevelRecipe(name="Q6"), LevelRecipe(name="Q4_K_M", preset="Q4_K_M"))
    recipe = small_recipe(["Q6"]).model_copy(update={"levels": chosen})
    card = card_text(card_facts(levels, recipe=recipe))
    assert "Q4_K_M uses the types of llama.cpp's Q4_K_M. In the other levels, each" in card


def test_the_front_matter(tmp_path: Path) -> None:
    levels = [card_level(tmp_path, "Q6", kld=0.001), card_level(tmp_path, "Q3", 0.2, kld=0.05)]
    data = ModelCard(card_text(card_facts(levels))).data
    assert data.base_model == "nvidia/Some-Model-120B"
    assert (data.license, data.license_name) == ("other", "nvidia-open-model-license")
    assert data.tags == ["nvidia", "reasoning", "GGUF", "imatrix", "quantkit", "llama.cpp"]
    assert data["quantized_by"] == "someone"
    results = {(r.dataset_config, r.metric_name): r for r in data.eval_results or ()}
    scores = {s.task: s for s in levels[1].result.retrieval.longest}
    for task, score in scores.items():
        found = results[f"{score.name}-516096", "Q3 hit rate"]
        assert found.metric_value == pytest.approx(score.hits / score.trials, abs=1e-6), task
        assert found.metric_args["lower_bound"] == pytest.approx(score.lower_bound, abs=1e-6)
    kld = [r for r in results.values() if r.metric_type == "kl_divergence"]
    assert [r.metric_value for r in kld] == [0.001, 0.05]
    assert len(results) == 2 * len(scores) + 2


@pytest.mark.parametrize(
    ("licence", "tag", "name"),
    [("Apache-2.0", "apache-2.0", None), ("My Licence 3", "other", "my-licence-3"),
     ("mit,unheard-of", "other", "mit-unheard-of"), ("§", "other", "other")],
)  # fmt: skip
def test_a_licence_the_hub_refuses(
    tmp_path: Path, licence: str, tag: str, name: str | None
) -> None:
    source = replace(UNKNOWN, licence=licence)
    data = ModelCard(card_text(card_facts([card_level(tmp_path, "Q4")], source=source))).data
    assert (data.license, data.license_name) == (tag, name)


def test_words_of_others_are_no_markup(tmp_path: Path) -> None:
    evil = (
        "a|b `c` <img src=x onerror=alert(1)> [x](javascript:alert(1))\n# y\u202e **z** {{ 7*7 }}"
    )
    source = replace(SOURCE, licence_name=evil, tags=(evil,), languages=(evil,))
    source = replace(source, licence_link="https://x.org/a)(b")
    sources = (SourceRead(evil, "quantkit", evil, 7),)
    calibration = CALIBRATION.model_copy(update={"sources": sources})
    target = load_target("4x3090").model_copy(update={"name": "own", "description": evil})
    facts = card_facts(
        [card_level(tmp_path, "Q5")], source=source, calibration=calibration, target=target,
        model="M|x", versions={"quantkit": evil},
    )  # fmt: skip
    body = ModelCard(card_text(facts)).text
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    parts = [part for token in tokens for part in (token, *(token.children or ()))]
    markup = "".join(part.content for part in parts if part.type.startswith("html_"))
    assert set(re.findall(r"<(\w+)", markup)) <= {"a", "img", "details", "summary", "b", "code"}
    assert "onerror" not in markup
    addresses = [part.attrs["href"] for part in parts if part.type == "link_open"]
    assert all(re.match(r"https://|#|[A-Za-z0-9][\w./|%-]*$", str(a)) for a in addresses)
    assert "https://x.org/a%29%28b" in addresses
    heads = [after.content for head, after in pairwise(tokens) if head.type == "heading_open"]
    assert "y" not in heads
    shown = "".join(part.content for part in parts if part.type == "text")
    assert "\u202e" not in shown
    assert "a|b `c` <img src=x onerror=alert(1)> [x](javascript:alert(1)) # y **z** {{ 7*7 }}" in (
        shown
    )
    (row,) = [row for row in tables(body) if row[-1].startswith("a\\|b")]
    assert len(row) == 3


def test_eight_levels(tmp_path: Path) -> None:
    names = [f"Q{n}" for n in range(2, 10)]
    levels = [card_level(tmp_path, name, bits=n + 2) for n, name in enumerate(names)]
    card = card_text(card_facts(levels))
    assert [row[0] for row in tables(card) if row[0].startswith("**[")] == [
        f"**[{name}]({MODEL}-{name}.gguf)**" for name in names
    ]
    assert card.count("<summary><b>") == 8
    assert card.count("<details open>") == 1
    assert card.count("<details") == card.count("</details>")
    assert len(re.findall(r"<img ", card)) == 8
    # as many levels leave no room for the targets' descriptions
    assert ["**4x3090**", *["1M"] * 8, "Q9 at 504K"] in tables(card)
    for text in (card, card_text(card_facts(levels[:1]))):  # parts without words leave no gaps
        assert "\n\n\n" not in text
        assert text.endswith("\n")
        assert not re.search(r"[^\n]\n(?:## |```sh|<details)", text)
