"""The command line: one file for each group of commands, put together in `app`.

Heavy imports stand inside the commands, so that --help answers at once.
"""

import sys

from ntk_analysis.cli.interrupts import INTERRUPTED, listen


def main() -> None:
    """Runs the command line in this process; see `app.main`."""
    from ntk_analysis.cli.app import main as run

    run()


def start() -> None:
    """Runs the command line as a program of its own, which Ctrl-C ends from its first import on."""
    listen()
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted: nothing half-written", file=sys.stderr)
        sys.exit(INTERRUPTED)
