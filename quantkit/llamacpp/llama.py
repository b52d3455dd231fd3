"""llama.cpp's model, vocabulary and context as small typed objects, for use in a child process.

Uses the low-level API: the high-level `llama_cpp.Llama` prefills again when partial removal from a
recurrent memory fails.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.logits_file import scored_positions
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings

LOG_LINES = 12
BATCH_TOKENS = 512
"""Of `ChunkLogits`; limits the logits in memory: 256 MiB with a vocabulary of 131072."""
KV_TYPES = {"f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "f32": 0}
Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]
States = NDArray[np.float32]
Inputs = Sequence[Tokens | States]

_recent_log: deque[str] = deque(maxlen=LOG_LINES)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", errors="replace").strip()
    if level >= 3 and line and line != ".":  # ggml_log_level: 3 warn, 4 error
        _recent_log.append(line)


def start_backend() -> None:
    """Initialise llama.cpp and record its warnings and errors from now on."""
    _recent_log.clear()
    llama_cpp.llama_log_set(_keep_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def why() -> str:
    """The last recorded log lines, for error messages."""
    return "; ".join(_recent_log) or "no reason in its log"


def tensor_split(shares: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    """`shares` of the devices in use as llama.cpp takes them: one for each that there could be."""
    array: type[ctypes.Array[ctypes.c_float]] = ctypes.c_float * llama_cpp.llama_max_devices()
    return array(*shares)


class Model:
    """A GGUF file loaded by llama.cpp.

    Args:
        writable: read into memory instead of mapped, so that weights can be exchanged.
        weightless: read no weights; contexts report the memory that they need and cannot run.
        vocabulary: read the tokenizer alone; there are no contexts.

    Raises:
        InputError: llama.cpp refuses the file; its log is in the message.
    """

    def __init__(
        self,
        path: Path,
        devices: DeviceSettings,
        *,
        writable: bool = False,
        weightless: bool = False,
        vocabulary: bool = False,
    ) -> None:
        start_backend()
        params = llama_cpp.llama_model_default_params()
        if writable or weightless:
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        params.no_alloc, params.vocab_only = weightless, vocabulary
        params.use_extra_bufts = devices.use_extra_buffers
        params.n_gpu_layers = devices.gpu_layers
        if devices.tensor_split:
            self._tensor_split = params.tensor_split = tensor_split(devices.tensor_split)
        self.devices, self.writable = devices, writable
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise InputError(f"llama.cpp cannot load {path}: {why()}")
        self.vocab = Vocabulary(llama_cpp.llama_model_get_vocab(self.handle))
        self.trained_context_tokens = int(llama_cpp.llama_model_n_ctx_train(self.handle))
        self.size_bytes = int(llama_cpp.llama_model_size(self.handle))
        self.window_tokens = int(llama_cpp.llama_model_n_swa(self.handle))  # 0: no sliding window

    @property
    def input_width(self) -> int:
        """Of the hidden states that it takes instead of tokens."""
        return int(llama_cpp.llama_model_n_embd_inp(self.handle))

    def chat_template(self) -> str | None:
        raw = llama_cpp.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8") if raw else None

    def close(self) -> None:
        llama_cpp.llama_model_free(self.handle)


def with_first(chunk: Tokens, token: int | None) -> Tokens:
    """A copy of `chunk` whose first token is `token`, unless that is None."""
    return chunk.copy() if token is None else np.concatenate([[np.int32(token)], chunk[1:]])


class Vocabulary:
    """The tokenizer inside a GGUF."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.size = int(llama_cpp.llama_vocab_n_tokens(handle))
        self.bos = int(llama_cpp.llama_vocab_bos(handle))
        adds_bos = self.bos >= 0 and llama_cpp.llama_vocab_get_add_bos(handle)
        self.text_bos = self.bos if adds_bos else None
        self.eos = int(llama_cpp.llama_vocab_eos(handle))

    def tokenize(self, text: str, *, parse_special: bool = True) -> Tokens:
        """Token ids of `text` without BOS or EOS; `parse_special` recognises special tokens."""
        raw = text.encode("utf-8")
        capacity = len(raw) + 16
        buffer = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(
            self._handle, raw, len(raw), buffer, capacity, False, parse_special
        )
        if count < 0:
            raise InputError(f"the model's tokenizer cannot encode a text of {len(raw)} bytes")
        return np.ctypeslib.as_array(buffer)[:count].astype(np.int32)

    def prepend_bos(self, tokens: Tokens) -> Tokens:
        """BOS if the model wants one, then `tokens`.

        llama-imatrix and llama-perplexity do this before they cut a text into chunks.
        """
        bos = [] if self.text_bos is None else [self.text_bos]
        return np.concatenate([np.array(bos, np.int32), tokens])

    def first_tokens(self, text: str, count: int) -> Tokens:
        """The first `count` tokens of `text`, with BOS before them as llama-perplexity has it."""
        # A long text need not be tokenized to its end: a prefix gives the same tokens, except for
        # the last ones at the cut.
        for characters in (16 * count, len(text)):
            tokens = self.prepend_bos(self.tokenize(text[:characters], parse_special=False))
            if len(tokens) >= count + 64:
                break
        return tokens[:count]

    def text(self, tokens: Sequence[int], visible: Sequence[int] = ()) -> str:
        """The text of `tokens` without special tokens, except those in `visible`."""
        pieces = []
        buffer = ctypes.create_string_buffer(256)
        for token in tokens:
            special = token in visible
            size = llama_cpp.llama_token_to_piece(self._handle, int(token), buffer, 256, 0, special)
            pieces.append(buffer.raw[: max(size, 0)])
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_text(self, token: int) -> str:
        """The raw text of one token, also of a special one; empty for id -1."""
        if token < 0:
            return ""
        raw = llama_cpp.llama_vocab_get_text(self._handle, token)
        return raw.decode("utf-8", errors="replace") if raw else ""

    def is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._handle, token))


