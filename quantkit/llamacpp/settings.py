"""Settings of native work as plain values, importable without loading llama.cpp."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class DeviceSettings:
    """How llama.cpp uses this machine.

    Attributes:
        threads: CPU threads for decoding.
        use_extra_buffers: let ggml repack weights (AMX and others); the self-test decides.
        gpu_layers: layers on GPUs; -1 for all, 0 for none.
        tensor_split: share of the layers for each GPU, empty for llama.cpp's own choice.
    """

    threads: int
    use_extra_buffers: bool
    gpu_layers: int = -1
    tensor_split: tuple[float, ...] = ()


def device_parts(devices: DeviceSettings) -> dict[str, object]:
    """What of it decides how numbers are rounded: all but the number of threads."""
    return {name: value for name, value in asdict(devices).items() if name != "threads"}


@dataclass(frozen=True)
class ContextSettings:
    """Sizes of one context.

    Attributes:
        context_tokens: cells of the KV cache, for all sequences together.
        shared_cells: forks share the cells of their common prefix, and every sequence looks at
            all cells. Without it each has its own part, which is faster where none is forked.
        outputs: tokens of a batch that logits are wanted of, at most; one a sequence at least.
        all_outputs: of every token.
    """

    context_tokens: int
    batch_tokens: int = 512
    ubatch_tokens: int = 512
    sequences: int = 1
    shared_cells: bool = True
    kv_type: str = "f16"
    outputs: int = 1
    all_outputs: bool = False
