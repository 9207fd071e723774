"""Ctrl-C ends every command: at the next line of Python, and two seconds after it at the latest.

Python raises KeyboardInterrupt only between its own instructions, while one call of a compiler or of a compiled program
may take minutes, and it loses the exception in callbacks of the garbage collector. So a thread waits for the signal,
and an exception that is lost is raised again. Files appear whole or not at all, so the process can be left at any time.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status after Ctrl-C, the same as in shells
PATIENCE = 2.0  # seconds from the signal until the process is left
AGAIN = 0.05  # seconds until a lost exception is raised again, in which a callback ends


def listen() -> None:
    """Makes Ctrl-C end this process from now on, unless whoever started it has switched Ctrl-C off."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # registered first, so called last: while Python takes itself apart, a signal would be the end by a signal
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, writing), name="Ctrl-C", daemon=True).start()
    sys.unraisablehook = _raised_again


def _watch(reading: socket.socket, _writing: socket.socket) -> None:
    while signal.SIGINT not in reading.recv(64):
        pass
    time.sleep(PATIENCE)
    os.write(2, b"interrupted: left in the middle of a computation; no file is half-written\n")
    leave()


def leave() -> NoReturn:
    """Leaves this process and its children at once, with the status of an interrupted command.

    `sys.exit` would not do: Python ends itself by the signal once a KeyboardInterrupt has passed through `exec` of a
    text, as dataclasses use it in every import.
    """
    _end_children()
    os._exit(INTERRUPTED)


def _end_children() -> None:
    """Ends the processes that this one has started: they would wait for it."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            child.kill()


def _raised_again(lost: Any) -> None:
    """For `sys.unraisablehook`: raises a lost KeyboardInterrupt again, a little later, and shows any other error."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(AGAIN, _interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def _interrupt_main() -> None:
    if hasattr(signal, "pthread_kill"):  # wakes the main thread from waiting, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
