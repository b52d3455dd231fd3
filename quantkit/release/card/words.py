"""A model card's sentences: what it was made from, how, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.release.card.commands import get_command
from quantkit.release.card.facts import CardFacts
from quantkit.release.card.levels import local_folder
from quantkit.release.card.markdown import code, link, plain, shell, wrapped
from quantkit.release.documents import own_texts
from quantkit.release.names import RECIPE, TARGET, evidence_folder

_DEMO = "demo"
_GATED = {
    "auto": "Access to the original is gated: its terms are to be accepted on its page.",
    "manual": "Access to the original is gated: its authors decide on each request.",
}
_PACKAGES = {"quantkit": "quantkit-gguf"}
"""Where a package is called otherwise than what it installs."""


def source_words(facts: CardFacts) -> str:
    """The model that this was made from, as a link with its commit where it is on the Hub."""
    source = facts.source
    if source.repository is None:
        return f"**{plain(facts.model)}**"
    page = f"{facts.endpoint}/{source.repository}"
    words = link(source.repository, page)
    if source.commit is not None:
        words += f" at commit {link(source.commit[:12], f'{page}/tree/{source.commit}')}"
    return words


def licence_words(facts: CardFacts) -> str:
    """The licence, and its text."""
    source = facts.source
    if source.licence is None and source.licence_name is None:
        return (
            "Licence: the original's card states none, so ask its authors before you use these "
            "files."
        )
    shown = source.licence_name or source.licence or ""
    name = plain(shown) if source.licence_link is None else link(shown, source.licence_link)
    return f"Licence: {name}, that of the original."


def access_words(facts: CardFacts) -> str:
    """How one gets at the original; empty: as at anything else."""
    return _GATED.get(str(facts.source.gated), "")


def source_rows(calibration: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(text, its tokens, its licence) of what the importance matrix was collected on."""
    rows = []
    for source in calibration["sources"]:
        tokens, origin = source.get("tokens"), source.get("origin") or ""
        licence = source.get("licence")
        words = plain(str(source["name"]))
        if origin.startswith("hf://datasets/"):
            name, _, commit = origin.removeprefix("hf://datasets/").partition("@")
            page = f"https://huggingface.co/datasets/{name}"
            words = link(name, f"{page}/tree/{commit}" if commit else page)
        elif origin == "quantkit":
            words += ", which comes with quantkit"
        elif origin == "disk":
            words += ", a file of the publisher"
        rows.append(
            (
                words,
                "not known" if tokens is None else f"{tokens:,}",
                "not stated" if licence is None else plain(str(licence)),
            )
        )
    return rows


def texts_licence_words(calibration: Mapping[str, Any]) -> str:
    """What the table of `source_rows` says of licences; empty: there is no text in it."""
    stated = [source.get("licence") is not None for source in calibration["sources"]]
    if not stated:
        return ""
    if all(stated):
        return "The calibration texts have the licences above."
    if any(stated):
        return (
            "The calibration texts have the licences above; where the table says so, none is "
            "stated."
        )
    return "Of the calibration texts no licence is stated."


def types_words(facts: CardFacts) -> str:
    """How the levels' types were chosen."""
    published = {level.result.name for level in facts.levels}
    levels = [level for level in facts.recipe.levels if level.name in published]
    presets = [level for level in levels if level.preset is not None]
    words = [f"{level.name} has those of llama.cpp's {level.preset}." for level in presets]
    if len(presets) < len(published):
        costed = any(level.result.predicted_kld is not None for level in facts.levels)
        summed = (
            "KLD that their errors were measured to cost"
            if costed
            else "relative errors, weighted by the importance matrix,"
        )
        verb = "is" if costed else "are"
        words.append(
            f"{'In the others each' if presets else 'Each'} tensor has a type of its own, such "
            f"that the tensors' summed {summed} {verb} least within the level's bytes and every "
            "card's memory."
        )
    return " ".join(words)


@dataclass(frozen=True)
class Again:
    """How the files are made and verified again; blocks of commands.

    All of them go from the folder that the reader is in, so that one shell can run them in order.

    Attributes:
        build: the whole build; empty where a calibration text is not published.
        quantize: one level, from its types and the importance matrix.
        verify: the repository, and what was downloaded.
        compare: the same, against the original.
        model: a sentence on what the commands call the model; empty where it speaks for itself.
    """

    install: str
    build: str
    quantize: str
    verify: str
    compare: str
    model: str


