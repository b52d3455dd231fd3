"""A target's memory as llama.cpp tells it: between the contexts that it was asked for, and not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flagship
import pytest
from checkpoints import write_llama, write_nemotron
from granite_checkpoints import ROPE, write_granite
from qwen_checkpoints import QWEN3_MOE, write_qwen

from quantkit.config.target import GPUSpec, Target
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.llamacpp import memory_plan
from quantkit.llamacpp.devices import Devices
from quantkit.llamacpp.memory_plan import Breakdown, DeviceMemory
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.model import Model
from quantkit.plan.gpu_memory import ComputeBuffers, gpu_memory
from quantkit.plan.llama_memory import (
    ContextLadder,
    ask_ladders,
    buffers_of,
    even_counts,
    gpu_memories,
)

pytestmark = pytest.mark.usefixtures("one_child")

HEAD, CONTEXT = 64, 131_072  # a head that CUDA's kernels have
MAMBA_AND_ATTENTION = ["mamba", "attention", "mamba", "attention"]
WIDE = 6144
"""So many elements in a feed-forward layer that they take more than attention, at first."""


def _write(name: str, folder: Path) -> Path:
    if name == "nemotron":
        layers = {"hybrid_override_pattern": "M*EM*E", "max_position_embeddings": CONTEXT}
        return write_nemotron(folder, head_dim=HEAD, **layers)
    if name == "qwen3-moe":
        config = QWEN3_MOE | {"head_dim": HEAD, "max_position_embeddings": CONTEXT}
        return write_qwen(folder, config)
    if name == "granite":
        layers = {"layer_types": MAMBA_AND_ATTENTION, "num_hidden_layers": 4}
        return write_granite(folder, head_dim=HEAD, **layers, **ROPE)
    wide = {"intermediate_size": WIDE, "max_position_embeddings": CONTEXT}
    return write_llama(folder, head_dim=HEAD, **wide)


FAMILIES = ("llama", "qwen3-moe", "granite", "nemotron", "flagship")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    found = {"flagship": Model("flagship", flagship.metadata(), flagship.tensors())}
    for name in FAMILIES[:-1]:
        source = open_checkpoint(_write(name, folder / name))
        found[name] = Model.of(name, source)
    return found


def target(gpus: int = 2, **changes: object) -> Target:
    spec = GPUSpec(name="gpu", memory_gib=1, reserve_gib=0, count=gpus)
    given = {"name": "t", "gpus": (spec,), "context_tokens": CONTEXT} | changes
    return Target.model_validate(given)


def ladders(model: Model, targets: list[Target], *tokens: int) -> list[ContextLadder]:
    found, why = ask_ladders(model, targets, tokens)
    assert why is None
    return found


USES = (
    {"kv_type": "q8_0"},
    {"kv_type": "f16", "ubatch_tokens": 2048},
    {"kv_type": "q4_0", "ubatch_tokens": 64, "sequences": 3},
    {"kv_type": "f16", "flash_attention": False},
)


RUNGS = [CONTEXT >> step for step in range(5, -1, -1)]
BETWEEN = [1024 * round(share * CONTEXT / 1024) for share in (0.043, 0.09, 0.4, 0.71)]


@pytest.mark.parametrize(
    ("name", "gpus"), [*((name, 2) for name in FAMILIES), ("llama", 4), ("nemotron", 3)]
)
def test_between_two_rungs_it_is_never_too_little(
    models: dict[str, Model], name: str, gpus: int
) -> None:
    """And with rungs at double the context each it is at most a few percent too much."""
    model = models[name]
    targets = [target(gpus, **use) for use in USES]
    coarse = ladders(model, targets, RUNGS[0], RUNGS[-1])
    fine = ladders(model, targets, *RUNGS)
    asked = ladders(model, targets, *BETWEEN)
    for sparse, dense, exact in zip(coarse, fine, asked, strict=True):
        for tokens, buffers in exact.rungs:
            assert not buffers.estimated
            whole = buffers.gpu + buffers.output
            some, more = sparse.memory(tokens), dense.memory(tokens)
            for found in (some, more):
                assert found.run.context_tokens == tokens
                assert found.compute.gpu >= buffers.gpu
                assert found.compute.gpu + found.compute.output >= whole
                assert found.compute.host >= buffers.host
            assert more.compute.gpu + more.compute.output <= 1.03 * whole
            assert more.compute.gpu <= 1.08 * buffers.gpu
            assert more.compute.host <= 1.01 * buffers.host
            # what the context itself takes is not interpolated
            at = dense.target.changed(context_tokens=tokens)
            assert more.context == gpu_memory(model.geometry, at).context


@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_single_gpu_it_is_close(models: dict[str, Model], name: str) -> None:
    """No copies of inputs there: how ggml's allocator packs the graph shows, in both directions."""
    model = models[name]
    targets = [target(1, **use) for use in USES]
    fine, asked = ladders(model, targets, *RUNGS), ladders(model, targets, *BETWEEN)
    for dense, exact in zip(fine, asked, strict=True):
        for tokens, buffers in exact.rungs:
            found = dense.memory(tokens).compute
            assert found.gpu == pytest.approx(buffers.gpu, rel=0.12)
            assert found.output == buffers.output == 0
            assert buffers.host <= found.host <= 1.01 * buffers.host


