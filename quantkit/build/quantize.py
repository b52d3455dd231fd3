"""One artifact outside a build: a model and the types of its tensors → a GGUF file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantkit.build.run import home_of, read_study
from quantkit.config.levels import chosen_levels, is_amount
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.files import check_unchanged, check_writable, content_id, identity
from quantkit.core.threads import worker_count
from quantkit.core.work_folders import resumable, work_folder
from quantkit.formats.imatrix_file import Imatrix
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorSource
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.presets import Fallback
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile
from quantkit.models.choose import choose_local, model_files, open_source
from quantkit.models.model import Model
from quantkit.plan.allocate import allocate
from quantkit.plan.allocation_file import fallback_text
from quantkit.plan.level_plans import searching
from quantkit.plan.type_choice import check_importance, choose_types
from quantkit.quantize.quantize import (
    artifact_metadata,
    artifact_names,
    overhead_bytes,
    preset_file_type,
)
from quantkit.quantize.quantize import quantize as write_artifact
from quantkit.study.imatrix import check_imatrix
from quantkit.study.sensitivity import Estimate, Study


@dataclass(frozen=True)
class Artifact:
    """A quantized model.

    Attributes:
        files: its shards, the one that llama.cpp opens first.
        types: tensor → type.
        preset: llama.cpp's stock preset that the types are of; None: they are of none.
        fallbacks: of a preset, tensor → the type that llama.cpp gives it instead.
        predicted_kld: against the model, nats, by the study; None where there is none.
    """

    files: tuple[Path, ...]
    size_bytes: int
    bits_per_weight: float
    types: Mapping[str, str]
    preset: str | None
    fallbacks: Mapping[str, Fallback]
    predicted_kld: Estimate | None = None

    @property
    def file_type(self) -> int | None:
        """llama.cpp's number of the preset, `general.file_type`."""
        return preset_file_type(self.preset)

    @property
    def type_counts(self) -> dict[str, int]:
        """Type → how many tensors have it, the most frequent first."""
        return dict(Counter(self.types.values()).most_common())


