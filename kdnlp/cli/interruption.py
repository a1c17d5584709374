"""Ctrl-C: a command ends with one line that says what was kept, and with status 130."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_STATUS = 128 + signal.SIGINT
"""130: what a shell shows for every process that Ctrl-C ends."""

NOTHING_KEPT = "nothing was kept."


@contextmanager
def ends_in_one_line(command: str, kept: str = NOTHING_KEPT) -> Iterator[None]:
    """End the process with one line if the block is interrupted.

    The first Ctrl-C unwinds the block, so that what it holds is let go. A second one does not wait
    for that, and ends the process at once.

    Args:
        command: named in the line.
        kept: what was kept, unless the `KeyboardInterrupt` says it.

    Raises:
        SystemExit: with status 130.
    """
    try:
        with _second_ends_at_once():
            yield
    except KeyboardInterrupt as stop:
        if not int(os.environ.get("RANK", "0")):  # of several processes one says it
            # On a terminal the line so far is a progress bar, or its own ^C.
            start = "\n" if sys.stderr.isatty() else ""
            said = str(stop) or kept
            print(f"{start}kdnlp {command}: Interrupted; {said}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STATUS) from stop


@contextmanager
def _second_ends_at_once() -> Iterator[None]:
    """In the main thread, for Python allows handlers in no other, unless Ctrl-C is ignored."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        # After a first Ctrl-C the process only ends, and the next one may still come.
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
