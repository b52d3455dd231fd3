"""Launch: the values that every way of starting a planned model is written from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantkit.config.target import RunSettings
from quantkit.core.errors import InputError
from quantkit.plan.placement import Placement

_SHARD = re.compile(r"(?P<stem>.+)-00001-of-(?P<count>\d{5})\.gguf")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,100}")
_FOLDER = re.compile(r"\.\.|[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Launch:
    """A GGUF file and the placement that it is run by; every value can be written into a file.

    Attributes:
        model_file: name of the file, of the first one if there are shards; without a folder.
        model_name: what the server calls the model.
        architecture: `general.architecture`, which the names of other metadata begin with.
        gguf_context_tokens: `{architecture}.context_length` as the file has it.
        devices: each GPU's number in nvidia-smi, or its UUID; none: their numbers here.
        model_folder: where the model lies, from the folder that holds what starts it: `.`, or
            names of folders and `..` between slashes.
        stops: texts at which generation ends, where the file has several; those that cannot be
            written are left out.

    Raises:
        InputError: a name that cannot be written.
    """

    placement: Placement
    model_file: str
    model_name: str
    architecture: str
    gguf_context_tokens: int
    devices: tuple[str, ...] = ()
    model_folder: str = "."
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text("the GGUF file's name", self.model_file)
        _check_text("the model's name", self.model_name)
        for gpu in self.placement.gpus:
            _check_text("a GPU's name", gpu.name)
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
        if not _WORD.fullmatch(self.architecture):
            raise InputError(
                f"the architecture {self.architecture!r} cannot be given to llama.cpp: it may have "
                "up to 100 letters, digits, _ and -"
            )
        if len(self.devices) not in (0, len(self.placement.gpus)):
            raise ValueError(f"{len(self.devices)} devices for {len(self.placement.gpus)} GPUs")
        for device in self.devices:
            if not _WORD.fullmatch(device):
                raise InputError(
                    f"the device {device!r} is neither a number nor a UUID as nvidia-smi shows them"
                )

    @property
    def run(self) -> RunSettings:
        return self.placement.run

    @property
    def shown_devices(self) -> tuple[str, ...]:
        """The GPUs that hold a layer, as CUDA_VISIBLE_DEVICES names them."""
        names = self.devices or tuple(map(str, range(len(self.placement.gpus))))
        return tuple(names[index] for index in self.used_gpus)

    @property
    def used_gpus(self) -> tuple[int, ...]:
        """Indices of the GPUs that hold a layer; the others are left alone."""
        return tuple(index for index, layers in enumerate(self.placement.tensor_split) if layers)

    @property
    def shares(self) -> tuple[int, ...]:
        """Layers on each GPU that holds one."""
        return tuple(self.placement.tensor_split[index] for index in self.used_gpus)

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
        """The name of the one file that the shards are merged into."""
        match = _SHARD.fullmatch(self.model_file)
        return self.model_file if match is None or len(self.files) < 2 else f"{match['stem']}.gguf"

    def path_to(self, file: str) -> str:
        """`file`, beside the model, as a path from the folder that holds what starts it.

        It begins with a folder, so nothing takes its first character for more than a name's.
        """
        return f"{self.model_folder}/{file}"

    @property
    def needs_longer_context(self) -> bool:
        """Whether the plan's context is longer than the file's.

        llama-server gives a slot no more than the file's context_length (`n_ctx_slot` in
        server-context.cpp), whatever `-c` says.
        """
        return self.gguf_context_tokens < self.run.context_tokens


def _check_text(what: str, text: str) -> None:
    """Only what prints: a line break would begin a line of its own in every one of the files."""
    if not text.strip() or not text.isprintable():
        raise InputError(
            f"{what}, {text!r}, is empty or has characters that do not print; rename it before it "
            "is written into commands"
        )
