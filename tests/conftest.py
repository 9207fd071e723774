"""One place for how strict the tests are: shapes, dtypes and ranks all fail loudly."""

import os
from pathlib import Path

import hypothesis
import jax
from jaxtyping import install_import_hook

import ntk_analysis

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# every annotation of the library, array shapes included, is checked at run time: in CI, as it takes a sixth of the time
if "CHECK_ANNOTATIONS" in os.environ:
    from . import annotations

    rooms = {path.stem for path in Path(ntk_analysis.__file__).parent.iterdir()} - {"figures", "paper_checks"}
    install_import_hook([f"ntk_analysis.{name}" for name in rooms], f"{annotations.__name__}.checked")

# fixed examples: a red test is red again; compile times make per-example deadlines meaningless
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")
