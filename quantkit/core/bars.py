"""Progress bars in a terminal or a notebook; the only importer of tqdm, loaded with the first bar.

One line: `▸ imatrix            ━━━━━━━━━━╸────────  45%    12k tokens/s 00:32 left`.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from tqdm.auto import tqdm

from quantkit.core.units import bytes_text

AFTER_SECONDS = 0.4
"""Work that is shorter shows no bar: it would only flicker."""
_FORMAT = "▸ {desc:<18} {bar} {percentage:3.0f}% {speed:>13} {remaining:>5} left"


class Bar(tqdm):  # type: ignore[misc]
    """A bar that is erased when it is closed.

    Args:
        unit: `B` for bytes, else a plural noun.
        done: units that an earlier run did; they do not count for the rate.
    """

    def __init__(self, label: str, total: float, unit: str, done: float) -> None:
        super().__init__(
            desc=label,
            total=total,
            unit=unit,
            initial=done,
            file=sys.stdout,
            leave=False,
            delay=AFTER_SECONDS,
            dynamic_ncols=True,
            miniters=0,
            smoothing=0.1,
            ascii="─╸━",
            colour=None if "NO_COLOR" in os.environ else "cyan",
            bar_format=_FORMAT,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """The fields of the format, with the rate in units that suit it."""
        fields: dict[str, Any] = super().format_dict
        rate = fields["rate"]
        if rate is None and fields["elapsed"]:
            rate = (fields["n"] - fields["initial"]) / fields["elapsed"]
        return {**fields, "speed": rate_text(rate, self.unit) if rate else ""}


Bar.set_lock(threading.RLock())  # tqdm's own is one for several processes
Bar.monitor_interval = 0  # every update looks at the clock, so no thread has to


def rate_text(rate: float, unit: str) -> str:
    """Units per second in a form that suits the unit: `80.0 MiB/s`, `12k tokens/s`."""
    if unit == "B":
        return f"{bytes_text(rate)}/s"
    if rate >= 1e4:
        return f"{rate / 1e3:.0f}k {unit}/s"
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"
