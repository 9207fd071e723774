"""Ctrl-C ends every command: at the next line of Python, and two seconds after it at the latest.

Python raises KeyboardInterrupt only between its own instructions, while one call of a compiler or of a compiled program
may take minutes, and it loses the exception in callbacks of the garbage collector. So a thread waits for the signal,
and an exception that is lost is raised again. Extensions in C print the exception while they are imported, or abort, so
it waits for the end of an import. They replace it by an error of their own, as Matplotlib does where it reads a matrix;
so it is kept that the signal came. Files appear whole or not at all, so the process can be left at any time.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status after Ctrl-C, the same as in shells
PATIENCE = 2.0  # seconds from the signal until the process is left
AGAIN = 0.05  # seconds until a lost exception is raised again, in which a callback ends
IMPORTS = "<frozen importlib._bootstrap>"  # the file of the functions of Python that import

# lists, because a handler must take no lock
_signals = list[int]()  # all that came
_owed = list[int]()  # those whose exception has not reached the program


def came() -> bool:
    """Whether Ctrl-C has reached this process, so that an error may be its consequence."""
    return bool(_signals)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    if _imports(frame):
        _owed.append(number)
    else:
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != IMPORTS:
        frame = frame.f_back
    return frame is not None


def listen() -> None:
    """Makes Ctrl-C end this process from now on, unless whoever started it has switched Ctrl-C off."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.signal(signal.SIGINT, _interrupt)
    # registered first, so called last: while Python takes itself apart, a signal would be the end by a signal
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, writing), name="Ctrl-C", daemon=True).start()
    sys.unraisablehook = _raised_again


def _watch(reading: socket.socket, _writing: socket.socket) -> None:
    while signal.SIGINT not in reading.recv(64):
        pass
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(AGAIN)
        if _owed:
            _owed.clear()
            _interrupt_main()
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
    """For `sys.unraisablehook`: a lost KeyboardInterrupt is raised again, a little later; any other error is shown."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        _owed.append(signal.SIGINT)
    else:
        sys.__unraisablehook__(lost)


def _interrupt_main() -> None:
    if hasattr(signal, "pthread_kill"):  # wakes the main thread from waiting, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
