"""Finds the llama.cpp settings that work on this machine, with a tiny model in a child process.

ggml chooses its repacked kernels (AMX and others) by the CPU's flags. On some virtual machines the
flags are set but the instructions fail, and the process dies by SIGILL or SIGSEGV. So the fast
setting is tried in a child process, its logits are compared with the plain setting's, and the
result is cached for this machine and library version.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import write_json
from quantkit.core.parsing import MOST_JSON_BYTES, bounded_json, read_bounded
from quantkit.core.paths import cache_folder
from quantkit.formats.gguf_writer import write_gguf
from quantkit.formats.tensor_types import quant_type
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.llamacpp import ggml_kernels
from quantkit.llamacpp.child import Emit, NativeCrash, run_isolated
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings

WIDTH = 256
VOCABULARY = 256
TOKENS = 64
TOLERANCE = 0.05
"""Repacked kernels may quantize activations differently; measured differences are below 0.02."""

_TYPES = {
    "token_embd": "Q4_K",
    "blk.0.attn_q": "Q4_K",
    "blk.0.attn_k": "Q5_K",
    "blk.0.attn_v": "Q6_K",
    "blk.0.attn_output": "Q8_0",
    "blk.0.ffn_gate": "Q4_0",
    "blk.0.ffn_up": "IQ4_NL",
    "blk.0.ffn_down": "Q3_K",
    "output": "Q2_K",
}


@dataclass(frozen=True)
class SelfTest:
    """Result of the self-test: the setting to use, and why."""

    use_extra_buffers: bool
    finding: str


def working_settings(cache: Path | None = None) -> SelfTest:
    """The settings that work on this machine, from the cache or from `run_selftest`."""
    path = (cache or cache_folder()) / f"selftest-{machine_key()}.json"
    try:
        content = read_bounded(path, MOST_JSON_BYTES)
        bounded_json(content, str(path))
        return TypeAdapter(SelfTest).validate_json(content, strict=True)
    except (InputError, ValidationError):
        result = run_selftest()
    with suppress(OSError):  # with a read-only home the test runs each time
        write_json(path, asdict(result))
    return result


def device_settings(threads: int) -> DeviceSettings:
    """`working_settings` on this machine, with all layers on GPUs if there are any."""
    tested = working_settings()
    layers = -1 if run_isolated("quantkit.llamacpp.llama:offloads_in_child", {}) else 0
    return DeviceSettings(threads, tested.use_extra_buffers, layers)


def _logits(model: Path, use_extra_buffers: bool) -> NDArray[np.float32]:
    arguments = {"path": model, "use_extra_buffers": use_extra_buffers}
    result: NDArray[np.float32] = run_isolated("quantkit.llamacpp.selftest:decode_once", arguments)
    return result


def run_selftest(probe: Callable[[Path, bool], NDArray[np.float32]] = _logits) -> SelfTest:
    """Try the plain and the fast setting now, each in a child process.

    Args:
        probe: (model file, use_extra_buffers) → logits; raises NativeCrash.

    Raises:
        EnvironmentFault: not even the plain setting runs a quantized model.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "selftest.gguf"
        write_tiny_model(model)
        try:
            plain = probe(model, False)
        except NativeCrash as crash:
            raise EnvironmentFault(
                f"llama.cpp cannot run a quantized model on this machine: {crash}; install "
                "llama-cpp-python again from source, with CMAKE_ARGS='-DGGML_NATIVE=ON'"
            ) from None
        try:
            fast = probe(model, True)
        except NativeCrash as crash:
            return SelfTest(False, f"repacked kernels crash ({crash}); plain ones are used")
    difference = float(np.abs(fast - plain).max() / np.abs(plain).max())
    if not difference <= TOLERANCE:  # also when it is NaN
        return SelfTest(False, f"repacked kernels differ by {difference:.1%}; plain ones are used")
    return SelfTest(True, f"repacked kernels agree with plain ones (difference {difference:.1%})")


def decode_once(path: Path, use_extra_buffers: bool, emit: Emit) -> NDArray[np.float32]:
    """Body of the child: decode a fixed prompt; logits of its last token."""
    from quantkit.llamacpp.llama import Context, Model

    devices = DeviceSettings(threads=2, use_extra_buffers=use_extra_buffers, gpu_layers=0)
    model = Model(path, devices)
    context = Context(model, ContextSettings(context_tokens=TOKENS * 2))
    tokens = (np.arange(TOKENS, dtype=np.int32) * 7 + 3) % VOCABULARY
    return context.decode(tokens, 0)


def write_tiny_model(path: Path) -> None:
    """A one-layer Llama of random weights in nine tensor types, without a tokenizer."""
    u32 = {
        "context_length": 1024,
        "embedding_length": WIDTH,
        "block_count": 1,
        "feed_forward_length": WIDTH,
        "attention.head_count": 4,
        "vocab_size": VOCABULARY,
        "rope.dimension_count": WIDTH // 4,
    }
    metadata: Metadata = {"general.architecture": MetaValue("str", "llama")}
    metadata |= {f"llama.{key}": MetaValue("u32", value) for key, value in u32.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = MetaValue("f32", 1e-5)
    metadata["tokenizer.ggml.model"] = MetaValue("str", "no_vocab")
    infos = [TensorInfo(f"{n}.weight", (WIDTH, WIDTH), q) for n, q in _TYPES.items()]
    norms = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    infos += [TensorInfo(name, (WIDTH,), "F32") for name in norms]
    random = np.random.default_rng(1)

    def data(info: TensorInfo) -> tuple[str, NDArray[np.uint8]]:
        rows = np.ones((1, WIDTH), np.float32)  # of a norm
        if info.rows > 1:
            rows = random.standard_normal((info.rows, WIDTH), np.float32) / np.float32(16)
        return info.name, ggml_kernels.quantize(quant_type(info.type_name), rows, None)

    write_gguf(path, metadata, infos, map(data, infos))


def machine_key() -> str:
    """Hash of the CPU and the library version."""
    flags = ""
    with suppress(OSError):  # elsewhere than on Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags"))}))
    parts = (library_version(), platform.platform(), platform.processor(), flags)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