def quantize(
    model: str | Path,
    types: str | Path | Mapping[str, str],
    out: str | Path,
    *,
    imatrix: str | Path | None = None,
    study: str | Path | None = None,
    keep_prediction: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Artifact:
    """Write a model on this disk as one artifact; running it again after an interruption resumes.

    Args:
        types: an allocation.json, a preset such as "Q4_K_M", or tensor → type, as a plan has them;
            with a `study` also bits per weight, "4.5", or a size, "71GiB": the types that cost
            least within it.
        out: the GGUF file; a large one becomes several shards beside it.
        imatrix: importance matrix, GGUF or legacy .dat. A preset that is named takes it as
            llama-quantize does, and gives its bytes; other types as builds do, which weigh columns
            that no activation reached too.
        study: the model's folder with a finished study, or its `study` folder: it has the
            importance matrix too, if none is given.
        keep_prediction: of a checkpoint, keep the multi-token prediction layers.
        workers: CPU threads; None: one for each core.

    Raises:
        InputError: a broken model or importance matrix, types that are not of this model or need
            an importance matrix, or `out` cannot be written.
        EnvironmentFault: the disk is full, or native code failed.
    """
    console, out = Console(quiet=quiet), Path(out)
    if out.suffix != ".gguf":
        raise InputError(f"--out names a GGUF file, so it ends in .gguf; {out} does not")
    choice, path = choose_local(str(model))
    files = model_files(choice, path)
    before = identity(files)  # first: what is read below is of these files, or a change is seen
    source = open_source(choice, keep_prediction=keep_prediction, note=console.note)
    known = None if study is None else _study_of(Path(study), path, source)
    if known is not None and imatrix is None:
        imatrix = known.imatrix
    ready = None if imatrix is None else check_imatrix(Path(imatrix), source.tensors)
    found = None if ready is None else ready.imatrix
    entries = {} if found is None else found.entries
    given = types if isinstance(types, Mapping) else str(types)
    if isinstance(given, str) and is_amount(given):
        given = _cheapest(given, out.stem, source, found, imatrix, known, console)
    chosen = choose_types(given, source, has_imatrix=found is not None)
    check_importance(chosen, entries)
    named = None if imatrix is None else Path(imatrix).name
    metadata = artifact_metadata(source.metadata, found, named, chosen.preset)
    read = [*files, *(Path(one) for one in (imatrix, types) if isinstance(one, str | Path))]
    artifact = Model(out.stem, metadata, source.tensors)
    for name in artifact_names(artifact, chosen.types):
        check_writable(out.with_name(name), read)
    fallbacks = {} if chosen.stock is None else chosen.stock.fallbacks
    for sentence in () if ready is None else ready.notes:
        console.note(sentence)
    stored = [info.name for info in source.tensors if BY_NAME[info.type_name].is_quantized]
    if stored:
        console.note(
            f"{model} is quantized already, {len(stored)} of its tensors: what that lost is not "
            "brought back; quantize the unquantized model where you can"
        )
    label = chosen.preset or ("types" if isinstance(given, Mapping) else given)
    counts = Counter(chosen.types.values()).most_common()
    console.note(f"{label}: {', '.join(f'{count} × {kind}' for kind, count in counts)}")
    if fallbacks:
        console.note(fallback_text(fallbacks))
    parts = {
        "files": before,
        "types": dict(chosen.types),
        "imatrix": None if imatrix is None else content_id(Path(imatrix)),
        "importance": "as llama-quantize's" if chosen.is_named else "as a build's",
        "llama-cpp-python": library_version(),
    }
    importance = {
        name: entry.means() if chosen.is_named else entry.importance()
        for name, entry in entries.items()
    }
    with resumable(work_folder(out), parts) as work, console.stage("quantize", out) as progress:
        paths = write_artifact(
            source, artifact, chosen.types, importance, out.parent, work,
            worker_count(workers), progress,
        )  # fmt: skip
    check_unchanged(files, before, paths)
    size = sum(path.stat().st_size for path in paths)
    bits = 8 * size / artifact.elements
    predicted = None if known is None else known.sensitivity.predicted(chosen.types)
    return Artifact(tuple(paths), size, bits, chosen.types, chosen.preset, fallbacks, predicted)


def _study_of(folder: Path, model: Path, source: TensorSource) -> Study:
    """The finished study in a folder, which must be of this model.

    Raises:
        InputError: there is none, or it is of other files or tensors.
    """
    found = read_study(home_of(folder))
    files = CheckpointFile.read(found.imatrix.with_name(CHECKPOINT_FILE)).files
    place = model if model.is_dir() else model.parent
    for name, file in files.items():
        size = (place / name).stat().st_size if (place / name).is_file() else None
        if size != file.size_bytes:
            here = "is not here" if size is None else f"has {size:,} bytes"
            raise InputError(
                f"the study in {folder} is of another model: it was made of {name} of "
                f"{file.size_bytes:,} bytes, which {here} in {place}; study this model with "
                "'quantkit study'"
            )
    names = {info.name for info in source.tensors}
    if unknown := [name for name in found.sensitivity.errors if name not in names]:
        raise InputError(
            f"the study in {folder} is of another model: it has {unknown[0]}, which {model} has "
            "not; study this model with 'quantkit study'"
        )
    return found


def _cheapest(
    amount: str,
    name: str,
    source: TensorSource,
    imatrix: Imatrix | None,
    imatrix_path: str | Path | None,
    study: Study | None,
    console: Console,
) -> Mapping[str, str]:
    """The types that cost least within bits per weight, or a size.

    Raises:
        InputError: there is no study.
        DoesNotFitError: not even the smallest types are so small.
    """
    if study is None:
        raise InputError(
            f"--types {amount}: which types cost least is what a study knows; give its folder with "
            "--study ('quantkit study' makes one), or an allocation.json or a preset"
        )
    (level,) = chosen_levels(amount, name, {})
    label = None if imatrix_path is None else Path(imatrix_path).name
    model = Model(name, artifact_metadata(source.metadata, imatrix, label, None), source.tensors)
    budget = level.size_bytes
    if budget is None:
        assert level.bits_per_weight is not None
        budget = int(level.bits_per_weight * model.elements / 8)
    with console.stage("allocate") as progress:
        costs, overhead = study.sensitivity.tensor_costs(), overhead_bytes(model)
        found = allocate(
            source.tensors, costs, budget, overhead, level, progress=searching(progress)
        )
    return found.types