def again_words(facts: CardFacts) -> Again:
    """Commands for the versions, the recipe and the target that made a release."""
    folder, level = local_folder(facts.model), facts.levels[0].result.name
    types = f"{evidence_folder(level)}/allocation.json"
    packages = (f"{_PACKAGES.get(name, name)}=={text}" for name, text in facts.versions.items())
    ready = facts.calibration["ready"] is not None
    matrix = ["--imatrix", f"{folder}/{facts.imatrix_file}"]
    mtp = ["--mtp", "keep"] if facts.recipe.convert.mtp == "keep" else []
    here, repository = _here(facts), _repository(facts)
    download = [] if repository is None else [["quantkit", "download", repository, "--out", here]]
    build = ["quantkit", "build", "--model", repository or here]
    build += ["--target", f"{folder}/{TARGET}", "--recipe", f"{folder}/{RECIPE}"]
    build += matrix if ready else []
    quantize = ["quantkit", "quantize", "--model", here, "--types", f"{folder}/{types}"]
    quantize += [*matrix, *mtp, "--out", f"{level}-again.gguf"]
    quantized = [_get(facts, facts.imatrix_file, types), *download, quantize]
    verify = ["quantkit", "verify"]
    brought = _get(facts, RECIPE, TARGET, *([facts.imatrix_file] if ready else []))
    return Again(
        install=_block(["pip", "install", *packages]),
        build="" if own_texts(facts.recipe, ready=ready) else _block(brought, build),
        quantize=shell(
            *map(wrapped, quantized),
            f"sha256sum {level}-again*.gguf",
        ),
        verify=_block([*verify, facts.repository], [*verify, folder]),
        compare=_block(
            *download,
            [*verify, facts.repository, "--source", here],
            [*verify, folder, "--source", here, "--full"],
        ),
        model=_model_words(facts),
    )


def _block(*commands: list[str]) -> str:
    return shell(*map(wrapped, commands))


def _get(facts: CardFacts, *files: str) -> list[str]:
    return get_command(facts.repository, files, local_folder(facts.model))


def _model_words(facts: CardFacts) -> str:
    """What the commands call the model, where the reader has to bring it."""
    if facts.is_demo:
        return "`demo` is the model that comes with quantkit."
    if _repository(facts) is not None:
        return ""
    here, files = code(_here(facts)), _gguf_files(facts)
    listed = "[checkpoint.json](checkpoint.json) has"
    if len(files) > 1:
        return (
            f"{here} is the first of the {len(files)} GGUF files that these files were made from, "
            f"the others lie beside it: {listed} the name, the size and the SHA-256 of each, and "
            "the names count too."
        )
    if files:
        return (
            f"{here} is the GGUF file that these files were made from: {listed} its size and its "
            "SHA-256, and its name counts too."
        )
    return (
        f"{here} is the folder of the model that these files were made from: {listed} the size and "
        "the SHA-256 of each of its files."
    )


def _repository(facts: CardFacts) -> str | None:
    """OWNER/NAME@COMMIT that has the very files of the source; None: no repository is known to."""
    source = facts.source
    # a GGUF file tells which repository its weights are of, not where the file itself lies
    if source.repository is None or facts.is_demo or _gguf_files(facts):
        return None
    return source.repository + ("" if source.commit is None else f"@{source.commit}")


def _here(facts: CardFacts) -> str:
    """The model on the reader's disk; its own name goes into the headers of artifacts."""
    if facts.is_demo:
        return _DEMO
    return f"original/{next(iter(_gguf_files(facts)), facts.model)}"


def _gguf_files(facts: CardFacts) -> tuple[str, ...]:
    """The source's files where they are GGUF, the first shard first."""
    return tuple(name for name in facts.source_files if name.endswith(".gguf"))


def versions_words(versions: Mapping[str, str]) -> str:
    """`quantkit 0.1.0, gguf 0.19.0`."""
    return ", ".join(f"{plain(name)} {plain(version)}" for name, version in versions.items())
