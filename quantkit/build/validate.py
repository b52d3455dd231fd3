"""The retrieval check of one file or of a running server, outside a build.

It writes niah.jsonl, heatmap.png and validation.json into a folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.console import Console
from quantkit.core.documents import validated
from quantkit.core.errors import GateError, InputError
from quantkit.core.files import check_writable, chosen_folder, content_id, identity
from quantkit.core.progress import SILENT, Progress
from quantkit.core.threads import worker_count
from quantkit.core.work_folders import resumable
from quantkit.llamacpp.endpoint import Endpoint
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.selftest import device_settings
from quantkit.models.choose import choose_local, open_source
from quantkit.models.gguf_source import GGUFSource
from quantkit.models.model import check_context
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
    beyond_training: bool = False,
    workers: int | None = None,
    quiet: bool = True,
    **fields: object,
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
        beyond_training: of a file, ask at lengths that it was not trained for, too.
        workers: CPU threads; None: one for each core.
        fields: fields of `retrieval` where that is not given, as in context_tokens=(8192,).

    Raises:
        InputError: a broken file, no server, settings that cannot be met, a context that the file
            was not trained for, or too little text.
        GateError: the weights are not those of `source`.
        EnvironmentFault: no memory for the context, or native code failed.
    """
    recipe = retrieval or validated(RetrievalRecipe, fields, Path("settings"))
    if not recipe.context_tokens:
        recipe = recipe.model_copy(update={"context_tokens": LENGTHS})
    check_gate_is_possible(recipe)
    text = None if haystack is None else Path(haystack)
    console, path = Console(quiet=quiet), Path(model)
    served = str(model).lower().startswith(("http://", "https://"))
    needs_file = {
        "--fresh": fresh, "--source": source is not None, "--beyond-training": beyond_training
    }  # fmt: skip
    for option, given in needs_file.items():
        if served and given:
            raise InputError(f"{option} needs the file itself; it cannot be used with a server")
    # says what is wrong with the file before any work
    file = None if served else GGUFSource(path)
    files = () if file is None else file.paths
    console.note(gate_words(recipe))
    parts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "haystack": None if text is None else content_id(text),
        "llama-cpp-python": library_version(),
    }
    address, integrity, server = "", None, None
    folder = chosen_folder(out, "server-niah" if served else f"{path.stem}-niah")
    with console.stage("niah", folder) as progress:
        if served:
            address = Endpoint(str(model), SILENT).address  # without the password that it may have
            parts["endpoint"] = address
        else:
            integrity = None if source is None else _compared(path, str(source), progress)
            if file is not None:  # what is not the source's is said first
                _check_trained(file, recipe, beyond_training=beyond_training)
            settings = CheckSettings(
                device_settings(worker_count(workers)), recipe.kv_type or "q8_0", fresh=fresh,
                beyond_training=beyond_training,
            )  # fmt: skip
            parts |= {"model": identity(files), "fresh": fresh}
        answers = folder / "niah.jsonl"
        check_writable(answers, files)
        with resumable(folder / ".work", parts) as work:
            if served:
                found, server = check_served(address, recipe, answers, work, text, progress)
                name, title = server.model or address, server.model or AS_SERVED
            else:
                found = check_retrieval(path, recipe, settings, answers, work, text, progress)
                name, title = path.name, path.stem
            validation = Validation(
                passed=found.passed, niah=found, integrity=integrity, server=server
            )
            draw_heatmap(found.answers, f"{title}, {found.name}", folder / "heatmap.png")
            validation.write(folder / "validation.json")
    return Validated(name, folder, validation)


def _check_trained(file: GGUFSource, recipe: RetrievalRecipe, *, beyond_training: bool) -> None:
    """Raise InputError where a length is longer than the file's own context_length."""
    found = file.metadata.get(f"{file.metadata['general.architecture'].value}.context_length")
    if found is not None and isinstance(found.value, int):
        check_context(
            file.paths[0].name,
            max(recipe.context_tokens),
            found.value,
            beyond_training=beyond_training,
        )


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
