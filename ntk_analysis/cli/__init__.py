"""The command line: one file for each group of commands, put together in `app`.

Heavy imports stand inside the commands, so that --help answers at once.
"""

import contextlib
import sys

from ntk_analysis.cli.ctrl_c_ends import INTERRUPTED, leave, listen


def main() -> None:
    """Runs the command line in this process; see `app.main`."""
    from ntk_analysis.cli.app import main as run

    run()


def start() -> None:
    """Runs the command line as a program of its own, which Ctrl-C ends from its first import on."""
    listen()
    try:
        try:
            main()
        except KeyboardInterrupt:
            print("interrupted: nothing half-written", file=sys.stderr)
            sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            sys.stdout.flush()
        leave()
