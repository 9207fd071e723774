"""What all tests share: the environment they run in, and what is forgotten between two files."""

import os
import sys
import tempfile

from ntk_analysis.common import quick_compilation

# Where Python is told to keep no bytecode, this run and its workers and commands share some for as long as it takes:
# compiling the modules of JAX and SciPy is half of the start of each process.
if sys.dont_write_bytecode and "PYTEST_XDIST_WORKER" not in os.environ:
    shared = tempfile.TemporaryDirectory(prefix="bytecode-")  # removed when this process ends
    sys.dont_write_bytecode, sys.pycache_prefix = False, shared.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = shared.name
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["NTK_ANALYSIS_CACHE"] = "off"  # no test reads what another run compiled
# most of the tests' time is compilation of small programs; tests of exact bits run with the emitters that users have
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        quick_compilation.WITHOUT_OPTIMIZER if "EXACT_BITS" in os.environ else quick_compilation.flags(),
    ]
)

import jax
import pytest


def pytest_configure(config):
    """Warnings are errors: here and not in pyproject.toml, so that there is one place for strictness."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Programs of one file are of no use to the next, and all of them together take gigabytes."""
    yield
    jax.clear_caches()
