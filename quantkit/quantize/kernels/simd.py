"""SIMD versions of ggml's slow quantizers, compiled on this machine from `simd.c`: the same bytes.

ggml's quantizers search one group after the other; `simd.c` searches as many at a time as a vector
register holds. It is compiled once per machine, with the C compiler that llama-cpp-python's
installation from source needs too, and compared with ggml byte for byte in a child process. Without
a compiler, or if the library cannot be loaded or a byte differs, ggml's own kernels are used: the
result is the same and takes longer.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import write_json
from quantkit.core.parsing import own_json
from quantkit.core.paths import cache_folder
from quantkit.formats.tensor_types import BY_NAME, QuantType
from quantkit.llamacpp.ggml_kernels import Blocks

SOURCE, SEARCH = (Path(__file__).with_name(name) for name in ("simd.c", "simd_search.h"))
KINDS = (
    "Q6_K", "Q5_1", "Q5_0", "Q5_K", "Q4_1", "Q4_0", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K",
)  # fmt: skip
"""Types that `simd.c` has, each with an importance matrix only."""
SWITCH = "QUANTKIT_KERNELS"
"""Environment variable; the value `ggml` turns these kernels off."""
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")
_COMPILE_SECONDS = 120
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Finding:
    """Whether the compiled kernels can be used on this machine.

    Attributes:
        finding: the reason, or the result of the comparison.
        lasting: whether the same compiler would give the same result again. A crash, a timeout or
            a lack of memory may not occur the next time.
    """

    usable: bool
    finding: str
    lasting: bool = False


class SimdKernels:
    """The compiled kernels.

    Raises:
        EnvironmentFault: the library cannot be loaded, or lacks a kernel.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            self._functions = {name: getattr(library, f"quantkit_{name}") for name in KINDS}
        except (OSError, AttributeError) as error:  # noexec disk, other processor, garbage
            raise EnvironmentFault(f"compiled kernels cannot be loaded: {error}") from None
        for function in self._functions.values():
            function.restype = None
            function.argtypes = (
                ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                ctypes.c_void_p, ctypes.c_void_p,
            )  # fmt: skip

    def quantize(
        self, kind: QuantType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Blocks of a type of KINDS, from contiguous arrays and rows of whole blocks.

        Raises:
            ValueError: there is no importance, without which ggml's search is another.
        """
        if importance is None:
            raise ValueError(f"the SIMD kernel of {kind.name} needs an importance matrix")
        n_rows, n_columns = rows.shape
        out = np.empty((n_rows, kind.size_bytes(n_columns)), np.uint8)
        scratch = np.empty(n_rows, np.float32)
        self._functions[kind.name](
            rows.ctypes.data, out.ctypes.data, n_rows, n_columns,
            importance.ctypes.data, scratch.ctypes.data,
        )  # fmt: skip
        return out


def simd_kernels() -> SimdKernels | None:
    """The compiled kernels, compiled and compared on first use; None if they cannot be used."""
    with _one_at_a_time:
        return _loaded()[0]


def finding(*, again: bool = False) -> Finding:
    """The finding behind `simd_kernels`; `again` compiles and compares anew."""
    with _one_at_a_time:
        return _load(again=True)[1] if again else _loaded()[1]


@functools.cache
def _loaded() -> tuple[SimdKernels | None, Finding]:
    return _load(again=False)


def _load(*, again: bool) -> tuple[SimdKernels | None, Finding]:
    found = find(again=again)
    if not found.usable:
        return None, found
    try:
        return SimdKernels(_library(cache_folder())), found
    except EnvironmentFault as fault:  # the cache's disk may have become noexec
        return None, Finding(False, str(fault))


def find(*, again: bool = False) -> Finding:
    """The cached finding of this machine, or what `make` finds now; `again` ignores the cache."""
    if os.environ.get(SWITCH) == "ggml":
        return Finding(False, f"{SWITCH}=ggml selects ggml's own kernels")
    folder = cache_folder()
    library = _library(folder)
    record = library.with_suffix(".json")
    command = os.environ.get("CC") or "cc"
    compiler = _compiler(command)
    cached = None if again else _recorded(record, compiler)
    if cached is not None and (library.is_file() or not cached.usable):
        return cached
    if compiler is None:  # not recorded, as one may be installed
        return Finding(False, f"there is no C compiler ({command}) for faster kernels")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = make(SOURCE, compiler, library)
        if found.lasting:
            facts = {**asdict(found), "compiler": _identity(compiler)}
            write_json(record, facts)
    except OSError as error:
        return Finding(False, f"compiled kernels cannot be stored in {folder}: {error.strerror}")
    return found


def _compiler(command: str) -> list[str] | None:
    """The arguments of CC, for example `ccache gcc`, with the program's path; None if not found."""
    try:
        program, *options = shlex.split(command)
    except ValueError:  # an unterminated quote, or only blanks
        return None
    path = shutil.which(program)
    return None if path is None else [path, *options]


def _identity(compiler: Sequence[str]) -> list[str | int]:
    """Arguments, size and modification time of the compiler."""
    status = os.stat(compiler[0])
    return [*compiler, status.st_size, status.st_mtime_ns]


def _recorded(record: Path, compiler: Sequence[str] | None) -> Finding | None:
    """The recorded finding; a negative one only if it was made with this compiler."""
    try:
        facts = own_json(record)
        found = Finding(facts["usable"], facts["finding"], lasting=True)
        same = compiler is not None and facts["compiler"] == _identity(compiler)
    except (OSError, InputError, TypeError, KeyError):
        return None
    return found if found.usable or same else None


def make(source: Path, compiler: Sequence[str], library: Path) -> Finding:
    """Compile `source`, compare it with ggml in a child process, and install it as `library`.

    Args:
        compiler: a program and its first arguments.

    Raises:
        OSError: it cannot be written.
    """
    from quantkit.llamacpp.child import NativeCrash, run_isolated

    name = shlex.join(compiler)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [*compiler, *_OPTIONS, "-o", str(made), str(source), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        except subprocess.SubprocessError as error:
            return Finding(False, f"{name} cannot compile {source.name}: {_reason(error)}")
        except OSError as error:  # not a program, or no memory to start it
            return Finding(False, f"{name} cannot be run: {error.strerror}")
        try:
            different = run_isolated(
                "quantkit.quantize.kernels.simd:compare_in_child", {"path": made}
            )
        except NativeCrash as crash:
            return Finding(False, f"the compiled kernels crash ({crash})")
        except EnvironmentFault as fault:
            return Finding(False, f"{fault}; compiler: {name}")
        if different:
            types = ", ".join(different)
            reason = f"compiled kernels differ from ggml's in {types}; compiler: {name}"
            return Finding(False, reason, lasting=True)
        os.replace(made, library)
    return Finding(True, f"compiled kernels agree with ggml's for {', '.join(KINDS)}", lasting=True)


def compare_in_child(path: Path, emit: object) -> list[str]:
    """Body of the child process: the types in which the library at `path` differs from ggml.

    Raises:
        EnvironmentFault: it cannot be loaded, or memory is too small for the comparison.
    """
    from quantkit.llamacpp import ggml_kernels

    try:
        return differences(SimdKernels(path).quantize, ggml_kernels.ggml_blocks)
    except MemoryError:
        raise EnvironmentFault("not enough memory to compare compiled kernels") from None


def differences(ours: Blocks, theirs: Blocks) -> list[str]:
    """The types of KINDS whose blocks differ for one of the `samples`."""

    def differs(kind: QuantType) -> bool:
        return any(
            not np.array_equal(ours(kind, *sample), theirs(kind, *sample))
            for sample in samples(2 * kind.block_elements + 256)
        )

    return [name for name in KINDS if differs(BY_NAME[name])]


def samples(width: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(rows, importance): normal weights, and edge cases of the search such as zeros and ties."""
    random = np.random.default_rng(7)
    normal = random.standard_normal((21, width), np.float32)
    steps = np.round(normal * 4) / 4
    sparse = np.where(random.random(normal.shape) < 0.9, 0, normal)
    outlier = np.where(random.random(normal.shape) < 0.01, 1000 * normal, normal)
    rows = [
        normal, normal / 64, np.abs(normal), -np.abs(normal) - 1, steps, sparse, outlier,
        normal * 1e-18, normal * 1e4, np.zeros_like(normal), np.full_like(normal, 0.3),
        np.sort(normal), normal[:1],
    ]  # fmt: skip
    uniform = random.uniform(0.1, 9.0, width)
    wide = np.exp(random.normal(0, 4, width))
    gaps = np.where(random.random(width) < 0.5, 0, uniform)
    gaps[: width // 2] = 0
    importances = [uniform, wide, gaps, np.ones(width), np.zeros(width)]
    return [
        (np.ascontiguousarray(r, np.float32), w.astype(np.float32))
        for r in rows
        for w in importances
    ]


def _library(folder: Path) -> Path:
    """Path of the library for this processor, ggml version and source."""
    from quantkit.llamacpp.selftest import machine_key

    made_of = (SOURCE, SEARCH, Path(__file__))  # the source and the comparison
    source = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()[:16]
    return folder / f"simd-{machine_key()}-{source}.so"


def _reason(error: subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode("utf-8", errors="replace").strip().splitlines()
        return lines[0] if lines else f"exit {error.returncode}"
    return str(error)
