"""The command line: one file for each group of commands, put together in `app`.

Heavy imports stand inside the commands, so that --help answers at once.
"""

from ntk_analysis.cli.app import main as main
