"""What llama.cpp says a model takes: fake GPUs against RPC servers, and what only CUDA needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flagship
import pytest
from checkpoints import (
    LLAMA,
    NEMOTRON,
    nemotron_arrays,
    with_prediction_head,
    write_checkpoint,
    write_llama,
    write_nemotron,
)
from memory_kinds import WINDOW, write_kind
from models import CPU

from quantkit.config.target import RunSettings
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import MetaValue, TensorInfo
from quantkit.llamacpp import llama, memory_plan
from quantkit.llamacpp.devices import DeviceKind, Devices
from quantkit.llamacpp.memory_plan import (
    Breakdown,
    Question,
    ask_memory,
    ask_of_files,
    used_memory,
)
from quantkit.llamacpp.settings import ContextSettings
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.geometry import geometry_of
from quantkit.models.model import Model
from quantkit.plan.llama_memory import even_counts
from quantkit.quantize.quantize import convert

MIB, GIB = 1 << 20, 1 << 30
HEAD = 64  # a head size that CUDA's kernels have
FOUR = (24 * GIB,) * 4


def run(tokens: int, kv: str = "f16", ubatch: int = 64, **changes: Any) -> RunSettings:  # noqa: ANN401
    return RunSettings(context_tokens=tokens, kv_type=kv, ubatch_tokens=ubatch, **changes)


PUBLISHED = run(516_096, "q8_0", 512)
UNPIPED = run(516_096, "q8_0", 512, pipeline=False)
USES = tuple(
    run(tokens, kv, batch, sequences=sequences, flash_attention=flash)
    for tokens, kv, batch, sequences, flash in (
        (516_096, "q8_0", 512, 1, True),
        (516_096, "f16", 2048, 1, True),
        (32_768, "q8_0", 2048, 4, True),
        (4096, "f16", 512, 1, False),
    )
)


def flagship_shape(kind: DeviceKind, split: tuple[int, ...], *runs: RunSettings) -> Question:
    types = {
        i.name: "F32" if i.type_name == "F32" else "Q5_0" if "down_exps" in i.name else "Q4_K"
        for i in flagship.tensors()
    }
    model = Model("super", flagship.metadata(), flagship.tensors()).quantized(types)
    return Question(model, Devices(kind, FOUR[: len(split)]), split, runs)


def small_shape(
    folder: Path, kind: DeviceKind, *runs: RunSettings, gpus: int = 1, name: str = "llama"
) -> Question:
    """A small Llama, a hybrid ("nemotron"), or one with a prediction head ("predicting")."""
    path = folder / name
    if name == "llama":
        write_llama(path, head_dim=HEAD, intermediate_size=96)
    elif name == "nemotron":
        write_nemotron(path)
    else:
        config = NEMOTRON | {"num_nextn_predict_layers": 1}
        write_checkpoint(path, config, with_prediction_head(nemotron_arrays(NEMOTRON)))
    source = open_checkpoint(path, keep_prediction=name == "predicting")
    split = even_counts(len(geometry_of(source.metadata).layers) + 1, gpus)
    return Question(Model.of("small", source), Devices(kind, (GIB,) * gpus), split, runs)


def with_tensors(question: Question, tensors: Sequence[TensorInfo]) -> Question:
    return replace(question, model=Model("m", question.model.metadata, tensors))


def in_mib(found: Breakdown) -> list[tuple[float, float, float]]:
    return [
        (round(d.weights / MIB, 2), round(d.context / MIB, 2), round(d.compute / MIB, 2))
        for d in (*found.gpus, found.host)
    ]


def test_the_flagship_as_four_rpc_servers_have_it() -> None:
    """What llama.cpp says at 516,096 tokens, q8_0, on the servers of a build with RPC."""
    ((found,),) = ask_memory([flagship_shape("plain", (23, 22, 22, 22), PUBLISHED)])
    assert in_mib(found) == [
        (17848.98, 580.79, 2231.84),
        (17789.96, 576.67, 2260.84),
        (17789.96, 576.67, 2260.84),
        (18018.95, 572.55, 2260.84),
        (288.0, 0.0, 2056.35),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("split", [(23, 22, 22, 22), (40, 30, 10, 9), (50, 39), None])
def test_fake_gpus_say_what_rpc_servers_say(
    split: tuple[int, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the flagship, and of a small model whose prediction layers draft."""
    tools = os.environ.get("QUANTKIT_LLAMA_TOOLS")
    if not tools or not (Path(tools) / "libggml-rpc.so").exists():
        pytest.skip("llama.cpp with RPC is not built; 'make slow' builds it")
    if split is None:
        uses = [run(65_536, kv, 512, sequences=2, draft="mtp") for kv in ("f16", "bf16")]
        shape = small_shape(tmp_path, "plain", *uses, gpus=2, name="predicting")
    else:
        shape = flagship_shape("plain", split, *USES, UNPIPED)
    (here,) = ask_memory([shape])
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", tools)
    (there,) = ask_memory([replace(shape, devices=Devices("rpc", shape.devices.capacities))])
    assert here == there


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"without its RPC backend.*--on fake"):
        ask_memory([small_shape(tmp_path, "rpc", PUBLISHED)])
    if "CUDA" in os.environ.get("CMAKE_ARGS", ""):
        pytest.skip("this llama.cpp sees GPUs")
    with pytest.raises(EnvironmentFault, match=r"1 GPUs, but llama\.cpp sees 0 here"):
        ask_memory([small_shape(tmp_path, "present", PUBLISHED)])


