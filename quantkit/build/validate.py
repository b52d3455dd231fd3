"""The retrieval check of one file or of a running server, outside a build.

It writes niah.jsonl, heatmap.png and validation.json into a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import GateError, InputError
from quantkit.core.files import check_writable, content_id, identity, write_json
from quantkit.core.progress import SILENT, Progress
from quantkit.core.work_folders import resumable
from quantkit.llamacpp.devices import device_settings
from quantkit.llamacpp.server_http import Endpoint
from quantkit.llamacpp.shared_libraries import library_version
from quantkit.models.choose import choose_local, open_source
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.integrity import Integrity, check_artifact
from quantkit.report.retrieval_heatmap import draw_heatmap
from quantkit.retrieval.gate import check_gate_is_possible
from quantkit.retrieval.results import Retrieval, TaskScore
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.retrieval.run.check_server import check_served
from quantkit.retrieval.run.verdict import validation_json

AS_SERVED = "as served"


@dataclass(frozen=True)
class Validation:
    """A retrieval check and its verdict.

    Attributes:
        name: of the model that was asked.
        folder: where the answers, the heatmap and validation.json are.
        content: of validation.json.
    """

    name: str
    folder: Path
    recipe: RetrievalRecipe
    retrieval: Retrieval
    content: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        return bool(self.content["passed"])

    @property
    def gated(self) -> tuple[TaskScore, ...]:
        """The scores that the gate looks at; the first is the headline."""
        return self.retrieval.gated(self.recipe.gated)

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
            f"{self.name}: at {max(self.recipe.context_tokens):,} tokens {words}; "
            f"{self.recipe.minimum_lower_bound:.1%} is needed{advice}"
        )


def check_inputs(model: Path | None, endpoint: str | None, recipe: RetrievalRecipe) -> None:
    """See that there is one thing to ask, and that the gate can be passed, before any work.

    Raises:
        InputError: neither or both of `model` and `endpoint`, a broken file, or too few questions.
    """
    if (model is None) == (endpoint is None):
        raise InputError("give a GGUF file, or --endpoint of a running llama-server; one of them")
    check_gate_is_possible(recipe)
    if model is not None:
        GGUFSource(model)


def validate_file(
    model: Path,
    recipe: RetrievalRecipe,
    out: Path | None,
    workers: int,
    progress: Progress = SILENT,
    *,
    source: str | None = None,
    haystack: Path | None = None,
    fresh: bool = False,
) -> Validation:
    """Ask the GGUF file `model` the recipe's questions.

    A run that was interrupted resumes: answers are kept in the folder.

    Args:
        out: folder; None: `NAME-niah` in the current folder.
        source: what `model` was made from, on this disk: its weights are compared first.
        haystack: None: the text that ships.
        fresh: each question after a prefill of its own, not on a fork.

    Raises:
        InputError: a broken file, too little text, or `out` cannot be written.
        GateError: the weights are not those of `source`, or the file was not made for the context.
        EnvironmentFault: no memory for the context, or native code failed.
    """
    files = GGUFSource(model).paths
    integrity = None if source is None else _compared(model, source, progress)
    folder = out or Path(f"{model.stem}-niah")
    check_writable(folder / "niah.jsonl", files)
    kv_type = recipe.kv_type or "q8_0"
    settings = CheckSettings(device_settings(workers), kv_type, fresh=fresh)
    parts = {"model": identity(files), "fresh": fresh, **_parts(recipe, haystack)}

    def run(work: Path) -> tuple[str, Retrieval, dict[str, Any]]:
        answers = folder / "niah.jsonl"
        found = check_retrieval(model, recipe, settings, answers, work, haystack, progress)
        return model.stem, found, validation_json(found, None, recipe, kv_type, integrity)

    return Validation(model.name, folder, recipe, *_written(folder, parts, run))


def validate_server(
    endpoint: str,
    recipe: RetrievalRecipe,
    out: Path | None,
    progress: Progress = SILENT,
    *,
    haystack: Path | None = None,
) -> Validation:
    """Ask the llama-server at `endpoint` the recipe's questions.

    Args:
        out: folder; None: `server-niah` in the current folder.

    Raises:
        InputError: no llama-server there, a context that is too short, or `out` cannot be written.
        EnvironmentFault: the server fails.
    """
    address = Endpoint(endpoint, SILENT).address  # without the password that it may have
    folder = out or Path("server-niah")
    check_writable(folder / "niah.jsonl")

    def run(work: Path) -> tuple[str, Retrieval, dict[str, Any]]:
        answers = folder / "niah.jsonl"
        found, served = check_served(address, recipe, answers, work, haystack, progress)
        facts = validation_json(found, None, recipe, AS_SERVED)
        return served.model or AS_SERVED, found, {**facts, "server": asdict(served)}

    found, facts = _written(folder, {"endpoint": address, **_parts(recipe, haystack)}, run)
    return Validation(facts["server"]["model"] or address, folder, recipe, found, facts)


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
    run: Callable[[Path], tuple[str, Retrieval, dict[str, Any]]],
) -> tuple[Retrieval, dict[str, Any]]:
    """What `run` found, with its picture, titled as it says, and validation.json in `folder`."""
    with resumable(folder / ".work", parts) as work:
        title, found, facts = run(work)
        draw_heatmap(found.answers, f"{title}, {found.name}", folder / "heatmap.png")
        write_json(folder / "validation.json", facts)
    return found, facts
