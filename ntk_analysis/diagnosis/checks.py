"""What `diagnose` asks of its inputs and of the function."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.messages import first_line
from ntk_analysis.common.precision import wants_float64
from ntk_analysis.empirical.functions import Flat, Network, check_inputs, check_params, count_outputs, flattened
from ntk_analysis.empirical.whole_models import refuse_whole_models
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

LARGEST_COUNT = 256  # number of inputs taken unless asked for more


def chosen_inputs(x: ArrayLike, count: int | None, seed: int) -> np.ndarray:
    """`count` of the inputs, in their order; None takes all of them up to LARGEST_COUNT."""
    array = concrete(x, "x")
    try:
        check_inputs(array, None)
    except ValueError as error:
        raise ValueError(str(error).replace("x1", "x", 1)) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"x has dtype {array.dtype}, expected floats: perturbations of integers are not small")
    wanted = min(len(array), LARGEST_COUNT) if count is None else count
    if not 2 <= wanted <= len(array):
        raise ValueError(f"got {wanted} of {len(array)} inputs, expected at least 2 and no more than there are")
    if not array.any():
        raise ValueError("x is zero in all inputs: no phase can be measured there, pass inputs that differ")
    if wanted == len(array):
        return array
    return array[np.sort(np.random.default_rng(seed).choice(len(array), wanted, replace=False))]


def precision_of(params: Params, x: np.ndarray) -> AbstractContextManager[Any]:
    """A context of float64 for NumPy float64, else of what JAX's flag says."""
    return jax.enable_x64(True) if wants_float64(params, x) else nullcontext()


def checked_function(f: Network, params: Params, x: np.ndarray) -> Flat:
    """f with its outputs flattened, after one call of f that must give finite numbers."""
    if not isinstance(f, Layer) and not callable(f):
        raise TypeError(f"f must be a function of (params, x) or a network of layers, got {type(f).__name__}")
    refuse_whole_models(f, params)
    check_params(params)
    try:
        y: Any = (f.apply if isinstance(f, Layer) else f)(params, jnp.asarray(x))
    except Exception as error:  # a user's function may raise anything
        raise ValueError(f"f(params, x) raised {type(error).__name__}: {first_line(error)}") from error
    count_outputs(lambda *_: y, params, jax.eval_shape(lambda: jnp.asarray(x)))
    outputs = np.asarray(y, np.float64)
    bad = np.flatnonzero(~np.isfinite(outputs.reshape(len(x), -1)).all(axis=1))
    if bad.size:
        raise ValueError(f"f returned NaN or infinite values for {bad.size} of {len(x)} inputs, first for {bad[0]}")
    return flattened(f)
