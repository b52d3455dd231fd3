"""How many threads work, and the same work on many things at a time.

The threads never hold up the end of the program.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from quantkit.core.errors import InputError

MOST_WORKERS = 512
"""GGML_MAX_N_THREADS of ggml.h, above which it aborts."""
STOP_SECONDS = 2.0
_Item = TypeVar("_Item")


def worker_count(chosen: int | None) -> int:
    """`chosen`, or one thread for each core that this process may use.

    Raises:
        InputError: `chosen` is more than MOST_WORKERS.
    """
    if chosen is not None and chosen > MOST_WORKERS:
        raise InputError(f"--workers is {chosen} (limit {MOST_WORKERS}); give fewer threads")
    return chosen or min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def run_all(
    work: Callable[[_Item], None], items: Sequence[_Item], workers: int, stop: threading.Event
) -> None:
    """Run `work` on every item, started in order; raise the first error.

    The threads are daemons, which the interpreter does not wait for: ctrl-C during a stalled
    connection ends the program at once.

    Args:
        stop: set when the work should end; `work` checks it now and then.
    """
    waiting: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def loop() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
                outcomes.put(None)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                outcomes.put(error)  # before stop is set: what the others then raise comes after
                stop.set()

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            error = outcomes.get()
            if error is not None:
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
