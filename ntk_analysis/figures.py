"""The figures in a checkout, where they are the folder `figures` of the repository; a wheel has that folder here.

So they have one name, `ntk_analysis.figures`, and no package `figures` of a user's own can take their place.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "figures")]
