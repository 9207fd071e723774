"""python -m ntk_analysis.cli."""

from ntk_analysis.cli import main

if __name__ == "__main__":
    main()
