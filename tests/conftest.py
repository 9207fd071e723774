"""One place for how strict the tests are: shapes, dtypes, ranks and warnings all fail loudly."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# most of the suite's time is compilation of small programs: a third less without the optimiser
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# every annotation of the library, array shapes included, is checked at run time while the tests run
install_import_hook("ntk_analysis", "beartype.beartype")

# fixed examples: a red test is red again; compile times make per-example deadlines meaningless
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")


def pytest_configure(config):
    # warnings are errors; here and not in pyproject.toml, so that there is one place for strictness
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Programs of one file are of no use to the next, and all of them together take gigabytes."""
    yield
    jax.clear_caches()
