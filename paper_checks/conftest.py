"""The checks run as users run them: JAX's own defaults, and warnings that nobody expects are errors."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors."""
    config.addinivalue_line("filterwarnings", "error")
