"""The retrieval check of one file or of a running server, outside a build.

It writes niah.jsonl, heatmap.png and validation.json into a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.documents import validated
from quantkit.core.errors import GateError, InputError
from quantkit.core.files import check_writable, content_id, identity
from quantkit.core.progress import SILENT, Progress
from quantkit.core.threads import worker_count
from quantkit.core.work_folders import resumable
from quantkit.llamacpp.endpoint import Endpoint
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.selftest import device_settings
from quantkit.models.choose import choose_local, open_source
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.integrity import Integrity, check_artifact
from quantkit.report.pictures import draw_heatmap
from quantkit.retrieval.gate import check_gate_is_possible, gate_words
from quantkit.retrieval.results import Retrieval, TaskScore, Validation
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.retrieval.run.check_server import AS_SERVED, check_served

LENGTHS = (8192, 32768)
"""Context tokens that are checked where none are given."""


@dataclass(frozen=True)
class Validated:
    """A retrieval check and its verdict.

    Attributes:
        name: of the model that was asked.
        folder: where the answers, the heatmap and validation.json are.
        validation: the content of validation.json.
    """

    name: str
    folder: Path
    validation: Validation

    @property
    def passed(self) -> bool:
        return self.validation.passed

    @property
    def retrieval(self) -> Retrieval:
        return self.validation.niah

    @property
    def gated(self) -> tuple[TaskScore, ...]:
        """The scores that the gate looks at; the first is the headline."""
        return self.retrieval.gated

    def check_gate(self) -> None:
        """Raise GateError unless the bound was reached."""
        if self.passed:
            return
        words = "; ".join(
            f"{s.name} found {s.hits}/{s.trials}, at least {s.lower_bound:.1%}" for s in self.gated
        )
        cut = sum(score.truncated for score in self.gated)
        advice = f"; {cut} were cut off: try a larger --answer-tokens" if cut else ""
        raise GateError(
            f"{self.name}: at {self.retrieval.context_tokens:,} tokens {words}; "
            f"{self.retrieval.recipe.minimum_lower_bound:.1%} is needed{advice}"
        )


def validate(
    model: str | Path,
    out: str | Path | None = None,
    *,
    retrieval: RetrievalRecipe | None = None,
    source: str | Path | None = None,
    haystack: str | Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    quiet: bool = True,
    **settings: object,
) -> Validated:
    """The retrieval check of a GGUF file, or of a running llama-server.

    Running it again after an interruption resumes. A missed gate is not an error here: look at
    `passed`, or call `check_gate()`.

    Args:
        model: a GGUF file, or the address of a server, as in http://127.0.0.1:8080.
        out: folder for answers, heatmap and validation.json; None: NAME-niah in the current one.
        retrieval: what is asked; without lengths at 8192 and 32768 tokens. None: 64 needles.
        source: of a file, the model that it was made from: its weights are compared first.
        haystack: text to hide the needles in; None: the one that ships.
        fresh: prefill the whole prompt for each question, and use no forks.
        workers: CPU threads; None: one for each core.
        settings: fields of `retrieval` where that is not given, as in context_tokens=(8192,).

    Raises:
        InputError: a broken file, no server, settings that cannot be met, or too little text.
        GateError: the weights are not those of `source`, or the file is not made for the context.
        EnvironmentFault: no memory for the context, or native code failed.
    """
    recipe = retrieval or validated(RetrievalRecipe, dict(settings), Path("settings"))
    if not recipe.context_tokens:
        recipe = recipe.model_copy(update={"context_tokens": LENGTHS})
    check_gate_is_possible(recipe)
    folder = None if out is None else Path(out)
    text = None if haystack is None else Path(haystack)
    console = Console(quiet=quiet)
    served = str(model).lower().startswith(("http://", "https://"))
    for option, given in (("--fresh", fresh), ("--source", source is not None)):
        if served and given:
            raise InputError(f"{option} needs the file itself; it cannot be used with a server")
    if not served:
        GGUFSource(Path(model))  # says what is wrong with the file before any work
    console.note(gate_words(recipe))
    with console.stage("niah") as progress:
        if served:
            return _server(str(model), recipe, folder, text, progress)
        made_from = None if source is None else str(source)
        threads = worker_count(workers)
        return _file(Path(model), recipe, folder, made_from, text, fresh, threads, progress)


def _file(
    model: Path,
    recipe: RetrievalRecipe,
    out: Path | None,
    source: str | None,
    haystack: Path | None,
    fresh: bool,
    workers: int,
    progress: Progress,
) -> Validated:
    files = GGUFSource(model).paths
    integrity = None if source is None else _compared(model, source, progress)
    folder = out or Path(f"{model.stem}-niah")
    check_writable(folder / "niah.jsonl", files)
    settings = CheckSettings(device_settings(workers), recipe.kv_type or "q8_0", fresh=fresh)
    parts = {"model": identity(files), "fresh": fresh, **_parts(recipe, haystack)}

    def run(work: Path) -> tuple[str, Validation]:
        answers = folder / "niah.jsonl"
        found = check_retrieval(model, recipe, settings, answers, work, haystack, progress)
        return model.stem, Validation(passed=found.passed, niah=found, integrity=integrity)

    return Validated(model.name, folder, _written(folder, parts, run))


def _server(
    endpoint: str,
    recipe: RetrievalRecipe,
    out: Path | None,
    haystack: Path | None,
    progress: Progress,
) -> Validated:
    address = Endpoint(endpoint, SILENT).address  # without the password that it may have
    folder = out or Path("server-niah")
    check_writable(folder / "niah.jsonl")

    def run(work: Path) -> tuple[str, Validation]:
        answers = folder / "niah.jsonl"
        found, served = check_served(address, recipe, answers, work, haystack, progress)
        validation = Validation(passed=found.passed, niah=found, server=served)
        return served.model or AS_SERVED, validation

    found = _written(folder, {"endpoint": address, **_parts(recipe, haystack)}, run)
    model = "" if found.server is None else found.server.model
    return Validated(model or address, folder, found)


def _compared(model: Path, source: str, progress: Progress) -> Integrity:
    """Names, shapes, hyperparameters and sampled weights of a file against its source's."""
    choice, _ = choose_local(source, "--source")
    made_from = open_source(choice)
    architecture = made_from.metadata["general.architecture"].value
    own = {
        name: value
        for name, value in made_from.metadata.items()
        if name.startswith(f"{architecture}.") or name == "general.architecture"
    }
    return check_artifact(model, made_from, own, progress=progress)


def _parts(recipe: RetrievalRecipe, haystack: Path | None) -> dict[str, Any]:
    """What the kept work of a check belongs to."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "haystack": None if haystack is None else content_id(haystack),
        "llama-cpp-python": library_version(),
    }


def _written(
    folder: Path,
    parts: Mapping[str, Any],
    run: Callable[[Path], tuple[str, Validation]],
) -> Validation:
    """What `run` found, with its picture, titled as it says, and validation.json in `folder`."""
    with resumable(folder / ".work", parts) as work:
        title, validation = run(work)
        niah = validation.niah
        draw_heatmap(niah.answers, f"{title}, {niah.name}", folder / "heatmap.png")
        validation.write(folder / "validation.json")
    return validation