NONE, LAST, EVERY = slice(0), slice(-1, None), slice(None)


class Span(NamedTuple):
    """Tokens of one sequence, decoded in a batch with others.

    Attributes:
        start: position of the first.
        tokens: ids; in a context that takes hidden states, those, F32 (tokens, width).
        wanted: those whose logits are computed.
    """

    sequence: int
    start: int
    tokens: Tokens | States
    wanted: slice = LAST


EvalCallback = Callable[[int, bool], bool]
"""(address of a ggml_tensor, whether llama.cpp asks before computing it) → wanted / go on."""


class Context:
    """A context of a model: decodes tokens, forks and drops sequences.

    Logits are F32. Those of several tokens have the shape (tokens, vocabulary) and are in
    llama.cpp's own memory: valid until the next decode.

    Args:
        on_tensor: is called for each node of the graph.
        width: of hidden states that are decoded as embeddings; 0: tokens are decoded.

    Raises:
        EnvironmentFault: llama.cpp could not allocate it.
    """

    def __init__(
        self,
        model: Model,
        settings: ContextSettings,
        on_tensor: EvalCallback | None = None,
        width: int = 0,
    ) -> None:
        self._failure: BaseException | None = None
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = settings.context_tokens
        params.n_batch = settings.batch_tokens
        params.n_ubatch = min(settings.ubatch_tokens, settings.batch_tokens)
        params.n_seq_max = settings.sequences
        params.n_rs_seq = 0  # rolling back a whole ubatch returned success with wrong logits
        params.kv_unified = settings.shared_cells
        params.swa_full = settings.forks
        # else it copies weights to a GPU; the callback would see the copy of one to exchange
        params.op_offload = model.devices.gpu_layers != 0 and not model.writable
        params.n_threads = params.n_threads_batch = model.devices.threads
        params.type_k = params.type_v = KV_TYPES[settings.kv_type]
        if settings.kv_type not in ("f16", "bf16", "f32"):
            params.flash_attn_type = 1  # a quantized V cache needs flash attention
        params.no_perf = True
        outputs = settings.batch_tokens if settings.all_outputs else settings.outputs
        params.n_outputs_max = max(outputs, settings.sequences)
        if on_tensor is not None:
            self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._guarded(on_tensor))
            params.cb_eval = self._callback
        self.settings = settings
        self.model = model
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise EnvironmentFault(
                f"llama.cpp cannot make a context of {settings.context_tokens} tokens: {why()}; "
                "use a shorter context, a smaller KV cache type or more memory"
            )
        self._memory = llama_cpp.llama_get_memory(self.handle)
        size = settings.batch_tokens
        batch = self._batch = llama_cpp.llama_batch_init(size, width, 1)
        fields = (batch.pos, batch.logits, batch.n_seq_id)
        self._positions, self._outputs, counts = (
            np.ctypeslib.as_array(field, shape=(size,)) for field in fields
        )
        self._inputs: NDArray[np.int32] | NDArray[np.float32] = (
            np.ctypeslib.as_array(batch.embd, shape=(size * width,)).reshape(size, width)
            if width
            else np.ctypeslib.as_array(batch.token, shape=(size,))
        )
        counts[:] = 1  # each token belongs to one sequence
        self._sequences = np.full(size, -1, np.int32)

    def decode(self, tokens: Tokens, start: int, sequence: int = 0) -> Logits:
        """Decode `tokens` at positions from `start` on; a copy of the last logits."""
        size = self.settings.batch_tokens
        last = (len(tokens) - 1) // size * size
        self.prefill(tokens[:last], start, sequence)
        return self._decode([Span(sequence, start + last, tokens[last:])]).flatten()

    def prefill(self, tokens: Tokens, start: int, sequence: int = 0) -> None:
        """Decode `tokens` at positions from `start` on, without logits."""
        size = self.settings.batch_tokens
        for at in range(0, len(tokens), size):
            self._decode([Span(sequence, start + at, tokens[at : at + size], NONE)])

    def wait(self) -> None:
        """Wait until the device has finished; for timing."""
        llama_cpp.llama_synchronize(self.handle)

    def decode_spans(self, spans: Sequence[Span]) -> list[Logits]:
        """Decode spans of different sequences in one batch: logits of each one's wanted tokens."""
        if not spans:
            return []
        counts = [len(span.tokens[span.wanted]) for span in spans]
        return np.split(self._decode(spans), np.cumsum(counts)[:-1])

    def decode_together(self, chunks: Inputs) -> Logits:
        """Decode `chunks` in one batch, each in a sequence of its own, in an empty context.

        Returns:
            Logits of all tokens.
        """
        return self._decode([Span(n, 0, chunk, EVERY) for n, chunk in enumerate(chunks)])

    def logits_at(self, tokens: Tokens, positions: range) -> Iterator[Logits]:
        """Decode `tokens` from position 0 on, a batch at a time, in an empty context.

        Yields:
            Logits of the batch's positions that are in `positions`, if any.
        """
        size = self.settings.batch_tokens
        for at in range(0, len(tokens), size):
            wanted = slice(max(positions.start - at, 0), max(positions.stop - at, 0))
            rows = self._decode([Span(0, at, tokens[at : at + size], wanted)])
            if len(rows):
                yield rows

    def _decode(self, spans: Sequence[Span]) -> Logits:
        """Decode `spans` in one batch, which must be large enough: logits of the wanted tokens."""
        stop = 0
        for sequence, start, tokens, wanted in spans:
            at, stop = stop, stop + len(tokens)
            self._inputs[at:stop] = tokens
            self._positions[at:stop] = np.arange(start, start + len(tokens))
            self._outputs[at:stop] = 0
            self._outputs[at:stop][wanted] = 1
            for index in at + np.flatnonzero(self._sequences[at:stop] != sequence):
                self._batch.seq_id[index][0] = sequence
            self._sequences[at:stop] = sequence
        self._batch.n_tokens = stop
        status = llama_cpp.llama_decode(self.handle, self._batch)
        if self._failure is not None:
            raise self._failure
        if status != 0:
            reason = "no room in the context" if status == 1 else why()
            raise EnvironmentFault(
                f"llama.cpp failed to decode {stop} tokens of {len(spans)} sequences at position "
                f"{spans[0].start} (status {status}: {reason})"
            )
        rows = int(self._outputs[:stop].sum())
        if not rows:
            return np.empty((0, self.model.vocab.size), np.float32)
        logits = llama_cpp.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(logits, shape=(rows, self.model.vocab.size))

    def _guarded(self, on_tensor: EvalCallback) -> Callable[[int, bool, object], bool]:
        """`on_tensor`, whose exceptions `decode` raises: ctypes would only print them."""

        def callback(tensor: int, ask: bool, _user: object) -> bool:
            try:
                return self._failure is None and on_tensor(tensor, ask)
            except BaseException as error:  # noqa: BLE001 - raised again after the decode
                self._failure = error
                return False

        return callback

    def fork(self, source: int, target: int) -> None:
        """Copy the state of sequence `source` to `target`, recurrent state included."""
        if not 0 <= target < self.settings.sequences:
            # llama.cpp would silently copy only the attention cells
            raise ValueError(f"sequence {target} is outside 0..{self.settings.sequences - 1}")
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)

    def save(self, sequence: int, tokens: Tokens, path: Path) -> None:
        """Write the state of `sequence` after `tokens`, and the tokens, to `path`.

        Raises:
            EnvironmentFault: it could not be written.
        """
        ids = np.ascontiguousarray(tokens, np.int32)
        pointer = ids.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token))
        written = llama_cpp.llama_state_seq_save_file(
            self.handle, str(path).encode(), sequence, pointer, len(ids)
        )
        if not written:
            raise EnvironmentFault(
                f"llama.cpp could not write its state after {len(ids)} tokens to {path}: {why()}"
            )

    def load(self, sequence: int, path: Path, at_most: int) -> Tokens | None:
        """Read a state into the empty `sequence`; returns its tokens, or None if it does not fit.

        llama.cpp checks shapes only; the caller must know that the weights are the same.
        """
        ids = np.empty(at_most, np.int32)
        count = ctypes.c_size_t(0)
        pointer = ids.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token))
        read = llama_cpp.llama_state_seq_load_file(
            self.handle, str(path).encode(), sequence, pointer, at_most, ctypes.byref(count)
        )
        if not read:
            self.drop(sequence)
            return None
        return ids[: count.value]

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self.handle)


class ChunkLogits(Context):
    """Runs chunks of `chunk_tokens` through a model, each from an empty context.

    Args:
        bos: replaces each chunk's first token, unless None.
    """

    def __init__(self, model: Model, chunk_tokens: int, bos: int | None) -> None:
        batch = min(chunk_tokens, BATCH_TOKENS)
        super().__init__(model, ContextSettings(chunk_tokens, batch, batch, all_outputs=True))
        self._scored, self._bos = scored_positions(chunk_tokens), bos

    def of(self, chunk: Tokens) -> Iterator[tuple[range, Logits]]:
        """(indices among the scored positions, their logits), the logits valid until the next."""
        self.clear()
        at = 0
        for logits in self.logits_at(with_first(chunk, self._bos), self._scored):
            yield range(at, at + len(logits)), logits
            at += len(logits)


def offloads_in_child(emit: Emit) -> bool:
    """Body of a child process: whether this build of llama.cpp can use a GPU that is present."""
    start_backend()
    return bool(llama_cpp.llama_supports_gpu_offload())
