"""Import of neural-tangents, once and on first use."""

import functools
import importlib
import importlib.metadata
import sys
import warnings
from typing import Any

import jax

from ntk_analysis.reference.patches import mend, patched_for_import

NAME = "neural_tangents"
VERSION = "0.6.5"
INSTALL = (
    f"neural-tangents {VERSION} works here on JAX 0.10 to 0.12; `uv sync --extra reference` installs it "
    "(by uv only: this project's override leaves TensorFlow out)"
)


@functools.cache
def load() -> Any:
    """The module neural_tangents 0.6.5, mended for current JAX; the last JAX it imports on unmended is 0.4.24.

    JAX, `sys.modules`, the warning filters and JAX's flags are afterwards as they were before. What stays are six names
    inside neural-tangents' own modules, listed with their reasons in `patches.mend`. `neural_tangents.experimental`,
    which needs TensorFlow, is not there.

    neural-tangents computes in JAX's default dtype, relies on implicit promotion, and warns when it is used: see
    `comparison.as_neural_tangents_expects`. Its `predict` functions do not work when they are built inside jit.

    Raises:
        ImportError: it is not installed, is another version, or this JAX is one on which it cannot be mended.
    """
    try:
        version = importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"neural-tangents is not installed. {INSTALL}") from None
    if version != VERSION:
        raise ImportError(f"got neural-tangents {version}. {INSTALL}")
    before = set(sys.modules)
    try:
        with warnings.catch_warnings(), patched_for_import():
            warnings.simplefilter("ignore")  # its docstrings alone raise SyntaxWarnings
            module = importlib.import_module(NAME)
            mend(module)
    except Exception as error:  # whatever a JAX that has moved on may raise
        for half_imported in [n for n in set(sys.modules) - before if n.partition(".")[0] == NAME]:
            del sys.modules[half_imported]
        raise ImportError(
            f"neural-tangents cannot be imported on JAX {jax.__version__} ({type(error).__name__}: {error}). {INSTALL}"
        ) from error
    return module
