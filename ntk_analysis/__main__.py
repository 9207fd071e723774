"""python -m ntk_analysis: the command line."""

from ntk_analysis.cli import start

if __name__ == "__main__":
    start()
