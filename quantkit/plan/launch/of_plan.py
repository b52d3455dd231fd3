"""How a placement is started: what `launch` needs, of a plan."""

from __future__ import annotations

from quantkit.llamacpp.memory_plan import BATCH_TOKENS, DRAFT_KV_TYPE, DRAFTED_TOKENS
from quantkit.plan.launch.settings import Launch
from quantkit.plan.model import PlannedModel
from quantkit.plan.place import Placement


def launch_of(
    placement: Placement,
    model: PlannedModel,
    model_file: str,
    gguf_context_tokens: int | None = None,
) -> Launch:
    """The launch of a planned artifact.

    Args:
        model_file: its first file's name.
        gguf_context_tokens: `context_length` of the file, where it is not what is planned with.

    Raises:
        InputError: a name that cannot be written into commands, or too many GPUs.
    """
    said = gguf_context_tokens or placement.trained_context_tokens
    return launch_placed(placement, model.stem, model.geometry.architecture, model_file, said)


def launch_placed(
    placement: Placement,
    model_name: str,
    architecture: str,
    model_file: str,
    gguf_context_tokens: int,
    model_folder: str = ".",
) -> Launch:
    """The launch of an artifact that is placed so; arguments as of `Launch`.

    Raises:
        InputError: a name that cannot be written into commands, or too many GPUs.
        ValueError: numbers that no plan has.
    """
    return Launch(
        model_file=model_file,
        model_name=model_name,
        architecture=architecture,
        gpus=tuple(gpu.name for gpu in placement.gpus),
        tensor_split=placement.tensor_split,
        devices=placement.devices,
        context_tokens=placement.context_tokens,
        trained_context_tokens=placement.trained_context_tokens,
        gguf_context_tokens=gguf_context_tokens,
        kv_type=placement.kv_type,
        flash_attention=placement.flash_attention,
        pipeline=placement.pipeline,
        ubatch_tokens=placement.ubatch_tokens,
        batch_tokens=max(BATCH_TOKENS, placement.ubatch_tokens),
        sequences=placement.sequences,
        drafted_tokens=DRAFTED_TOKENS if placement.draft == "mtp" else 0,
        draft_kv_type=DRAFT_KV_TYPE,
        model_folder=model_folder,
    )
