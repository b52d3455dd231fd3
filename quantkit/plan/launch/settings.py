"""What every way of starting a planned model is made from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantkit.core.errors import InputError

MAX_SPLIT_GPUS = 15
"""`-ts` refuses as many shares as `llama_max_devices()`, which is 16."""
_SHARD = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,100}")
_FOLDER = re.compile(r"\.\.|[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Launch:
    """A GGUF file and the plan that it is run by. Everything in it may be written into a file.

    Attributes:
        model_file: name of the file, of the first one if there are shards; without a folder.
        model_name: what the server calls the model.
        architecture: `general.architecture`, which the names of other metadata begin with.
        gpus: their names, in the order of the plan.
        tensor_split: layers on each GPU, the output counted as one.
        context_tokens: cells of the KV cache, which the sequences share.
        trained_context_tokens: what the model was trained for.
        gguf_context_tokens: `{architecture}.context_length` as the file has it.
        batch_tokens: logical batch, llama.cpp's `-b`; ubatch_tokens is the physical one.
        sequences: that are served at once.
        devices: each GPU's number in nvidia-smi, or its UUID; none: their numbers here.
        pipeline: GPUs work on different batches at once; otherwise they take less memory.
        drafted_tokens: that the model's own prediction layers (MTP) draft at a time; 0: none.
        draft_kv_type: of the KV cache of those layers.
        model_folder: where the model lies, from the folder that holds what starts it: `.`, or
            names of folders and `..` between slashes.

    Raises:
        InputError: a name that cannot be written, or more GPUs than llama.cpp takes.
        ValueError: numbers that no plan has.
    """

    model_file: str
    model_name: str
    architecture: str
    gpus: tuple[str, ...]
    tensor_split: tuple[int, ...]
    context_tokens: int
    trained_context_tokens: int
    gguf_context_tokens: int
    kv_type: str
    flash_attention: bool = True
    ubatch_tokens: int = 512
    batch_tokens: int = 2048
    sequences: int = 1
    pipeline: bool = True
    devices: tuple[str, ...] = ()
    drafted_tokens: int = 0
    draft_kv_type: str = "f16"
    model_folder: str = "."

    def __post_init__(self) -> None:
        _check_text("the GGUF file's name", self.model_file)
        _check_text("the model's name", self.model_name)
        for gpu in self.gpus:
            _check_text("a GPU's name", gpu)
        if "/" in self.model_file or not self.model_file.endswith(".gguf"):
            raise InputError(
                f"{self.model_file!r} is not the name of a GGUF file; it must end in .gguf, and "
                "have no folder"
            )
        parts = () if self.model_folder == "." else self.model_folder.split("/")
        if not all(map(_FOLDER.fullmatch, parts)):
            raise InputError(
                f"the model's folder {self.model_folder!r} cannot be written into launch files: it "
                "must be relative, and its parts .. or names of letters, digits, _, . and - that "
                "begin with a letter or digit"
            )
        kinds = (("KV type", self.kv_type), ("KV type for drafts", self.draft_kv_type))
        for what, word in (("architecture", self.architecture), *kinds):
            if not _WORD.fullmatch(word):
                raise InputError(
                    f"the {what} {word!r} cannot be given to llama.cpp: it may have up to 100 "
                    "letters, digits, _ and -"
                )
        counts = (self.context_tokens, self.ubatch_tokens, self.batch_tokens, self.sequences)
        too_long = self.context_tokens > self.trained_context_tokens
        if min(counts) < 1 or too_long or self.drafted_tokens < 0:
            raise ValueError(f"no plan has these numbers: {self}")
        if len(self.gpus) != len(self.tensor_split) or not any(self.tensor_split):
            raise ValueError(f"no plan has these layers on GPUs: {self}")
        if self.devices and len(self.devices) != len(self.gpus):
            raise ValueError(f"no plan has these devices for its GPUs: {self}")
        for device in self.devices:
            if not _WORD.fullmatch(device):
                raise InputError(
                    f"the device {device!r} is neither a number nor a UUID as nvidia-smi shows them"
                )
        if min(self.tensor_split) < 0:
            raise ValueError(f"no plan has these layers on GPUs: {self}")
        if len(self.used_gpus) > MAX_SPLIT_GPUS:
            raise InputError(
                f"{len(self.used_gpus)} GPUs hold layers, llama.cpp divides a model among at "
                f"most {MAX_SPLIT_GPUS}; plan for fewer GPUs"
            )

    @property
    def shown_devices(self) -> tuple[str, ...]:
        """What CUDA_VISIBLE_DEVICES calls the GPUs that hold a layer."""
        names = self.devices or tuple(map(str, range(len(self.gpus))))
        return tuple(names[index] for index in self.used_gpus)

    @property
    def used_gpus(self) -> tuple[int, ...]:
        """Indices of the GPUs that hold a layer; the others are left alone."""
        return tuple(index for index, layers in enumerate(self.tensor_split) if layers)

    @property
    def shares(self) -> tuple[int, ...]:
        """Layers on each GPU that holds one."""
        return tuple(self.tensor_split[index] for index in self.used_gpus)

    @property
    def files(self) -> tuple[str, ...]:
        """All shards' names, or the one file's."""
        match = _SHARD.fullmatch(self.model_file)
        if match is None:
            return (self.model_file,)
        stem, count = match["stem"], int(match["count"])
        return tuple(f"{stem}-{n + 1:05}-of-{count:05}.gguf" for n in range(count))

    @property
    def merged_file(self) -> str:
        """What the shards are called when they are one file."""
        match = _SHARD.fullmatch(self.model_file)
        return self.model_file if match is None or len(self.files) < 2 else f"{match['stem']}.gguf"

    def path_to(self, file: str) -> str:
        """`file`, beside the model, as a path from the folder that holds what starts it.

        It begins with a folder, so nothing takes its first character for more than a name's.
        """
        return f"{self.model_folder}/{file}"

    @property
    def needs_longer_context(self) -> bool:
        """Whether the file says less than the plan asks for.

        llama-server gives a slot no more than the file's context_length (`n_ctx_slot` in
        server-context.cpp), whatever `-c` says.
        """
        return self.gguf_context_tokens < self.context_tokens


def _check_text(what: str, text: str) -> None:
    """Only what prints: a line break would begin a line of its own in every one of the files."""
    if not text.strip() or not text.isprintable():
        raise InputError(
            f"{what}, {text!r}, is empty or has characters that do not print; rename it before it "
            "is written into commands"
        )
