"""The claims in a checkout, where they are a folder of the repository; a wheel has that folder here. See `figures`."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "paper_checks")]