def test_flash_attention_of_cuda_copies_a_quantized_cache_to_f16(tmp_path: Path) -> None:
    """On a small model with a long context the copies are all that counts."""
    tokens = 1 << 20
    uses = (run(tokens, "q8_0", 8), run(tokens, "f16", 8))
    (plain,) = ask_memory([small_shape(tmp_path, "plain", *uses)])
    (cuda,) = ask_memory([small_shape(tmp_path, "cuda", *uses)])
    copied = 2 * 2 * tokens * LLAMA["num_key_value_heads"] * HEAD
    grown = cuda[0].gpus[0].compute - plain[0].gpus[0].compute
    assert copied * 0.98 < grown <= copied
    assert cuda[1].gpus[0].compute == pytest.approx(plain[1].gpus[0].compute, rel=1e-3)


def test_rows_of_quantized_tensors_are_padded_on_cuda(tmp_path: Path) -> None:
    use = run(1024)
    plain, cuda = (small_shape(tmp_path, "plain", use), small_shape(tmp_path, "cuda", use))
    for kind, padded in (("BF16", False), ("Q8_0", True)):
        tensors = plain.model.tensors
        types = [replace(i, type_name=kind) if len(i.shape) > 1 else i for i in tensors]
        (one,), (other,) = ask_memory([with_tensors(plain, types), with_tensors(cuda, types)])
        grown = other.gpus[0].weights - one.gpus[0].weights
        short = [i for i in types if len(i.shape) > 1 and i.row_elements % 512]
        most = sum(34 * (-i.row_elements % 512) // 32 + 128 for i in short)
        assert (0 < grown <= most) if padded else grown <= 128 * len(types)


def test_several_gpus_hold_four_copies_of_the_mask_unless_they_wait(tmp_path: Path) -> None:
    tokens, batch = 1 << 20, 64
    use, mask = run(tokens, "f16", batch), 2 * tokens * batch
    uses = (use, use.model_copy(update={"pipeline": False}), use)
    one, two = small_shape(tmp_path, "cuda", use), small_shape(tmp_path, "cuda", *uses, gpus=2)
    beside = replace(two, tensor_split=(0, sum(two.tensor_split)), runs=(use,))
    (alone,), (piped, waiting, again), (unused,) = ask_memory([one, two, beside])
    assert alone.gpus[0].compute == pytest.approx(mask, rel=0.05)
    assert piped == again
    for gpu, other in zip(piped.gpus, waiting.gpus, strict=True):
        assert gpu.compute == pytest.approx(4 * mask, rel=0.05)
        assert other.compute == pytest.approx(mask, rel=0.05)
        assert (gpu.weights, gpu.context) == (other.weights, other.context)
    # a GPU without layers is no stage of a pipeline
    assert unused.gpus == (memory_plan.DeviceMemory(0, 0, 0), alone.gpus[0])


def test_each_sequence_keeps_a_state_of_its_own(tmp_path: Path) -> None:
    uses = tuple(run(1024, sequences=sequences) for sequences in (1, 3))
    (found,) = ask_memory([small_shape(tmp_path, "cuda", *uses, name="nemotron")])
    one, three = (answer.gpus[0].context for answer in found)
    layers = geometry_of(open_checkpoint(tmp_path / "nemotron").metadata).layers
    kv = sum(layer.context_bytes(1024, "f16", 0) for layer in layers)
    assert three - kv == pytest.approx(3 * (one - kv), rel=0.01)


def test_windows_are_small_in_a_server_and_whole_where_they_are_forked(tmp_path: Path) -> None:
    path = write_kind(tmp_path / "mixed.gguf", "mixed")
    tokens, row = 8192, 2 * 2 * 32  # keys and values of one head, F16
    question = Question(path, Devices("cuda", FOUR[:1]), (8,), (run(tokens),))
    ((served,),) = ask_of_files([question])
    window = -(-(WINDOW + 64) // 256) * 256  # and the physical batch
    assert served.gpus[0].context == row * (tokens + 6 * window)
    sizes = ContextSettings(tokens, ubatch_tokens=64, sequences=2)
    shape = llama.Model(path, CPU, weightless=True)
    for settings, cells in (
        (sizes, 7 * tokens),
        (replace(sizes, sequences=1), tokens + 6 * window),
    ):
        context = llama.Context(shape, settings)
        assert used_memory(context.handle)["CPU"].context == row * cells
        context.close()
    shape.close()


def test_prediction_layers_draft_in_a_context_of_their_own(tmp_path: Path) -> None:
    """Loaded only if they do; the state is then kept once more for each of 3 drafted tokens."""
    uses = tuple(run(65_536, sequences=8, draft=draft) for draft in ("none", "mtp"))
    shape = small_shape(tmp_path, "plain", *uses, name="predicting")
    ((none, three),) = ask_memory([shape])
    geometry = geometry_of(shape.model.metadata)
    (head,) = geometry.prediction
    cache = head.context_bytes(65_536, "f16")
    assert cache == 65_536 * 2 * (head.key_elements + head.value_elements) > 0
    states = sum(4 * 8 * layer.recurrent_elements for layer in geometry.layers)
    assert none.gpus[0].context == sum(
        layer.context_bytes(65_536, "f16", 8) for layer in geometry.layers
    )
    assert three.gpus[0].context - none.gpus[0].context == cache + 3 * states
    own = [i for i in shape.model.tensors if i.name.startswith("blk.4.")]
    sizes = (BY_NAME[info.type_name].size_bytes(info.elements) for info in own)
    weights = sum(-(-size // 32) * 32 for size in sizes)
    assert three.gpus[0].weights - none.gpus[0].weights == weights > 0
    mask = 2 * 65_536 * 64
    assert three.gpus[0].compute - none.gpus[0].compute == pytest.approx(mask, rel=0.2)


def test_models_without_prediction_layers_have_no_context_for_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a context of the prediction layers \(MTP\).*MTP layers"):
        ask_memory([small_shape(tmp_path, "cuda", run(1024, draft="mtp"))])


def test_the_same_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    shape = small_shape(tmp_path, "cuda", run(2048))

    def counted(questions: list[Question]) -> list[list[Breakdown]]:
        asked.append(len(questions))
        return ask_of_files(questions)

    monkeypatch.setattr(memory_plan, "ask_of_files", counted)
    first = ask_memory([shape, shape])
    assert ask_memory([shape]) == first[:1]
    assert asked == [1]


def test_a_model_that_llama_cpp_refuses_is_refused_with_its_words(tmp_path: Path) -> None:
    shape = small_shape(tmp_path, "cuda", run(1024))
    with pytest.raises(InputError, match=r"cannot plan this model: .*blk\.0\.attn_q"):
        ask_memory(
            [with_tensors(shape, [i for i in shape.model.tensors if "attn_q." not in i.name])]
        )
    architecture = {"general.architecture": MetaValue("str", "nonesuch")}
    unknown = Model("m", {**shape.model.metadata, **architecture}, shape.model.tensors)
    with pytest.raises(InputError, match="nonesuch"):
        ask_memory([replace(shape, model=unknown)])


def test_a_file_is_asked_as_it_is(tmp_path: Path) -> None:
    shape = small_shape(tmp_path, "cuda", run(1024))
    ((by_shape,),) = ask_memory([shape])
    path = tmp_path / "m.gguf"
    convert(open_checkpoint(tmp_path / "llama"), "source", path, tmp_path / "w", workers=1)
    of_file = Question(path, shape.devices, shape.tensor_split, shape.runs)
    assert ask_of_files([of_file]) == [[by_shape]]
    with pytest.raises(InputError, match="cannot plan this model"):
        ask_of_files([replace(of_file, model=tmp_path / "missing.gguf")])


def test_other_platforms_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(EnvironmentFault, match="on Linux only, not on darwin"):
        ask_memory([small_shape(tmp_path, "cuda", run(512, "f16", 32))])


def test_the_tokenizer_is_left_out_and_counted() -> None:
    architecture, heads = MetaValue("str", "llama"), MetaValue("u32", 4)
    metadata = {
        "general.architecture": architecture,
        "general.name": MetaValue("str", "Name"),
        "llama.attention.head_count": heads,
        "tokenizer.ggml.tokens": MetaValue("str", ("a", "b", "c")),
        "tokenizer.ggml.model": MetaValue("str", "gpt2"),
    }
    model = Model("m", metadata, [TensorInfo("token_embd.weight", (3, 8), "F32")])
    assert memory_plan.shape_metadata(model) == {
        "general.architecture": architecture,
        "llama.attention.head_count": heads,
        "llama.vocab_size": MetaValue("u32", 3),
        "tokenizer.ggml.model": MetaValue("str", "no_vocab"),
    }
