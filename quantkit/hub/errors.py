"""What is said when the Hub refuses: the answer in plain values, and the sentence for it."""

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
_LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"


class NotThereError(InputError):
    """No such repository or revision, as far as the token shows."""


@dataclass(frozen=True)
class Refusal:
    """An answer of 400 or more.

    Attributes:
        code: what the Hub calls it, or nothing.
        message: the Hub's words, or nothing.
        address: that answered, without the signature of a query.
        is_hub: whether the Hub itself answered; else the network that it sends to for content.
        asked_wait_s: for how long the server wants to be left alone.
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
    """What was wanted: of which repository and revision, from where, and whether with a token.

    Attributes:
        purpose: of asking; what stands in its way is told in its words.
    """

    endpoint: str
    repository: str
    revision: str | None
    has_token: bool
    kind: RepositoryKind = "model"
    purpose: Purpose = "download"

    @property
    def page(self) -> str:
        """The repository's address for people."""
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{self.endpoint}/{folder}{self.repository}"

    @property
    def doing(self) -> str:
        """The beginning of a sentence."""
        return {"download": "downloading", "look up": "looking up", "publish": "publishing"}[
            self.purpose
        ]

    @property
    def way(self) -> str:
        """What stands before the endpoint."""
        return {"download": "from", "look up": "at", "publish": "to"}[self.purpose]

    @property
    def kept(self) -> str:
        """Why to run again is to go on."""
        return {
            "download": "finished files are kept",
            "look up": "nothing was changed there",
            "publish": "what was uploaded is kept, and nothing is visible before all is there",
        }[self.purpose]

    @property
    def name(self) -> str:
        """The repository in a sentence."""
        return self.repository if self.kind == "model" else f"the {self.kind} {self.repository}"


def refusal_error(refusal: Refusal, asked: Asked) -> QuantkitError:
    """The error for an answer after which nothing more is tried."""
    if refusal.status == 429:
        return EnvironmentFault(
            f"{asked.endpoint} limits how often it may be asked (429), and still did after all "
            f"attempts; run again in some minutes: {asked.kept}"
            + ("" if asked.has_token else f"; to be granted more, {_LOG_IN}")
        )
    if not refusal.is_hub and refusal.status < 500 and refusal.status not in (408, 416):
        return EnvironmentFault(
            f"{asked.doing} {asked.name} failed: the content network refused "
            f"({refusal.status}) {refusal.address}, although each attempt asked {asked.endpoint} "
            "for a new address; check this machine's clock and its proxy, then run again: "
            f"{asked.kept}"
        )
    known = _write_error(refusal, asked) if asked.purpose == "publish" else None
    words = f"HTTP {refusal.status}" + (f": {refusal.message}" if refusal.message else "")
    return known or _hub_error(refusal, asked) or failed(words, asked)


def _write_error(refusal: Refusal, asked: Asked) -> QuantkitError | None:
    """What stands in the way of a change, where it is not what stands in the way of reading."""
    said = f" ({refusal.status}: {refusal.message})" if refusal.message else f" ({refusal.status})"
    if refusal.status == 402 or _NO_ROOM.search(refusal.message):
        return InputError(
            f"the Hub has no room for {asked.repository}{said}; make room or get more at "
            f"{asked.endpoint}/settings/billing, or publish without --private; {asked.kept}"
        )
    if refusal.status == 401 and refusal.message != _BAD_TOKEN:
        return no_write_token(asked.endpoint)
    if refusal.status == 403:
        owner = asked.repository.partition("/")[0]
        return InputError(
            f"the Hub refuses to let you write to {asked.repository}{said}: the token needs write "
            f"access to {owner}, and its account a right to write there; see "
            f"{asked.endpoint}/settings/tokens, then {_LOG_IN}"
        )
    if refusal.status == 409:
        return EnvironmentFault(
            f"something else is being done to {asked.repository} at this moment{said}; run again: "
            f"{asked.kept}"
        )
    if refusal.status == 400:
        return InputError(
            f"the Hub does not take what is published to {asked.repository}{said}; {asked.kept}"
        )
    if refusal.status == 413:
        return EnvironmentFault(
            f"the Hub finds a request to {asked.repository} too large{said}; publish fewer levels "
            "at a time with --levels"
        )
    return None


def refused_card(words: str) -> InputError:
    """What is said of metadata of a model card that the Hub does not take."""
    return InputError(
        f"the Hub does not take the card's metadata: {words}; they are from the source's own card: "
        "name another source with --base-model, or see to its card"
    )


def no_write_token(endpoint: str) -> InputError:
    """What is said where publishing was asked for and nobody is logged in."""
    return InputError(
        f"publishing takes an access token with the right to write, and there is none: make one at "
        f"{endpoint}/settings/tokens, then {_LOG_IN}"
    )


def _hub_error(refusal: Refusal, asked: Asked) -> QuantkitError | None:
    repository, page = asked.name, asked.page
    if refusal.code == "GatedRepo":
        return InputError(
            f"{repository} is gated: accept its terms at {page}, "
            + (
                "with the account of your token; if you have, its owner may still have to agree"
                if asked.has_token
                else f"then {_LOG_IN}"
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
            f"one at {asked.endpoint}/settings/tokens, then {_LOG_IN}"
        )
    if refusal.code == "RepoNotFound" or refusal.status == 401:
        return NotThereError(
            f"no {'repository' if asked.kind == 'model' else asked.kind} {asked.repository} for "
            "you: check the name"
            + (
                "; if it is private, the account of your token needs access to it"
                if asked.has_token
                else f", or {_LOG_IN} if it is private or gated"
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
    return None


def failed(words: str, asked: Asked) -> EnvironmentFault:
    """What is said of a fault that nothing more is known of."""
    return EnvironmentFault(
        f"{asked.doing} {asked.name} {asked.way} {asked.endpoint} failed "
        f"({words}); check the network, then run again: {asked.kept}"
    )


def offline(asked: Asked) -> EnvironmentFault:
    return EnvironmentFault(
        f"{asked.doing} {asked.name} needs the Hub, and HF_HUB_OFFLINE is set; unset it"
    )


def no_address(name: str) -> InputError:
    return InputError(
        f"{name} is no address of a hub; give one such as https://huggingface.co, or unset "
        "HF_ENDPOINT"
    )


def no_token() -> InputError:
    """What is said of a token that cannot be sent; it is a secret, so it is not shown."""
    return InputError(
        "your access token for the Hub holds characters that no token has, perhaps from copying: "
        f"copy it again, then {_LOG_IN}"
    )
