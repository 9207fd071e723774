"""The checks run as users run them: with JAX's own defaults, also beside the tests of the library, which are strict."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def defaults_of_jax() -> Iterator[None]:
    """Precision and promotion as JAX has them where nobody chose."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
