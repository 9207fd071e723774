"""python -m ntk_analysis: the command line."""

from ntk_analysis.cli import main

if __name__ == "__main__":
    main()
