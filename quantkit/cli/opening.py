"""Opens a model for the commands that read no weights: a repository through its headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantkit.core.console import Console

if TYPE_CHECKING:
    from quantkit.formats.tensors import TensorSource
    from quantkit.models.checkpoint import OnShape
    from quantkit.models.choose import ModelChoice


def open_shapes(
    choice: ModelChoice,
    console: Console,
    on_shape: OnShape | None = None,
    *,
    keep_prediction: bool,
) -> TensorSource:
    """The model's tensors, of which rows need not be there.

    Args:
        on_shape: as `open_checkpoint` takes it; of a checkpoint only.

    Raises:
        InputError: no such repository, no access, broken files, or an unsupported architecture.
        EnvironmentFault: the network, the Hub or the disk failed.
    """
    from quantkit.models.choose import open_headers, open_source

    if choice.kind != "repository":
        return open_source(choice, keep_prediction=keep_prediction, on_shape=on_shape)
    from quantkit.hub.reading import Hub

    with console.stage("headers") as progress:
        return open_headers(
            choice, Hub, progress, keep_prediction=keep_prediction, on_shape=on_shape
        )
