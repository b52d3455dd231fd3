"""Memory of a model on each GPU as llama.cpp plans it, without GPUs and without weights.

llama.cpp opens a file of the model's shape with `no_alloc`, on fake GPUs
(`fake_gpus.py`), on the devices of this machine, or on RPC servers; its own loader, KV cache,
scheduler and graph allocator then say what they would take. `llama_get_memory_breakdown` has the
numbers; it is C++, and returns a `std::map` whose nodes are read here as libstdc++ lays them out.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from quantkit.config.target import DRAFT_KV_TYPE, RunSettings
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.tensors import Metadata, MetaValue, ModelHeader
from quantkit.llamacpp.child import Child, Emit, NativeCrash, run_isolated
from quantkit.llamacpp.devices import Devices, open_devices
from quantkit.llamacpp.ggml import base_library, load

NO_TENSOR = ctypes.c_char_p(b"no-tensor")  # a pattern that no tensor's name matches
_BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device that llama.cpp uses, bytes."""

    weights: int = 0
    context: int = 0
    compute: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights + self.context + self.compute

    def __add__(self, more: DeviceMemory) -> DeviceMemory:
        return DeviceMemory(
            self.weights + more.weights, self.context + more.context, self.compute + more.compute
        )


@dataclass(frozen=True)
class Breakdown:
    """Memory of every GPU, in their order, and of the computer itself that llama.cpp uses."""

    gpus: tuple[DeviceMemory, ...]
    host: DeviceMemory


ModelT = TypeVar("ModelT", ModelHeader, Path)


@dataclass(frozen=True)
class Question(Generic[ModelT]):
    """How much memory of `devices` does a model take?

    Attributes:
        model: or the GGUF file with it. The tokenizer of a model, on no GPU, is left out.
        tensor_split: layers that each GPU gets, the output being the last.
        runs: the ways to run the model, one answer each.
    """

    model: ModelT
    devices: Devices
    tensor_split: tuple[int, ...]
    runs: tuple[RunSettings, ...]


_Key = tuple[str, Devices, tuple[int, ...], RunSettings]
_answers: dict[_Key, Breakdown] = {}
"""Cached: a build asks the same in several stages."""
_lock = threading.Lock()
_asked: Child | None = None
"""The process that answers within `asking`."""


def ask_memory(questions: Sequence[Question[ModelHeader]]) -> list[list[Breakdown]]:
    """The answers to each question, one for each way to run; all are asked in one process.

    Raises:
        InputError: llama.cpp refuses a model.
        EnvironmentFault: this machine or this llama.cpp cannot be asked.
    """
    layouts = [
        single_file_layout("shape", shape_metadata(q.model), q.model.tensors) for q in questions
    ]
    keys: list[list[_Key]] = [
        [(layout.digest, q.devices, q.tensor_split, run) for run in q.runs]
        for layout, q in zip(layouts, questions, strict=True)
    ]
    with _lock, tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        new: list[_Key] = []
        files = []
        for number, (layout, wanted) in enumerate(zip(layouts, keys, strict=True)):
            missing = [key for key in dict.fromkeys(wanted) if key not in {*_answers, *new}]
            if missing:
                place = Path(folder) / str(number)
                place.mkdir()
                _, devices, split, _ = missing[0]
                runs = tuple(key[3] for key in missing)
                files.append(Question(write_shape(place, layout), devices, split, runs))
                new += missing
        if files:
            found = [one for answer in ask_of_files(files) for one in answer]
            _answers.update(zip(new, found, strict=True))
    return [[_answers[key] for key in wanted] for wanted in keys]


def ask_of_files(questions: Sequence[Question[Path]]) -> list[list[Breakdown]]:
    """The memory of the model in each file, for each way to run it; errors as of `ask_memory`."""
    if sys.platform != "linux":
        raise EnvironmentFault(f"llama.cpp can be asked on Linux only, not on {sys.platform}")
    global _asked
    call = run_isolated if _asked is None else _asked.call
    try:
        found: list[list[Breakdown]] = call(
            "quantkit.llamacpp.memory_plan:ask_in_child", {"questions": list(questions)}
        )
    except NativeCrash:
        _asked = None  # it is dead; the next question gets a process of its own
        raise
    return found


@contextmanager
def asking() -> Iterator[None]:
    """Within, one process answers all questions; it loads llama.cpp while nothing is asked yet."""
    global _asked  # one for the process, as the answers are
    if _asked is not None:
        yield
        return
    with Child(preload=("quantkit.llamacpp.memory_plan", "quantkit.llamacpp.llama")) as child:
        _asked = child
        try:
            yield
        finally:
            _asked = None
            child.end()


def shape_metadata(model: ModelHeader) -> Metadata:
    """The metadata that llama.cpp plans by: the architecture's keys and the vocabulary's size.

    The tokenizer is left out: it lies on no GPU, and takes longer to load than all the rest.
    """
    architecture = model.metadata["general.architecture"]
    prefix = f"{architecture.value}."
    kept = {k: v for k, v in model.metadata.items() if k.startswith(prefix)}
    for info in model.tensors:
        if info.name == "token_embd.weight":
            kept[f"{prefix}vocab_size"] = MetaValue("u32", info.shape[0])
    no_tokenizer = {"tokenizer.ggml.model": MetaValue("str", "no_vocab")}
    return {"general.architecture": architecture, **kept, **no_tokenizer}


def ask_in_child(questions: Sequence[Question[Path]], emit: Emit) -> list[list[Breakdown]]:
    from quantkit.llamacpp import llama

    llama.start_backend()  # before its devices are looked for
    answers = []
    for question in questions:
        with open_devices(question.devices) as addresses:
            answers.append(_answer(question, addresses))
    return answers


