"""Ctrl-C waits while a library writes: its threads would go on behind a KeyboardInterrupt."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """A context at whose end the handler of a Ctrl-C within it is called; an error of its own comes first.

    Signals that are switched off, and another thread than the main one, are left as they are.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = list[int]()
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(came[0], None)