def test_some_buffers_do_not_grow_in_a_straight_line(models: dict[str, Model]) -> None:
    """Or the tests above would hold for any two points."""
    use = {"kv_type": "q4_0", "ubatch_tokens": 64}
    for name in ("llama", "flagship"):
        (ladder,) = ladders(models[name], [target(**use)], RUNGS[0], CONTEXT)
        (exact,) = ladders(models[name], [target(**use)], BETWEEN[1])
        ((tokens, buffers),) = exact.rungs
        assert ladder.memory(tokens).compute.gpu > 1.1 * buffers.gpu, name


def test_a_rung_is_what_was_asked(models: dict[str, Model]) -> None:
    model = models["nemotron"]
    targets = [target(kv_type=kind, ubatch_tokens=ub) for kind, ub in (("f16", 64), ("q8_0", 512))]
    contexts = (4096, 65_536, CONTEXT)
    for one, ladder in zip(targets, ladders(model, targets, *contexts), strict=True):
        assert [tokens for tokens, _ in ladder.rungs] == list(contexts)
        for tokens in contexts:
            at = one.changed(context_tokens=tokens)
            ((found,), why) = gpu_memories(model, [at])
            assert why is None
            assert ladder.memory(tokens) == found


def test_contexts_end_where_the_model_s_does(models: dict[str, Model]) -> None:
    (ladder,) = ladders(models["qwen3-moe"], [target()], 4096, CONTEXT, 2 * CONTEXT, 8 * CONTEXT)
    assert [tokens for tokens, _ in ladder.rungs] == [4096, CONTEXT]


def test_one_rung_is_a_ladder(models: dict[str, Model]) -> None:
    (ladder,) = ladders(models["llama"], [target()], 8192)
    assert ladder.memory(8192).compute == ladder.rungs[0][1]


def test_between_two_rungs_it_is_the_straight_line(models: dict[str, Model]) -> None:
    low, high = (
        ComputeBuffers(1000, 500, 10, estimated=False),
        ComputeBuffers(3000, 0, 31, estimated=False),
    )
    ladder = ContextLadder(models["llama"], target(), ((1024, low), (3072, high)))
    middle = ladder.memory(2048).compute
    assert middle == ComputeBuffers(2000, 250, 21, estimated=False)
    assert ladder.memory(1024).compute == low
    assert ladder.memory(3072).compute == high
    guessed = dataclasses.replace(high, estimated=True)
    ladder = dataclasses.replace(ladder, rungs=((1024, low), (3072, guessed)))
    assert ladder.memory(2048).compute.estimated


@pytest.mark.parametrize("layers", [1, 2, 5, 89])
@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8, 15])
def test_even_counts(layers: int, gpus: int) -> None:
    counts = even_counts(layers, gpus)
    assert len(counts) == gpus
    assert sum(counts) == layers
    assert max(counts) - min(counts) <= 1
    assert counts[-1] > 0  # the output has a GPU


def breakdown(*compute: int, host: int = 0) -> Breakdown:
    gpus = tuple(DeviceMemory(0, 0, size) for size in compute)
    return Breakdown(gpus, DeviceMemory(0, 0, host))


def test_buffers_of() -> None:
    """The largest of the GPUs before the output's, and what the output's has more."""
    found = buffers_of(breakdown(5, 9, 7, 12, host=3), (1, 1, 1, 1))
    assert found == ComputeBuffers(9, 3, 3, estimated=False)
    assert buffers_of(breakdown(5, 9, 7, 6), (1, 1, 1, 1)) == ComputeBuffers(9, 0, 0, False)
    # GPUs without layers compute nothing, and do not count
    assert buffers_of(breakdown(0, 4, 0, 6), (0, 1, 0, 2)) == ComputeBuffers(4, 2, 0, False)
    assert buffers_of(breakdown(0, 6), (0, 2)) == ComputeBuffers(6, 0, 0, False)
    assert buffers_of(breakdown(6, 0), (2, 0)) == ComputeBuffers(6, 0, 0, False)


def test_where_llama_cpp_cannot_be_asked_it_is_estimated_and_said(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "_answers", {})  # or they would be known already
    monkeypatch.setattr("sys.platform", "darwin")
    model, one = models["granite"], target(kv_type="f16")
    found, why = gpu_memories(model, [one])
    assert found == [gpu_memory(model.geometry, one)]
    assert found[0].compute.estimated
    assert why is not None
    assert why.startswith("compute buffers are estimated: llama.cpp can be asked on Linux only")
    (ladder,), said = ask_ladders(model, [one], (4096, CONTEXT))
    assert said == why
    for tokens in (4096, 50_000, CONTEXT):
        assert ladder.memory(tokens).compute.estimated
    question = memory_plan.Question(model, Devices("cuda", one.gpu_bytes), (2, 3), (one.run,))
    with pytest.raises(EnvironmentFault, match="Linux"):
        memory_plan.ask_memory([question])


def test_a_refusal_is_no_reason_to_estimate(models: dict[str, Model]) -> None:
    """Of a model that llama.cpp does not load, nothing can be planned."""
    model = models["llama"]
    broken = [info for info in model.tensors if "ffn_down" not in info.name]
    with pytest.raises(InputError, match=r"cannot plan this model: .*ffn_down"):
        gpu_memories(dataclasses.replace(model, tensors=broken), [target()])
