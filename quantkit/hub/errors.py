"""The errors for refusals of the Hub: its answer as plain values, and the message for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError

RepositoryKind = Literal["model", "dataset"]
Purpose = Literal["download", "look up", "publish"]

_BAD_TOKEN = "Invalid credentials in Authorization header"
_DISABLED = "Access to this resource is disabled."
_NO_ROOM = re.compile(r"storage limit|quota|storage (?:is )?full|payment", re.IGNORECASE)
LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"


class NotThereError(InputError):
    """The repository or revision does not exist, or the token does not show it."""


class ConflictError(EnvironmentFault):
    """Somebody else committed since the repository was looked at."""


@dataclass(frozen=True)
class Refusal:
    """An answer with a status of 400 or more.

    Attributes:
        code, message: the Hub's own, or empty.
        address: the address that answered, without the signature in its query.
        is_hub: whether the Hub itself answered, and not the network that serves its files.
        asked_wait_s: how long the server asks to wait, seconds.
    """

    status: int
    code: str
    message: str
    address: str
    is_hub: bool
    asked_wait_s: float

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later.

        The content network knows neither tokens nor permissions: it refuses addresses that have
        expired, and a further request to the Hub brings a new one.
        """
        return not self.is_hub or self.status in (408, 416, 429) or self.status >= 500


@dataclass(frozen=True)
class Asked:
    """What a request was for, in the words of its errors."""

    endpoint: str
    repository: str
    revision: str | None
    has_token: bool
    kind: RepositoryKind = "model"
    purpose: Purpose = "download"

    @property
    def page(self) -> str:
        """The repository's page."""
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{self.endpoint}/{folder}{self.repository}"

    @property
    def doing(self) -> str:
        """The beginning of a sentence: `downloading OWNER/NAME from https://…`."""
        verb, way, _ = _PURPOSES[self.purpose]
        return f"{verb} {self.name} {way} {self.endpoint}"

    @property
    def kept(self) -> str:
        """What is not lost when the command runs again."""
        return _PURPOSES[self.purpose][2]

    @property
    def name(self) -> str:
        """The repository in a sentence."""
        return self.repository if self.kind == "model" else f"the {self.kind} {self.repository}"


_PURPOSES: dict[Purpose, tuple[str, str, str]] = {
    "download": ("downloading", "from", "finished files are kept"),
    "look up": ("looking up", "at", "nothing was changed there"),
    "publish": (
        "publishing",
        "to",
        "what was uploaded is kept, and nothing is visible before the upload is complete",
    ),
}


def refusal_error(refusal: Refusal, asked: Asked) -> QuantkitError:
    """The error for an answer after the last attempt."""
    if refusal.status == 429:
        return EnvironmentFault(
            f"{asked.endpoint} limits the rate of requests (429), and still did after all "
            f"attempts; run again in some minutes: {asked.kept}"
            + ("" if asked.has_token else f"; for a higher limit, {LOG_IN}")
        )
    if not refusal.is_hub and refusal.status < 500 and refusal.status not in (408, 416):
        return EnvironmentFault(
            f"{asked.doing} failed: the content network refused ({refusal.status}) "
            f"{refusal.address}, although each attempt asked the Hub for a new address; check "
            f"this machine's clock and its proxy, then run again: {asked.kept}"
        )
    if asked.purpose == "publish" and (known := _write_error(refusal, asked)) is not None:
        return known
    repository, page = asked.name, asked.page
    if refusal.code == "GatedRepo":
        return InputError(
            f"{repository} is gated: accept its terms at {page}, "
            + (
                "with the account of your token; if you have, its owner may still have to agree"
                if asked.has_token
                else f"then {LOG_IN}"
            )
        )
    if refusal.code == "RevisionNotFound":
        return NotThereError(
            f"{repository} has no revision {asked.revision!r}; its branches and tags are at "
            f"{page}/tree/main"
        )
    if refusal.message == _DISABLED:
        return InputError(f"the Hub has disabled {repository}; see {page}")
    if refusal.status == 401 and refusal.message == _BAD_TOKEN:
        return InputError(
            "the Hub refuses your access token (401): it is wrong, expired or revoked; make a new "
            f"one at {asked.endpoint}/settings/tokens, then {LOG_IN}"
        )
    if refusal.code == "RepoNotFound" or refusal.status == 401:
        return NotThereError(
            f"no {'repository' if asked.kind == 'model' else asked.kind} {asked.repository} for "
            "you: check the name"
            + (
                "; if it is private, the account of your token needs access to it"
                if asked.has_token
                else f", or {LOG_IN} if it is private or gated"
            )
        )
    if refusal.code == "EntryNotFound":
        return EnvironmentFault(
            f"{asked.endpoint} lists a file of {repository} that it does not have: "
            f"{refusal.address}; run again later"
        )
    if refusal.status == 403:
        return InputError(
            f"the Hub refuses access to {repository} (403: {refusal.message or 'forbidden'}); "
            f"check the permissions of your token at {asked.endpoint}/settings/tokens"
        )
    said = f": {refusal.message}" if refusal.message else ""
    return failed(f"HTTP {refusal.status}{said}", asked)


def _write_error(refusal: Refusal, asked: Asked) -> QuantkitError | None:
    """The error for a refused change, where reading would not be refused in the same way."""
    repository = asked.repository
    said = f" ({refusal.status}: {refusal.message})" if refusal.message else f" ({refusal.status})"
    if refusal.status == 402 or _NO_ROOM.search(refusal.message):
        return InputError(
            f"the Hub has no room for {repository}{said}; make room or get more at "
            f"{asked.endpoint}/settings/billing, or publish without --private; {asked.kept}"
        )
    if refusal.status == 401 and refusal.message != _BAD_TOKEN:
        return no_write_token(asked.endpoint)
    match refusal.status:
        case 403:
            return InputError(
                f"the Hub refuses to let you write to {repository}{said}: the token needs write "
                f"access to {repository.partition('/')[0]}, and its account a right to write "
                f"there; see {asked.endpoint}/settings/tokens, then {LOG_IN}"
            )
        case 409:
            return EnvironmentFault(
                f"the Hub is busy with another change to {repository}{said}; run again: "
                f"{asked.kept}"
            )
        case 412:
            return ConflictError(
                f"somebody committed to {repository} during the upload; run again to see what has "
                "changed: what was uploaded is kept"
            )
        case 400:
            return InputError(
                f"the Hub does not accept this release of {repository}{said}; {asked.kept}"
            )
        case 413:
            return EnvironmentFault(
                f"a request to {repository} is too large for the Hub{said}; publish fewer levels "
                "at a time with --levels"
            )
    return None


def no_write_token(endpoint: str) -> InputError:
    """The error for publishing without a token."""
    return InputError(
        f"publishing takes an access token with write access, and there is none: make one at "
        f"{endpoint}/settings/tokens, then {LOG_IN}"
    )


def failed(words: str, asked: Asked) -> EnvironmentFault:
    """The error for a fault without a known cause."""
    return EnvironmentFault(
        f"{asked.doing} failed ({words}); check the network, then run again: {asked.kept}"
    )
