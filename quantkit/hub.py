"""Checkpoints from the Hugging Face Hub. The only importer of huggingface_hub."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from quantkit.errors import EnvironmentFault, InputError

WANTED = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "LICENSE*", "README.md")
"""Weights as safetensors only, never pickle; tokenizer, configuration, template, licence."""


def download_checkpoint(repo: str, revision: str | None, folder: Path) -> str:
    """Bring a repository's checkpoint into `folder`; files that are complete stay as they are.

    Returns:
        The commit that was downloaded.

    Raises:
        InputError: no such repository or revision, or it is gated; says what to do.
        EnvironmentFault: the network or the disk failed.
    """
    import httpx2  # huggingface_hub lets its transport errors through
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        info = HfApi().model_info(repo, revision=revision)
        commit, names = info.sha, [file.rfilename for file in info.siblings or ()]
        wanted = [n for n in names if "/" not in n and any(fnmatch(n, p) for p in WANTED)]
        snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=wanted)
    except GatedRepoError:
        raise InputError(
            f"{repo} is gated: accept its terms at {page}, then run 'hf auth login'"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{repo} has no revision {revision!r}; see {page}/tree/main") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"no repository {repo} for you: check the name, or run 'hf auth login' if it is private"
        ) from None
    except HFValidationError as error:
        raise InputError(
            f"{repo!r} is neither a folder here nor a repository name: {error}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.TransportError, OSError) as error:
        raise EnvironmentFault(
            f"downloading {repo} failed ({error}); check the network and the disk, then run again: "
            "finished files are kept"
        ) from None
    kept = {path.name for path in folder.iterdir() if path.is_file()}
    for name in kept - set(wanted):  # of another revision or repository that was here before
        (folder / name).unlink()
    return str(commit)
