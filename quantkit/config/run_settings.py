"""RunSettings: how llama.cpp runs a model, from target.yaml to the command that serves it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from quantkit.core.json_documents import Record

KVType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Draft = Literal["none", "mtp"]
UNQUANTIZED_KV = frozenset({"f16", "bf16"})
BATCH_TOKENS = 2048
"""llama-server's logical batch (`-b`), where the physical one is not larger."""
DRAFTED_TOKENS = 3
"""llama-server's `--spec-draft-n-max`: prediction layers draft so many tokens at a time."""
DRAFT_KV_TYPE: KVType = "f16"
"""llama-server's `-ctkd` and `-ctvd`. Of one layer, a quantized cache would take more: flash
attention makes an F16 copy of it."""


class RunSettings(Record):
    """What a context of llama.cpp depends on; target.yaml and placement.json both hold it.

    Attributes:
        context_tokens: cells of the KV cache, which the sequences share.
        ubatch_tokens: physical batch, llama.cpp's `-ub`; compute buffers grow with it.
        sequences: served at once, llama.cpp's `-np`; each keeps a recurrent state of its own.
        flash_attention: without it the attention scores of a whole batch are held, and the KV cache
            cannot be quantized.
        pipeline: GPUs work on different batches at once. Switched off, they wait for each other
            while a prompt is read, and the graph's inputs, a mask of context × batch among them,
            are held once and not four times.
        draft: "mtp" lets the model's own prediction layers draft tokens (llama-server's
            `--spec-type draft-mtp`), which takes a second context, with an F16 cache.
    """

    context_tokens: int = Field(gt=0)
    kv_type: KVType = "q8_0"
    ubatch_tokens: int = Field(default=512, gt=0)
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
