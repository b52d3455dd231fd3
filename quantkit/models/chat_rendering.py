"""Renders a chat template in its process, which may not compute for long nor take much memory.

A template is a program that comes with a model. Jinja's sandbox keeps it from files and from the
interpreter, but not from loops without an end or texts without a limit: the system does.
"""

from __future__ import annotations

import functools
import json
import math
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from quantkit.core.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template

CPU_SECONDS = 5
"""For one conversation; beyond it the process ends. Honest templates take milliseconds."""
MEMORY_BYTES = 768 << 20
"""Address space of the process, which has 26 MB before it renders."""
LARGEST_CHARACTERS = 1 << 24
"""Limit for a rendered text."""
SHOWN_CHARACTERS = 300
"""Of a template's own words about its failure."""
PRELOAD = ("jinja2.ext", "jinja2.sandbox", __name__)


def render(template: str, names: dict[str, Any], emit: object) -> str:
    """The text of `template` with `names`; the task of the child process.

    Raises:
        InputError: whatever goes wrong in it, but for what ends the process.
    """
    with _limits():
        try:
            text = _rendered(template, names)
            if len(text) > LARGEST_CHARACTERS:
                raise InputError(f"its text has more than {LARGEST_CHARACTERS:,} characters")
            # lone surrogates, which no tokenizer takes, become question marks
            return text.encode("utf-8", "replace").decode("utf-8")
        except Exception as error:  # noqa: BLE001 - a foreign program may raise anything
            raise _failure(error) from None


def _rendered(template: str, names: dict[str, Any]) -> str:
    try:
        return _compiled(template).render(names)
    except Exception:
        if names["tools"] is not None:
            raise
    return _compiled(template).render(names | {"tools": []})  # some want a list, be it empty


def _failure(error: Exception) -> InputError:
    words = f"it needs more than {MEMORY_BYTES >> 20} MiB" if isinstance(error, MemoryError) else ""
    try:
        words = words or str(error)[: 4 * SHOWN_CHARACTERS].encode("utf-8", "replace").decode()
    except MemoryError:
        words = "its message is too long"
    printable = "".join(c if c.isprintable() else " " for c in words)
    said = " ".join(printable.split())[:SHOWN_CHARACTERS] or type(error).__name__
    return InputError(f"the model's chat template fails: {said}")


@functools.lru_cache(maxsize=1)
def _compiled(template: str) -> Template:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime(2026, 1, 1).strftime(pattern)  # a fixed day keeps tokens repeatable

    def tojson(value: object, indent: int | None = None, **_: object) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # `generation` only marks the text that training counts
    template = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    template = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", template)
    # the environment that transformers uses for chat templates
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(template)


@contextmanager
def _limits() -> Iterator[None]:
    """Limit what this process computes and holds from here on, until the block ends."""
    used = math.ceil(time.process_time())
    wanted = {resource.RLIMIT_CPU: used + CPU_SECONDS, resource.RLIMIT_AS: MEMORY_BYTES}
    before = {kind: resource.getrlimit(kind) for kind in wanted}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, (soft, hard) in before.items():
        most = wanted[kind] if soft == resource.RLIM_INFINITY else min(soft, wanted[kind])
        resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        for kind, both in before.items():
            resource.setrlimit(kind, both)
