"""Settings of llama.cpp and its replies as plain values, importable without loading it."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class DeviceSettings:
    """How llama.cpp uses this machine.

    Attributes:
        threads: CPU threads for decoding.
        use_extra_buffers: whether ggml may repack weights (AMX and others); see `selftest`.
        gpu_layers: layers on GPUs; -1 for all, 0 for none.
        tensor_split: share of the layers for each GPU; empty for llama.cpp's own choice.
    """

    threads: int
    use_extra_buffers: bool
    gpu_layers: int = -1
    tensor_split: tuple[float, ...] = ()


def device_parts(devices: DeviceSettings) -> dict[str, object]:
    """The settings that influence rounding: all but the number of threads."""
    return {name: value for name, value in asdict(devices).items() if name != "threads"}


@dataclass(frozen=True)
class ContextSettings:
    """Sizes of one context.

    Attributes:
        context_tokens: cells of the KV cache, for all sequences together.
        shared_cells: forks share the cells of their common prefix, and every sequence attends over
            all cells. Without it each sequence has its own part: faster if none is forked.
        outputs: tokens of a batch with logits, at most; at least one per sequence.
        all_outputs: logits of every token.
    """

    context_tokens: int
    batch_tokens: int = 512
    ubatch_tokens: int = 512
    sequences: int = 1
    shared_cells: bool = True
    kv_type: str = "f16"
    outputs: int = 1
    all_outputs: bool = False

    @property
    def forks(self) -> bool:
        """Whether sequences may be forked, so that a sliding window needs a cache of all tokens.

        A fork shares all cells of its prefix, those behind the window too, and llama.cpp puts new
        tokens only into cells of one sequence (llama_kv_cache::find_slot): a cache of the window's
        size is full of the prefix.
        """
        return self.shared_cells and self.sequences > 1


def parallel_sequences(sequences: int, tokens: int) -> ContextSettings:
    """A context for independent sequences of `tokens` each, decoded in one batch, all positions."""
    batch = sequences * tokens
    return ContextSettings(batch, batch, batch, sequences, shared_cells=False, all_outputs=True)


@dataclass(frozen=True)
class Reply:
    """A generated answer, and the scores of given ones.

    Attributes:
        truncated: whether the token limit ended it.
        log_probabilities: of the candidates in order, nats; None where unknown.
        rank: worst rank in the vocabulary of the right answer's tokens; 1 if greedy decoding
            gives it.
    """

    text: str
    truncated: bool
    log_probabilities: tuple[float | None, ...]
    rank: int | None
