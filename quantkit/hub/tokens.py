"""The Hub's access tokens that this machine holds, so that none of them is published."""

from __future__ import annotations


def known_tokens() -> tuple[str, ...]:
    """HF_TOKEN and every token that `hf auth login` has stored; they are secrets."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import get_stored_tokens

    try:
        found = {get_token() or "", *get_stored_tokens().values()}
    except ValueError:  # a file of tokens that is not text holds none
        found = set()
    return tuple(sorted(found - {""}))
