"""The checks run as users run them: JAX's own defaults, and warnings that nobody expects are errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
