"""python -m ntk_analysis.cli."""

from ntk_analysis.cli import start

if __name__ == "__main__":
    start()
