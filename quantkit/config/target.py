"""Target: the GPUs, the context and the KV cache that an artifact must run with.

docs/targets.md says what each field means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from quantkit.core.documents import Record, Strict, read_yaml, validated
from quantkit.core.errors import InputError
from quantkit.core.paths import resource
from quantkit.core.units import GIB

KVType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Draft = Literal["none", "mtp"]
UNQUANTIZED_KV = frozenset({"f16", "bf16"})
BATCH_TOKENS = 2048
"""llama-server's logical batch (`-b`), where the physical one is not larger."""
MOST_CONTEXT_TOKENS = 1 << 24
"""llama.cpp takes 50 bytes of this machine for each where it is asked what a context would need,
and so 0.8 GB at this limit. The longest contexts of published models are ten million tokens."""
MOST_UBATCH_TOKENS = 1 << 16
DRAFTED_TOKENS = 3
"""llama-server's `--spec-draft-n-max`: prediction layers draft so many tokens at a time."""
DRAFT_KV_TYPE: KVType = "f16"
"""llama-server's `-ctkd` and `-ctvd`. Of one layer, a quantized cache would take more: flash
attention makes an F16 copy of it."""


class RunSettings(Record):
    """What a context of llama.cpp depends on; target.yaml and placement.json both hold it."""

    context_tokens: int = Field(gt=0, le=MOST_CONTEXT_TOKENS)
    kv_type: KVType = "q8_0"
    ubatch_tokens: int = Field(default=512, gt=0, le=MOST_UBATCH_TOKENS)
    sequences: int = Field(default=1, ge=1, le=256)
    flash_attention: bool = True
    pipeline: bool = True
    draft: Draft = "none"

    @model_validator(mode="after")
    def _quantized_kv_needs_flash_attention(self) -> Self:
        if not self.flash_attention and self.kv_type not in UNQUANTIZED_KV:
            raise ValueError(
                f"a {self.kv_type} KV cache needs flash attention: set kv_type to f16, or leave "
                "flash_attention on"
            )
        return self

    @property
    def batch_tokens(self) -> int:
        """Logical batch, llama.cpp's `-b`."""
        return max(BATCH_TOKENS, self.ubatch_tokens)

    @property
    def drafted_tokens(self) -> int:
        """Tokens that the model's own prediction layers (MTP) draft at a time; 0: they do not."""
        return DRAFTED_TOKENS if self.draft == "mtp" else 0

    def within(self, trained_context_tokens: int) -> RunSettings:
        """These settings with a context no longer than the model was trained for."""
        if self.context_tokens <= trained_context_tokens:
            return self
        return self.model_copy(update={"context_tokens": trained_context_tokens})


class GPUSpec(Strict):
    """Equal GPUs.

    Attributes:
        memory_gib: the GPU's total memory, GiB.
        reserve_gib: kept free for the driver, the desktop and fragmentation, GiB a GPU.
    """

    name: str
    memory_gib: float = Field(gt=0)
    reserve_gib: float = Field(default=0.5, ge=0)
    count: int = Field(default=1, ge=1, le=64)


class _GPUSet(Strict):
    """The first fields of a target, so that a file begins with them."""

    name: str
    description: str = ""
    gpus: tuple[GPUSpec, ...] = Field(min_length=1)


class Target(RunSettings, _GPUSet):
    """A GPU set and how it is used; one YAML in `recipes/targets/`."""

    model_config = ConfigDict(strict=False)  # YAML has lists, not tuples

    devices: tuple[str, ...] = ()
    layers: Literal["balanced", "in_order"] = "balanced"
    weight_budget_gib: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _earlier_name(cls, data: Any) -> Any:  # noqa: ANN401 - what a YAML file holds
        """GPUs were called `cards` before the first release: such files are still read."""
        if isinstance(data, dict) and "cards" in data and "gpus" not in data:
            return {"gpus" if key == "cards" else key: value for key, value in data.items()}
        return data

    @model_validator(mode="after")
    def _a_device_for_each_gpu(self) -> Target:
        if self.devices and len(self.devices) != len(self.each_gpu):
            raise ValueError(
                f"{len(self.devices)} devices are named for {len(self.each_gpu)} GPUs: name each "
                "one, or none"
            )
        return self

    @property
    def run(self) -> RunSettings:
        """How the GPUs are used, without the GPUs."""
        return RunSettings(**self.model_dump(include=set(RunSettings.model_fields)))

    @property
    def each_gpu(self) -> tuple[GPUSpec, ...]:
        """One entry a GPU, counts expanded."""
        return tuple(spec for spec in self.gpus for _ in range(spec.count))

    @property
    def gpu_bytes(self) -> tuple[int, ...]:
        """Total memory of each GPU, bytes."""
        return tuple(int(gpu.memory_gib * GIB) for gpu in self.each_gpu)

    @property
    def weight_budget_bytes(self) -> int | None:
        return None if self.weight_budget_gib == "auto" else int(self.weight_budget_gib * GIB)

    def changed(self, **given: float | str | None) -> Target:
        """This target with other values for those fields that are given and not None.

        Raises:
            InputError: a value that the field cannot have.
        """
        update = {name: value for name, value in given.items() if value is not None}
        return validated(Target, self.model_dump() | update, Path(self.name)) if update else self


def _folder() -> Path:
    return resource("recipes") / "targets"


def known_targets() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_target(name_or_path: str) -> Target:
    """The target that ships under this name, or the one in this YAML file.

    Raises:
        InputError: no such target, or the file is not a valid one.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _folder() / f"{name_or_path}.yaml"
        if name_or_path not in known_targets():
            raise InputError(
                f"unknown target {name_or_path!r}; known: {', '.join(known_targets())}; auto "
                "for this machine's GPUs, or give a YAML file of your own (docs/targets.md)"
            )
    return validated(Target, read_yaml(path), path)
