"""Import of neural-tangents, once and on first use."""

import functools
import importlib
import importlib.metadata
import sys
import warnings
from types import ModuleType

import jax

from ntk_analysis.reference.patches import mend, patched_for_import

NAME = "neural_tangents"
VERSION = "0.6.5"
INSTALL = (
    f"neural-tangents {VERSION} works here on JAX 0.10 to 0.12; `uv sync --extra reference` installs it "
    "(by uv only: this project's override leaves TensorFlow out)"
)


@functools.cache
def load() -> ModuleType:
    """The module neural_tangents 0.6.5, mended for current JAX; unmended, JAX 0.4.24 is the last on which it imports.

    Afterwards JAX, `sys.modules`, the warning filters and JAX's flags are as they were before. Only six names inside
    neural-tangents' own modules stay changed; `patches.mend` lists them with their reasons.
    `neural_tangents.experimental`, which needs TensorFlow, is missing.

    neural-tangents computes in JAX's default dtype, relies on implicit promotion, and warns when it is used: see
    `comparison.as_neural_tangents_expects`. Its `predict` functions do not work when they are built inside jit.

    Raises:
        ImportError: it is not installed, is another version, or cannot be mended on this JAX.
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
    except Exception as error:  # a newer JAX may raise anything
        for half_imported in [n for n in set(sys.modules) - before if n.partition(".")[0] == NAME]:
            del sys.modules[half_imported]
        raise ImportError(
            f"neural-tangents cannot be imported on JAX {jax.__version__} ({type(error).__name__}: {error}). {INSTALL}"
        ) from error
    return module