def _answer(question: Question[Path], devices: Sequence[int]) -> list[Breakdown]:
    """As a launched model sees them: GPUs without layers are hidden from llama.cpp.

    It would count them as stages of its pipeline, and hold the graph's inputs more than once even
    where one GPU has all layers.
    """
    used = [at for at, layers in enumerate(question.tensor_split) if layers]
    shown = [devices[at] for at in used]
    split = [question.tensor_split[at] for at in used]
    found: dict[RunSettings, Breakdown] = {}
    buffer_type = base_library().ggml_backend_dev_buffer_type
    for pipeline, draft in sorted({(run.pipeline, run.draft) for run in question.runs}):
        with _model(question.model, shown, split, pipeline, draft != "none") as model:
            for run in question.runs:
                if (run.pipeline, run.draft) == (pipeline, draft):
                    memory, gpus = _run_memory(model, run), [DeviceMemory()] * len(devices)
                    for at in used:
                        gpus[at] = memory.pop(buffer_type(devices[at]), DeviceMemory())
                    host = sum(memory.values(), DeviceMemory())
                    found[run] = Breakdown(tuple(gpus), host)
    return [found[run] for run in question.runs]


@contextmanager
def _model(
    path: Path, devices: Sequence[int], split: Sequence[int], pipeline: bool, drafts: bool
) -> Iterator[int]:
    import llama_cpp

    from quantkit.llamacpp import llama

    llama.start_backend()
    params = llama_cpp.llama_model_default_params()
    listed = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
    params.devices = ctypes.cast(listed, ctypes.c_void_p)
    params.n_gpu_layers = 1 << 20  # more than there are: the output too
    params.no_alloc = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    params.load_mtp = drafts
    params.tensor_split = llama.tensor_split(split)
    if not pipeline:
        # llama.cpp does not pipeline where tensors are overridden, be it none (llama-context.cpp)
        pairs = (ctypes.c_void_p * 4)(ctypes.cast(NO_TENSOR, ctypes.c_void_p).value, devices[0])
        params.tensor_buft_overrides = ctypes.cast(pairs, ctypes.c_void_p)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise InputError(f"llama.cpp cannot plan this model: {llama.why()}")
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def _run_memory(model: int, run: RunSettings) -> dict[int, DeviceMemory]:
    """Address of a buffer type → its memory, with the context of the prediction layers if any."""
    found = _context_memory(model, run, head=False)
    if run.drafted_tokens:
        for key, more in _context_memory(model, run, head=True).items():
            found[key] = found.get(key, DeviceMemory()) + replace(more, weights=0)
    return found


def _context_memory(model: int, run: RunSettings, *, head: bool) -> dict[int, DeviceMemory]:
    """The memory with one context, as llama-server makes it.

    Args:
        head: the context of the prediction layers (common_speculative_init_result), not the main
            one. It gives logits for one token of each sequence.
    """
    import llama_cpp

    from quantkit.llamacpp import llama

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = run.context_tokens
    params.n_batch = run.batch_tokens
    params.n_ubatch = run.ubatch_tokens
    params.n_seq_max = run.sequences
    params.kv_unified = True
    kv_type = DRAFT_KV_TYPE if head else run.kv_type
    params.type_k = params.type_v = llama.KV_TYPES[kv_type]
    params.flash_attn_type = int(run.flash_attention)
    params.swa_full = False
    # logits of the tokens that are sampled from, and of those drafted (server_output_limits)
    params.n_outputs_max = run.sequences * (1 if head else 1 + run.drafted_tokens)
    if head:
        params.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP
    else:
        params.n_rs_seq = run.drafted_tokens
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        what = " of the prediction layers (MTP)" if head else ""
        raise InputError(
            f"llama.cpp cannot plan a context{what} of {run.context_tokens} tokens with a "
            f"{kv_type} KV cache: {llama.why()}"
        )
    found = _read_breakdown(context)
    llama_cpp.llama_free(context)
    return found


def used_memory(context: int) -> dict[str, DeviceMemory]:
    """Name of a buffer type (`CPU`, `CUDA0`, …) → what llama.cpp took there for a context.

    Weights that are mapped from their file count as `CPU`, where they would lie otherwise.
    """
    found: dict[str, DeviceMemory] = {}
    for key, more in _read_breakdown(context).items():
        where = base_library().ggml_backend_buft_name(key).decode().removesuffix("_Mapped")
        found[where] = found.get(where, DeviceMemory()) + more
    return found


class _Map(ctypes.Structure):
    _fields_ = (("words", ctypes.c_size_t * 6),)


def _read_breakdown(context: int) -> dict[int, DeviceMemory]:
    """Address of a buffer type → the memory there.

    A libstdc++ map is a comparison, a header node and a count; a node is colour, parent, left and
    right, then the pair: here a pointer and three sizes (`llama_memory_breakdown_data`).
    """
    function = getattr(load("llama"), _BREAKDOWN, None)
    if function is None:
        raise EnvironmentFault(
            "this llama.cpp does not report its memory (no llama_get_memory_breakdown); use the "
            "version of llama-cpp-python that constraints.txt pins"
        )
    function.restype, function.argtypes = _Map, (ctypes.c_void_p,)
    words = function(context).words
    found: dict[int, DeviceMemory] = {}
    waiting = [words[2]]
    while waiting:
        node = waiting.pop()
        if node:
            _colour, _parent, left, right, key, *sizes = (ctypes.c_size_t * 8).from_address(node)
            found[key] = DeviceMemory(*sizes)
            waiting += [left, right]
    if len(found) != words[5]:
        raise EnvironmentFault(
            f"llama.cpp's memory breakdown has {words[5]} entries, of which {len(found)} could be "
            "read; use the version of llama-cpp-python that constraints.txt pins"
        )
    return found
